"""The headers that carry RoCEv2 over Ethernet: Ethernet with VLAN tags, IPv4, IPv6, UDP, and their checksums.

Formats: IEEE 802.3 and 802.1Q, RFC 791, RFC 8200, RFC 768; checksum: RFC 1071.  Only what RoCEv2 needs
(annex A17): IPv4 without options, IPv6 without extension headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Buffer, Layout, flag, raw, uint

ROCE_PORT = 4791
"""UDP destination port of RoCEv2 (annex A17.3.1.3)."""

PROTOCOL_UDP = 17
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_ROCE_V1 = 0x8915
VLAN_ETHERTYPES = frozenset({0x8100, 0x88A8, 0x9100})


@dataclass(frozen=True, slots=True)
class VlanTag(Layout):
    """An IEEE 802.1Q tag."""

    tpid: int = uint(16, 0x8100, at=0)
    priority: int = uint(3, at=2)
    drop_eligible: bool = flag()
    vlan: int = uint(12)


@dataclass(frozen=True, slots=True)
class Ethernet:
    """An Ethernet header: addresses, any number of VLAN tags, EtherType (or the length of an 802.3 frame)."""

    dst: bytes = bytes(6)
    src: bytes = bytes(6)
    tags: tuple[VlanTag, ...] = ()
    ethertype: int = ETHERTYPE_IPV4

    @property
    def size(self) -> int:
        return 14 + VlanTag.SIZE * len(self.tags)

    def pack(self) -> bytes:
        if len(self.dst) != 6 or len(self.src) != 6:
            raise EncodeError("an Ethernet address has 6 bytes")
        if not 0 <= self.ethertype <= 0xFFFF or self.ethertype in VLAN_ETHERTYPES:
            raise EncodeError(f"{self.ethertype:#x} is no EtherType of a payload")
        if any(tag.tpid not in VLAN_ETHERTYPES for tag in self.tags):
            raise EncodeError("a VLAN tag begins with 0x8100, 0x88a8 or 0x9100")
        tags = b"".join(tag.pack() for tag in self.tags)
        return bytes(self.dst) + bytes(self.src) + tags + self.ethertype.to_bytes(2, "big")

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self:
        view = memoryview(buf)[offset:]
        tags: list[VlanTag] = []
        position = 12
        while True:
            if len(view) < position + 2:
                raise DecodeError("short", f"an Ethernet header is cut off after {len(view)} bytes")
            ethertype = int.from_bytes(view[position : position + 2], "big")
            if ethertype not in VLAN_ETHERTYPES:
                return cls(bytes(view[:6]), bytes(view[6:12]), tuple(tags), ethertype)
            tags.append(VlanTag.unpack(view, position))
            position += VlanTag.SIZE


@dataclass(frozen=True, slots=True)
class Cooked:
    """The pseudo header of a Linux "any interface" capture (link types SLL and SLL2), kept as it is."""

    header: bytes
    ethertype: int

    @property
    def size(self) -> int:
        return len(self.header)

    def pack(self) -> bytes:
        return self.header


@dataclass(frozen=True, slots=True)
class IPv4(Layout):
    """IPv4 header without options (RFC 791)."""

    version: int = uint(4, 4, at=0)
    header_words: int = uint(4, 5)
    tos: int = uint(8, at=1)
    total_length: int = uint(16, at=2)
    identification: int = uint(16, at=4)
    reserved_flag: bool = flag(at=6)
    dont_fragment: bool = flag(True)
    more_fragments: bool = flag()
    fragment_offset: int = uint(13)
    ttl: int = uint(8, 64, at=8)
    protocol: int = uint(8, PROTOCOL_UDP, at=9)
    checksum: int = uint(16, at=10)
    src: bytes = raw(4, at=12)
    dst: bytes = raw(4, at=16)

    @property
    def payload_size(self) -> int:
        return self.total_length - 4 * self.header_words

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.fragment_offset != 0

    @property
    def source(self) -> IPv4Address:
        return IPv4Address(self.src)

    @property
    def destination(self) -> IPv4Address:
        return IPv4Address(self.dst)


@dataclass(frozen=True, slots=True)
class IPv6(Layout):
    """IPv6 header (RFC 8200)."""

    version: int = uint(4, 6, at=0)
    traffic_class: int = uint(8)
    flow_label: int = uint(20)
    payload_length: int = uint(16, at=4)
    next_header: int = uint(8, PROTOCOL_UDP, at=6)
    hop_limit: int = uint(8, 64, at=7)
    src: bytes = raw(16, at=8)
    dst: bytes = raw(16, at=24)

    @property
    def payload_size(self) -> int:
        return self.payload_length

    @property
    def protocol(self) -> int:
        return self.next_header

    @property
    def source(self) -> IPv6Address:
        return IPv6Address(self.src)

    @property
    def destination(self) -> IPv6Address:
        return IPv6Address(self.dst)


@dataclass(frozen=True, slots=True)
class UDP(Layout):
    """UDP header (RFC 768)."""

    src_port: int = uint(16, at=0)
    dst_port: int = uint(16, ROCE_PORT, at=2)
    length: int = uint(16, at=4)
    checksum: int = uint(16, at=6)


def internet_checksum(data: Buffer) -> int:
    """The ones' complement checksum of RFC 1071; over data that holds its right checksum it is 0."""
    padded = bytes(data) + b"\0" * (len(data) % 2)
    # 2**16 is 1 modulo 0xFFFF, so the sum of all 16-bit words is the whole number modulo 0xFFFF.
    total = int.from_bytes(padded, "big")
    return 0xFFFF if total == 0 else 0xFFFF - (total % 0xFFFF or 0xFFFF)


def upper_layer_checksum(ip: IPv4 | IPv6, protocol: int, data: Buffer) -> int:
    """Checksum of TCP, UDP or ICMPv6 data whose own checksum field is zero, with the pseudo header of `ip`.

    RFC 9293, 3.1 (TCP); RFC 8200, 8.1 (all of them over IPv6).  Over data that holds its right checksum it is 0.
    """
    length = len(data).to_bytes(4, "big")
    return internet_checksum(ip.src + ip.dst + length + protocol.to_bytes(4, "big") + bytes(data))


def udp_checksum(ip: IPv4 | IPv6, datagram: Buffer) -> int:
    """Checksum of a UDP datagram whose own checksum field is zero, with the pseudo header of `ip`."""
    return upper_layer_checksum(ip, PROTOCOL_UDP, datagram) or 0xFFFF  # zero on the wire: "no checksum"
