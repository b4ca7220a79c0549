"""Benchmarks of the fabric simulator, on one core, in train mode (see `verbena.fabric.trains` for what it leaves out).

Workload W: a three-level fat tree (k = 8: 128 hosts, 80 switches), 100 Gb/s, 100 ns of cable, switches of 150 ns,
uniform random packets of 4 KiB, Poisson, load 0.5, two data lanes with room for eight packets at each input.  A
packet-hop is one packet crossing one link.  The cost of a hop is shown for growing trees under the same load.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
from endpoint import row

from verbena.fabric.core import FabricCore

RATE = 100_000_000_000
SIZE = 4096 + 30  # LRH, BTH, ICRC, VCRC
WIRE = SIZE + 12 * -(-SIZE // 80)
ROOM = 8 * (-(-SIZE // 64) * 64)
LOAD = 0.5


def fat_tree(k: int) -> tuple[Any, list[int]]:
    """A k-ary fat tree with d-mod-k routing, ready to send; host h has LID h + 1."""
    core: Any = FabricCore(7, flits=False)
    half = k // 2
    count = k * half * half
    hosts = [core.add_port(core.add_node(0), lanes=2, buffer_bytes=ROOM) for _ in range(count)]

    def switches(n: int) -> list[tuple[int, list[int]]]:
        made = []
        for _ in range(n):
            node = core.add_node(1, latency_ns=150)
            made.append((node, [core.add_port(node, lanes=2, buffer_bytes=ROOM) for _ in range(k)]))
        return made

    edge, middle, top = switches(k * half), switches(k * half), switches(half * half)

    def join(a: int, b: int) -> None:
        core.connect(a, b, RATE, 100)
        core.set_state(a, 4)
        core.set_state(b, 4)

    for h, port in enumerate(hosts):
        join(port, edge[h // half][1][h % half])
        core.set_lids(port, h + 1, 0)
    for pod in range(k):
        for a in range(half):
            for b in range(half):
                join(edge[pod * half + a][1][half + b], middle[pod * half + b][1][a])
                join(middle[pod * half + a][1][half + b], top[a * half + b][1][pod])
    for s, (node, _) in enumerate(edge):
        ports = (d % half if d // half == s else half + d % half for d in range(count))
        core.set_lft(node, 1, bytes(p + 1 for p in ports))
    for s, (node, _) in enumerate(middle):
        pods = half * half
        ports = (
            d // half % half if d // pods == s // half else half + d // half % half for d in range(count)
        )
        core.set_lft(node, 1, bytes(p + 1 for p in ports))
    for node, _ in top:
        core.set_lft(node, 1, bytes(d // (half * half) + 1 for d in range(count)))
    core.reports()
    everywhere = tuple((h + 1, sl) for h in range(count) for sl in (0, 1))
    for port in hosts:
        core.add_source(port, mean_gap_ns=WIRE * 8e9 / RATE / LOAD, size=SIZE, destinations=everywhere)
    return core, hosts


def measure(k: int, duration_ns: int) -> tuple[float, float]:
    """Packet-hops a second, and the process's memory in bytes at the end."""
    core, _ = fat_tree(k)
    start = time.perf_counter()
    core.run(duration_ns)
    seconds = time.perf_counter() - start
    return core.packet_hops / seconds, psutil.Process().memory_info().rss


def alone(k: int, duration_ns: int) -> tuple[float, float]:
    """The same in a process of its own, whose memory no other benchmark has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (k, duration_ns))


def w_packet_hops() -> dict[str, Any]:
    rate = statistics.median(alone(8, 1_000_000)[0] for _ in range(5))
    return row("fabric.w_packet_hops", rate / 1e6, "M packet-hops/s", None)


def k16_memory() -> dict[str, Any]:
    return row("fabric.k16_memory", alone(16, 500_000)[1] / (1 << 20), "MiB", None)


def _hop_cost(k: int, duration_ns: int) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        rate = statistics.median(alone(k, duration_ns)[0] for _ in range(3))
        return row(f"fabric.hop_cost_k{k}", 1e9 / rate, "ns a packet-hop", None)

    return run


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "w_packet_hops": w_packet_hops,
    "k16_memory": k16_memory,
    "hop_cost_k4": _hop_cost(4, 8_000_000),
    "hop_cost_k8": _hop_cost(8, 1_000_000),
    "hop_cost_k16": _hop_cost(16, 200_000),
    "hop_cost_k32": _hop_cost(32, 60_000),
}
