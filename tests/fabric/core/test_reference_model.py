"""The simulator against a model of the same rules that is short enough to be read: credits, lanes, order, times.

The model knows links of one rate, lanes that take turns, input queues, credits, cut-through and store-and-forward; its
events lie in a heap, its credits are told by an event each, nothing is kept back or looked up later.  Cases in which
two things happen to one node in the same picosecond are left out: their order is nobody's promise.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fabric.core.nets import Net
from verbena import _pure
from verbena.fabric.kinds import TraceKind

BYTE = 80  # ps, at 100 Gb/s
CASES = 150 if _pure.compiled() else 20


def wire(size: int) -> int:
    """Bytes of a packet on a link: 12 for each flit of at most 80."""
    return size + 12 * -(-size // 80)


class Packet:
    def __init__(self, number: int, size: int, lane: int, dest: int) -> None:
        self.number, self.size, self.lane, self.dest = number, size, lane, dest
        self.blocks = -(-size // 64)


class Port:
    """One end of a cable: queues of what came in (a host: of what it sends), by lane, and heads that wait to leave."""

    def __init__(self, node: int, lanes: int, room: int, delay: int) -> None:
        self.node, self.delay, self.peer = node, delay, self
        self.queue: list[deque[Packet]] = [deque() for _ in range(lanes)]
        self.leaving = [False] * lanes  # the queue's first packet is on its way out
        self.ring: list[deque[Port]] = [
            deque() for _ in range(lanes)
        ]  # ports whose heads wait for this output
        self.credits = [room] * lanes
        self.turn, self.busy = 0, False


class Model:
    def __init__(self, latency: list[int | None], cut_through: bool) -> None:
        self.latency = latency  # by node, in ps; None: a host
        self.cut_through = cut_through
        self.route: dict[tuple[int, int], Port] = {}  # (node, destination node) -> output
        self.heap: list[tuple[int, int, int, Callable[[], None]]] = []
        self.now, self.count = 0, 0
        self.delivered: list[tuple[int, int, int]] = []  # (ps, node, packet)
        self.tied = False

    def at(self, time: int, node: int, do: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (time, self.count, node, do))

    def run(self) -> None:
        busy_nodes: set[int] = set()
        while self.heap:
            time, _, node, do = heapq.heappop(self.heap)
            busy_nodes = busy_nodes if time == self.now else set()
            self.tied |= node in busy_nodes
            busy_nodes.add(node)
            self.now = time
            do()

    def arrive(self, port: Port, packet: Packet) -> None:
        if self.latency[port.node] is None:
            self.delivered.append((self.now, port.node, packet.number))
            self.give_back(port, packet)
        else:
            self.join(port, packet)

    def join(self, port: Port, packet: Packet) -> None:
        queue = port.queue[packet.lane]
        queue.append(packet)
        if len(queue) == 1:
            self.head(port, packet.lane)

    def head(self, port: Port, lane: int) -> None:
        """A queue has a new head: it waits for its output."""
        output = self.route[port.node, port.queue[lane][0].dest]
        output.ring[lane].append(port)
        self.serve(output)

    def serve(self, output: Port) -> None:
        if output.busy:
            return
        lanes = len(output.ring)
        for i in range(lanes):
            lane = (output.turn + i) % lanes
            if output.ring[lane]:
                source = output.ring[lane][0]
                packet = source.queue[lane][0]
                if output.credits[lane] >= packet.blocks:
                    output.ring[lane].popleft()
                    output.turn = lane + 1
                    self.send(output, source, packet)
                    return

    def send(self, output: Port, source: Port, packet: Packet) -> None:
        output.busy = True
        output.credits[packet.lane] -= packet.blocks
        end = self.now + wire(packet.size) * BYTE
        self.at(end, output.node, lambda: self.sent(output, source, packet))
        far, when = output.peer, end + output.delay
        latency = self.latency[far.node]
        if latency is not None:
            if self.cut_through:
                when = self.now + (min(packet.size, 80) + 12) * BYTE + output.delay
            when += latency
        self.at(when, far.node, lambda: self.arrive(far, packet))

    def sent(self, output: Port, source: Port, packet: Packet) -> None:
        output.busy = False
        source.queue[packet.lane].popleft()
        if self.latency[source.node] is not None:
            self.give_back(source, packet)
        if source.queue[packet.lane]:
            self.head(source, packet.lane)
        self.serve(output)

    def give_back(self, port: Port, packet: Packet) -> None:
        sender = port.peer

        def credit() -> None:
            sender.credits[packet.lane] += packet.blocks
            self.serve(sender)

        self.at(self.now + port.delay + 12 * BYTE, sender.node, credit)


class Case:
    """A random tree of switches with hosts, in the simulator and in the model; and packets through both."""

    def __init__(self, seed: int, lanes: int, room: int, cut_through: bool, flits: bool = False) -> None:
        rng = self.rng = random.Random(seed)
        self.lanes, self.room = lanes, room
        switches, hosts = rng.randint(1, 4), rng.randint(2, 6)
        latencies = [rng.randint(0, 300) for _ in range(switches)]
        self.net = Net(flits=flits)
        self.model = Model([1000 * x for x in latencies] + [None] * hosts, cut_through)
        nodes = [self.net.switch(latency_ns=x, cut_through=cut_through) for x in latencies]
        edges: list[tuple[int, int, Port]] = []  # (from, to, port of the model)

        def cable(a: int, b: int) -> int:
            delay = rng.randint(0, 900)
            ends = [Port(node, lanes, room, delay * 1000) for node in (a, b)]
            ends[0].peer, ends[1].peer = ends[1], ends[0]
            edges.extend([(a, b, ends[0]), (b, a, ends[1])])
            return delay

        for i in range(1, switches):
            j = rng.randrange(i)
            self.net.link(nodes[i], nodes[j], delay=cable(i, j), lanes=lanes, buffer_bytes=room * 64)
        for h in range(hosts):
            j = rng.randrange(switches)
            self.net.host(nodes[j], delay=cable(switches + h, j), lanes=lanes, buffer_bytes=room * 64)
        self.net.route()
        self.hosts = list(range(switches, switches + hosts))
        self.own = {a: port for a, _, port in edges if a >= switches}
        for dest in self.hosts:  # a tree: there is one way
            known, todo = {dest}, deque([dest])
            while todo:
                near = todo.popleft()
                for a, b, port in edges:
                    if b == near and a not in known:
                        known.add(a)
                        todo.append(a)
                        self.model.route[a, dest] = port

    def send(self, packets: int, span_ns: int, sizes: tuple[int, int]) -> None:
        """Inject packets at random times into both."""
        rng, first = self.rng, self.hosts[0]
        self.net.core.trace_on(TraceKind.DELIVER)
        for number, time in enumerate(sorted(rng.randrange(span_ns) for _ in range(packets)), 1):
            source, dest = rng.sample(self.hosts, 2)
            packet = Packet(number, rng.randint(*sizes) * 4 + 2, rng.randrange(self.lanes), dest)

            def join(packet: Packet = packet, source: int = source) -> None:
                self.model.join(self.own[source], packet)

            self.model.at(time * 1000, source, join)
            self.net.run(time)
            assert self.net.core.inject_phantom(
                self.net.hosts[source - first], packet.size, dest - first + 1, packet.lane
            )

    def results(self) -> tuple[Any, Any]:
        self.model.run()
        self.net.settle()
        node = dict(zip(self.net.hosts, self.hosts, strict=True))
        trace = self.net.core.take_trace()
        return [(t[0], node[t[1]], t[6]) for t in trace], self.model.delivered


def compare(case: Case) -> None:
    got, expected = case.results()
    assume(not case.model.tied)
    assert sorted(got) == sorted(expected)
    for host in case.hosts:  # among hosts the order of one picosecond does not count
        assert [g for g in got if g[1] == host] == [e for e in expected if e[1] == host]
    core = case.net.core
    case.net.run(core.now + 2000)  # the last credits are back
    for port in [p for cable in case.net.cables for p in cable]:
        lanes = core.port_counters(port)["lanes"]
        assert {lanes[v]["credits"] for v in range(case.lanes)} == {case.room}
        assert set(core.occupancy(port)) == {0}


seeds = st.integers(0, 1 << 30)


@pytest.mark.requirement("LNK-07")
@settings(max_examples=CASES, deadline=None)
@given(seed=seeds, room=st.integers(16, 70), cut_through=st.booleans())
def test_one_lane_with_scarce_credit(seed: int, room: int, cut_through: bool) -> None:
    """Room for one packet to a few: most of the time somebody waits for credit."""
    case = Case(seed, 1, room, cut_through)
    case.send(60, 12_000, (6, 255))
    compare(case)


@pytest.mark.requirement("LNK-14")
@settings(max_examples=CASES, deadline=None)
@given(seed=seeds, lanes=st.integers(2, 4), room=st.integers(16, 200), cut_through=st.booleans())
def test_lanes_with_credits_of_their_own(seed: int, lanes: int, room: int, cut_through: bool) -> None:
    case = Case(seed, lanes, room, cut_through)
    case.send(80, 10_000, (6, 255))
    compare(case)


@settings(max_examples=CASES, deadline=None)
@given(seed=seeds, room=st.integers(1, 6), cut_through=st.booleans())
def test_small_packets_on_long_cables(seed: int, room: int, cut_through: bool) -> None:
    """Many credits are on their way back at once."""
    case = Case(seed, 1, room, cut_through)
    case.send(100, 6_000, (6, 15))
    compare(case)


def test_the_model_and_the_simulator_differ_when_the_rules_do() -> None:
    """The comparison sees a packet's credit more: it is no formality."""
    case = Case(7, 1, 16, True)
    for output in case.model.route.values():
        output.credits[0] += 16
    case.send(60, 6_000, (200, 255))
    got, expected = case.results()
    assert sorted(got) != sorted(expected)
