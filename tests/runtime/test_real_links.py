"""The link layer over two physical layers, and the ends of links that carry datagrams."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.core.nets import packet
from verbena import InvalidAttributeError
from verbena.fabric.assembly import Assembly, FabricOptions
from verbena.fabric.core import FabricCore
from verbena.fabric.topology import Link, PortId, Topology
from verbena.runtime.core_loop import CoreLoop
from verbena.runtime.external_cables import ExternalCables
from verbena.runtime.link_end import HEADER, MAGIC, VERSION, Kind, LinkEnd, LinkTimes, State, token_of

GBPS = 1_000_000_000
ACTIVE = 4
LINK_UP, LINK_DOWN, ROOM = 1, 2, 3
OPTIONS = FabricOptions(lanes=2, buffer_bytes=8 << 10)
LIMIT_S = 30.0

# --- one test body, two physical layers -------------------------------------------------------------------------


def two_hosts() -> Topology:
    topology = Topology()
    topology.add_host("a")
    topology.add_host("b")
    topology.connect("a", "b", rate="4xEDR")
    return topology


class Cabled:
    """Two ports of one core, joined by its own cable, in simulated time."""

    def __init__(self, errors: float) -> None:
        self._topology = two_hosts()
        self._replace(errors)
        self._assembly = Assembly(self._topology, OPTIONS, seed=1)
        self._core: Any = self._assembly.core
        self._ports = [self._assembly.ports[PortId(name, 1)] for name in "ab"]
        self.delivered: tuple[list[bytes], list[bytes]] = ([], [])
        self.reports: tuple[list[int], list[int]] = ([], [])
        self._link: Link
        self._up()

    def _replace(self, errors: float) -> None:
        (link,) = self._topology.links
        self._topology.disconnect(link.a)
        self._topology.connect(link.a, link.b, rate=link.rate, bit_error_rate=errors)

    def _up(self) -> None:
        for port, lid in zip(self._ports, (1, 2), strict=True):
            self._core.set_lids(port, lid, 0)
            self._core.set_state(port, ACTIVE)

    def inject(self, side: int, data: bytes) -> bool:
        return bool(self._core.inject(self._ports[side], data))

    def until(self, condition: Any) -> None:
        for _ in range(1_000_000):
            if condition():
                return
            self._core.run(self._core.now + 1000)
            for _, port, data, *_ in self._core.deliveries():
                self.delivered[self._ports.index(port)].append(data)
            for kind, port, _ in self._core.reports():
                self.reports[self._ports.index(port)].append(kind)
        raise AssertionError("it did not happen")

    def pass_time(self) -> None:
        start = self._core.now
        self.until(lambda: self._core.now > start + 1_000_000)

    def counters(self, side: int) -> dict[str, Any]:
        return dict(self._core.port_counters(self._ports[side]))

    def stall(self, side: int, on: bool) -> None:
        self._core.stall(self._ports[side], on)

    def pull(self) -> None:
        self._link = self._assembly.pull(PortId("a", 1))

    def plug(self) -> None:
        self._assembly.plug(self._link)
        self._up()

    def close(self) -> None:
        pass


class Sockets:
    """A core for each end, each with a socket and a thread, in real time."""

    def __init__(self, errors: float) -> None:
        self.delivered: tuple[list[bytes], list[bytes]] = ([], [])
        self.reports: tuple[list[int], list[int]] = ([], [])
        self._loops: list[CoreLoop] = []
        self._cables: list[ExternalCables] = []
        self._assemblies: list[Assembly] = []
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "ab"]
        for side, sock in enumerate(socks):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            topology = two_hosts()
            (link,) = topology.links
            topology.disconnect(link.a)
            topology.connect(link.a, link.b, rate=link.rate, bit_error_rate=errors)
            cables = ExternalCables(LinkTimes())
            assembly = Assembly(topology, OPTIONS, seed=side, local=["ab"[side]], outside=cables)
            self._loops.append(self._loop(side, assembly, sock))
            self._cables.append(cables)
            self._assemblies.append(assembly)
            cables.begin(self._loops[side], assembly)
        self._ports = [self._assemblies[side].ports[PortId("ab"[side], 1)] for side in (0, 1)]
        for side in (0, 1):
            self._loops[side].start()
            with self._loops[side].held():
                self._cables[side].attach(PortId("ab"[side], 1), 77, socks[1 - side].getsockname())
        self._links: list[Link] = []
        self._up()

    def _loop(self, side: int, assembly: Assembly, sock: socket.socket) -> CoreLoop:
        return CoreLoop(
            assembly.core,
            sock,
            lambda port, data, in_port, handle: self.delivered[side].append(data),
            lambda kind, port, detail: self.reports[side].append(kind),
        )

    def _up(self) -> None:
        for side in (0, 1):
            self.until(lambda side=side: self._cables[side].is_up(PortId("ab"[side], 1)))
        for side in (0, 1):
            with self._loops[side].held():
                self._loops[side].core.set_lids(self._ports[side], side + 1, 0)
                self._loops[side].core.set_state(self._ports[side], ACTIVE)

    def inject(self, side: int, data: bytes) -> bool:
        with self._loops[side].held():
            return bool(self._loops[side].core.inject(self._ports[side], data))

    def until(self, condition: Any) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.001)

    def pass_time(self) -> None:
        time.sleep(0.3)

    def counters(self, side: int) -> dict[str, Any]:
        with self._loops[side].held():
            return dict(self._loops[side].core.port_counters(self._ports[side]))

    def stall(self, side: int, on: bool) -> None:
        with self._loops[side].held():
            self._loops[side].core.stall(self._ports[side], on)

    def pull(self) -> None:
        self._links = []
        for side in (0, 1):
            with self._loops[side].held():
                self._links.append(self._assemblies[side].pull(PortId("ab"[side], 1)))

    def plug(self) -> None:
        for side in (0, 1):
            with self._loops[side].held():
                self._assemblies[side].plug(self._links[side])
        self._up()

    def close(self) -> None:
        for loop in self._loops:
            loop.close()


Layer = Cabled | Sockets


@pytest.fixture(
    params=[
        pytest.param(Cabled, id="in-process"),
        pytest.param(Sockets, id="sockets", marks=pytest.mark.loopback),
    ]
)
def physical(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes a link on one of the physical layers: physical(bit error rate)."""
    made: list[Layer] = []

    def make(errors: float = 0.0) -> Layer:
        made.append(request.param(errors))
        return made[-1]

    yield make
    for each in made:
        each.close()


def numbered(to: int, number: int, size: int = 600, sl: int = 0) -> bytes:
    return packet(to, number.to_bytes(4, "big") + bytes(size), sl=sl, slid=3 - to)


def numbers(found: list[bytes]) -> list[int]:
    return [int.from_bytes(data[28:32], "big") for data in found]


def send_all(link: Layer, side: int, count: int, size: int = 600, sl: int = 0) -> None:
    for number in range(count):
        link.until(lambda number=number: link.inject(side, numbered(2 - side, number, size, sl)))


@pytest.mark.requirement("LNK-12")
def test_both_directions_in_order_and_unchanged(physical: Any) -> None:
    link = physical()
    for number in range(200):
        for side in (0, 1):
            data = numbered(2 - side, number, number * 4)
            link.until(lambda side=side, data=data: link.inject(side, data))
    link.until(lambda: all(len(found) == 200 for found in link.delivered))
    for side in (0, 1):
        assert numbers(link.delivered[side]) == list(range(200))
        assert [len(data) for data in link.delivered[side]] == [
            len(numbered(1, n, n * 4)) + 2 for n in range(200)
        ]
        counted = link.counters(side)
        assert counted["flit_errors"] == counted["sent_without_credit"] == counted["buffer_overrun"] == 0


@pytest.mark.requirement("LNK-12", "LNK-08")
def test_bit_errors_are_repaired_by_the_link(physical: Any) -> None:
    link = physical(2e-5)
    send_all(link, 0, 300, 2000)
    link.until(lambda: len(link.delivered[1]) == 300)
    assert numbers(link.delivered[1]) == list(range(300))
    assert link.counters(0)["bit_errors"] > 0
    assert link.counters(0)["flit_retries"] > 0
    assert link.counters(1)["flit_errors"] > 0
    assert link.counters(0)["link_downed"] == 0


@pytest.mark.requirement("LNK-12", "LNK-07")
def test_a_stalled_receiver_stops_its_sender_and_nothing_is_lost(physical: Any) -> None:
    link = physical()
    link.stall(1, True)
    sent = 0
    while link.inject(0, numbered(2, sent, 1000)):
        sent += 1
        if sent % 16 == 0:
            link.pass_time()
    link.pass_time()
    whole = (len(numbered(2, 0, 1000)) + 2 + 63) // 64
    assert link.counters(0)["xmit_packets"] == (OPTIONS.buffer_bytes // 64) // whole
    assert link.delivered[1] == []
    assert sent > link.counters(0)["xmit_packets"]
    # Another lane is not stopped by that: its packets fill its own buffer.
    before = link.counters(0)["xmit_packets"]
    assert link.inject(0, numbered(2, 0, 1000, sl=1))
    link.until(lambda: link.counters(0)["xmit_packets"] == before + 1)
    link.stall(1, False)
    link.until(lambda: len(link.delivered[1]) == sent + 1)
    assert sorted(numbers(link.delivered[1])) == [0, *range(sent)]
    assert link.counters(0)["sent_without_credit"] == link.counters(1)["buffer_overrun"] == 0


@pytest.mark.requirement("LNK-12")
def test_a_cable_that_is_pulled_and_plugged(physical: Any) -> None:
    link = physical()
    link.until(lambda: all(LINK_UP in told for told in link.reports))
    send_all(link, 0, 5)
    link.until(lambda: len(link.delivered[1]) == 5)
    link.pull()
    link.until(lambda: all(LINK_DOWN in told for told in link.reports))
    assert link.inject(0, numbered(2, 5))  # dropped, and counted
    assert link.counters(0)["drop_link_down"] + link.counters(0)["drop_state"] == 1
    link.plug()
    send_all(link, 0, 5)
    send_all(link, 1, 5)
    link.until(lambda: len(link.delivered[1]) == 10 and len(link.delivered[0]) == 5)
    assert numbers(link.delivered[1]) == [*range(5), *range(5)]


# --- parameters of external ports -------------------------------------------------------------------------------


def external(**times: int) -> tuple[Any, int]:
    core: Any = FabricCore(1, flits=True)
    port = core.add_port(core.add_node(0))
    core.set_lids(port, 1, 0)
    core.make_external(port, 100 * GBPS, **times)
    core.set_state(port, ACTIVE)
    return core, port


def run_until(core: Any, now: int) -> None:
    """A core stops whenever something becomes visible."""
    while core.now < now:
        core.run(now)


def test_flits_are_taken_in_pieces() -> None:
    core, port = external(replay_ns=10**9)
    core.run(1000)
    core.take_flits(port)
    with pytest.raises(InvalidAttributeError, match="most is 91"):
        core.take_flits(port, 91)
    # Nothing goes without credit, but management does.
    for _ in range(3):
        data = bytearray(packet(0xFFFF, bytes(256)))
        data[0] |= 0xF0
        assert core.inject(port, bytes(data))
    run_until(core, 100_000)
    pieces = []
    while piece := core.take_flits(port, 200):
        pieces.append(piece)
    assert len(pieces) > 3
    assert all(len(piece) <= 200 for piece in pieces)
    whole = b"".join(pieces)
    other, there = external(replay_ns=10**9)
    other.put_flits(there, whole)
    run_until(other, 100_000)
    assert len(other.deliveries()) == 3


def test_a_patient_port_waits_longer_each_time_and_never_trains_again() -> None:
    core, port = external(replay_ns=1_000_000)
    data = bytearray(packet(0xFFFF, bytes(60)))
    data[0] |= 0xF0
    core.inject(port, bytes(data))
    times = []
    for now in range(0, 100_000_000, 100_000):
        run_until(core, now)
        if core.take_flits(port) and now > 100_000:
            times.append(now)
    gaps = [b - a for a, b in pairwise(times)]
    assert [round(gap / 1e6) for gap in gaps[:5]] == [2, 4, 8, 16, 16]
    assert core.port_counters(port)["link_recovered"] == 0


@pytest.mark.parametrize("name", ["ack_ns", "replay_ns", "ask_ns"])
def test_times_out_of_range(name: str) -> None:
    with pytest.raises(InvalidAttributeError, match=name):
        external(**{name: -1})


# --- the ends ---------------------------------------------------------------------------------------------------


class Ends:
    """Two ends, and between them whatever the test wants."""

    def __init__(self, times: LinkTimes | None = None) -> None:
        self.now = 0
        self.times = times or LinkTimes()
        self.sent: tuple[list[bytes], list[bytes]] = ([], [])
        self.log: list[str] = []
        self.session = 0
        self.ends = [self.make(side) for side in (0, 1)]

    def make(self, side: int) -> LinkEnd:
        def fresh() -> int:
            self.session += 1
            return self.session

        return LinkEnd(
            5,
            self.times,
            fresh,
            self.sent[side].append,
            lambda: self.log.append(f"up {side}"),
            lambda: self.log.append(f"down {side}"),
        )

    def run(self, until: int, random: Random | None = None, loss: float = 0.0) -> None:
        """Carry datagrams; some get lost, some are doubled and come late."""
        late: list[tuple[int, int, bytes]] = []
        while self.now < until:
            for end in self.ends:
                end.tick(self.now)
            for side in (0, 1):
                for datagram in self.sent[side]:
                    if random is None:
                        self.ends[1 - side].receive(datagram, self.now)
                        continue
                    for _ in range(random.choice((1, 1, 2))):
                        if random.random() >= loss:
                            late.append((self.now + random.randrange(30_000_000), side, datagram))
                self.sent[side].clear()
            for when, side, datagram in sorted(late):
                if when <= self.now:
                    self.ends[1 - side].receive(datagram, self.now)
            late = [each for each in late if each[0] > self.now]
            self.now += 5_000_000


def test_two_ends_meet_and_part() -> None:
    both = Ends()
    both.ends[0].plug(both.now)
    both.run(1_000_000_000)
    assert both.log == []
    both.ends[1].plug(both.now)
    both.run(2_000_000_000)
    assert sorted(both.log) == ["up 0", "up 1"]
    both.run(10_000_000_000)  # nothing to say, and nothing happens
    assert len(both.log) == 2
    both.ends[0].unplug(both.now)
    both.run(11_000_000_000)
    assert both.log[2:] == ["down 0", "down 1"]
    assert both.ends[1].state is State.POLLING


def test_a_dead_peer_is_noticed_and_another_in_its_place_is_met() -> None:
    both = Ends()
    for end in both.ends:
        end.plug(0)
    both.run(1_000_000_000)
    both.log.clear()
    both.ends[1] = both.make(1)  # killed: nothing comes from there, and what goes there is lost
    both.run(1_000_000_000 + both.times.silence_ns - 300_000_000)
    assert both.log == []
    both.run(1_000_000_000 + both.times.silence_ns + 300_000_000)
    assert both.log == ["down 0"]
    assert both.ends[0].counters["silences"] == 1
    both.ends[1].plug(both.now)
    both.run(both.now + 1_000_000_000)
    assert sorted(both.log[1:]) == ["up 0", "up 1"]


def test_a_peer_that_begins_anew_takes_the_link_down_at_once() -> None:
    both = Ends()
    for end in both.ends:
        end.plug(0)
    both.run(1_000_000_000)
    both.log.clear()
    both.ends[1] = both.make(1)
    both.ends[1].plug(both.now)
    both.run(both.now + 1_000_000_000)
    assert both.log[0] == "down 0"
    assert sorted(both.log[1:]) == ["up 0", "up 1"]


def test_stragglers_of_an_earlier_session_change_nothing() -> None:
    both = Ends()
    both.ends[0].plug(0)
    both.ends[0].tick(0)
    old = list(both.sent[0])
    both.ends[0].unplug(0)
    for end in both.ends:
        end.plug(0)
    both.run(1_000_000_000)
    before = both.ends[1].counters["drop.rx_old"]
    for datagram in old:
        assert both.ends[1].receive(datagram, both.now) is None
    assert both.ends[1].counters["drop.rx_old"] == before + len(old)
    assert both.ends[1].state is State.UP


@given(st.integers(0, 2**32), st.floats(0, 0.5))
def test_ends_meet_whatever_gets_lost(seed: int, loss: float) -> None:
    both = Ends(LinkTimes(silence_ns=20_000_000_000))
    for end in both.ends:
        end.plug(0)
    both.run(10_000_000_000, Random(seed), loss)
    assert all(end.state is State.UP for end in both.ends)
    assert sorted(both.log) == ["up 0", "up 1"]


@given(st.binary(max_size=100), st.integers(0, 255), *[st.integers(0, 2**64 - 1)] * 3)
def test_hostile_datagrams_do_not_raise(tail: bytes, kind: int, theirs: int, ours: int, number: int) -> None:
    both = Ends()
    for end in both.ends:
        end.plug(0)
    both.run(1_000_000_000)
    token_of(tail)
    end = both.ends[0]
    datagram = HEADER.pack(MAGIC, VERSION, kind, 0, 5, theirs, ours, number) + tail
    assert token_of(datagram) == 5
    assert token_of(datagram[: HEADER.size - 1]) == 0
    flits = end.receive(datagram, both.now)
    assert flits is None or (kind == Kind.FLITS and bytes(flits) == tail)


def test_overtaken_datagrams_and_doubles_are_dropped_and_counted() -> None:
    both = Ends()
    for end in both.ends:
        end.plug(0)
    both.run(1_000_000_000)
    a, b = both.ends
    for flits in (b"one", b"two", b"three"):
        a.send_flits(flits, both.now)
    one, two, three = both.sent[0]
    order = [one, one, three, two, three]
    assert [bytes(b.receive(each, both.now) or b"") for each in order] == [b"one", b"", b"three", b"", b""]
    assert b.counters["drop.rx_overtaken"] == 3


@pytest.mark.parametrize("age", [100, 2000, 2100, 2600, 3100, 3600, 4000])
def test_a_credit_that_was_overtaken_by_many_blocks_stops_nothing(age: int) -> None:
    """Limits count modulo 4096: an old one looks like a new one once 2,048 blocks have passed it."""
    both = Ends()
    for end in both.ends:
        end.plug(0)
    both.run(1_000_000_000)
    cores = [external(replay_ns=10**9), external(replay_ns=10**9)]
    cores[1][0].set_lids(cores[1][1], 2, 0)
    held: list[bytes] = []

    def carry(hold: bool = False) -> None:
        both.now += 100_000
        for side, (core, port) in enumerate(cores):
            run_until(core, both.now - 1_000_000_000)
            while flits := core.take_flits(port, 60_000):
                both.ends[side].send_flits(flits, both.now)
            for datagram in both.sent[side]:
                if hold and side == 1:
                    held.append(datagram)
                    continue
                flits = both.ends[1 - side].receive(datagram, both.now)
                if flits is not None:
                    cores[1 - side][0].put_flits(cores[1 - side][1], flits)
            both.sent[side].clear()

    total = {"sent": 0, "arrived": 0}

    def send(count: int, *, hold: bool = False) -> None:
        for _ in range(20_000):
            while count and cores[0][0].inject(cores[0][1], numbered(2, count)):
                count -= 1
                total["sent"] += 1
            carry(hold and not held)
            total["arrived"] += len(cores[1][0].deliveries())
            if total["arrived"] == total["sent"] and not count:
                return
        raise AssertionError(f"not all came through: {total}")

    send(20)
    send(20, hold=True)
    send(age // 10)
    assert held
    assert both.ends[0].receive(held[0], both.now) is None
    send(1000)


def test_flits_are_not_sent_on_a_link_that_is_down() -> None:
    both = Ends()
    both.ends[0].send_flits(b"x", 0)
    assert both.sent[0] == []
    assert both.ends[0].counters["drop.tx_down"] == 1


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ({"poll_ns": 1}, "poll_ns = 1"),
        ({"silence_ns": 400_000_000}, "at least twice"),
        ({"ack_ns": 1.5}, "ack_ns"),
    ],
)
def test_times_that_cannot_be(times: Any, sentence: str) -> None:
    with pytest.raises(InvalidAttributeError, match=sentence):
        LinkTimes(**times)
