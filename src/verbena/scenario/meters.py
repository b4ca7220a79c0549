"""What is read of a simulated fabric, and what follows: flows' figures, percentiles, how busy the links are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verbena.fabric.assembly import Assembly
from verbena.fabric.topology import PortId
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.measured import FlowMeasured, Sender, jain

HEADERS = 26
HOTTEST = 10
SHARES = (0.5, 0.9, 0.99, 0.999)
Bins = Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the sources have done until a time: packets by source, and the payload that was delivered.

    Of traces, whose packets differ, the payload counts with its padding to whole words.
    """

    due: list[int]
    delivered: list[int]
    dropped: list[int]
    unsent: list[int]
    payloads: list[int]
    latency_sum_ps: list[int]
    latency_max_ps: list[int]

    @classmethod
    def of(cls, core: Any, senders: Sequence[Sender]) -> Reading:
        found = core.source_statistics()
        delivered, octets = found["delivered"], found["delivered_bytes"]
        return cls(
            [made + unsent for made, unsent in zip(found["made"], found["unsent"], strict=True)],
            list(delivered),
            list(found["dropped"]),
            list(found["unsent"]),
            [
                size - HEADERS * count if sender.payload is None else sender.payload * count
                for sender, count, size in zip(senders, delivered, octets, strict=True)
            ],
            list(found["latency_sum_ps"]),
            list(found["latency_max_ps"]),
        )

    @classmethod
    def zero(cls, senders: Sequence[Sender]) -> Reading:
        """Before anything was due."""
        return cls(*([0] * len(senders) for _ in range(7)))

    @property
    def payload(self) -> int:
        return sum(self.payloads)


def percentiles(bins: Bins, least: float, most: float) -> dict[float, float]:
    """Latencies in ns by share, from bins in ps: within a bin the packets count as evenly spread; least and most as
    they were."""
    total = sum(count for _, _, count in bins)
    found = dict.fromkeys(SHARES, 0.0)
    for share in SHARES if total else ():
        before, wanted = 0, share * total
        for low, high, count in bins:
            if before + count >= wanted:
                first, last = max(low, least), min(high, most)
                found[share] = round((first + (last - first) * (wanted - before) / count) / 1000, 3)
                break
            before += count
    return found


def flows_of(
    spec: Traffic, core: Any, senders: Sequence[Sender], before: Reading, now: Reading, span_ns: int
) -> list[FlowMeasured]:
    """The figures of each flow."""
    names = Counter(flow.name or flow.pattern for flow in spec.flows)
    found = []
    for number, flow in enumerate(spec.flows):
        of = [i for i, sender in enumerate(senders) if sender.flow == number]
        hosts: dict[str, int] = {}
        for i in of:
            got = now.payloads[i] - before.payloads[i]
            hosts[senders[i].host] = hosts.get(senders[i].host, 0) + got
        rates = [count * 8 / span_ns for count in hosts.values()]
        delivered = sum(now.delivered[i] - before.delivered[i] for i in of)
        largest = max((now.latency_max_ps[i] for i in of), default=0)
        bins = core.group_histogram(number)
        least = bins[0][0] if bins else 0
        name = flow.name or flow.pattern
        found.append(
            FlowMeasured(
                name=name if names[name] == 1 else f"{name} {number}",
                senders=len(hosts),
                offered=sum(now.due[i] - before.due[i] for i in of),
                delivered=delivered,
                dropped=sum(now.dropped[i] - before.dropped[i] for i in of),
                throughput_gbps=sum(rates),
                latency_mean=sum(now.latency_sum_ps[i] for i in of) / delivered / 1000 if delivered else 0.0,
                latency_max=largest / 1000,
                percentiles=percentiles(bins, least, largest),
                smallest_gbps=min(rates, default=0.0),
                largest_gbps=max(rates, default=0.0),
                fairness=jain(rates),
            )
        )
    return found


class LinkUse:
    """For which share of the time the directions of all links were busy.

    A packet that is on its way out when a sample is taken counts in each sample with its part.  hosts: their ports.
    """

    def __init__(self, assembly: Assembly, hosts: dict[str, PortId]) -> None:
        self._assembly = assembly
        self._ports = [port for port in assembly.ports if port in assembly.topology.at]
        self._numbers = [assembly.ports[port] for port in self._ports]
        peer = assembly.topology.peer
        ends = set(hosts.values())
        self._into = [at for at, port in enumerate(self._ports) if peer(port) in ends]
        self._began = assembly.core.now
        self._start = self._busy()
        self._last, self._last_ns = self._start, self._began

    def _busy(self) -> list[int]:
        all_ports = self._assembly.core.busy_of_all()
        return [all_ports[number] for number in self._numbers]

    def since_last(self) -> list[float]:
        """Of each direction, since the last call."""
        busy, now = self._busy(), self._assembly.core.now
        span = max(now - self._last_ns, 1) * 1000
        shares = [(after - before) / span for after, before in zip(busy, self._last, strict=True)]
        self._last, self._last_ns = busy, now
        return shares

    def _since_start(self) -> list[float]:
        span = max(self._assembly.core.now - self._began, 1) * 1000
        return [(now - then) / span for now, then in zip(self._busy(), self._start, strict=True)]

    def into_hosts(self) -> float:
        """Of the links into the hosts, together: each with the weight of its rate."""
        shares, at = self._since_start(), self._assembly.topology.at
        rates = [at[self._ports[i]].rate.bps for i in self._into]
        used = sum(shares[i] * rate for i, rate in zip(self._into, rates, strict=True))
        return used / sum(rates) if rates else 0.0

    def hottest(self) -> list[tuple[str, float]]:
        """The busiest directions since the beginning."""
        pairs = zip(self._since_start(), self._ports, strict=True)
        ordered = sorted(pairs, key=lambda pair: (-pair[0], str(pair[1])))
        peer = self._assembly.topology.peer
        return [(f"{port} -> {peer(port)}", share) for share, port in ordered[:HOTTEST]]
