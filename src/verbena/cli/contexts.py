"""`verbena contexts`: what each node must hold so that everybody can talk to everybody, as its adapter counts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from verbena.adapter.attributes import ContextCounts, DeviceAttributes
from verbena.errors import InvalidAttributeError, VerbenaError
from verbena.fabric.topology import Topology
from verbena.runtime.fabric import Fabric
from verbena.runtime.meshes import connection_mesh, datagram_mesh, talk_by_connections, talk_by_datagrams
from verbena.runtime.virtual import VirtualNetwork
from verbena.transport.kinds import QPType
from verbena.verbs.context import Context

MOST_PAIRS = 20_000


@dataclass(frozen=True, slots=True)
class Measured:
    """What the adapters of a mesh held, and how many messages arrived of how many."""

    counts: list[ContextCounts]
    arrived: int
    sent: int


def open_adapters(nodes: int, seed: int, limits: DeviceAttributes, fabric: bool) -> list[Context]:
    """Adapters on an ideal network, or on an InfiniBand fabric of one switch, brought up by its subnet manager."""
    if not fabric:
        net = VirtualNetwork(seed)
        return [net.open_device(f"10.{i >> 8 & 255}.{i & 255}.1", limits=limits) for i in range(nodes)]
    topology = Topology()
    topology.add_switch("switch", nodes)
    for i in range(nodes):
        topology.add_host(f"host-{i + 1}")
        topology.connect(f"host-{i + 1}", "switch")
    made = Fabric(topology, seed=seed, flits=False)
    return [made.open_device(host.name, limits=limits) for host in topology.hosts]


def measure(
    nodes: int, processes: int, seed: int, fabric: bool, build: Callable[[Sequence[Context]], int]
) -> Measured:
    """Build a mesh in virtual time, have every process send to every one of every other node, and ask the adapters."""
    largest = max(64, processes * processes * (nodes - 1) + 16)
    limits = DeviceAttributes(max_qp=largest, max_cq=64 + processes, max_ah=64, max_ee=max(nodes, 2))
    adapters = open_adapters(nodes, seed, limits, fabric)
    arrived = build(adapters)
    counts = [ctx.count_contexts() for ctx in adapters]
    for ctx in adapters:
        ctx.close()
    return Measured(counts, arrived, nodes * processes * (nodes - 1) * processes)


def of_each(values: Sequence[int]) -> str:
    """The number that all nodes have, or the smallest and the largest."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def contexts(nodes: int, processes: int, seed: int, fabric: bool = False) -> int:
    """Build both meshes, and print what they took; exit status 1 if a message did not arrive.

    fabric: over a simulated InfiniBand fabric instead of an ideal network.

    Raises `InvalidAttributeError` for meshes that would fill the memory.
    """
    pairs = nodes * processes * processes * (nodes - 1)
    if pairs > MOST_PAIRS:
        raise InvalidAttributeError(
            f"{nodes} nodes with {processes} processes take {pairs:,} connected queue pairs: {MOST_PAIRS:,} at most"
        )
    connected = measure(
        nodes,
        processes,
        seed,
        fabric,
        lambda adapters: talk_by_connections(connection_mesh(adapters, processes)),
    )
    datagrams = measure(
        nodes,
        processes,
        seed,
        fabric,
        lambda adapters: talk_by_datagrams(datagram_mesh(adapters, processes, memory=1 << 12)),
    )
    table = Table(title=f"{nodes} nodes, {processes} processes on each; in the adapter of each node")
    for name, justify in (("service", "left"), ("what", "left"), ("measured", "right"), ("formula", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("arrived", justify="right")
    table.add_row(
        "reliable connection",
        "queue pairs",
        of_each([c.queue_pairs[QPType.RC] for c in connected.counts]),
        f"M²·(N−1) = {processes * processes * (nodes - 1):,}",
        f"{connected.arrived:,} of {connected.sent:,}",
    )
    table.add_row(
        "reliable datagram",
        "queue pairs",
        of_each([c.queue_pairs[QPType.RD] for c in datagrams.counts]),
        f"M = {processes:,}",
        f"{datagrams.arrived:,} of {datagrams.sent:,}",
    )
    table.add_row(
        "",
        "EE contexts",
        of_each([c.ee_contexts for c in datagrams.counts]),
        f"N−1 = {nodes - 1:,}",
        "",
    )
    Console().print(table)
    if connected.arrived != connected.sent or datagrams.arrived != datagrams.sent:
        raise VerbenaError("not every message arrived")
    return 0
