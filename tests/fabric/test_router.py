"""The router element: what it changes in a packet, what it refuses, and how it waits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.routers import PENDING, A, B, C, Element, gid, ip, native, raw, udp6
from verbena import InvalidAttributeError
from verbena.fabric.router import Hop, LanPort, Route, RouterPort
from verbena.wire import decode_infiniband
from verbena.wire.headers import LinkNextHeader

HOST_A, HOST_B = gid(A, 0xA), gid(B, 0xB)


def decoded(packet: bytes):
    return decode_infiniband(packet + b"\0\0")


@pytest.mark.requirement("SWR-04")
def test_only_the_network_header_changes() -> None:
    element = Element()
    element.router.ports[2].sl2vl = bytes([0, 0, 0, 1] + 12 * [0])
    element.known[2, HOST_B] = Hop(0x4B, sl=3)
    before = native(HOST_A, HOST_B, bytes(range(200)), hops=9)
    element.router.receive(1, before, handle="buffer 1")
    ((port, after),) = element.sent
    assert port == 2
    old, new = decoded(before), decoded(after)
    assert (new.lrh.slid, new.lrh.dlid, new.lrh.sl, new.lrh.vl) == (0x22, 0x4B, 3, 1)
    assert new.lrh.packet_length == old.lrh.packet_length
    assert new.grh.hop_limit == old.grh.hop_limit - 1 == 8
    # Bit by bit: beyond the local header, the hop limit's byte is the only one that differs.
    differing = [i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y]
    assert [i for i in differing if i >= 8] == [8 + 7]
    assert (new.grh.flow_label, new.grh.traffic_class) == (0x12345, 0x28)
    assert new.transport == old.transport
    assert new.icrc_ok, "the end-to-end check holds without being made again"
    assert element.freed == [(1, "buffer 1")]
    element.check()


@pytest.mark.requirement("NOD-11")
def test_the_prefix_picks_the_subnet() -> None:
    element = Element([A, B, C])
    for number, prefix in ((1, A), (2, B), (3, C)):
        element.sent.clear()
        element.router.receive(2 if number != 2 else 1, native(gid(B, 9), gid(prefix, 0x77)))
        assert [port for port, _ in element.sent] == [number]
    with pytest.raises(InvalidAttributeError, match="subnet"):
        element.router.ports[1].add_address(gid(B, 5))
    element.router.ports[1].add_address(gid(A, 0x55))
    element.router.receive(2, native(gid(B, 9), gid(A, 0x55)))
    assert element.drops() == {"own_address": 1}, "an added address is the router's own"


@pytest.mark.requirement("SWR-04")
def test_no_route_is_counted() -> None:
    element = Element()
    element.router.receive(1, native(HOST_A, gid(C, 1)), handle=1)
    assert element.sent == []
    assert element.drops() == {"no_route": 1}
    assert element.freed == [(1, 1)], "a dropped packet's buffer is free"
    element.router.table.add(Route.to("2001:db8:0:3::/64", 2, "2001:db8:0:2::99"))
    element.router.receive(1, native(HOST_A, gid(C, 1)))
    assert element.asked[-1] == (2, ip("2001:db8:0:2::99")), (
        "the next router is looked for, not the destination"
    )
    assert decoded(element.sent[0][1]).lrh.dlid == 0x99
    element.check()


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (native(HOST_A, HOST_B, hops=1), "hop_limit"),
        (native(HOST_A, HOST_B, hops=0), "hop_limit"),
        (native(HOST_A, ip("fe80::5")), "link_local"),
        (native(ip("fe80::5"), HOST_B), "link_local"),
        (native(ip("ff0e::1"), HOST_B), "source"),
        (native(ip("::"), HOST_B), "source"),
        (native(ip("::1"), HOST_B), "source"),
        (native(HOST_A, ip("::")), "no_route"),
        (native(HOST_A, gid(A, 0x101)), "own_address"),
        (native(HOST_A, gid(B, 0x102)), "own_address"),
        (native(HOST_A, ip("ff0e::1")), "no_route"),
        (native(HOST_A, ip("ff12::1")), "link_local"),
        (native(HOST_A, ip("ff1f::1")), "multicast_scope"),
        (native(HOST_A, HOST_B, dlid=0x22), "dlid"),
        (native(HOST_A, HOST_B, dlid=0), "dlid"),
        (native(HOST_A, ip("fe80::101")), "own_address"),
        (native(HOST_A, ip("fe80::102")), "link_local"),
        (native(HOST_A, HOST_B)[:-4], "length"),
        (native(HOST_A, HOST_B)[:7], "short"),
        (b"", "short"),
        (b"\x01" + native(HOST_A, HOST_B)[1:], "version"),
        (b"\xf0" + native(HOST_A, HOST_B)[1:], "no_grh"),
        (raw(b"\0" * 40, LinkNextHeader.IBA_LOCAL), "no_grh"),
        (raw(b"\0\0\x12\x34" + b"\0" * 40, LinkNextHeader.RAW), "ethertype"),
        (raw(b"\0" * 40), "version"),
        (raw(b"\x60" + b"\0" * 35), "short"),
        (raw(b"\x60" + b"\0" * 43), "length"),
    ],
)
def test_what_is_not_forwarded(packet: bytes, reason: str) -> None:
    element = Element()
    element.router.receive(1, packet, handle=1)
    assert element.sent == []
    assert element.drops() == {reason: 1}
    assert element.freed == [(1, 1)]
    element.check()


def test_the_largest_packet_of_the_next_subnet() -> None:
    element = Element()
    element.known[2, HOST_B] = Hop(0xB, mtu=512)
    element.router.receive(1, native(HOST_A, HOST_B, bytes(512)))
    element.router.receive(1, native(HOST_A, HOST_B, bytes(1024)))
    assert len(element.sent) == 1
    assert element.drops() == {"mtu": 1}
    element.router.configure(2, mtu=256)
    element.router.receive(1, native(HOST_A, HOST_B, bytes(512)))
    assert element.drops() == {"mtu": 2}


def test_a_lane_that_is_blocked_stops_no_other() -> None:
    element = Element()
    element.router.ports[2].sl2vl = bytes([0, 1] + 14 * [15])
    element.known[2, gid(B, 1)] = Hop(1, sl=0)
    element.known[2, gid(B, 2)] = Hop(2, sl=1)
    element.known[2, gid(B, 3)] = Hop(3, sl=2)
    element.full = {(2, 0)}
    for i in range(3):
        element.router.receive(1, native(HOST_A, gid(B, 1)), handle=("slow", i))
    for i in range(3):
        element.router.receive(1, native(HOST_A, gid(B, 2)), handle=("fast", i))
    element.router.receive(1, native(HOST_A, gid(B, 3)), handle="never")
    assert [decoded(p).lrh.dlid for _, p in element.sent] == [2, 2, 2]
    assert [h for _, h in element.freed] == [("fast", 0), ("fast", 1), ("fast", 2), "never"]
    assert element.drops() == {"lane": 1}
    assert element.router.depths() == {(2, 0): 3}, "back pressure: the input buffers stay held"
    element.check()
    element.unblock(2, 0)
    assert [h for _, h in element.freed[4:]] == [("slow", 0), ("slow", 1), ("slow", 2)]
    assert element.router.waiting == 0
    element.check()


def test_room_that_comes_while_sending_sends_nothing_twice() -> None:
    """An output that reports room from within: packets leave once, and in order."""
    element = Element()
    element.full = {(2, 0)}
    packets = [native(HOST_A, HOST_B, bytes([i]) * 4) for i in range(5)]
    for packet in packets:
        element.router.receive(1, packet)
    plain = element.output

    def output(port: int, packet: bytes) -> bool:
        element.router.room(2)
        return plain(port, packet)

    element.router._output = output
    element.unblock(2, 0)
    assert [decoded(p).transport.payload for _, p in element.sent] == [bytes([i]) * 4 for i in range(5)]
    element.check()


def test_packets_wait_for_their_destination_to_be_found() -> None:
    element = Element(pending_packets=3, pending_ns=1_000)
    element.known[2, HOST_B] = PENDING
    for i in range(4):
        element.router.receive(1, native(HOST_A, HOST_B, bytes([i]) * 4), handle=i)
    assert element.asked == [(2, HOST_B)], "asked once"
    assert element.drops() == {"pending_full": 1}
    assert element.freed == [(1, 3)]
    element.router.resolved(2, HOST_B)
    assert element.router.waiting == 3, "the answer is not there yet"
    element.known[2, HOST_B] = Hop(0xB)
    element.router.resolved(2, HOST_B)
    assert [decoded(p).transport.payload[0] for _, p in element.sent] == [0, 1, 2]
    element.check()
    element.known[2, HOST_B] = PENDING
    element.router.receive(1, native(HOST_A, HOST_B), handle=8)
    element.clock.step()
    assert element.clock.now() == 1_000
    assert element.drops()["pending_timeout"] == 1
    assert element.freed[-1] == (1, 8)
    element.known[2, HOST_B] = None
    element.router.receive(1, native(HOST_A, HOST_B), handle=9)
    assert element.drops()["unreachable"] == 1
    element.check()


def test_searches_are_bounded() -> None:
    element = Element(pending_searches=5)
    for i in range(20):
        element.known[2, gid(B, i)] = PENDING
        element.router.receive(1, native(HOST_A, gid(B, i)))
    assert element.router.waiting == 5
    assert element.drops() == {"pending_full": 15}
    element.check()


def test_a_port_that_goes_down_loses_what_waits_there() -> None:
    element = Element([A, B, B])  # two ports into one subnet
    element.full = {(2, 0)}
    element.known[2, gid(B, 1)] = PENDING
    for i in range(3):
        element.router.receive(1, native(HOST_A, HOST_B), handle=i)
    element.router.receive(1, native(HOST_A, gid(B, 1)), handle=3)
    element.router.configure(2, active=False)
    assert element.drops() == {"port_down": 4}
    assert sorted(h for _, h in element.freed) == [0, 1, 2, 3]
    element.router.receive(1, native(HOST_A, HOST_B))
    assert [port for port, _ in element.sent] == [3], "the other port serves"
    element.router.receive(2, native(HOST_B, HOST_A))
    assert element.drops() == {"port_down": 5}
    element.check()


def test_management_is_for_the_routers_own_software() -> None:
    element = Element()
    element.takes_local = True
    smp = raw(b"\0" * 40, LinkNextHeader.IBA_LOCAL)
    element.router.receive(1, smp, handle=1)
    element.router.receive(1, native(HOST_A, gid(B, 0x102)), handle=2)
    assert [port for port, _ in element.locals] == [1, 1]
    assert element.locals[0][1] == smp
    assert element.freed == [(1, 1), (1, 2)]
    assert element.drops() == {}
    element.check()


def test_multicast_goes_to_each_port_with_members() -> None:
    group, local = ip("ff1e::77"), ip("ff15::77")
    element = Element([A, B, C])
    element.known[2, group] = element.known[3, group] = Hop(0xC001)
    element.known[2, local] = element.known[3, local] = Hop(0xC002)
    for number in (1, 2, 3):
        element.router.join(group, number)
        element.router.join(local, number)
    element.full = {(3, 0)}
    element.router.receive(1, native(HOST_A, group), handle=1)
    assert [port for port, _ in element.sent] == [2]
    assert element.freed == [], "the copy that waits needs the buffer"
    element.check()
    element.unblock(3, 0)
    assert [port for port, _ in element.sent] == [2, 3]
    assert element.freed == [(1, 1)]
    element.check()
    element.sent.clear()
    element.router.configure(3, boundary=5)  # site-local groups end at this subnet
    element.router.receive(1, native(HOST_A, local))
    element.router.receive(3, native(gid(C, 1), local))
    assert [port for port, _ in element.sent] == [2]
    assert element.drops() == {"multicast_scope": 1}
    element.router.leave(group, 2)
    element.router.leave(group, 3)
    element.router.receive(1, native(HOST_A, group))
    assert element.drops()["no_route"] == 1
    element.check()
    with pytest.raises(InvalidAttributeError, match="multicast GID"):
        element.router.join(HOST_A, 1)


def test_a_prefix_that_the_subnet_manager_changes() -> None:
    element = Element()
    element.router.configure(2, prefix=C, lid=0x99)
    element.router.receive(1, native(HOST_A, HOST_B))
    element.router.receive(1, native(HOST_A, gid(C, 3)))
    assert element.drops() == {"no_route": 1}
    assert decoded(element.sent[0][1]).lrh.slid == 0x99
    assert element.router.ports[2].gid == gid(C, 0x102)
    with pytest.raises(InvalidAttributeError, match="no attribute"):
        element.router.configure(2, colour="green")


def test_ports_that_cannot_be() -> None:
    with pytest.raises(InvalidAttributeError, match="8 bytes"):
        RouterPort(1, 1, b"1234")
    with pytest.raises(InvalidAttributeError, match="1 to 255"):
        RouterPort(0, 1, A)
    element = Element()
    with pytest.raises(InvalidAttributeError, match="exists already"):
        element.router.attach_lan(LanPort(2, gid(C, 1), lambda datagram: True))


# --- hostile input ------------------------------------------------------------------------------------------------


def mutated(draw: st.DrawFn) -> bytes:
    base = draw(
        st.sampled_from(
            [
                native(HOST_A, HOST_B, bytes(30)),
                native(HOST_A, ip("ff1e::77")),
                native(HOST_B, gid(C, 4)),
                raw(udp6(HOST_A, HOST_B, b"hello")),
                raw(udp6(HOST_A, ip("2001:4860::1"), b"hello", hops=1)),
                raw(bytes(60), LinkNextHeader.RAW),
            ]
        )
    )
    packet = bytearray(base)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4)):
        packet[at] = value
    return bytes(packet[: draw(st.integers(0, len(packet)))] if draw(st.booleans()) else packet)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.integers(0, 5), st.composite(mutated)()),
        st.tuples(st.just("lan"), st.integers(0, 5), st.binary(max_size=90)),
        st.tuples(st.just("lan"), st.just(4), st.just(udp6(ip("2001:4860::1"), HOST_B, b"abc"))),
        st.tuples(st.just("block"), st.integers(1, 4), st.integers(0, 15)),
        st.tuples(st.just("room"), st.integers(1, 4), st.integers(0, 15)),
        st.tuples(st.just("hide"), st.integers(1, 3), st.sampled_from([HOST_A, HOST_B, gid(C, 4)])),
        st.tuples(st.just("find"), st.integers(1, 3), st.sampled_from([HOST_A, HOST_B, gid(C, 4)])),
        st.tuples(st.just("down"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("time"), st.integers(0, 2_000_000_000), st.none()),
    ),
    max_size=40,
)


@pytest.mark.requirement("SWR-04")
@given(steps)
@settings(max_examples=300, deadline=None)
def test_whatever_comes_nothing_is_lost_in_silence(script: list[tuple]) -> None:
    """Never raises; in = out + drops + waiting after every step; a buffer is freed exactly once, when it may be."""
    element = Element([A, B, C])
    lan: list[bytes] = []
    element.router.attach_lan(
        LanPort(4, ip("2001:4860::99"), lambda d: (4, 0) not in element.full and not lan.append(d), backlog=4)
    )
    for number in (1, 2):
        element.router.join(ip("ff1e::77"), number)
    handles = 0
    for kind, where, what in script:
        if kind == "in":
            element.router.receive(where, what, handle=handles)
            handles += 1
        elif kind == "lan":
            element.router.receive_lan(where, what)
        elif kind == "block":
            element.full.add((where, what))
        elif kind == "room":
            element.unblock(where, what)
        elif kind == "hide":
            element.known[where, what] = PENDING
        elif kind == "find":
            element.known[where, what] = Hop(0x33)
            element.router.resolved(where, what)
        elif kind == "down":
            element.router.configure(where, active=what)
        elif kind == "time":
            until = element.clock.now() + where
            while (following := element.clock.next_time()) is not None and following <= until:
                element.clock.step()
            element.clock.advance(until)
        element.check()
        freed = [handle for _, handle in element.freed]
        assert len(set(freed)) == len(freed)
    element.full.clear()
    for number in (1, 2, 3, 4):
        element.router.configure(number, active=True)
        element.router.room(number)
    while element.clock.step():
        pass
    element.check()
    assert element.router.waiting == 0
    assert sorted(handle for _, handle in element.freed) == list(range(handles))
