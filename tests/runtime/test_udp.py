"""Adapters on real sockets: two addresses of the loopback interface, one process or two."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import multiprocessing
import os
import random
import select
import socket
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import verbena
from lab import drops_unexplained
from verbena import (
    AckPolicy,
    CompletionStatus,
    FaultInjector,
    Faults,
    InvalidAttributeError,
    PcapTap,
    QPState,
    QPType,
    RecvRequest,
    SystemLimitError,
    Tracer,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.cli.dump import dump
from verbena.runtime import udp
from verbena.runtime.pairs import Side, connect_sides, make_side

pytestmark = pytest.mark.loopback
A, B = "127.0.71.1", "127.0.71.2"
PATIENCE = 30.0


@pytest.fixture
def ends() -> Iterator[tuple[Side, Side]]:
    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        yield a, b


def write(a: Side, b: Side, length: int) -> None:
    a.qp.post_send(
        WorkRequest(9, WROpcode.RDMA_WRITE, [a.mr.sge(0, length)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    )


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 70_001, 1 << 20])
def test_every_operation_moves_the_bytes(ends: tuple[Side, Side], length: int) -> None:
    a, b = ends
    a.mr.buf[:length] = os.urandom(length)
    b.qp.post_recv(RecvRequest(5, [b.mr.sge()]))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND_WITH_IMM, [a.mr.sge(0, length)], imm_data=0xDEADBEEF))
    (received,) = b.cq.wait(PATIENCE)
    (sent,) = a.cq.wait(PATIENCE)
    assert (received.wr_id, received.byte_len, received.imm_data) == (5, length, 0xDEADBEEF)
    assert sent.status is CompletionStatus.SUCCESS
    assert b.mr.buf[:length] == a.mr.buf[:length]

    a.mr.buf[:length] = os.urandom(length)
    write(a, b, length)
    a.cq.wait(PATIENCE)[0].raise_for_status()
    assert b.mr.buf[:length] == a.mr.buf[:length]

    b.mr.buf[:length] = os.urandom(length)
    a.qp.post_send(
        WorkRequest(3, WROpcode.RDMA_READ, [a.mr.sge(0, length)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    )
    a.cq.wait(PATIENCE)[0].raise_for_status()
    assert b.mr.buf[:length] == a.mr.buf[:length]
    for side in ends:
        assert not drops_unexplained(side.ctx.counters())


def test_loopback_to_the_same_adapter_uses_no_socket() -> None:
    with verbena.open_device(A) as ctx:
        a, b = make_side(ctx, QPType.RC), make_side(ctx, QPType.RC)
        connect_sides(a, b)
        a.mr.buf[:] = os.urandom(a.mr.length)
        write(a, b, a.mr.length)
        a.cq.wait(PATIENCE)[0].raise_for_status()
        assert a.mr.buf == b.mr.buf
        counters = ctx.counters()
        assert counters["looped.packets"] == counters["tx.packets"] == counters["rx.packets"] > 256


def test_datagrams_carry_their_sender(ends: tuple[Side, Side]) -> None:
    a, b = ends
    one, two = make_side(a.ctx, QPType.UD), make_side(b.ctx, QPType.UD)
    connect_sides(one, two, qkey=0x1234)
    two.qp.post_recv(RecvRequest(1, [two.mr.sge(0, 4096 + 40)]))
    handle = one.pd.create_ah(verbena.AddressVector(gid=b.ctx.gids[0], traffic_class=8, hop_limit=3))
    one.mr.buf[:4096] = os.urandom(4096)
    one.qp.post_send(
        WorkRequest(
            2, WROpcode.SEND, [one.mr.sge(0, 4096)], ah=handle, remote_qpn=two.qp.qp_num, remote_qkey=0x1234
        )
    )
    (got,) = two.cq.wait(PATIENCE)
    assert (got.src_qp, got.byte_len) == (one.qp.qp_num, 4136)
    assert two.mr.buf[40:4136] == one.mr.buf[:4096]
    assert bytes(two.mr.buf[32:40]) == a.ctx.gids[0].raw[12:] + b.ctx.gids[0].raw[12:]


# --- progress without the program -------------------------------------------------------------------------


def _computing_target(pipe: Connection) -> None:
    """Gives its memory away, then holds the interpreter lock in pure Python code until its memory says stop."""
    with verbena.open_device(B) as ctx:
        side = make_side(ctx, QPType.RC, 4096)
        pipe.send((side.qp.endpoint, side.mr.addr, side.mr.rkey))
        side.qp.connect(pipe.recv())
        sys.setswitchinterval(1000.0)
        pipe.send("computing")
        buf = side.mr.buf
        for _ in range(4_000_000_000):
            if buf[0]:
                break
        pipe.send((bytes(buf[:16]), len(side.cq)))
        pipe.recv()


@pytest.mark.requirement("TRN-03", "VRB-06")
@pytest.mark.skipif(
    not _pure.compiled(), reason="uncompiled, progress needs the interpreter lock (documented)"
)
def test_one_sided_operations_complete_while_the_target_computes() -> None:
    """The target's only Python thread never lets go of the interpreter lock while the operations run.

    It leaves its loop only through the last RDMA WRITE; were the lock needed, nothing could ever complete.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_computing_target, args=(there,), daemon=True)
    process.start()
    try:
        with verbena.open_device(A) as ctx:
            a = make_side(ctx, QPType.RC, 4096)
            endpoint, addr, rkey = here.recv()
            here.send(a.qp.endpoint)
            a.qp.connect(endpoint)
            assert here.recv() == "computing"

            def run(opcode: WROpcode, offset: int, remote: int, length: int, **more: int) -> None:
                a.qp.post_send(
                    WorkRequest(
                        1, opcode, [a.mr.sge(offset, length)], remote_addr=addr + remote, rkey=rkey, **more
                    )
                )
                (entry,) = a.cq.wait(PATIENCE)
                entry.raise_for_status()

            a.mr.buf[:16] = bytes(range(16))
            run(WROpcode.RDMA_WRITE, 1, 1, 7)
            for _ in range(100):
                run(WROpcode.ATOMIC_FETCH_AND_ADD, 64, 8, 8, compare_add=3)
            run(WROpcode.RDMA_READ, 128, 0, 16)
            assert bytes(a.mr.buf[128:144]) == bytes([0, *range(1, 8)]) + (300).to_bytes(8, "little")
            a.mr.buf[0] = 1
            run(WROpcode.RDMA_WRITE, 0, 0, 1)
            content, completions = here.recv()
            assert content == bytes([1, *range(1, 8)]) + (300).to_bytes(8, "little")
            assert completions == 0
            here.send("end")
            process.join(PATIENCE)
    finally:
        process.kill()


def test_a_receiver_that_closes_at_once_has_acknowledged(ends: tuple[Side, Side]) -> None:
    a, b = ends
    b.qp.post_recv(RecvRequest(5, [b.mr.sge()]))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, 64)]))
    while not b.cq.poll():
        pass
    b.qp.close()
    assert a.cq.wait(PATIENCE)[0].status is CompletionStatus.SUCCESS


# --- waiting ----------------------------------------------------------------------------------------------


def test_waits_end_in_time_or_with_an_entry(ends: tuple[Side, Side]) -> None:
    a, b = ends
    assert a.cq.wait(0) == [] == a.cq.wait(0.01)
    timer = threading.Timer(0.1, lambda: write(b, a, 8))
    timer.start()
    assert b.cq.wait(PATIENCE)[0].ok
    timer.join()


def test_several_threads_wait_for_their_own_queues(ends: tuple[Side, Side]) -> None:
    a, b = ends
    sides = [(make_side(a.ctx, QPType.RC, 4096), make_side(b.ctx, QPType.RC, 4096)) for _ in range(4)]
    for one, two in sides:
        connect_sides(one, two)
    problems: list[Any] = []

    def exchange(one: Side, two: Side) -> None:
        try:
            for i in range(200):
                two.qp.post_recv(RecvRequest(i, [two.mr.sge()]))
                one.qp.post_send(WorkRequest(i, WROpcode.SEND, [one.mr.sge(0, 100)]))
                (got,) = two.cq.wait(PATIENCE)
                (sent,) = one.cq.wait(PATIENCE)
                assert got.wr_id == sent.wr_id == i
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=exchange, args=pair) for pair in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert not problems
    assert not any(t.is_alive() for t in threads)


def test_await_and_async_for_in_real_time(ends: tuple[Side, Side]) -> None:
    a, b = ends

    async def receive() -> list[int]:
        found = []
        async for entry in b.cq:
            found.append(entry.wr_id)
            if len(found) == 50:
                return found
        return found

    async def program() -> list[int]:
        for i in range(50):
            b.qp.post_recv(RecvRequest(i, [b.mr.sge()]))
        receiver = asyncio.create_task(receive())
        for i in range(50):
            a.qp.post_send(WorkRequest(i, WROpcode.SEND, [a.mr.sge(0, 10)]))
            (entry,) = await a.cq
            assert entry.wr_id == i
        return await asyncio.wait_for(receiver, PATIENCE)

    assert asyncio.run(program()) == list(range(50))


def test_an_armed_queue_makes_its_descriptor_readable(ends: tuple[Side, Side]) -> None:
    a, b = ends
    descriptor = b.cq.fileno()
    b.qp.post_recv_many([RecvRequest(i, [b.mr.sge()]) for i in range(2)])
    b.cq.req_notify()
    assert not select.select([descriptor], [], [], 0)[0]
    a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, 1)]))
    assert select.select([descriptor], [], [], PATIENCE)[0]
    b.cq.clear_event()
    assert len(b.cq.poll()) == 1
    a.qp.post_send(WorkRequest(2, WROpcode.SEND, [a.mr.sge(0, 1)]))
    assert a.cq.wait(PATIENCE)
    while len(b.cq) == 0:
        b.ctx.driver.progress()
    assert not select.select([descriptor], [], [], 0.05)[0], "one event for each request"


def test_a_completion_handler_is_called_for_its_queue() -> None:
    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        called: list[Any] = []
        came = threading.Event()

        def handler(cq: verbena.CompletionQueue) -> None:
            called.append(cq)
            came.set()

        (identifier,) = two.set_completion_handler(handler)
        a = make_side(one, QPType.RC)
        pd = two.alloc_pd()
        cq = two.create_cq(16, handler=identifier)
        qp = pd.create_qp(QPType.RC, cq)
        b = Side(two, pd, cq, qp, pd.alloc_mr(4096))
        connect_sides(a, b)
        cq.req_notify()
        qp.post_recv(RecvRequest(0, [b.mr.sge()]))
        a.qp.post_send(WorkRequest(1, WROpcode.SEND, [a.mr.sge(0, 1)]))
        assert came.wait(PATIENCE)
        assert called == [cq]
        assert len(cq.poll()) == 1


def test_async_events_reach_the_program(ends: tuple[Side, Side]) -> None:
    a, b = ends
    a.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, 8)], remote_addr=b.mr.addr, rkey=b.mr.rkey ^ 1)
    )
    assert a.cq.wait(PATIENCE)[0].status is CompletionStatus.REM_ACCESS_ERR
    event = b.ctx.get_async_event(PATIENCE)
    assert event is not None
    assert event.type is verbena.AsyncEventType.QP_ACCESS_ERR
    assert event.source is b.qp
    assert b.qp.state is QPState.ERR is a.qp.state


def test_a_dead_peer_is_an_error_completion(ends: tuple[Side, Side]) -> None:
    a, b = ends
    one, two = make_side(a.ctx, QPType.RC), make_side(b.ctx, QPType.RC)
    connect_sides(one, two, timeout=10, retry_cnt=2)
    addr, rkey = two.mr.addr, two.mr.rkey
    b.ctx.close()
    for i in range(3):
        one.qp.post_send(WorkRequest(i, WROpcode.RDMA_WRITE, [one.mr.sge(0, 8)], remote_addr=addr, rkey=rkey))
    found: list[Any] = []
    while len(found) < 3:
        found += one.cq.wait(PATIENCE)
    assert [e.status.name for e in found] == ["RETRY_EXC_ERR", "WR_FLUSH_ERR", "WR_FLUSH_ERR"]


# --- wires ------------------------------------------------------------------------------------------------


def test_transfers_survive_faults_and_captures_are_right(seed: int, tmp_path: Path) -> None:
    taps: list[PcapTap] = []
    injectors: list[FaultInjector] = []

    def wrap(wire: verbena.Wire, clock: Any, rng: random.Random) -> verbena.Wire:
        tap = PcapTap(wire, open(tmp_path / f"{len(taps)}.pcapng", "wb"), clock)  # noqa: SIM115
        taps.append(tap)
        injectors.append(
            FaultInjector(
                tap, Faults(0.02, 0.02, 0.02, 0.0, 0.02, delay_ns=200_000), random.Random(seed), clock
            )
        )
        return injectors[-1]

    with verbena.open_device(A, wrap=wrap) as one, verbena.open_device(B, wrap=wrap) as two:
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b, timeout=10, mtu=1024)
        for _ in range(4):
            a.mr.buf[:200_000] = os.urandom(200_000)
            write(a, b, 200_000)
            a.cq.wait(PATIENCE)[0].raise_for_status()
            assert a.mr.buf[:200_000] == b.mr.buf[:200_000]
        assert one.counters()["tx.retransmitted"] > 0
    for i in (0, 1):
        assert taps[i].written > 0
        assert dump(str(tmp_path / f"{i}.pcapng")) == 0
    assert sum(i.counters["lost"] for i in injectors) > 0


def test_a_tracer_tells_every_packet() -> None:
    lines: list[str] = []
    with (
        verbena.open_device(A, wrap=lambda w, c, r: Tracer(w, lines.append, c)) as one,
        verbena.open_device(B) as two,
    ):
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        write(a, b, 5000)
        a.cq.wait(PATIENCE)[0].raise_for_status()
    text = "\n".join(lines)
    assert "-> RC RDMA_WRITE_FIRST" in text.replace("RDMA WRITE", "RDMA_WRITE") or "->" in text
    assert "<-" in text


def test_without_offloads_packets_travel_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "offloads", lambda sock: False)
    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        a.mr.buf[:] = os.urandom(a.mr.length)
        write(a, b, a.mr.length)
        a.cq.wait(PATIENCE)[0].raise_for_status()
        assert hashlib.sha256(a.mr.buf).digest() == hashlib.sha256(b.mr.buf).digest()


def test_acknowledgement_for_each_packet() -> None:
    with verbena.open_device(A) as one, verbena.open_device(B, ack_policy=AckPolicy.PER_PACKET) as two:
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        write(a, b, 100 * 4096)
        a.cq.wait(PATIENCE)[0].raise_for_status()
        assert two.counters()["tx.acks"] >= 100


# --- opening and closing ----------------------------------------------------------------------------------


def test_opening_says_what_is_wrong() -> None:
    with verbena.open_device(A), pytest.raises(SystemLimitError, match="in use"):
        verbena.open_device(A)
    with pytest.raises(SystemLimitError, match="not one of this machine's"):
        verbena.open_device("192.0.2.1")
    with pytest.raises(InvalidAttributeError, match="no IP address"):
        verbena.open_device("nowhere")
    with pytest.raises(InvalidAttributeError, match="udp_port"):
        verbena.open_device(A, udp_port=70_000)
    with pytest.raises(InvalidAttributeError, match="mtu"):
        verbena.open_device(A, mtu=300)


def test_adapters_open_and_close_without_leaks() -> None:
    def once() -> None:
        with verbena.open_device(A) as one, verbena.open_device(B) as two:
            a, b = make_side(one, QPType.RC, 4096), make_side(two, QPType.RC, 4096)
            a.cq.fileno()
            connect_sides(a, b)
            write(a, b, 100)
            assert a.cq.wait(PATIENCE)[0].ok

    once()
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(20):
        once()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_the_other_port_is_another_network() -> None:
    with (
        verbena.open_device(A, udp_port=14791) as one,
        verbena.open_device(B, udp_port=14791) as two,
    ):
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        write(a, b, 10)
        assert a.cq.wait(PATIENCE)[0].ok


def test_strangers_datagrams_are_counted_and_dropped(ends: tuple[Side, Side]) -> None:
    a, b = ends
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.71.9", 0))
        for size in (0, 1, 11, 15, 16, 20, 60, 4000, 60_000):
            stranger.sendto(os.urandom(size), (B, 4791))
    write(a, b, 100)
    assert a.cq.wait(PATIENCE)[0].ok
    counters = b.ctx.counters()
    dropped = sum(v for k, v in counters.items() if k.startswith("drop."))
    assert dropped == 9
    assert counters["drop.short"] >= 4


def test_what_the_kernel_drops_is_counted(ends: tuple[Side, Side]) -> None:
    """Nobody reads the socket while a stranger sends more than its buffer holds."""
    _, b = ends
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        with b.ctx.adapter.engine:
            for _ in range(1200):
                stranger.sendto(bytes(60_000), (B, 4791))
                sent += 1
        while (counters := b.ctx.counters())["rx.packets"] + counters["drop.rx_socket"] < sent:
            b.ctx.driver.progress()
    assert counters["drop.rx_socket"] > 0
    assert counters["rx.packets"] + counters["drop.rx_socket"] == sent


def test_the_tap_keeps_what_it_was_given() -> None:
    stream = io.BytesIO()
    with (
        verbena.open_device(A, wrap=lambda w, c, r: PcapTap(w, stream, c, epoch_ns=1)) as one,
        verbena.open_device(B) as two,
    ):
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        write(a, b, 3 * 4096)
        assert a.cq.wait(PATIENCE)[0].ok
    from verbena.wire import decode, read_capture

    packets = [decode(p.data, p.link_type) for p in read_capture(stream.getvalue())]
    assert len(packets) >= 4
    assert all(p.icrc_ok for p in packets)
