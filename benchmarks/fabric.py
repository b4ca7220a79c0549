"""Benchmarks of the fabric simulator, on one core, in train mode.

Workload W: a three-level fat tree (k = 8: 128 hosts, 80 switches), 100 Gb/s, 100 ns of cable, switches of 150 ns,
uniform random packets of 4 KiB, Poisson, load 0.5, two data lanes with room for eight packets at each input.  A
packet-hop is one packet crossing one link.  The cost of a hop is shown for growing trees under the same load, beside
that of the smallest one: what is more is what the caches of the processor no longer hold.

**What is modelled, and what not**: every link, input buffer, lane, credit, forwarding table and arbiter, packet by
packet, with the exact times of cut-through flits; input queues with head-of-line blocking, round robin between inputs
and lanes.  In contrast to flit mode, lanes take turns by packets instead of flits, acknowledgments and credits take no
bandwidth, and there are no bit errors (see `verbena.fabric.trains`).  Packets have a length and addresses, no bytes.
Simulators whose switches have output queues without limit, or no credits, do less for a packet-hop; those that handle
each flit do some fifty times as much for packets of this size.

Each figure is the best of several runs in processes of their own, in the process's own time: what else runs on the
machine counts as little as possible.  Measuring begins when the tree is filled with packets.
"""

from __future__ import annotations

import functools
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from endpoint import row

from verbena.fabric.core import FabricCore

RATE = 100_000_000_000
SIZE = 4096 + 30  # LRH, BTH, ICRC, VCRC
WIRE = SIZE + 12 * -(-SIZE // 80)
ROOM = 8 * (-(-SIZE // 64) * 64)
LOAD = 0.5

SPANS = {4: (500_000, 8_000_000), 8: (100_000, 1_000_000), 16: (50_000, 150_000), 32: (25_000, 25_000)}
"""By the size of the tree: how long it is filled, and how long it is measured, in simulated ns."""

SMALLEST = min(SPANS)
RUNS = 5


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


def measure(k: int, warm_ns: int, span_ns: int) -> tuple[float, float]:
    """Nanoseconds of processor time a packet-hop, and the largest memory of the process in bytes."""
    core, _ = fat_tree(k)
    core.run(warm_ns)
    core.clear_statistics()
    start = time.process_time()
    core.run(warm_ns + span_ns)
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return seconds / core.packet_hops * 1e9, memory


def alone(k: int) -> tuple[float, float]:
    """The same in a process of its own, whose memory no other benchmark has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (k, *SPANS[k]))


@functools.cache
def hop_cost(k: int) -> float:
    return min(alone(k)[0] for _ in range(RUNS))


def w_packet_hops() -> dict[str, Any]:
    return row("fabric.w_packet_hops", 1e3 / hop_cost(8), "M packet-hops/s", None)


def k16_memory() -> dict[str, Any]:
    return row("fabric.k16_memory", alone(16)[1] / (1 << 20), "MiB", None)


def _hop_cost(k: int) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        return row(
            f"fabric.hop_cost_k{k}",
            hop_cost(k),
            "ns a packet-hop",
            hop_cost(SMALLEST) if k > SMALLEST else None,
        )

    return run


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "w_packet_hops": w_packet_hops,
    "k16_memory": k16_memory,
} | {f"hop_cost_k{k}": _hop_cost(k) for k in SPANS}
