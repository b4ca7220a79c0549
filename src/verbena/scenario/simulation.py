"""Scale simulation: a `traffic` workload's packets through the fabric's own links, switches and tables.

The packets have a length instead of bytes, and cross links as trains of flits (`fabric.core`).  LIDs and forwarding
tables are those that the subnet manager would set, set directly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from verbena.errors import VerbenaError
from verbena.fabric.addressing import assign_lids
from verbena.fabric.assembly import Assembly, FabricOptions
from verbena.fabric.routing import RoutingGraph, find_cycle, route
from verbena.fabric.topology import PortId, Topology
from verbena.scenario.fabric_schema import FabricModel, Flow, Traffic
from verbena.scenario.outcome import Outcome, Row, Watcher
from verbena.scenario.patterns import Stream, read_trace, streams

HEADERS = 8 + 12 + 4 + 2  # LRH, BTH, ICRC, VCRC (IBA vol. 1, 7.7, 9.2, 7.8)
FLIT_PAYLOAD = 80
FLIT_HEADER = 12
HOTTEST = 10
BLOCK = 64  # bytes of a credit
LONG_NS = 50_000  # for a head to wait, before it is asked whether it waits for itself


def packet_size(payload: int) -> int:
    """Bytes of a packet of an unreliable service, from LRH to VCRC."""
    return HEADERS + payload + (-payload & 3)


def link_bytes(payload: int) -> int:
    """Bytes that such a packet occupies on a link: its own, and a header for each flit."""
    size = packet_size(payload)
    return size + -(-size // FLIT_PAYLOAD) * FLIT_HEADER


def options_of(model: FabricModel) -> FabricOptions:
    """How the file wants its elements made."""
    return FabricOptions(
        lanes=model.lanes,
        buffer_bytes=model.buffer_bytes,
        switch_latency_ns=model.switch_latency_ns,
        cut_through=model.cut_through,
        voq=model.voq,
        mtu=model.mtu,
    )


@dataclass(slots=True)
class Sample:
    """A point of the curves over time: what happened since the one before.

    delivered: payload bytes.  use: share of the time for which the links between nodes were busy, mean and largest.
    lanes: bytes that wait in input buffers, by lane.
    """

    ns: int
    delivered: int
    use_mean: float
    use_max: float
    lanes: list[int]


@dataclass(slots=True)
class Measured:
    """What a simulation found, from the end of its warm-up on.  Times in nanoseconds."""

    hosts: int
    simulated_ns: int
    offered: int
    delivered: int
    delivered_bytes: int
    packet_hops: int
    wall_s: float
    capacity_bps: float
    latency: list[tuple[float, int]]
    latency_mean: float
    latency_min: float
    latency_max: float
    samples: list[Sample] = field(default_factory=list)
    hottest: list[tuple[str, float]] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    deadlock: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """The latency that this share of the packets did not exceed: the upper end of its bin."""
        total = sum(count for _, count in self.latency)
        reached, wanted = 0, share * total
        for upper, count in self.latency:
            reached += count
            if reached >= wanted and count:
                return min(upper, self.latency_max)
        return 0.0


class Simulation:
    """A fabric with a workload's sources, ready to run.  Raises `VerbenaError` for what cannot be simulated."""

    def __init__(
        self, topology: Topology, model: FabricModel, spec: Traffic, seed: int, folder: Path = Path()
    ) -> None:
        if len(topology.subnets()) > 1:
            raise VerbenaError("traffic runs within one subnet, and this topology has several")
        self.spec = spec
        self.topology = topology
        self.assembly = Assembly(topology, options_of(model), seed=seed, flits=False)
        self.core = self.assembly.core
        self.addresses = assign_lids(topology)
        self.hosts = [node.name for node in topology.hosts if topology.links_of(node.name)]
        self._lid = {name: self._address(name) for name in self.hosts}
        graph = RoutingGraph.from_topology(topology, self.addresses)
        self.routing = route(graph, model.routing, lanes=model.lanes)
        self.warnings = list(self.routing.warnings)
        if cycle := find_cycle(graph, self.routing):
            shown = " -> ".join(str(channel) for channel in cycle[:8])
            self.warnings.append(f"this routing can deadlock: {shown}{' …' if len(cycle) > 8 else ''}")
        self._layered = self.routing.lanes > 1
        if self._layered and any(flow.level for flow in spec.flows):
            raise VerbenaError(
                f"routing {model.routing} takes {self.routing.lanes} lanes against deadlock: "
                "flows have no level of their own"
            )
        self.assembly.load(self.addresses, zip(graph.switches, self.routing.tables, strict=True))
        self._set_lanes(model.lanes)
        random = Random(f"{seed} {spec.name}")
        tables: dict[tuple[str, ...], tuple[tuple[int, int], ...]] = {}
        for flow in spec.flows:
            if flow.pattern == "trace":
                self._add_trace(flow, folder)
            for stream in streams(flow, self.hosts, random):
                self._add(flow, stream, tables)

    def _address(self, name: str) -> int:
        return self.addresses[self._port(name)][0]

    def _port(self, name: str) -> PortId:
        node = self.topology.nodes[name]
        return next(p for n in range(1, node.ports + 1) if (p := PortId(name, n)) in self.topology.at)

    def _set_lanes(self, lanes: int) -> None:
        """Service level n goes on lane n, modulo the lanes that there are."""
        table = bytes(level % lanes for level in range(16))
        for name in self.hosts:
            for port in range(1, self.topology.nodes[name].ports + 1):
                self.core.set_sl2vl(self.assembly.ports[PortId(name, port)], table)

    def _level(self, flow: Flow, source: str, destination: str) -> int:
        return self.routing.sl(self._lid[source], self._lid[destination]) if self._layered else flow.level

    def _add(
        self, flow: Flow, stream: Stream, tables: dict[tuple[str, ...], tuple[tuple[int, int], ...]]
    ) -> None:
        port = self._port(stream.source)
        rate = self.topology.at[port].rate.bps
        gap_ns = link_bytes(flow.bytes) * 8e9 / rate / stream.load
        if self._layered:
            destinations = tuple(
                (self._lid[d], self._level(flow, stream.source, d)) for d in stream.destinations
            )
        else:
            # One tuple for all sources of the same destinations: the core keeps it once.
            key = (str(flow.level), *stream.destinations)
            destinations = tables.setdefault(
                key, tuple((self._lid[d], flow.level) for d in stream.destinations)
            )
        end = self.spec.duration_us if flow.stop_us is None else min(flow.stop_us, self.spec.duration_us)
        self.core.add_source(
            self.assembly.ports[port],
            mean_gap_ns=gap_ns,
            process=flow.process,
            burst=flow.burst_packets if flow.process == "bursty" else 1,
            size=packet_size(flow.bytes),
            destinations=destinations,
            order="cyclic" if stream.cyclic else "uniform",
            start_ns=round(flow.start_us * 1000),
            stop_ns=round(end * 1000),
        )

    def _add_trace(self, flow: Flow, folder: Path) -> None:
        assert flow.file is not None
        entries: dict[str, list[tuple[int, int, int, int]]] = {}
        for event in read_trace(folder / flow.file, self.hosts):
            level = self._level(flow, event.source, event.destination)
            entry = (event.time_ns, packet_size(event.bytes), self._lid[event.destination], level)
            entries.setdefault(event.source, []).append(entry)
        for source, listed in entries.items():
            self.core.add_trace(self.assembly.ports[self._port(source)], listed)

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, watcher: Watcher | None = None, number: int = 0) -> Measured:
        """Simulate, to the end of the workload's time."""
        spec, core = self.spec, self.core
        end, warm = (
            round(spec.duration_us * 1000),
            min(round(spec.warmup_us * 1000), round(spec.duration_us * 1000)),
        )
        started = time.monotonic()
        core.run(warm)
        core.clear_statistics()
        before = core.statistics()
        links = _Links(self.assembly)
        lanes = range(self.assembly.options.lanes)
        samples = []
        for at in range(1, spec.samples + 1):
            until = warm + (end - warm) * at // spec.samples
            if until <= core.now:
                continue
            span, delivered = until - core.now, core.statistics()["delivered_bytes"]
            core.run(until)
            use = links.use(span)
            samples.append(
                Sample(
                    until,
                    self._payload(core.statistics()["delivered_bytes"] - delivered),
                    sum(use) / len(use) if use else 0.0,
                    max(use, default=0.0),
                    [sum(core.occupancy(port)[lane] for port in links.inputs) for lane in lanes],
                )
            )
            if watcher is not None:
                watcher.progress(number, "simulated", until, end, "ns")
        return self._measured(before, samples, links, end - warm, time.monotonic() - started)

    def _payload(self, size: int) -> int:
        """What of so many bytes of packets is payload, when all flows have packets of one size."""
        flow = self.spec.flows[0]
        return round(size * flow.bytes / packet_size(flow.bytes))

    def _measured(
        self, before: dict[str, int], samples: list[Sample], links: _Links, span: int, wall: float
    ) -> Measured:
        core = self.core
        now, found = core.statistics(), core.latency_histogram()
        count = found["count"]
        return Measured(
            hosts=len(self.hosts),
            simulated_ns=span,
            offered=now["offered"] - before["offered"],
            delivered=count,
            delivered_bytes=self._payload(now["delivered_bytes"]),
            packet_hops=now["packet_hops"],
            wall_s=wall,
            capacity_bps=sum(self.topology.at[self._port(name)].rate.bps for name in self.hosts),
            latency=[(below / 1000, number) for _, below, number in found["bins"]],
            latency_mean=found["sum_ps"] / count / 1000 if count else 0.0,
            latency_min=found["min_ps"] / 1000,
            latency_max=found["max_ps"] / 1000,
            samples=samples,
            hottest=links.hottest(span),
            drops=self._drops(),
            deadlock=self._blocked(),
            warnings=self.warnings,
        )

    def _drops(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for port in self.assembly.ports.values():
            for name, value in self.core.port_counters(port).items():
                if name.startswith("drop") and isinstance(value, int) and value:
                    found[name] = found.get(name, 0) + value
        return found

    def _blocked(self) -> list[str]:
        """The ports that wait for each other in a circle, if the fabric stands still."""
        return blocked_circle(self.assembly)


class _Links:
    """How busy the directions of all links are, from their ports' counters."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._ports = [port for port in assembly.ports if port in assembly.topology.at]
        self.inputs = [assembly.ports[port] for port in self._ports if port.node in assembly.nodes]
        self._start = self._sent()
        self._last = self._start

    def _sent(self) -> list[int]:
        core = self._assembly.core
        return [core.port_counters(self._assembly.ports[port])["xmit_bytes"] for port in self._ports]

    def _shares(self, sent: list[int], before: list[int], span_ns: int) -> list[float]:
        at, wire = self._assembly.topology.at, (FLIT_PAYLOAD + FLIT_HEADER) / FLIT_PAYLOAD
        return [
            (now - then) * wire * 8e9 / at[port].rate.bps / span_ns
            for port, now, then in zip(self._ports, sent, before, strict=True)
        ]

    def use(self, span_ns: int) -> list[float]:
        """The share of the time since the last call for which each direction was busy."""
        sent = self._sent()
        shares = self._shares(sent, self._last, span_ns)
        self._last = sent
        return shares

    def hottest(self, span_ns: int) -> list[tuple[str, float]]:
        """The busiest directions since the beginning."""
        shares = self._shares(self._sent(), self._start, span_ns)
        ordered = sorted(zip(shares, self._ports, strict=True), key=lambda pair: (-pair[0], str(pair[1])))
        peer = self._assembly.topology.peer
        return [(f"{port} -> {peer(port)}", share) for share, port in ordered[:HOTTEST]]


def blocked_circle(assembly: Assembly) -> list[str]:
    """Heads of queues that wait for each other in a circle, for long and for want of credit: a deadlock, or nothing."""
    wants: dict[tuple[int, int], tuple[int, int]] = {}
    core, ids, ports = assembly.core, assembly.ids, assembly.ports
    largest = -(-packet_size(assembly.options.mtu) // BLOCK)
    for port, lane, since, output in core.waiting():
        far = assembly.topology.peer(ids[output])
        if far is None or core.now - since < LONG_NS:
            continue
        if core.port_counters(output)["lanes"][lane]["credits"] < largest:
            wants[port, lane] = (ports[far], lane)
    for start in wants:
        way: list[tuple[int, int]] = []
        at: tuple[int, int] | None = start
        while at is not None and at in wants and at not in way:
            way.append(at)
            at = wants[at]
        if at is not None and at in way:
            return [f"{ids[port]} lane {lane}" for port, lane in way[way.index(at) :]]
    return []


# --- what a workload's outcome says --------------------------------------------------------------------------------


def simulate(
    topology: Topology,
    model: FabricModel,
    spec: Traffic,
    seed: int,
    watcher: Watcher,
    number: int,
    folder: Path = Path(),
) -> Outcome:
    """Run a traffic workload.  It fails if packets were dropped, or if the fabric has come to a stand in a circle."""
    found = Simulation(topology, model, spec, seed, folder).run(watcher, number)
    return outcome_of(spec, found)


def outcome_of(spec: Traffic, found: Measured) -> Outcome:
    """What a measurement is in a run's report."""
    gbps = found.delivered_bytes * 8 / found.simulated_ns
    dropped = sum(found.drops.values())
    if found.deadlock:
        verdict = f"DEADLOCK: {' waits for '.join(found.deadlock)}"
    elif dropped:
        verdict = f"{dropped:,} packets were dropped: " + ", ".join(
            f"{k} {v:,}" for k, v in found.drops.items()
        )
    else:
        verdict = f"{found.delivered:,} of {found.offered:,} packets delivered, none dropped"
    facts: dict[str, Any] = {
        "hosts": found.hosts,
        "packets_offered": found.offered,
        "packets_delivered": found.delivered,
        "packets_dropped": dropped,
        "throughput_gbps": round(gbps, 6),
        "accepted_load": round(_link_share(spec, found), 6),
        "latency_min_ns": found.latency_min,
        "latency_mean_ns": round(found.latency_mean, 3),
        "latency_p50_ns": found.percentile(0.5),
        "latency_p99_ns": found.percentile(0.99),
        "latency_max_ns": found.latency_max,
        "packet_hops": found.packet_hops,
        "hot_spots": {name: f"{share:.1%}" for name, share in found.hottest},
    }
    if found.warnings:
        facts["warnings"] = {str(at + 1): sentence for at, sentence in enumerate(found.warnings)}
    rows = [
        Row("delivered", found.delivered_bytes, found.simulated_ns, f"{gbps:.2f} Gb/s"),
        Row("latency, mean", 0, round(found.latency_mean), ""),
        Row("latency, 99 %", 0, round(found.percentile(0.99)), ""),
        Row("latency, largest", 0, round(found.latency_max), ""),
    ]
    samples: dict[str, list[Any]] = {
        "latency": [list(pair) for pair in found.latency],
        "time": [[s.ns, s.delivered, s.use_mean, s.use_max, s.lanes] for s in found.samples],
    }
    return Outcome(spec.name, "traffic", not found.deadlock and not dropped, verdict, rows, facts, samples)


def _link_share(spec: Traffic, found: Measured) -> float:
    """What was delivered, as a share of what the hosts' links carry; packets and flit headers counted."""
    payload = spec.flows[0].bytes
    bits = found.delivered * link_bytes(payload) * 8
    return bits * 1e9 / found.simulated_ns / found.capacity_bps
