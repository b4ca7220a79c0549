"""Benchmarks of a fabric in real time: two hosts and a switch, three processes over loopback; no baseline.

Latency: 64-byte RDMA WRITEs back and forth, half of the round trip; both programs wait for a receive completion.
Bandwidth: 1 MiB RDMA WRITEs, four in flight, one source and one target buffer of 1 MiB.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from verbena import FabricServer, QPType, RecvRequest, Topology, WorkRequest, WROpcode, open_fabric_device
from verbena.runtime.pairs import Side, make_side

MESSAGE = 1 << 20
SMALL = 64
ROUNDS = 2000
REPEATS = 5
MESSAGES = 128
NO_BASELINE: dict[str, Any] = {"baseline": None, "ratio": None}
Told = tuple[int, int]


def _host(name: str, at: str, pipe: Connection, result: Connection, body: Callable[..., Any]) -> None:
    with open_fabric_device(name, at) as ctx:
        side = make_side(ctx, QPType.RC, MESSAGE)
        pipe.send((side.qp.endpoint, side.mr.addr, side.mr.rkey))
        endpoint, *there = pipe.recv()
        side.qp.connect(endpoint, timeout=18)
        for i in range(8):
            side.qp.post_recv(RecvRequest(i))
        pipe.send("ready")
        pipe.recv()
        result.send(body(side, name == "h1", tuple(there)))
        pipe.send("done")
        pipe.recv()


def _pass_back(side: Side, is_first: bool, there: Told) -> float:
    """Microseconds, half a round trip."""
    write = WorkRequest(1, WROpcode.RDMA_WRITE_WITH_IMM, [side.mr.sge(0, SMALL)])
    write.remote_addr, write.rkey = there
    took = []
    left = {"RECV": 0, "RDMA_WRITE": 0}

    def take(kind: str) -> None:
        while not left[kind]:
            for entry in side.cq.wait(30):
                entry.raise_for_status()
                left["RECV" if entry.opcode.name.startswith("RECV") else "RDMA_WRITE"] += 1
        left[kind] -= 1

    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        if is_first:
            side.qp.post_send(write)
        take("RECV")
        side.qp.post_recv(RecvRequest(1))
        if not is_first:
            side.qp.post_send(write)
        take("RDMA_WRITE")
        took.append((time.perf_counter_ns() - begun) / 2000)
    return statistics.median(took)


def _stream(side: Side, is_first: bool, there: Told) -> float:
    """Megabytes a second."""
    if not is_first:
        return 0.0
    write = WorkRequest(1, WROpcode.RDMA_WRITE, [side.mr.sge(0, MESSAGE)])
    write.remote_addr, write.rkey = there
    begun = time.perf_counter()
    posted = done = 0
    while done < MESSAGES:
        while posted < MESSAGES and posted - done < 4:
            side.qp.post_send(write)
            posted += 1
        for entry in side.cq.wait(30):
            entry.raise_for_status()
            done += 1
    return MESSAGES * MESSAGE / (time.perf_counter() - begun) / 1e6


def _measured(body: Callable[..., float]) -> float:
    """The median of several runs, each with new processes."""
    topology = Topology()
    topology.add_switch("s1", ports=4)
    for name in ("h1", "h2"):
        topology.add_host(name)
        topology.connect(name, "s1")
    processes = multiprocessing.get_context("spawn")
    found = []
    with FabricServer(topology) as fabric:
        fabric.start()
        for _ in range(REPEATS):
            at = f"{fabric.address[0]}:{fabric.address[1]}"
            pipes = processes.Pipe()
            result, theirs = processes.Pipe()
            hosts = [
                processes.Process(target=_host, args=(name, at, pipe, theirs, body))
                for name, pipe in zip(("h1", "h2"), pipes, strict=True)
            ]
            for each in hosts:
                each.start()
            found.append(max(result.recv(), result.recv()))
            for each in hosts:
                each.join()
            fabric.wait_until(lambda: not fabric.joined, 10)
    return statistics.median(found)


def latency() -> dict[str, Any]:
    return {
        "name": "fabric.real_latency",
        "value": round(_measured(_pass_back), 1),
        "unit": "us",
        **NO_BASELINE,
    }


def bandwidth() -> dict[str, Any]:
    return {
        "name": "fabric.real_bandwidth",
        "value": round(_measured(_stream), 1),
        "unit": "MB/s",
        **NO_BASELINE,
    }


BENCHMARKS = {"real_latency": latency, "real_bandwidth": bandwidth}
