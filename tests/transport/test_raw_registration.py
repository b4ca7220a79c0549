"""Who gets raw datagrams: registrations, extension headers, hostile packets (document 003:555)."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native_lab import UD
from raw_lab import (
    ETHER,
    HERE,
    IP6,
    OTHER,
    TCP_PROTOCOL,
    THERE,
    UDP_PROTOCOL,
    Pair,
    check_laws,
    drops,
    offer,
    take,
    tcp6,
    udp6,
)
from verbena import (
    ClosedError,
    Gid,
    InvalidAttributeError,
    QPState,
    ResourceError,
)
from verbena.runtime.pairs import make_side
from verbena.transport.raw import upper_layer_protocol
from verbena.wire import (
    IPv6,
)

# --- who gets what ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-20")
def test_protocol_and_address_choose_the_queue_pair() -> None:
    """TCP to the first, UDP to the second, the second address to the third; both together come before either."""
    pair = Pair()
    ctx = pair.contexts[1]
    first, second, third, fourth = (pair.b, *(pair.side(ctx, IP6) for _ in range(3)))
    for side in (first, second, third, fourth):
        offer(side, 0, 1, 2)
    ctx.register_protocol(first.qp, TCP_PROTOCOL)
    ctx.register_protocol(second.qp, next_header=UDP_PROTOCOL)
    by_address = ctx.register_protocol(third.qp, address=OTHER)
    both = ctx.register_protocol(fourth.qp, TCP_PROTOCOL, str(OTHER))
    packets = {
        "tcp": tcp6(b"t"),
        "udp": udp6(b"u"),
        "udp other": udp6(b"u2", target=OTHER),
        "tcp other": tcp6(b"t2", target=OTHER),
    }
    for data in packets.values():
        pair.send(data)
    assert take(first) == [packets["tcp"]]
    assert take(second) == [packets["udp"]]
    assert take(third) == [packets["udp other"]]
    assert take(fourth) == [packets["tcp other"]]
    icmp = IPv6(payload_length=0, next_header=58, src=HERE.raw, dst=THERE.raw).pack()
    pair.send(icmp)
    assert drops(ctx) == {"no_protocol": 1}, "nobody is registered for ICMPv6"
    both.close()
    pair.send(packets["tcp other"])
    assert take(third) == [packets["tcp other"]], "without it, the address decides"
    by_address.close()
    by_address.close()
    pair.send(packets["tcp other"])
    assert take(first) == [packets["tcp other"]]
    first.qp.close()
    pair.send(packets["tcp"])
    assert drops(ctx) == {"no_protocol": 2}, "closing unregisters"
    check_laws(ctx)


@pytest.mark.requirement("TRN-20")
def test_nobody_registers_twice() -> None:
    pair = Pair()
    ctx = pair.contexts[1]
    other = pair.side(ctx, IP6)
    ether = pair.side(ctx, ETHER)
    registrations = [
        {"next_header": UDP_PROTOCOL},
        {"next_header": UDP_PROTOCOL, "address": OTHER},
        {"address": OTHER},
        {},
    ]
    made = [ctx.register_protocol(pair.b.qp, **r) for r in registrations]
    for r in registrations:
        for qp in (other.qp, pair.b.qp):
            with pytest.raises(ResourceError, match="registered for that already"):
                ctx.register_protocol(qp, **r)
    ctx.register_protocol(ether.qp, ethertype=UDP_PROTOCOL)
    made[0].close()
    again = ctx.register_protocol(other.qp, UDP_PROTOCOL)
    made[0].close()
    with pytest.raises(ResourceError):
        ctx.register_protocol(pair.b.qp, UDP_PROTOCOL)
    with again, pytest.raises(ResourceError):
        ctx.register_protocol(pair.b.qp, UDP_PROTOCOL)
    ctx.register_protocol(pair.b.qp, UDP_PROTOCOL)


def test_an_adapter_where_nobody_is_registered_looks_into_no_raw_packet() -> None:
    pair = Pair()
    pair.inject(b"anything")
    pair.send(udp6(b"x"))
    assert drops(pair.contexts[1]) == {"raw": 2}
    check_laws(pair.contexts[1])


def test_what_is_no_registration() -> None:
    pair = Pair()
    ctx = pair.contexts[1]
    datagram, ether = make_side(ctx, UD), pair.side(ctx, ETHER)
    for qp, arguments, why in [
        (pair.b.qp, {"next_header": 256}, "0 to 255"),
        (pair.b.qp, {"next_header": "tcp"}, "0 to 255"),
        (pair.b.qp, {"next_header": 60}, "extension header"),
        (pair.b.qp, {"next_header": 44}, "extension header"),
        (pair.b.qp, {"ethertype": 0x88B6}, "give next_header"),
        (pair.b.qp, {"address": "10.0.0.1"}, "IPv6 address"),
        (pair.b.qp, {"address": b"1"}, "IPv6 address"),
        (ether.qp, {"ethertype": 0x10000}, "0 to 65535"),
        (ether.qp, {"next_header": 6}, "give ethertype"),
        (datagram.qp, {"next_header": 6}, "by its number"),
        (pair.a.qp, {"next_header": 6}, "of this adapter"),
        (None, {"next_header": 6}, "of this adapter"),
    ]:
        with pytest.raises(InvalidAttributeError, match=why):
            ctx.register_protocol(qp, **arguments)
    pair.b.qp.close()
    with pytest.raises(ClosedError):
        ctx.register_protocol(pair.b.qp, 6)


def test_many_registrations() -> None:
    pair = Pair()
    ctx = pair.contexts[1]
    sides = [pair.b, pair.side(ctx, IP6)]
    addresses = [Gid.from_ip(f"2001:db8:1::{i:x}") for i in range(100)]
    for i, address in enumerate(addresses):
        ctx.register_protocol(sides[i % 2].qp, None, address)
    for i in (0, 1, 50, 99):
        offer(sides[i % 2], 0)
        pair.inject(udp6(bytes([i]), target=addresses[i]))
        assert take(sides[i % 2]) == [udp6(bytes([i]), target=addresses[i])]
        sides[i % 2].qp.modify(QPState.RESET)
        sides[i % 2].qp.activate()


# --- extension headers --------------------------------------------------------------------------------------------

HOP, ROUTE, FRAG, AUTH, DEST = 0, 43, 44, 51, 60


def extension(following: int, kind: int, words: int = 0, more: bytes = b"") -> bytes:
    if kind == AUTH:
        return bytes([following, words + 1]) + bytes(4 * (words + 3) - 2)
    if kind == FRAG:
        return bytes([following, 0]) + (more or b"\0\0") + bytes(4)
    return (bytes([following, words]) + more).ljust(8 * (words + 1), b"\0")


@pytest.mark.requirement("TRN-20")
@pytest.mark.parametrize(
    ("kinds", "sizes"),
    [
        ((HOP,), (0,)),
        ((DEST,), (3,)),
        ((HOP, ROUTE, DEST), (1, 2, 0)),
        ((AUTH,), (3,)),
        ((FRAG,), (0,)),
        ((HOP, AUTH, FRAG, DEST), (0, 4, 0, 1)),
    ],
)
def test_the_protocol_stands_behind_the_extension_headers(
    kinds: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp, UDP_PROTOCOL)
    offer(pair.b, 0)
    chain = b""
    for i, kind in enumerate(kinds):
        chain += extension([*kinds, UDP_PROTOCOL][i + 1], kind, sizes[i])
    data = udp6(b"behind", before=chain, first=kinds[0])
    pair.send(data)
    assert take(pair.b) == [data]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (udp6(b"", before=extension(17, DEST, 9), first=DEST)[:-40], "length"),
        (udp6(b"", before=bytes([17, 200] + [0] * 6), first=DEST), "ip_header"),
        (udp6(b"", before=extension(HOP, DEST) + extension(17, HOP), first=DEST), "ip_header"),
        (udp6(b"", before=extension(17, ROUTE, 0, b"\0\1"), first=ROUTE), "ip_header"),
        (udp6(b"")[:40].replace(b"\x00\x08\x11", b"\x00\x00\x00"), "ip_header"),
        (b"\x45" + bytes(43), "grh_version"),
        (b"\x60" + bytes(11), "short"),
        (udp6(b"")[:-4], "length"),
        (udp6(b"") + bytes(4), "length"),
        (udp6(bytes(4096)), "length"),
    ],
)
def test_what_is_no_ip_packet(data: bytes, reason: str) -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp)
    offer(pair.b, 0)
    pair.inject(data)
    assert drops(pair.contexts[1]) == {reason: 1}
    assert take(pair.b) == []
    check_laws(pair.contexts[1])


def test_fragments_of_one_datagram_go_to_one_queue_pair() -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp, UDP_PROTOCOL)
    offer(pair.b, 0, 1)
    first = udp6(bytes(100), before=extension(17, FRAG, more=b"\0\1"), first=FRAG)
    later = IPv6(payload_length=8 + 5, next_header=FRAG, src=HERE.raw, dst=THERE.raw).pack()
    later += extension(17, FRAG, more=(108).to_bytes(2, "big")) + b"\6\6\6\6\6"
    pair.inject(first)
    pair.inject(later)
    assert take(pair.b) == [first, later]


def model(data: bytes) -> int:
    """RFC 8200, chapter 4, read naively: the upper-layer protocol, or -1."""
    following, rest, place = data[6], data[40:], 0
    while following in (HOP, ROUTE, FRAG, AUTH, DEST):
        if len(rest) < 8 or (following == HOP and place):
            return -1
        size = 4 * (rest[1] + 2) if following == AUTH else 8 if following == FRAG else 8 * (rest[1] + 1)
        if following == FRAG and int.from_bytes(rest[2:4], "big") & 0xFFF9:
            return rest[0]
        if (following == ROUTE and rest[3]) or size > len(rest):
            return -1
        following, rest, place = rest[0], rest[size:], place + 1
    return following


octets = st.one_of(st.sampled_from([0, 1, 6, 17, 43, 44, 51, 60]), st.integers(0, 255))


@given(octets, st.lists(octets, max_size=90).map(bytes))
@settings(max_examples=500)
def test_the_walk_agrees_with_a_plain_model(first: int, chain: bytes) -> None:
    data = b"\x60" + bytes(3) + len(chain).to_bytes(2, "big") + bytes([first, 64]) + bytes(32) + chain
    assert upper_layer_protocol(data) == model(data)


# --- hostile packets ----------------------------------------------------------------------------------------------

bodies = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda first, chain: udp6(b"data", before=bytes(chain), first=first),
        octets,
        st.lists(octets, max_size=40),
    ),
    st.builds(
        lambda at, value: bytes(value if i == at else o for i, o in enumerate(udp6(b"data"))),
        st.integers(0, 51),
        st.integers(0, 255),
    ),
)


@pytest.mark.requirement("TRN-20")
@given(st.lists(st.tuples(bodies, st.integers(0, 1)), max_size=12))
@settings(max_examples=100, deadline=None)
def test_hostile_raw_packets(packets: list[tuple[bytes, int]]) -> None:
    """Nothing raises, nothing is lost in silence, and who is registered for all IPv6 gets just what is IPv6."""
    pair = Pair()
    ctx = pair.contexts[1]
    ether = pair.side(ctx, ETHER)
    ctx.register_protocol(pair.b.qp)
    ctx.register_protocol(ether.qp, ethertype=0x88B6)
    offer(pair.b, 0, 1, 2)
    for body, lnh in packets:
        pair.inject(body, lnh)
        whole = body + bytes(-len(body) % 4)
        end = 40 + int.from_bytes(whole[4:6], "big") if len(whole) >= 40 and whole[0] >> 4 == 6 else -1
        right = lnh == 1 and end >= 40 and 0 <= len(whole) - end <= 3 and model(whole[:end]) >= 0
        assert take(pair.b) == ([whole[:end]] if right else [])
        check_laws(ctx)
    assert ctx.counters()["rx.packets"] == len(packets)


def test_addresses_print_as_people_write_them() -> None:
    pair = Pair()
    made = pair.contexts[1].register_protocol(pair.b.qp, 17, OTHER)
    assert str(IPv6Address(OTHER.raw)) in repr(made)
