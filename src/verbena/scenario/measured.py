"""What a simulation of traffic found, and how it stands in a run's report.

Latencies count from the moment at which a packet was due at its source, so that waiting in front of a full fabric is
part of them, to the arrival of its last byte.  Everything is measured from the end of the warm-up on: what was due,
what was delivered, when links were busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.outcome import Outcome, Row


@dataclass(frozen=True, slots=True)
class Sender:
    """A source of packets.  flow: its number.  payload: bytes of each packet, None if they differ (a trace).

    link_bytes: what a packet occupies on a link, the mean of a trace's.
    """

    flow: int
    host: str
    payload: int | None
    link_bytes: float


@dataclass(slots=True)
class Sample:
    """A point of the curves over time: what happened since the one before.

    delivered: payload bytes.  use: share of the time for which the links between nodes were busy, mean and largest.
    lanes: bytes that lie in the switches' input buffers, by lane, at that time.
    """

    ns: int
    delivered: int
    use_mean: float
    use_max: float
    lanes: list[int]


@dataclass(slots=True)
class FlowMeasured:
    """What became of one flow.  Times in nanoseconds.

    smallest, largest: throughput of the host that got least and most of it, Gb/s.  fairness: Jain's index of the hosts'
    throughputs, from 1/n (one has all) to 1 (all have the same); None if nothing was delivered.
    """

    name: str
    senders: int
    offered: int
    delivered: int
    dropped: int
    throughput_gbps: float
    latency_mean: float
    latency_max: float
    percentiles: dict[float, float]
    smallest_gbps: float
    largest_gbps: float
    fairness: float | None


@dataclass(slots=True)
class Measured:
    """What a simulation found, from the end of its warm-up on.  Times in nanoseconds.

    offered: packets that were due.  waiting: packets that at the end are due and not yet sent; inside: on their way.
    offered_load, accepted_load: share of what the hosts' links carry.
    latency: bins (from, to, packets).  percentiles: latencies by share.
    """

    hosts: int
    simulated_ns: int
    offered: int
    delivered: int
    delivered_bytes: int
    waiting: int
    inside: int
    packet_hops: int
    wall_s: float
    offered_load: float
    accepted_load: float
    latency: list[tuple[float, float, int]]
    latency_mean: float
    latency_min: float
    latency_max: float
    percentiles: dict[float, float]
    flows: list[FlowMeasured] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    hottest: list[tuple[str, float]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    deadlock: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    balance: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by reason."""
        return {name: value for name, value in self.counters.items() if name.startswith("drop")}

    @property
    def throughput_gbps(self) -> float:
        """Payload delivered."""
        return self.delivered_bytes * 8 / self.simulated_ns


def jain(shares: Sequence[float]) -> float | None:
    """Jain's index of fairness: (sum x)^2 / (n sum x^2); None if all are 0."""
    squares = sum(x * x for x in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


# --- in a report ------------------------------------------------------------------------------------------------


def outcome_of(spec: Traffic, found: Measured) -> Outcome:
    """What a measurement is in a run's report."""
    rows = [
        Row("delivered", found.delivered_bytes, found.simulated_ns, f"{found.throughput_gbps:.2f} Gb/s"),
        Row("latency, mean", 0, round(found.latency_mean), ""),
        Row("latency, 99 %", 0, round(found.percentiles[0.99]), ""),
        Row("latency, largest", 0, round(found.latency_max), ""),
    ]
    samples: dict[str, list[Any]] = {
        "latency": [list(each) for each in found.latency],
        "time": [[s.ns, s.delivered, s.use_mean, s.use_max, s.lanes] for s in found.samples],
    }
    ok = not found.deadlock and not found.drops
    return Outcome(spec.name, "traffic", ok, _verdict(found), rows, _facts(found), samples)


def _verdict(found: Measured) -> str:
    if found.deadlock:
        circle = [*found.deadlock, found.deadlock[0]]
        return f"DEADLOCK: {' waits for '.join(circle)}"
    if found.drops:
        reasons = ", ".join(f"{name} {count:,}" for name, count in found.drops.items())
        return f"{sum(found.drops.values()):,} packets were dropped: {reasons}"
    left = found.waiting + found.inside
    end = f"; at the end {left:,} on their way or not yet sent" if left else ""
    return f"{found.offered:,} packets offered, {found.delivered:,} delivered, none dropped{end}"


def _facts(found: Measured) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "hosts": found.hosts,
        "packets_offered": found.offered,
        "packets_delivered": found.delivered,
        "packets_dropped": sum(found.drops.values()),
        "packets_waiting": found.waiting,
        "packets_inside": found.inside,
        "packet_hops": found.packet_hops,
        "offered_load": round(found.offered_load, 6),
        "accepted_load": round(found.accepted_load, 6),
        "throughput_gbps": round(found.throughput_gbps, 6),
        "latency_min_ns": found.latency_min,
        "latency_mean_ns": round(found.latency_mean, 3),
        **_percentiles(found.percentiles),
        "latency_max_ns": found.latency_max,
        "link_use_max": round(found.hottest[0][1], 6) if found.hottest else 0.0,
        "deadlock": bool(found.deadlock),
    }
    if len(found.flows) == 1 and found.flows[0].fairness is not None:
        facts["fairness"] = round(found.flows[0].fairness, 6)
    facts["flows"] = [_flow(flow) for flow in found.flows]
    facts["hot spots"] = {name: f"{share:.1%}" for name, share in found.hottest}
    facts["counters"] = found.counters
    if found.warnings:
        facts["warnings"] = {str(at + 1): sentence for at, sentence in enumerate(found.warnings)}
    return facts


def _percentiles(values: dict[float, float]) -> dict[str, float]:
    return {f"latency_p{100 * share:g}_ns".replace(".", "_"): value for share, value in values.items()}


def _flow(flow: FlowMeasured) -> dict[str, Any]:
    return {
        "flow": flow.name,
        "senders": flow.senders,
        "packets_offered": flow.offered,
        "packets_delivered": flow.delivered,
        "packets_dropped": flow.dropped,
        "throughput_gbps": round(flow.throughput_gbps, 6),
        "latency_mean_ns": round(flow.latency_mean, 3),
        **_percentiles(flow.percentiles),
        "latency_max_ns": flow.latency_max,
        "least_gbps": round(flow.smallest_gbps, 6),
        "most_gbps": round(flow.largest_gbps, 6),
        "fairness": None if flow.fairness is None else round(flow.fairness, 6),
    }
