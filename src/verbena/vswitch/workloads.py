"""Workloads at a cluster: partition-aggregate, incast, background flows, datagrams; completion times of all.

Everything random comes from the stream that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from verbena.errors import InvalidAttributeError
from verbena.vswitch.cluster import Cluster
from verbena.vswitch.tcp import Sender

if TYPE_CHECKING:
    from random import Random

DATAGRAM_BYTES = 1456
DATAGRAM_FRAME = 1498
"""An Ethernet frame with such a datagram: 14 + 20 + 8 bytes more."""


@dataclass
class Times:
    """Completion times in ns, and what went wrong on the way."""

    flows_ns: list[int] = field(default_factory=list)
    queries_ns: list[int] = field(default_factory=list)
    in_time: int = 0
    answers: int = 0
    timeouts: int = 0
    retransmitted: int = 0

    def add(self, sender: Sender) -> None:
        """Count a finished flow's trouble."""
        self.timeouts += sender.timeouts
        self.retransmitted += sender.retransmitted

    @staticmethod
    def mean(values: Sequence[int]) -> float:
        """Arithmetic mean; 0 of nothing."""
        return sum(values) / len(values) if values else 0.0

    @staticmethod
    def percentile(values: Sequence[int], share: float) -> int:
        """The smallest value that a share of all do not exceed; 0 of nothing."""
        ordered = sorted(values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


class PartitionAggregate:
    """An aggregator asks all workers, each answers `response_bytes` by TCP; the next query follows `gap_ns` later.

    A query is complete when the last answer is there.  deadline_ns: answers later than that are worth nothing (they are
    still waited for).  think_ns: a worker begins to answer after up to so long, drawn for each answer.
    """

    def __init__(
        self,
        cluster: Cluster,
        random: Random,
        aggregator: str,
        workers: Sequence[str],
        *,
        response_bytes: int = 65_536,
        queries: int = 20,
        deadline_ns: int = 100_000_000,
        gap_ns: int = 10_000_000,
        think_ns: int = 50_000,
        congestion: str = "cubic",
        min_rto_ns: int = 200_000_000,
        probes: bool = True,
    ) -> None:
        if response_bytes < 1 or queries < 1 or not workers:
            raise InvalidAttributeError("response_bytes, queries and the number of workers are 1 or more")
        self.times = Times()
        self._cluster, self._random, self._aggregator, self._workers = (
            cluster,
            random,
            aggregator,
            list(workers),
        )
        self._size, self._left, self._deadline, self._gap = response_bytes, queries, deadline_ns, gap_ns
        self._think, self._congestion, self._min_rto, self._probes = think_ns, congestion, min_rto_ns, probes
        self._asked = 0
        self._open = 0

    @property
    def done(self) -> bool:
        """Are all queries complete?"""
        return self._left == 0 and self._open == 0

    def start(self) -> None:
        """Ask the first query."""
        self._left -= 1
        clock = self._cluster.clock
        self._asked = clock.now()
        self._open = len(self._workers)
        for worker in self._workers:
            sender = self._cluster.tcp(
                worker,
                self._aggregator,
                self._size,
                congestion=self._congestion,
                min_rto_ns=self._min_rto,
                probes=self._probes,
                on_done=self._answered,
            )
            # The question takes half a round trip to get there.
            when = self._asked + self._cluster.rtt_ns() // 2 + self._random.randrange(self._think + 1)
            clock.call_at(when, sender.start)

    def _answered(self, sender: Sender) -> None:
        clock = self._cluster.clock
        taken = clock.now() - self._asked
        times = self.times
        times.flows_ns.append(taken)
        times.answers += 1
        times.in_time += taken <= self._deadline
        times.add(sender)
        self._open -= 1
        if not self._open:
            times.queries_ns.append(taken)
            if self._left:
                clock.call_at(clock.now() + self._gap, self.start)


class DatagramQueries:
    """Partition-aggregate over UDP: each answer is `response_bytes` in datagrams, sent at once; nothing is sent again.

    A query that lost a datagram is never complete: it is given up after `give_up_ns`, and counted in `incomplete`.
    """

    def __init__(
        self,
        cluster: Cluster,
        random: Random,
        aggregator: str,
        workers: Sequence[str],
        *,
        response_bytes: int = 65_536,
        queries: int = 20,
        deadline_ns: int = 100_000_000,
        gap_ns: int = 10_000_000,
        think_ns: int = 50_000,
        give_up_ns: int = 1_000_000_000,
    ) -> None:
        if response_bytes < 1 or queries < 1 or not workers:
            raise InvalidAttributeError("response_bytes, queries and the number of workers are 1 or more")
        self.times = Times()
        self.incomplete = 0
        self._cluster, self._random, self._aggregator, self._workers = (
            cluster,
            random,
            aggregator,
            list(workers),
        )
        self._datagrams = -(-response_bytes // DATAGRAM_BYTES)
        self._left, self._deadline, self._gap, self._think = queries, deadline_ns, gap_ns, think_ns
        self._give_up_ns = give_up_ns
        self._missing: dict[int, int] = {}  # datagrams that are still to come, by flow
        self._flow = self._asked = 0
        cluster.hosts[aggregator].on_datagram = self._arrived

    def start(self) -> None:
        """Ask the first query."""
        self._left -= 1
        clock = self._cluster.clock
        self._asked = clock.now()
        for worker in self._workers:
            self._flow += 1
            self._missing[self._flow] = self._datagrams
            when = self._asked + self._cluster.rtt_ns() // 2 + self._random.randrange(self._think + 1)
            send = partial(self._send, worker, self._flow, self._datagrams)
            clock.call_at(when, send)
        self._timer = clock.call_at(self._asked + self._give_up_ns, self._give_up)

    def _send(self, worker: str, flow: int, left: int) -> None:
        while left:
            if not self._cluster.datagram(worker, self._aggregator, flow, DATAGRAM_FRAME):
                self._cluster.hosts[worker].waiting.append(partial(self._send, worker, flow, left))
                return
            left -= 1

    def _arrived(self, flow: int, _length: int) -> None:
        if flow not in self._missing:
            return
        self._missing[flow] -= 1
        if self._missing[flow]:
            return
        del self._missing[flow]
        taken = self._cluster.clock.now() - self._asked
        self.times.flows_ns.append(taken)
        self.times.answers += 1
        self.times.in_time += taken <= self._deadline
        if not self._missing:
            self.times.queries_ns.append(taken)
            self._timer.cancel()
            self._next()

    def _give_up(self) -> None:
        self.incomplete += 1
        self.times.answers += len(self._missing)
        self._missing.clear()
        self._next()

    def _next(self) -> None:
        if self._left:
            self._cluster.clock.call_at(self._cluster.clock.now() + self._gap, self.start)


class Background:
    """TCP flows between random hosts: exponential gaps, sizes drawn from `sizes`, for `duration_ns`."""

    def __init__(
        self,
        cluster: Cluster,
        random: Random,
        hosts: Sequence[str],
        *,
        mean_gap_ns: int,
        sizes: Sequence[int] = (2_000, 20_000, 200_000, 1_000_000),
        duration_ns: int = 1_000_000_000,
        congestion: str = "cubic",
        min_rto_ns: int = 200_000_000,
    ) -> None:
        if len(hosts) < 2 or mean_gap_ns < 1 or not sizes:
            raise InvalidAttributeError("background flows need two hosts, a gap of 1 ns or more, and a size")
        self.times = Times()
        self.open = 0
        self._cluster, self._random, self._hosts, self._gap = cluster, random, list(hosts), mean_gap_ns
        self._sizes, self._congestion, self._min_rto = list(sizes), congestion, min_rto_ns
        self._until = cluster.clock.now() + duration_ns

    def start(self) -> None:
        """Begin a flow, and the next one later."""
        clock, random = self._cluster.clock, self._random
        if clock.now() >= self._until:
            return
        source, destination = random.sample(self._hosts, 2)
        begun = clock.now()
        self.open += 1

        def done(sender: Sender) -> None:
            self.open -= 1
            self.times.flows_ns.append(clock.now() - begun)
            self.times.add(sender)

        self._cluster.tcp(
            source,
            destination,
            random.choice(self._sizes),
            congestion=self._congestion,
            min_rto_ns=self._min_rto,
            on_done=done,
        ).start()
        clock.call_at(clock.now() + 1 + int(random.expovariate(1 / self._gap)), self.start)


class Datagrams:
    """UDP from one host to another, as fast as its card takes it, or at a rate; nothing is sent again."""

    def __init__(
        self,
        cluster: Cluster,
        source: str,
        destination: str,
        *,
        flow: int,
        length: int = 1470,
        count: int = 1000,
        rate_bps: float = 0,
    ) -> None:
        if not 60 <= length <= 1518 or count < 1 or rate_bps < 0:
            raise InvalidAttributeError("datagram frames have 60 to 1518 bytes; count is 1 or more")
        self.sent = self.received = 0
        self._cluster, self._source, self._destination = cluster, source, destination
        self._flow, self._length, self._count = flow, length, count
        self._gap = int(length * 8e9 / rate_bps) if rate_bps else 0
        before = cluster.hosts[destination].on_datagram
        cluster.hosts[destination].on_datagram = self._counting(before)

    def _counting(self, before: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def arrived(flow: int, length: int) -> None:
            if flow == self._flow:
                self.received += 1
            before(flow, length)

        return arrived

    def start(self) -> None:
        """Send until the card is full, or the next one is due."""
        while self.sent < self._count:
            if not self._cluster.datagram(self._source, self._destination, self._flow, self._length):
                self._cluster.hosts[self._source].waiting.append(self.start)
                return
            self.sent += 1
            if self._gap:
                self._cluster.clock.call_at(self._cluster.clock.now() + self._gap, self.start)
                return
