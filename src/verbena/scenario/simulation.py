"""Scale simulation: a `traffic` workload's packets through the fabric's own links, switches and tables.

The packets have a length instead of bytes, and cross links as trains of flits (`fabric.trains` has the timing model).
LIDs and forwarding tables are those that the subnet manager would set, set directly.

**Sizes.**  A packet is one of an unreliable service with a local header: LRH 8, BTH 12, payload, pad to a word, ICRC 4,
VCRC 2 bytes.  On a link each started 80 bytes of it have a flit header of 12.  **Load** is the share of a sender's link
that its packets occupy, all of these bytes counted: at load 1 a sender's link never rests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from verbena.errors import InvalidAttributeError, VerbenaError
from verbena.fabric.addressing import assign_lids
from verbena.fabric.assembly import Assembly, FabricOptions
from verbena.fabric.routing import Channel, RoutingGraph, find_cycle, route
from verbena.fabric.topology import PortId, Topology
from verbena.scenario.fabric_schema import FabricModel, Flow, Traffic
from verbena.scenario.measured import Measured, Sample, Sender, outcome_of
from verbena.scenario.meters import LinkUse, Reading, flows_of, percentiles
from verbena.scenario.outcome import Outcome, Watcher
from verbena.scenario.patterns import Stream, read_trace, streams

HEADERS = 8 + 12 + 4 + 2  # LRH, BTH, ICRC, VCRC (IBA vol. 1, 7.7, 9.2, 7.8)
FLIT_PAYLOAD = 80
FLIT_HEADER = 12
SHOWN = 8
Destinations = tuple[tuple[int, int], ...]


def packet_size(payload: int) -> int:
    """Bytes of a packet of an unreliable service, from LRH to VCRC."""
    return HEADERS + payload + (-payload & 3)


def link_bytes(payload: int) -> int:
    """Bytes that such a packet occupies on a link: its own, and a header for each flit."""
    size = packet_size(payload)
    return size + -(-size // FLIT_PAYLOAD) * FLIT_HEADER


def cycle_warning(cycle: Sequence[Channel]) -> str:
    """A sentence about a routing that has a cycle of channels."""
    shown = "; ".join(str(channel) for channel in cycle[:SHOWN])
    more = f"; … ({len(cycle)} channels)" if len(cycle) > SHOWN else ""
    return f"this routing can deadlock: packets can wait for each other in a circle: {shown}{more}"


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


class Simulation:
    """A fabric with a workload's sources, ready to run.  Raises `VerbenaError` for what cannot be simulated.

    `assembly`, `core`: the fabric.  `warnings`: what a real fabric would run with.  `senders`: by the core's sources.
    """

    def __init__(
        self, topology: Topology, model: FabricModel, spec: Traffic, seed: int, folder: Path = Path()
    ) -> None:
        self.spec = spec
        self.topology = topology
        self.assembly = Assembly(topology, options_of(model), seed=seed, flits=False)
        self.core = self.assembly.core
        self.hosts = [node.name for node in topology.hosts if topology.links_of(node.name)]
        self.senders: list[Sender] = []
        addresses = assign_lids(topology)
        self._ports = {name: self._first_port(name) for name in self.hosts}
        self._lid = {name: addresses[port][0] for name, port in self._ports.items()}
        self._route(model, addresses)
        self._set_lanes(model)
        random = Random(f"{seed} {spec.name}")
        self._tables: dict[tuple[int, tuple[str, ...]], Destinations] = {}
        for number, flow in enumerate(spec.flows):
            if flow.pattern == "trace":
                self._add_trace(number, flow, folder)
            for stream in streams(flow, self.hosts, random):
                self._add(number, flow, stream)

    def _first_port(self, name: str) -> PortId:
        ports = range(1, self.topology.nodes[name].ports + 1)
        return next(p for n in ports if (p := PortId(name, n)) in self.topology.at)

    def _route(self, model: FabricModel, addresses: dict[PortId, tuple[int, int]]) -> None:
        graph = RoutingGraph.from_topology(self.topology, addresses)
        self.routing = route(graph, model.routing, lanes=model.lanes)
        self.warnings = list(self.routing.warnings)
        if cycle := find_cycle(graph, self.routing):
            self.warnings.append(cycle_warning(cycle))
        self._layered = self.routing.lanes > 1
        if self._layered and any(flow.level for flow in self.spec.flows):
            raise VerbenaError(
                f"routing {model.routing} takes {self.routing.lanes} lanes against deadlock: "
                "flows have no level of their own"
            )
        self.assembly.load(addresses, zip(graph.switches, self.routing.tables, strict=True))

    def _set_lanes(self, model: FabricModel) -> None:
        """Service level n goes on lane n, modulo the lanes that there are; and the lanes' turns at every port."""
        table = bytes(level % model.lanes for level in range(16))
        for port, number in self.assembly.ports.items():
            if port.port == 0:
                continue
            if port.node in self._ports:
                self.core.set_sl2vl(number, table)
            if (turns := model.arbitration) is not None:
                self.core.set_arbitration(number, high=turns.high, low=turns.low, limit_high=turns.limit)

    def _level(self, flow: Flow, source: str, destination: str) -> int:
        return self.routing.sl(self._lid[source], self._lid[destination]) if self._layered else flow.level

    def _destinations(self, flow: Flow, stream: Stream) -> Destinations:
        if self._layered:
            return tuple((self._lid[d], self._level(flow, stream.source, d)) for d in stream.destinations)
        # One tuple for all sources of the same destinations: the core keeps it once.
        key = (flow.level, stream.destinations)
        if key not in self._tables:
            self._tables[key] = tuple((self._lid[d], flow.level) for d in stream.destinations)
        return self._tables[key]

    def _add(self, number: int, flow: Flow, stream: Stream) -> None:
        port = self._ports[stream.source]
        gap_ns = link_bytes(flow.bytes) * 8e9 / self.topology.at[port].rate.bps / stream.load
        end = self.spec.duration_us if flow.stop_us is None else min(flow.stop_us, self.spec.duration_us)
        try:
            self.core.add_source(
                self.assembly.ports[port],
                mean_gap_ns=gap_ns,
                process=flow.process,
                burst=flow.burst_packets if flow.process == "bursty" else 1,
                size=packet_size(flow.bytes),
                destinations=self._destinations(flow, stream),
                order="cyclic" if stream.cyclic else "uniform",
                start_ns=round(flow.start_us * 1000),
                stop_ns=round(end * 1000),
                group=number,
            )
        except InvalidAttributeError as error:
            raise VerbenaError(
                f"workload {self.spec.name}, {flow.pattern} at load {flow.load:g}: {error}"
            ) from None
        self.senders.append(Sender(number, stream.source, flow.bytes, link_bytes(flow.bytes)))

    def _add_trace(self, number: int, flow: Flow, folder: Path) -> None:
        assert flow.file is not None
        entries: dict[str, list[tuple[int, int, int, int]]] = {}
        link: dict[str, int] = {}
        mtu = self.assembly.options.mtu
        for event in read_trace(folder / flow.file, self.hosts, mtu):
            level = self._level(flow, event.source, event.destination)
            entry = (event.time_ns, packet_size(event.bytes), self._lid[event.destination], level)
            entries.setdefault(event.source, []).append(entry)
            link[event.source] = link.get(event.source, 0) + link_bytes(event.bytes)
        for source, listed in entries.items():
            self.core.add_trace(self.assembly.ports[self._ports[source]], listed, group=number)
            self.senders.append(Sender(number, source, None, link[source] / len(listed)))

    # --- running ------------------------------------------------------------------------------------------------

    def run(self, watcher: Watcher | None = None, number: int = 0) -> Measured:
        """Simulate, to the end of the workload's time; or until the fabric has come to a stand in a circle."""
        spec, core = self.spec, self.core
        end, warm = round(spec.duration_us * 1000), round(spec.warmup_us * 1000)
        started = time.monotonic()
        self._advance(warm)
        core.clear_statistics()
        before = Reading.of(core, self.senders) if warm else Reading.zero(self.senders)
        links = LinkUse(self.assembly, self._ports)
        samples: list[Sample] = []
        circle: list[tuple[int, int, int]] = []
        delivered = before.payload
        for at in range(1, spec.samples + 1):
            until = warm + (end - warm) * at // spec.samples
            if until <= core.now:
                continue
            self._advance(until)
            use, payload = links.since_last(), Reading.of(core, self.senders).payload
            lanes = core.buffered()[: self.assembly.options.lanes]
            samples.append(
                Sample(until, payload - delivered, sum(use) / max(len(use), 1), max(use, default=0.0), lanes)
            )
            delivered = payload
            if watcher is not None:
                wall = max(time.monotonic() - started, 1e-9)
                rate = f"{core.statistics()['packet_hops'] / wall / 1e6:.2f} M packet-hops/s"
                watcher.progress(number, f"simulated, {rate}", until, end, "ns")
            if circle := core.standstill():
                break
        return self._measured(before, samples, links, core.now - warm, time.monotonic() - started, circle)

    def _advance(self, until: int) -> None:
        while self.core.now < until:
            self.core.run(until)

    def _measured(
        self,
        before: Reading,
        samples: list[Sample],
        links: LinkUse,
        span: int,
        wall: float,
        circle: list[tuple[int, int, int]],
    ) -> Measured:
        core, ids = self.core, self.assembly.ids
        now, found = Reading.of(core, self.senders), core.latency_histogram()
        count = found["count"]
        capacity = sum(self.topology.at[port].rate.bps for port in self._ports.values())
        offered_bits = 8 * sum(
            (after - then) * sender.link_bytes
            for sender, after, then in zip(self.senders, now.due, before.due, strict=True)
        )
        named = [f"{ids[port]} lane {lane}" for port, lane, _ in circle]
        return Measured(
            hosts=len(self.hosts),
            simulated_ns=span,
            offered=sum(now.due) - sum(before.due),
            delivered=count,
            delivered_bytes=now.payload - before.payload,
            waiting=sum(now.unsent),
            inside=core.statistics()["inside"],
            packet_hops=core.statistics()["packet_hops"],
            wall_s=wall,
            offered_load=offered_bits * 1e9 / span / capacity,
            accepted_load=links.into_hosts(),
            latency=[(low / 1000, high / 1000, number) for low, high, number in found["bins"]],
            latency_mean=found["sum_ps"] / count / 1000 if count else 0.0,
            latency_min=found["min_ps"] / 1000,
            latency_max=found["max_ps"] / 1000,
            percentiles=percentiles(found["bins"], found["min_ps"], found["max_ps"]),
            flows=flows_of(self.spec, core, self.senders, before, now, span),
            samples=samples,
            hottest=links.hottest(),
            counters=self._counters(),
            deadlock=named,
            warnings=self.warnings,
            balance=self._balance(now),
        )

    def _counters(self) -> dict[str, int]:
        """The sums of all ports' counters that are not 0."""
        found: dict[str, int] = {}
        for node in self.assembly.nodes.values():
            for name, value in self.core.node_counters(node).items():
                if value:
                    found[name] = found.get(name, 0) + value
        return dict(sorted(found.items()))

    def _balance(self, now: Reading) -> list[tuple[str, int, int]]:
        """What the sources offered and what became of it, the latter as ports and fabric have counted it."""
        delivered = sum(self.core.counter_of_all("delivered"))
        dropped = sum(value for name, value in self._counters().items() if name.startswith("drop"))
        inside = self.core.statistics()["inside"]
        name = self.spec.name
        return [
            (
                f"{name}: offered = delivered + dropped + inside + not yet sent",
                sum(now.due),
                delivered + dropped + inside + sum(now.unsent),
            ),
            (f"{name}: delivered, by sources = by ports", sum(now.delivered), delivered),
            (f"{name}: dropped, by sources = by ports", sum(now.dropped), dropped),
        ]


def simulate(
    topology: Topology,
    model: FabricModel,
    spec: Traffic,
    seed: int,
    watcher: Watcher,
    number: int,
    folder: Path = Path(),
) -> tuple[Outcome, list[tuple[str, int, int]]]:
    """Run a traffic workload: its outcome, and its balance.

    It fails if packets were dropped, or if the fabric has come to a stand in a circle.
    """
    found = Simulation(topology, model, spec, seed, folder).run(watcher, number)
    return outcome_of(spec, found), found.balance
