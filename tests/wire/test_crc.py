"""Known answers for both CRCs, from the standard and from hardware."""

from __future__ import annotations

import pytest
from hypothesis import given

from verbena import wire
from wire.samples import GRH, IPV4, IPV6, LRH, in_every_wrapping, transport_packets

# The sample packet of IBA vol. 1, 7.8.3: an RC RDMA WRITE Only of 14 bytes.
SAMPLE = bytes.fromhex(
    "7012375c000e17d20a2024870087b1b3000dec2a01710a1c015d400238f27a050000000ebb884d85fd5cfba4728bc0690ed40000"
)

# A congestion notification packet as a ConnectX-4 Lx sent it, and an RC-like packet of the same family.
HARDWARE = {
    "CNP": "e41d2dab2bc27cfe90643b32080045c2003c718c4000401191610a0011010a0012010000"
    "12b7002800008100ffff40000118000000000000000000000000000000000000000082fd002a",
    "UC SEND_ONLY": "248a07a8fa22248a07a8fa22080045010040047840004011b4d5c0a80007c0a80007c000"
    "12b7002caca22460ffff000000d300cf17104630818be28935d90e9a95505401be885e50000078f353f3",
}


def test_sample_packet_of_the_standard() -> None:
    assert wire.native_icrc(SAMPLE[:8], SAMPLE[8:]) == 0x9625B75A


def test_variant_crc_is_a_bit_serial_division() -> None:
    """The table gives what the shift register of IBA vol. 1, 7.8.2 gives, bit by bit."""
    data = SAMPLE + bytes.fromhex("9625b75a")
    register = 0xFFFF
    for byte in data:
        for bit in range(8):
            feedback = (register >> 15) ^ (byte >> bit & 1)
            register = (register << 1 & 0xFFFF) ^ (0x100B if feedback else 0)
    # The coefficient of the highest power is sent first, in the lowest bit of the first byte.
    bits = f"{register ^ 0xFFFF:016b}"
    expected = bytes(int(bits[at : at + 8][::-1], 2) for at in (0, 8))
    assert wire.vcrc(data) == int.from_bytes(expected, "big") == 0x45FA


@pytest.mark.parametrize("name", HARDWARE)
def test_packets_of_hardware(name: str) -> None:
    frame = bytes.fromhex(HARDWARE[name])
    packet = wire.decode_ethernet(frame)
    assert isinstance(packet, wire.RocePacket)
    assert packet.transport.info.name == name
    assert packet.icrc_ok
    assert packet.encode() == frame
    assert wire.internet_checksum(packet.ip.pack()) == 0


@given(transport=transport_packets())
def test_sealed_packets_have_right_crcs_and_checksums(transport: wire.TransportPacket) -> None:
    for packet in in_every_wrapping(transport):
        assert packet.icrc_ok
        if isinstance(packet, wire.NativePacket):
            assert packet.vcrc_ok
        elif isinstance(packet.ip, wire.IPv4):
            assert wire.internet_checksum(packet.ip.pack()) == 0
        else:
            datagram = packet.udp.pack() + packet.transport.encode()
            pseudo = (
                packet.ip.src + packet.ip.dst + bytes((0, 0, *len(datagram).to_bytes(2, "big"), 0, 0, 0, 17))
            )
            assert wire.internet_checksum(pseudo + datagram) == 0


# Bits that a switch or router may change, by the bytes they stand in.
VARIABLE = {
    "IPv4": (IPV4.pack() + bytes(8), {1: 0xFF, 8: 0xFF, 10: 0xFF, 11: 0xFF, 26: 0xFF, 27: 0xFF}),
    "IPv6": (IPV6.pack() + bytes(8), {0: 0x0F, 1: 0xFF, 2: 0xFF, 3: 0xFF, 7: 0xFF, 46: 0xFF, 47: 0xFF}),
    "local": (LRH.pack(), {0: 0xF0}),
    "global": (
        LRH.pack() + GRH.pack(),
        dict.fromkeys(range(8), 0xFF) | {8: 0x0F, 9: 0xFF, 10: 0xFF, 11: 0xFF, 15: 0xFF},
    ),
}


@pytest.mark.parametrize("name", VARIABLE)
def test_the_invariant_crc_covers_exactly_what_may_not_change(name: str) -> None:
    route, variable = VARIABLE[name]
    compute = wire.roce_icrc if name.startswith("IP") else wire.native_icrc
    body = bytes(range(40))
    right = compute(route, body)
    for at in range(len(route)):
        for bit in range(8):
            changed = bytearray(route)
            changed[at] ^= 1 << bit
            may_change = bool(variable.get(at, 0) >> bit & 1)
            assert (compute(changed, body) == right) is may_change, (at, bit)
    for at in range(len(body)):
        changed = bytearray(body)
        changed[at] ^= 0x10
        assert (compute(route, changed) == right) is (at == 4)


def test_wrong_header_lengths_are_refused() -> None:
    with pytest.raises(wire.EncodeError, match="28 for IPv4"):
        wire.icrc_start(bytes(20))
    with pytest.raises(wire.EncodeError, match="8 for LRH"):
        wire.native_icrc(bytes(40), bytes(12))


@pytest.mark.parametrize(
    ("data", "checksum"), [(b"", 0xFFFF), (b"\0\0", 0xFFFF), (b"\xff\xff", 0), (b"\1", 0xFEFF)]
)
def test_internet_checksum_at_its_edges(data: bytes, checksum: int) -> None:
    assert wire.internet_checksum(data) == checksum
