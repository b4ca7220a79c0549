"""Benchmarks of the verbs endpoint: two processes over loopback, each beside raw UDP in the same run.

Bandwidth: 1 MiB messages, path MTU 4096, invariant CRC on, one source and one target buffer of 1 MiB, two messages in
flight.  Baseline: raw UDP with segmentation offload, 4096-byte datagrams, buffers cycling through 1 MiB.

Latency: 64-byte RDMA WRITEs back and forth, both programs polling the last byte.  Baseline: raw UDP datagrams of 64
bytes, both programs polling.  A lower ratio is better there; everywhere else a higher one.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

import verbena
from verbena import QPType, RecvRequest, SendFlags, WorkRequest, WROpcode
from verbena.runtime.pairs import Side, connected_pair, make_side

HERE = Path(__file__).parent
MESSAGE = 1 << 20
REPEATS = 5
A, B = "127.0.0.1", "127.0.0.2"


def baseline(*arguments: object) -> float:
    """Build the raw UDP program if need be, and run it."""
    source = HERE / "baseline_udp.c"
    program = HERE.parent / ".venv" / "baseline_udp"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, source], check=True)
    result = subprocess.run(
        [program, *map(str, arguments)], check=True, capture_output=True, text=True, timeout=120
    )
    return float(result.stdout)


def pin(processor: int) -> None:
    """Keep this process on one processor, as the baseline does."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[processor % len(allowed)]})


def _peer(pipe: Connection, body: Callable[[Side, Connection], None], processor: int) -> None:
    pin(processor)
    with verbena.open_device(B) as ctx:
        side = make_side(ctx, QPType.RC, MESSAGE, max_send_wr=1024, max_recv_wr=1024)
        pipe.send((side.qp.endpoint, side.mr.addr, side.mr.rkey))
        side.qp.connect(pipe.recv())
        pipe.send("ready")
        body(side, pipe)


def with_peer(
    body: Callable[[Side, Connection], None], run: Callable[[Side, int, int, Connection], Any]
) -> Any:
    """Run `body` in another process and `run` in this one, connected; returns what `run` does."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_peer, args=(there, body, 1), daemon=True)
    process.start()
    before = os.sched_getaffinity(0)
    try:
        with verbena.open_device(A) as ctx:
            pin(0)
            side = make_side(ctx, QPType.RC, MESSAGE, max_send_wr=1024, max_recv_wr=1024)
            endpoint, addr, rkey = here.recv()
            here.send(side.qp.endpoint)
            side.qp.connect(endpoint)
            here.recv()
            result = run(side, addr, rkey, here)
            here.send("end")
            process.join(10)
            return result
    finally:
        os.sched_setaffinity(0, before)
        process.kill()


def _idle(side: Side, pipe: Connection) -> None:
    pipe.recv()


def _receive(side: Side, pipe: Connection) -> None:
    for _ in range(64):
        side.qp.post_recv(RecvRequest(0, [side.mr.sge()]))
    while not pipe.poll():
        for _ in side.cq.wait(0.05):
            side.qp.post_recv(RecvRequest(0, [side.mr.sge()]))


def _stream(opcode: WROpcode) -> Callable[[Side, int, int, Connection], list[float]]:
    def run(side: Side, addr: int, rkey: int, pipe: Connection) -> list[float]:
        request = WorkRequest(1, opcode, [side.mr.sge()], remote_addr=addr, rkey=rkey)
        side.mr.buf[:] = os.urandom(MESSAGE)
        figures = []
        for round_number in range(REPEATS + 1):
            count, open_requests = 1000 if round_number else 100, 0
            start = time.perf_counter()
            for _ in range(count):
                side.qp.post_send(request)
                open_requests += 1
                while open_requests >= 2:
                    open_requests -= len([c.raise_for_status() for c in side.cq.wait(5)])
            while open_requests:
                open_requests -= len([c.raise_for_status() for c in side.cq.wait(5)])
            if round_number:
                figures.append(count * MESSAGE / (time.perf_counter() - start))
        return figures

    return run


def _bandwidth(name: str, opcode: WROpcode, body: Callable[[Side, Connection], None]) -> dict[str, Any]:
    raw = statistics.median(baseline("bandwidth", 4096, 2 << 30, MESSAGE) for _ in range(3))
    value = statistics.median(with_peer(body, _stream(opcode)))
    raw = statistics.median([raw, *(baseline("bandwidth", 4096, 2 << 30, MESSAGE) for _ in range(2))])
    return row(name, value / 1e9, "GB/s", raw / 1e9)


def row(name: str, value: float, unit: str, base: float | None) -> dict[str, Any]:
    """One result."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": base,
        "ratio": value / base if base else None,
    }


def write_1m() -> dict[str, Any]:
    return _bandwidth("endpoint.write_1m", WROpcode.RDMA_WRITE, _idle)


def read_1m() -> dict[str, Any]:
    return _bandwidth("endpoint.read_1m", WROpcode.RDMA_READ, _idle)


def send_1m() -> dict[str, Any]:
    return _bandwidth("endpoint.send_1m", WROpcode.SEND, _receive)


def _bounce(side: Side, pipe: Connection) -> None:
    addr, rkey, rounds = pipe.recv()
    buf, progress, post = side.mr.buf, side.ctx.driver.progress, side.qp.post_send
    request = WorkRequest(0, WROpcode.RDMA_WRITE, [side.mr.sge(0, 64)], 0, remote_addr=addr, rkey=rkey)
    pipe.send("go")
    for i in range(rounds):
        mark = i % 251 + 1
        while buf[127] != mark:
            progress()
        buf[63] = mark
        post(request)
    pipe.recv()


def write_64_latency() -> dict[str, Any]:
    rounds = 20_000

    def run(side: Side, addr: int, rkey: int, pipe: Connection) -> float:
        pipe.send((side.mr.addr + 64, side.mr.rkey, rounds))
        pipe.recv()
        buf, progress, post = side.mr.buf, side.ctx.driver.progress, side.qp.post_send
        request = WorkRequest(
            0, WROpcode.RDMA_WRITE, [side.mr.sge(0, 64)], 0, remote_addr=addr + 64, rkey=rkey
        )
        times = []
        clock = time.perf_counter
        for i in range(rounds):
            mark = i % 251 + 1
            buf[63] = mark
            start = clock()
            post(request)
            while buf[127] != mark:
                progress()
            times.append(clock() - start)
        return statistics.median(times) / 2

    raw = statistics.median(baseline("latency", 64, rounds) for _ in range(3))
    value = with_peer(_bounce, run)
    return row("endpoint.write_64_latency", value * 1e6, "us", raw * 1e6)


def write_64_rate() -> dict[str, Any]:
    def run(side: Side, addr: int, rkey: int, pipe: Connection) -> float:
        flags = [SendFlags.NONE] * 31 + [SendFlags.SIGNALED]
        requests = [
            WorkRequest(
                i, WROpcode.RDMA_WRITE, [side.mr.sge(64 * i, 64)], f, remote_addr=addr + 64 * i, rkey=rkey
            )
            for i, f in enumerate(flags)
        ]
        figures = []
        for _ in range(REPEATS):
            lists, open_lists = 3000, 0
            start = time.perf_counter()
            for _ in range(lists):
                side.qp.post_send_many(requests)
                open_lists += 1
                while open_lists >= 8:
                    open_lists -= len(side.cq.wait(5))
            while open_lists:
                open_lists -= len(side.cq.wait(5))
            figures.append(32 * lists / (time.perf_counter() - start))
        return statistics.median(figures)

    raw = statistics.median(baseline("rate", 64, 32, 2_000_000) for _ in range(3))
    value = with_peer(_idle, run)
    return row("endpoint.write_64_rate", value / 1e6, "M messages/s", raw / 1e6)


def post_poll_call() -> dict[str, Any]:
    """What the calls cost without packets: post to a queue pair in ERR, poll the flushed completion."""
    with connected_pair(QPType.RC) as pair:
        qp, cq = pair.a.qp, pair.a.cq
        request = WorkRequest(1, WROpcode.SEND, [pair.a.mr.sge(0, 64)])
        qp.modify(verbena.QPState.ERR)
        post, poll = pair.a.ctx.adapter.engine.post_send, cq.poll
        index, count = qp._index, 100_000
        figures = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            for _ in range(count):
                post(index, request)
                poll(1)
            figures.append((time.perf_counter() - start) / count)
        return row("endpoint.post_poll_call", statistics.median(figures) * 1e9, "ns", None)


def qp_10k() -> list[dict[str, Any]]:
    """10,000 connected queue pairs in one new process, whose memory no other benchmark has used before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_qp_10k)


def _qp_10k() -> list[dict[str, Any]]:
    """Memory, set-up time, and the cost of their being there."""

    def rate(side: Side, peer: Side) -> float:
        request = WorkRequest(
            1, WROpcode.RDMA_WRITE, [side.mr.sge(0, 64)], remote_addr=peer.mr.addr, rkey=peer.mr.rkey
        )
        figures = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            for _ in range(2000):
                side.qp.post_send(request)
                side.cq.wait(5)
            figures.append(2000 / (time.perf_counter() - start))
        return statistics.median(figures)

    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        here, there = a.qp.endpoint, b.qp.endpoint
        a.qp.connect(there)
        b.qp.connect(here)
        alone = rate(a, b)
        process = psutil.Process()
        before, start = process.memory_info().rss, time.perf_counter()
        for _ in range(5_000):
            p = a.pd.create_qp(
                QPType.RC, a.cq, max_send_wr=16, max_recv_wr=16, max_send_sge=1, max_recv_sge=1
            )
            q = b.pd.create_qp(
                QPType.RC, b.cq, max_send_wr=16, max_recv_wr=16, max_send_sge=1, max_recv_sge=1
            )
            here, there = p.endpoint, q.endpoint
            p.connect(there)
            q.connect(here)
        seconds = time.perf_counter() - start
        memory = process.memory_info().rss - before
        crowd = rate(a, b)
        return [
            row("endpoint.qp_10k_memory", memory / 10_000 / 1024, "KiB a queue pair", None),
            row("endpoint.qp_10k_setup", seconds / 10_000 * 1e6, "us a queue pair", None),
            row("endpoint.qp_10k_idle", crowd / 1e3, "k WRITEs/s beside them", alone / 1e3),
        ]


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "write_1m": write_1m,
    "read_1m": read_1m,
    "send_1m": send_1m,
    "write_64_latency": write_64_latency,
    "write_64_rate": write_64_rate,
    "post_poll_call": post_poll_call,
    "qp_10k": qp_10k,
}

if __name__ == "__main__":
    print(BENCHMARKS[sys.argv[1]]())
