"""Benchmarks of translation, remote keys and registration (document 003:740-900).

What is compared: a *plain* region is one registered buffer; a *paged* one is an address space of 4 KiB pages, scattered
over the frames, that work requests name by the domain's reserved local key, and peers by a key that was bound to it.
Figures that are differences or ratios are taken from rounds in turn, so that what else the machine does meets both.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from endpoint import MESSAGE, row, with_peer

from verbena import (
    Access,
    BindInfo,
    DeviceAttributes,
    QPType,
    ScatterGatherEntry,
    SendFlags,
    VirtualNetwork,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import ConnectedPair, Side, connect_sides, make_side
from verbena.verbs.windows import REMOTE

PAGE_BITS = 12
PAGE = 1 << PAGE_BITS
BASE = 0x7000_0000_0000  # of each address space
ROUNDS = 15
BINDABLE = Access.LOCAL_WRITE | Access.WINDOW_BIND


def make_paged(side: Side, length: int) -> memoryview:
    """Tie the side's domain to an address space of so many bytes; returns the frames, which stand in random order."""
    memory = side.ctx.adapter.memory
    space = memory.make_space(PAGE_BITS)
    frames = memoryview(bytearray(length))
    order = list(range(length // PAGE))
    Random(1).shuffle(order)
    memory.add_range(space, BASE >> PAGE_BITS, len(order))
    for page, frame in enumerate(order):
        memory.set_page(space, (BASE >> PAGE_BITS) + page, frames[frame * PAGE : (frame + 1) * PAGE])
    side.pd.use_space(space)
    return frames


def _paged_target(side: Side, pipe: Connection) -> None:
    make_paged(side, MESSAGE)
    (key,) = side.pd.allocate_rkey()
    side.qp.bind_rkey(key, BASE, MESSAGE)
    side.cq.wait(5)
    pipe.send(key.rkey)
    pipe.recv()


def bandwidth_kept() -> dict[str, Any]:
    """1 MiB WRITEs between two processes, from pages into pages, beside the same between plain regions."""

    def run(side: Side, addr: int, rkey: int, pipe: Connection) -> float:
        key = pipe.recv()
        make_paged(side, MESSAGE)
        plain = WorkRequest(1, WROpcode.RDMA_WRITE, [side.mr.sge()], remote_addr=addr, rkey=rkey)
        paged = WorkRequest(
            1, WROpcode.RDMA_WRITE, [ScatterGatherEntry(BASE, MESSAGE, 0)], remote_addr=BASE, rkey=key
        )

        def seconds(request: WorkRequest) -> float:
            open_requests = 0
            start = time.perf_counter()
            for _ in range(300):
                side.qp.post_send(request)
                open_requests += 1
                while open_requests >= 2:
                    open_requests -= len([c.raise_for_status() for c in side.cq.wait(5)])
            while open_requests:
                open_requests -= len([c.raise_for_status() for c in side.cq.wait(5)])
            return time.perf_counter() - start

        seconds(plain), seconds(paged)
        return statistics.median(seconds(plain) / seconds(paged) for _ in range(ROUNDS))

    return row("memory.bandwidth_kept", with_peer(_paged_target, run), "of the bandwidth", 1.0)


def _pair(seed: int = 0, **limits: int) -> ConnectedPair:
    """Two adapters in virtual time, with queues for long lists."""
    net = VirtualNetwork(seed, delay_ns=100, rate_bps=0)
    attributes = DeviceAttributes(**limits)
    sides = [
        make_side(net.open_device(f"10.0.0.{i}", limits=attributes), QPType.RC, 1 << 16, max_send_wr=2048)
        for i in (1, 2)
    ]
    connect_sides(*sides)
    return ConnectedPair(sides[0], sides[1], net)


def _list_time(side: Side, requests: list[WorkRequest], repeats: int) -> float:
    """Processor time of both adapters for a work request, in seconds."""
    start = time.process_time()
    for _ in range(repeats):
        side.qp.post_send_many(requests)
        for entry in side.cq.wait():
            entry.raise_for_status()
    return (time.process_time() - start) / (repeats * len(requests))


def _writes(side: Side, local: list[ScatterGatherEntry], remote: list[tuple[int, int]]) -> list[WorkRequest]:
    """64-byte WRITEs to (address, key), the last one signaled."""
    return [
        WorkRequest(
            i,
            WROpcode.RDMA_WRITE,
            local,
            SendFlags.SIGNALED if i == len(remote) - 1 else SendFlags.NONE,
            remote_addr=address,
            rkey=rkey,
        )
        for i, (address, rkey) in enumerate(remote)
    ]


def write_64_added_ns() -> dict[str, Any]:
    """What translation and the key's check add to a 64-byte WRITE, at both ends together."""
    with _pair() as pair:
        a, b = pair.a, pair.b
        size = 1 << 16
        make_paged(a, size)
        make_paged(b, size)
        (key,) = b.pd.allocate_rkey()
        b.qp.bind_rkey(key, BASE, size)
        b.cq.wait()
        places = [Random(2).randrange(size - 64) for _ in range(256)]
        plain = _writes(a, [a.mr.sge(0, 64)], [(b.mr.addr + p, b.mr.rkey) for p in places])
        paged = _writes(a, [ScatterGatherEntry(BASE, 64, 0)], [(BASE + p, key.rkey) for p in places])
        _list_time(a, plain, 50), _list_time(a, paged, 50)
        rounds = [(_list_time(a, plain, 60), _list_time(a, paged, 60)) for _ in range(ROUNDS)]
        added = statistics.median(with_ - without for without, with_ in rounds)
        return row("memory.write_64_added_ns", added * 1e9, "ns", None)


def bind_rate() -> dict[str, Any]:
    """Bind and unbind, 256 of each in a posted list, of 64 keys in turn; pairs of them a second."""
    with _pair() as pair:
        b = pair.b
        mr = b.pd.alloc_mr(1 << 20, BINDABLE)
        keys = b.pd.allocate_rkey(64)
        work = []
        for i in range(256):
            what = BindInfo(mr, mr.addr + 4000 * i, 13 + i, REMOTE)
            work.append(WorkRequest(0, WROpcode.BIND_MW, mw=keys[i % 64], bind=what, flags=SendFlags.NONE))
            work.append(
                WorkRequest(0, WROpcode.BIND_MW, mw=keys[i % 64], bind=BindInfo(), flags=SendFlags.NONE)
            )
        work[-1].flags = SendFlags.SIGNALED
        _list_time(b, work, 10)
        calls = b.ctx.counters()["memory.kernel_calls"]
        each = statistics.median(_list_time(b, work, 20) for _ in range(ROUNDS))
        assert b.ctx.counters()["memory.kernel_calls"] == calls, "a bind is no call into the driver"
        return row("memory.bind_rate", 1 / (2 * each), "binds and unbinds a second", None)


def _bound(side: Side, count: int, mr: Any) -> list[tuple[int, int]]:
    """So many live keys, each bound to 64 bytes of the region; (address, key) of each."""
    places = []
    for first in range(0, count, 1000):
        windows = side.pd.allocate_rkey(min(1000, count - first))
        for i, window in enumerate(windows):
            last = i == len(windows) - 1
            address = mr.addr + 64 * ((first + i) % 1024)
            what = BindInfo(mr, address, 64, REMOTE)
            side.qp.post_send(
                WorkRequest(
                    0,
                    WROpcode.BIND_MW,
                    mw=window,
                    bind=what,
                    flags=SendFlags.SIGNALED if last else SendFlags.NONE,
                )
            )
            places.append((address, window.rkey))
        side.cq.wait()
    return places


def key_check_1m() -> dict[str, Any]:
    """A 64-byte WRITE by one of an adapter's 1,000,000 live keys, each time another one; beside one with 1,000."""
    gc.disable()  # it would look through a million Python objects, again and again
    try:
        with _pair(max_mw=1_000_000) as many, _pair(max_mw=1000) as few:
            random = Random(3)
            tried = []
            for pair, count in ((many, 1_000_000), (few, 1000)):
                places = _bound(pair.b, count, pair.b.pd.alloc_mr(1 << 16, BINDABLE))
                tried.append((pair.a, places, _writes(pair.a, [pair.a.mr.sge(0, 64)], places[:256])))

            def each(side: Side, places: list[tuple[int, int]], work: list[WorkRequest]) -> float:
                figures = []
                for _ in range(30):
                    for request in work:
                        request.remote_addr, request.rkey = random.choice(places)
                    figures.append(_list_time(side, work, 1))
                return min(figures)  # of the others, something else had the processor or its caches

            rounds = [[each(*what) for what in tried] for _ in range(2 * ROUNDS)]
            slow, fast = (statistics.median(r[i] for r in rounds) for i in range(2))
            return row("memory.key_check_1m", slow * 1e9, "ns a WRITE", fast * 1e9)
    finally:
        gc.enable()


def register_1g() -> list[dict[str, Any]]:
    """Registering and deregistering 1 GiB, none of whose pages is touched; and what each page costs that then is.

    The baseline of the first is the same for one page.
    """
    with _pair() as pair:
        b = pair.b
        memory = b.ctx.adapter.memory
        space = memory.make_space(PAGE_BITS, on_demand=True)
        pages = (1 << 30) // PAGE
        memory.add_range(space, BASE >> PAGE_BITS, pages)
        b.pd.use_space(space)

        def registered(length: int) -> float:
            figures = []
            for _ in range(ROUNDS):
                start = time.process_time()
                for _ in range(100):
                    b.pd.reg_space(BASE, length, REMOTE | Access.LOCAL_WRITE).close()
                figures.append((time.process_time() - start) / 100)
            return statistics.median(figures)

        frames = memoryview(bytearray(64 * PAGE))
        first = BASE >> PAGE_BITS
        start = time.process_time()
        for page in range(20_000):
            at = page % 64 * PAGE
            memory.set_page(space, first + page, frames[at : at + PAGE])
        touched = (time.process_time() - start) / 20_000
        return [
            row("memory.register_1g", registered(1 << 30) * 1e6, "us", registered(PAGE) * 1e6),
            row("memory.register_1g_page", touched * 1e6, "us a page that is touched", None),
        ]


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "bandwidth_kept": bandwidth_kept,
    "write_64_added_ns": write_64_added_ns,
    "bind_rate": bind_rate,
    "key_check_1m": key_check_1m,
    "register_1g": register_1g,
}
