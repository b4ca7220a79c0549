"""Whole packets: round trips, lengths, what is not RoCE, and hostile bytes."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena import wire
from wire.samples import (
    ETHERNET_V4,
    IPV4,
    LRH,
    golden_roce,
    in_every_wrapping,
    layouts,
    link_type,
    of_opcode,
    transport_packets,
)


@pytest.mark.parametrize("opcode", list(wire.Opcode), ids=lambda opcode: opcode.name)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 4096])
def test_every_opcode_round_trips_in_every_wrapping(opcode: wire.Opcode, size: int) -> None:
    transport = of_opcode(opcode, psn=0xFFFFFF, size=size)
    for packet in in_every_wrapping(transport):
        raw = packet.encode()
        decoded = wire.decode(raw, link_type(packet))
        assert decoded == packet
        assert decoded.encode() == raw
        assert len(raw) % 4 == {wire.LinkType.ETHERNET: 2, wire.LinkType.RAW: 0}.get(link_type(packet), 2)


@given(transport=transport_packets())
def test_any_packet_round_trips(transport: wire.TransportPacket) -> None:
    assert wire.TransportPacket.decode(transport.encode()) == transport
    for packet in in_every_wrapping(transport):
        assert wire.decode(packet.encode(), link_type(packet)) == packet


@given(
    tags=st.lists(layouts(wire.VlanTag, tpid=0x88A8), max_size=3),
    trailer=st.binary(max_size=20),
    transport=transport_packets(),
)
def test_vlan_tags_and_trailers_are_kept(
    tags: list[wire.VlanTag], trailer: bytes, transport: wire.TransportPacket
) -> None:
    link = replace(ETHERNET_V4, tags=tuple(tags))
    packet = wire.RocePacket(IPV4, wire.UDP(), transport, link, trailer).sealed()
    assert wire.decode_ethernet(packet.encode()) == packet
    assert packet.icrc_ok


@given(payload=st.binary(max_size=50), rwh=st.none() | layouts(wire.RWH))
def test_raw_packets_round_trip(payload: bytes, rwh: wire.RWH | None) -> None:
    packet = wire.RawPacket(LRH, rwh, payload).sealed()
    assert packet.payload.startswith(payload)
    assert packet.vcrc_ok
    assert wire.decode_infiniband(packet.encode()) == packet


def test_access_to_headers() -> None:
    packet = of_opcode(wire.Opcode.RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE, psn=1)
    reth = packet.get(wire.RETH)
    assert reth is not None
    assert reth.rkey == 0xABCD
    assert packet.get(wire.AETH) is None
    assert packet.opcode is wire.Opcode.RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw[:11], "short"),
        (lambda raw: raw[:27], "short"),
        (lambda raw: raw[:28], "short"),
        (lambda raw: b"\x15" + raw[1:], "opcode"),
        (lambda raw: b"\xff" + raw[1:], "opcode"),
        (lambda raw: raw[:1] + b"\x01" + raw[2:], "version"),
        (lambda raw: raw + b"\0", "length"),
        (lambda raw: raw[:1] + b"\x30" + raw[2:28] + raw[-4:-2], "short"),
        (lambda raw: b"\x0c" + raw[1:], "length"),
    ],
)
def test_what_is_wrong_with_a_packet(change: object, reason: str) -> None:
    raw = of_opcode(wire.Opcode.RC_RDMA_WRITE_ONLY, psn=1).encode()
    with pytest.raises(wire.DecodeError) as caught:
        wire.TransportPacket.decode(change(raw))  # type: ignore[operator]
    assert caught.value.reason == reason


def test_lengths_that_contradict_each_other() -> None:
    roce = wire.RocePacket(IPV4, wire.UDP(), of_opcode(wire.Opcode.RC_SEND_ONLY, 1)).sealed()
    for wrong in (
        replace(roce, udp=replace(roce.udp, length=roce.udp.length - 4)),
        replace(roce, ip=replace(IPV4, total_length=roce.ip.payload_size + 24)),
        replace(roce, ip=replace(IPV4, total_length=roce.ip.payload_size + 16)),
        replace(roce, ip=replace(IPV4, total_length=10)),
        replace(roce, ip=replace(IPV4, header_words=4, total_length=16 + roce.ip.payload_size)),
    ):
        with pytest.raises(wire.DecodeError):
            wire.decode_ip(wrong.encode())
    native = wire.NativePacket(LRH, None, of_opcode(wire.Opcode.RC_SEND_ONLY, 1)).sealed()
    for raw in (native.encode() + b"\0", native.encode()[:-1]):
        with pytest.raises(wire.DecodeError, match="LRH says"):
            wire.decode_infiniband(raw)


def test_packets_that_do_not_fit_together_are_not_encoded() -> None:
    bth = wire.BTH(opcode=wire.Opcode.RC_ACKNOWLEDGE)
    for wrong, message in (
        (wire.TransportPacket(bth), "extended headers AETH"),
        (wire.TransportPacket(bth, (wire.AETH.ack(1),), b"data"), "no payload"),
        (wire.TransportPacket(replace(bth, opcode=0xC0)), "no opcode"),
        (wire.TransportPacket(replace(bth, opcode=4), (), b"abc"), "pad"),
        (wire.TransportPacket(replace(bth, opcode=4, version=3)), "version"),
    ):
        with pytest.raises(wire.EncodeError, match=message):
            wrong.encode()


def _frame(ethertype: int, body: bytes) -> bytes:
    return replace(ETHERNET_V4, ethertype=ethertype).pack() + body


@pytest.mark.parametrize(
    ("frame", "kind", "summary"),
    [
        (_frame(0x0806, bytes(28)), "ARP", ""),
        (_frame(0x88CC, b""), "LLDP", ""),
        (_frame(0x8915, bytes(40)), "RoCE version 1", ""),
        (_frame(0x0026, bytes(38)), "802.3 LLC", ""),
        (_frame(0x1234, b""), "EtherType 0x1234", ""),
        (_frame(0x0800, replace(IPV4, protocol=6).pack() + b"\0\x50\0\x51"), "TCP", "80 -> 81"),
        (_frame(0x0800, replace(IPV4, protocol=1).pack()), "ICMP", ""),
        (_frame(0x0800, replace(IPV4, fragment_offset=9).pack()), "IPv4 fragment", "of protocol 17"),
        (_frame(0x0800, IPV4.pack() + wire.UDP(5, 53).pack()), "UDP", "5 -> 53"),
        (_frame(0x0800, IPV4.pack() + b"\0"), "UDP", "cut off"),
        (_frame(0x86DD, wire.IPv6(next_header=58).pack()), "ICMPv6", ""),
    ],
)
def test_other_frames_are_named(frame: bytes, kind: str, summary: str) -> None:
    packet = wire.decode_ethernet(frame)
    assert isinstance(packet, wire.OtherPacket)
    assert (packet.kind, packet.summary) == (kind, summary)
    assert packet.encode() == frame


@pytest.mark.parametrize("header", [bytes(14) + b"\x08\0", b"\x08\0" + bytes(18)], ids=["SLL", "SLL2"])
def test_any_interface_captures(header: bytes) -> None:
    packet = wire.RocePacket(IPV4, wire.UDP(), of_opcode(wire.Opcode.UD_SEND_ONLY, 1)).sealed()
    raw = header + packet.encode()
    decoded = wire.decode(raw, wire.LinkType.LINUX_SLL if len(header) == 16 else wire.LinkType.LINUX_SLL2)
    assert isinstance(decoded, wire.RocePacket)
    assert decoded.icrc_ok
    assert decoded.encode() == raw


def _decode_everything(data: bytes) -> None:
    """Every decoder either gives a packet that encodes to the same bytes, or raises `DecodeError`."""
    for kind in wire.LinkType:
        try:
            packet = wire.decode(data, kind)
        except wire.DecodeError:
            continue
        assert packet.encode() in data if kind is wire.LinkType.ERF else packet.encode() == data
        if isinstance(packet, wire.RocePacket | wire.NativePacket):
            _ = packet.icrc_ok
        if isinstance(packet, wire.NativePacket | wire.RawPacket):
            _ = packet.vcrc_ok
    try:
        transport = wire.TransportPacket.decode(data)
    except wire.DecodeError:
        return
    assert transport.encode() == data


@given(data=st.binary(max_size=300))
def test_random_bytes_never_do_worse_than_decode_errors(data: bytes) -> None:
    _decode_everything(data)


def test_mutated_packets_never_do_worse_than_decode_errors(seed: int) -> None:
    rng = random.Random(seed)
    frames = sorted(golden_roce(), key=len)[:40]
    frames += [p.encode() for code in wire.Opcode for p in in_every_wrapping(of_opcode(code, 1))]
    for _ in range(3000):
        frame = bytearray(rng.choice(frames))
        if rng.random() < 0.3:
            del frame[:14]
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(frame), 90))
            match rng.randrange(4):
                case 0:
                    frame[at] ^= 1 << rng.randrange(8)
                case 1:
                    frame[at] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
                case 2:
                    del frame[-rng.randint(1, 20) :]
                case 3:
                    frame += rng.randbytes(rng.randint(1, 9))
            if not frame:
                break
        _decode_everything(bytes(frame))


def test_erf_records(seed: int) -> None:
    rng = random.Random(seed)
    packet = wire.NativePacket(LRH, None, of_opcode(wire.Opcode.RC_SEND_ONLY, 1)).sealed()
    record = wire.wrap_erf(packet.encode(), 1_500_000_000)
    assert record[:8] == bytes((0, 0, 0, 0x80, 1, 0, 0, 0))
    assert wire.decode(record, wire.LinkType.ERF) == packet
    assert wire.decode(record + b"fill", wire.LinkType.ERF) == packet
    for size in range(len(record)):
        with pytest.raises(wire.DecodeError):
            wire.decode(record[:size], wire.LinkType.ERF)
    for _ in range(300):
        damaged = bytearray(record)
        damaged[rng.randrange(24)] ^= 1 << rng.randrange(8)
        with contextlib.suppress(wire.DecodeError):
            wire.decode(damaged, wire.LinkType.ERF)
    with pytest.raises(wire.EncodeError, match="too long"):
        wire.wrap_erf(bytes(65536), 0)


def test_an_unknown_link_type_is_a_decode_error() -> None:
    with pytest.raises(wire.DecodeError, match="link type 7"):
        wire.decode(b"", 7)
