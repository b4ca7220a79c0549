"""The route table against a plain model; announcements between routers; the codec of both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.routers import A, B, C, Element, gid, ip, native
from verbena import InvalidAttributeError
from verbena.fabric.router import Hop, Origin, Route, RouteExchange, RouteTable
from verbena.fabric.router.exchange import ALL_ROUTERS
from verbena.fabric.router.routes import masked
from verbena.runtime.virtual import VirtualClock
from verbena.wire import DecodeError, EncodeError
from verbena.wire.headers import LinkNextHeader
from verbena.wire.route_announcement import INFINITY, RouteAnnouncement, RouteEntry

MS = 1_000_000
HOST_A, HOST_B = gid(A, 0xA), gid(B, 0xB)

# Few bits that differ, so that prefixes nest and collide.
addresses = st.builds(
    lambda high, low: bytes([high]) + bytes(14) + bytes([low]), st.integers(0, 7), st.integers(0, 3)
)
lengths = st.sampled_from([0, 5, 6, 7, 8, 126, 127, 128])
routes = st.builds(
    lambda prefix, length, port, via, origin, metric: Route(
        masked(prefix, length), length, port, via, origin, metric
    ),
    addresses,
    lengths,
    st.integers(1, 3),
    st.one_of(st.none(), addresses),
    st.sampled_from(Origin),
    st.integers(1, 15),
)


def model_lookup(known: list[Route], address: bytes, up: set[int]) -> Route | None:
    fitting = [r for r in known if r.port in up and masked(address, r.length) == r.prefix]
    return min(fitting, key=lambda r: (-r.length, *r.rank), default=None)


@pytest.mark.requirement("NOD-11")
@given(
    st.lists(st.tuples(st.booleans(), routes), max_size=30),
    st.lists(addresses, min_size=1, max_size=8),
    st.sets(st.integers(1, 3)),
)
def test_the_table_finds_what_a_search_of_all_routes_finds(
    script: list[tuple[bool, Route]], wanted: list[bytes], up: set[int]
) -> None:
    table, known = RouteTable(), dict[tuple, Route]()
    for adds, route in script:
        way = (route.prefix, route.length, route.port, route.via, route.origin)
        if adds:
            table.add(route)
            known[way] = route
        else:
            assert table.remove(route) == (way in known)
            known.pop(way, None)
    assert sorted(map(repr, table)) == sorted(map(repr, known.values()))
    assert len(table) == len(known)
    for address in wanted:
        assert table.lookup(address, lambda r: r.port in up) == model_lookup([*known.values()], address, up)
    best = list(table.best(lambda r: r.port in up))
    for route in best:
        assert route == model_lookup(
            [r for r in known.values() if r.length == route.length], route.prefix, up
        )


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Route(b"1", 8, 1),
        lambda: Route(A + bytes(8), 129, 1),
        lambda: Route(A + bytes(8), 16, 1),
        lambda: Route(A + bytes(8), 64, 1, b"x"),
        lambda: Route(A + bytes(8), 64, 1, None, Origin.STATIC, 16),
        lambda: Route.to("2001:db8::1/64", 1),
        lambda: Route.to("2001:db8::/64", 1, "10.0.0.1"),
    ],
)
def test_routes_that_cannot_be(bad) -> None:
    with pytest.raises(InvalidAttributeError, match="route"):
        bad()


# --- the message ----------------------------------------------------------------------------------------------

entries = st.builds(
    RouteEntry,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 0xFFFF),
    st.integers(0, 128),
    st.integers(1, 16),
)
messages = st.builds(
    RouteAnnouncement,
    st.integers(0, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.lists(entries, max_size=6).map(tuple),
)


@given(messages)
def test_announcements_survive_the_way(message: RouteAnnouncement) -> None:
    encoded = message.encode()
    assert len(encoded) % 4 == 0
    assert RouteAnnouncement.decode(encoded) == message
    for cut in range(len(encoded)):
        with pytest.raises(DecodeError):
            RouteAnnouncement.decode(encoded[:cut])


@given(messages, st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_announcement_is_refused_or_another(
    message: RouteAnnouncement, at: int, value: int
) -> None:
    octets = bytearray(message.encode())
    octets[at % len(octets)] = value
    try:
        other = RouteAnnouncement.decode(octets)
    except DecodeError:
        return
    assert RouteAnnouncement.decode(other.encode()) == other


def test_the_layout_of_an_announcement() -> None:
    message = RouteAnnouncement(0x0102, gid(A, 7), 3500, (RouteEntry(C + bytes(8), 0, 64, 2),))
    assert message.encode() == (
        bytes.fromhex("0000 88b5 56525442 01 00 0001 0000000000000102")
        + gid(A, 7)
        + bytes.fromhex("00000dac")
        + C
        + bytes(8)
        + bytes.fromhex("0000 40 02")
    )
    assert len(message.encode()) == 60
    assert RouteAnnouncement.capacity(256) == 10
    with pytest.raises(EncodeError, match="metric"):
        RouteAnnouncement(1, gid(A, 7), 1, (RouteEntry(metric=0),)).encode()


# --- between routers ------------------------------------------------------------------------------------------


class Network:
    """Routers whose ports with one prefix hear one another; multicasts reach all others, unicasts their GID's port."""

    def __init__(self, **layout: list[bytes]) -> None:
        self.clock = VirtualClock()
        self.elements: dict[str, Element] = {}
        self.exchanges: dict[str, RouteExchange] = {}
        self.dead: set[str] = set()
        self.hosts: list[tuple[str, bytes]] = []
        for i, (name, prefixes) in enumerate(layout.items()):
            element = Element(prefixes, self.clock, guid=0x1000 * (i + 1))
            element.router._output = lambda port, packet, name=name: self.carry(name, port, packet)
            element.resolve = lambda port, target, name=name: self.find(name, port, target)
            element.router._resolve = element.resolve
            for number in element.router.ports:
                element.router.configure(number, lid=0x100 * (i + 1) + number)
            self.elements[name] = element
            self.exchanges[name] = RouteExchange(element.router, 0x1000 * (i + 1), period_ns=100 * MS)

    def find(self, name: str, port: int, target: bytes) -> Hop | None:
        if target == ALL_ROUTERS:
            return Hop(0xC000)
        for number, other in enumerate(self.elements.values()):
            for at in other.router.ports.values():
                if at.gid == target:
                    return Hop(0x100 * (number + 1) + at.number)
        return Hop(0x7777)

    def carry(self, name: str, port: int, packet: bytes) -> bool:
        if name in self.dead:
            return True
        prefix = self.elements[name].router.ports[port].prefix
        dlid = int.from_bytes(packet[2:4], "big")
        if dlid == 0x7777:
            self.hosts.append((f"{name}", packet))
            return True
        for number, (other, element) in enumerate(self.elements.items()):
            for at in element.router.ports.values():
                mine = dlid in (0xC000, 0x100 * (number + 1) + at.number)
                if (
                    mine
                    and at.prefix == prefix
                    and (other, at.number) != (name, port)
                    and other not in self.dead
                ):
                    self.clock.call_at(
                        self.clock.now() + 1000,
                        lambda element=element, at=at: element.router.receive(at.number, packet),
                    )
        return True

    def run(self, duration_ns: int) -> None:
        until = self.clock.now() + duration_ns
        while (following := self.clock.next_time()) is not None and following <= until:
            self.clock.step()
        self.clock.advance(until)

    def start(self) -> None:
        for exchange in self.exchanges.values():
            exchange.start()

    def kill(self, name: str) -> None:
        self.dead.add(name)
        self.exchanges[name].stop()

    def via(self, name: str, target: bytes) -> bytes | None:
        router = self.elements[name].router
        route = router.table.lookup(target, router.usable)
        return None if route is None else route.via or target

    def send(self, name: str, packet: bytes) -> list[tuple[str, bytes]]:
        """What reaches hosts of a packet that a host gives to a router."""
        self.hosts.clear()
        if name not in self.dead:
            self.elements[name].router.receive(1, packet)
        self.run(10 * MS)
        return list(self.hosts)


T = bytes.fromhex("20010db8000000ff")  # the links between the pairs


def figure_6() -> Network:
    """Subnets A and B with two routers each (268a, 268b, 270a, 270b), joined by a network in between."""
    return Network(a1=[A, T], a2=[A, T], b1=[B, T], b2=[B, T])


@pytest.mark.requirement("SWR-05")
def test_a_dead_routers_routes_vanish_and_the_other_pair_serves() -> None:
    net = figure_6()
    net.start()
    net.run(300 * MS)
    used = net.via("a1", HOST_B)
    assert used in [net.elements[n].router.ports[2].gid for n in ("b1", "b2")]
    first = next(n for n in ("b1", "b2") if net.elements[n].router.ports[2].gid == used)
    second = {"b1": "b2", "b2": "b1"}[first]
    packet = native(HOST_A, HOST_B, b"over the way")
    assert [name for name, _ in net.send("a1", packet)] == [first]
    net.kill(first)
    assert net.send("a1", packet) == [], "not noticed yet"
    net.run(500 * MS)  # 3.5 periods and a triggered announcement
    assert net.via("a1", HOST_B) == net.elements[second].router.ports[2].gid
    assert [name for name, _ in net.send("a1", packet)] == [second]
    assert [name for name, _ in net.send("a2", packet)] == [second]
    net.kill(second)
    net.run(500 * MS)
    assert net.via("a1", HOST_B) is None
    assert net.send("a1", packet) == []
    assert net.elements["a1"].drops()["no_route"] == 1, "no way is left, and that is said"
    for element in net.elements.values():
        element.check()


@pytest.mark.requirement("SWR-05")
def test_a_router_that_loses_its_port_says_so_at_once() -> None:
    net = figure_6()
    net.start()
    net.run(300 * MS)
    first = next(n for n in ("b1", "b2") if net.elements[n].router.ports[2].gid == net.via("a1", HOST_B))
    second = {"b1": "b2", "b2": "b1"}[first]
    net.elements[first].router.configure(1, active=False)
    net.run(20 * MS)  # long before anything times out
    # Its subnet is still in reach, through its neighbour on T: the way is one router longer, and not used.
    assert net.via("a1", HOST_B) == net.elements[second].router.ports[2].gid
    net.elements[first].router.configure(1, active=True)
    net.run(200 * MS)
    assert net.via("a1", HOST_B) == used_after(net, first, second)


def used_after(net: Network, first: str, second: str) -> bytes:
    """Both are one router away again: the smaller GID is used, as in the beginning."""
    return min(net.elements[n].router.ports[2].gid for n in (first, second))


def test_prefixes_travel_over_several_routers_and_distances_are_counted() -> None:
    prefixes = [bytes.fromhex(f"20010db80000010{i}") for i in range(6)]
    net = Network(**{f"r{i}": [prefixes[i], prefixes[i + 1]] for i in range(5)})
    net.start()
    net.run(600 * MS)
    for i in range(5):
        table = {r.prefix[:8]: r.metric for r in net.elements[f"r{i}"].router.table.best(lambda r: True)}
        assert table == {p: max(1, 1 + (i - k if k <= i else k - i - 1)) for k, p in enumerate(prefixes)}
    delivered = net.send("r0", native(gid(prefixes[0], 1), gid(prefixes[5], 2), hops=6))
    assert [name for name, _ in delivered] == ["r4"]
    assert delivered[0][1][15] == 1, "five routers, five hops"
    assert net.send("r0", native(gid(prefixes[0], 1), gid(prefixes[5], 2), hops=5)) == []
    assert net.elements["r4"].drops()["hop_limit"] == 1


def test_many_prefixes_take_several_messages() -> None:
    net = Network(a=[A, T], b=[T, B])
    table = net.elements["b"].router.table
    for i in range(40):
        table.add(Route.to(f"2001:db9:{i:x}::/48", 2))
    net.elements["b"].router.configure(1, mtu=256)
    net.start()
    net.run(4 * MS)  # before what is learnt is told
    learnt = [r for r in net.elements["a"].router.table if r.origin is Origin.LEARNT]
    assert len(learnt) == 41
    assert net.elements["a"].router.counters["announcements"] == 5
    assert all(r.metric == 2 and r.port == 2 for r in learnt)


def announcement(entries: list[RouteEntry], sender: bytes = gid(T, 0x9999), hold_ms: int = 350) -> bytes:
    return RouteAnnouncement(0x9999, sender, hold_ms, tuple(entries)).encode()


@pytest.mark.parametrize(
    "entry",
    [
        RouteEntry(ip("ff1e::"), 0, 16, 1),
        RouteEntry(ip("fe80::"), 0, 64, 1),
        RouteEntry(ip("::"), 0, 128, 1),
        RouteEntry(ip("2001:db8::1"), 0, 64, 1),
        RouteEntry(A + bytes(8), 0, 64, 1),
        RouteEntry(HOST_A, 0, 128, 1),
    ],
)
def test_what_no_neighbour_is_believed(entry: RouteEntry) -> None:
    """Multicast, link-local and unspecified prefixes, stray bits, and subnets that the router itself is in."""
    net = Network(a=[A, T])
    router = net.elements["a"].router
    before = list(router.table)
    assert router.on_ethertype(2, announcement([entry]))
    assert list(router.table) == before
    assert router.counters["announcements.entries_refused"] == 1


def test_strangers_are_not_believed() -> None:
    net = Network(a=[A, T])
    router = net.elements["a"].router
    good = [RouteEntry(C + bytes(8), 0, 64, 1)]
    assert router.on_ethertype(2, announcement(good, sender=gid(B, 0x9999))), "of another subnet"
    assert router.on_ethertype(9, announcement(good)), "by a port that is not there"
    own = RouteAnnouncement(0x1000, router.ports[2].gid, 350, tuple(good)).encode()
    assert router.on_ethertype(2, own), "its own"
    assert router.counters["announcements.refused"] == 3
    assert not router.on_ethertype(2, b"\0\0\x88\xb5another experiment")
    assert net.via("a", gid(C, 1)) is None
    assert router.on_ethertype(2, announcement(good))
    assert net.via("a", gid(C, 1)) == gid(T, 0x9999)
    assert router.on_ethertype(2, announcement([RouteEntry(C + bytes(8), 0, 64, INFINITY)]))
    assert net.via("a", gid(C, 1)) is None, "taken back"
    router.on_ethertype(2, announcement(good))
    net.run(351 * MS)
    assert net.via("a", gid(C, 1)) is None, "not repeated"
    assert router.counters["routes.expired"] == 1


def test_routes_learnt_are_bounded() -> None:
    net = Network(a=[A, T])
    router = net.elements["a"].router
    RouteExchange(router, 0x1000, most_routes=8)
    for i in range(20):
        router.on_ethertype(2, announcement([RouteEntry(ip(f"2001:db9:{i:x}::"), 0, 48, 1)]))
    assert sum(r.origin is Origin.LEARNT for r in router.table) == 8
    assert router.counters["announcements.entries_refused"] == 12


def test_a_static_route_is_preferred_to_a_learnt_one() -> None:
    net = Network(a=[A, T])
    router = net.elements["a"].router
    router.on_ethertype(2, announcement([RouteEntry(C + bytes(8), 0, 64, 1)]))
    router.table.add(Route.to("2001:db8:0:3::/64", 2, "2001:db8:0:ff::5", metric=9))
    assert net.via("a", gid(C, 1)) == ip("2001:db8:0:ff::5")


@given(st.lists(st.one_of(st.binary(max_size=120), messages.map(RouteAnnouncement.encode)), max_size=10))
def test_hostile_announcements_raise_nothing(payloads: list[bytes]) -> None:
    net = Network(a=[A, T])
    element = net.elements["a"]
    for payload in payloads:
        body = payload + bytes(-len(payload) % 4)
        words = 2 + len(body) // 4
        head = bytes([0, LinkNextHeader.RAW, 0xFF, 0xFF, words >> 8, words & 0xFF, 0, 2])
        element.router.receive(2, head + body)
        element.check()
    for route in element.router.table:
        assert route.origin is not Origin.LEARNT or route.port == 2


def test_what_is_told_where() -> None:
    """Split horizon with poisoned reverse: what was learnt from a subnet is called unreachable there."""
    net = Network(a=[A, T], b=[T, B])
    net.start()
    net.run(10 * MS)
    exchange, ports = net.exchanges["a"], net.elements["a"].router.ports
    told = {n: {(e.prefix[:8], e.metric) for e in exchange.entries(ports[n])} for n in (1, 2)}
    assert told == {1: {(T, 1), (B, 2)}, 2: {(A, 1), (B, INFINITY)}}
    before = net.elements["a"].router.counters["originated"]
    exchange.start()
    exchange.start()
    net.run(90 * MS)
    assert net.elements["a"].router.counters["originated"] == before + 4, (
        "begun twice, there is still one period"
    )
    exchange.stop()
    net.run(1000 * MS)
    assert net.elements["a"].router.counters["originated"] == before + 4
