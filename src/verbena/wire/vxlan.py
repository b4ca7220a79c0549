"""VXLAN (RFC 7348): Ethernet frames of virtual machines in UDP datagrams between servers.

Outer frame: Ethernet (with a priority tag where the inner frame has a priority), IPv4, UDP to port 4789, the header
with a 24-bit network identifier, the inner frame without its check sequence.  50 bytes more, 54 with the tag.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.ip import (
    ETHERTYPE_IPV4,
    PROTOCOL_UDP,
    UDP,
    Ethernet,
    IPv4,
    VlanTag,
    internet_checksum,
    udp_checksum,
)
from verbena.wire.layout import Buffer, Layout, flag, uint

VXLAN_PORT = 4789
OVERHEAD = 50
LARGEST_VNI = (1 << 24) - 1
FIRST_SOURCE_PORT = 49152
"""Source ports come from the dynamic range, chosen by the inner flow (RFC 7348, 5)."""


@dataclass(frozen=True, slots=True)
class VxlanHeader(Layout):
    """Eight bytes; `instance` says that the identifier is valid, and must be set."""

    reserved: int = uint(4, at=0)
    instance: bool = flag(True)
    reserved2: int = uint(27)
    vni: int = uint(24, at=4)
    reserved3: int = uint(8)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A tunnel endpoint: its Ethernet and IPv4 address."""

    mac: bytes
    ip: bytes


def encapsulate(inner: Buffer, vni: int, source: Endpoint, destination: Endpoint, priority: int = 0) -> bytes:
    """The outer frame.  priority: 1 to 7 travel in a VLAN tag and in the DSCP's class selector, 0 in neither.

    Raises `EncodeError` for a `vni` that does not fit, or an inner frame that is none or too long.
    """
    if not 0 <= vni <= LARGEST_VNI:
        raise EncodeError(f"network identifier {vni}; 0 to {LARGEST_VNI} fit into 24 bits")
    if not 14 <= len(inner) <= 65_535 - 36:
        raise EncodeError(f"an inner frame of {len(inner)} bytes")
    port = FIRST_SOURCE_PORT + zlib.crc32(bytes(inner[:12])) % (65_536 - FIRST_SOURCE_PORT)
    body = VxlanHeader(vni=vni).pack() + bytes(inner)
    # RFC 7348, 5: the UDP checksum is sent as zero.
    udp = UDP(port, VXLAN_PORT, UDP.SIZE + len(body)).pack()
    ip = IPv4(
        tos=priority << 5,
        total_length=IPv4.SIZE + len(udp) + len(body),
        dont_fragment=True,
        src=source.ip,
        dst=destination.ip,
    ).pack()
    ip = ip[:10] + internet_checksum(ip).to_bytes(2, "big") + ip[12:]
    tags = (VlanTag(priority=priority),) if priority else ()
    return Ethernet(destination.mac, source.mac, tags, ETHERTYPE_IPV4).pack() + ip + udp + body


def decapsulate(outer: Buffer, endpoint: Endpoint) -> tuple[int, bytes]:
    """(network identifier, inner frame) of an outer frame that is for `endpoint`.

    Raises `DecodeError` for one that is not, or is damaged, cut off, or no VXLAN.
    """
    ethernet = Ethernet.unpack(outer)
    if ethernet.dst != endpoint.mac:
        raise DecodeError("header", "the outer frame is for another station")
    if ethernet.ethertype != ETHERTYPE_IPV4:
        raise DecodeError("header", f"EtherType {ethernet.ethertype:#06x}; the outer packet is IPv4")
    at = ethernet.size
    ip = IPv4.unpack(outer, at)
    if ip.version != 4 or ip.header_words != 5 or ip.is_fragment:
        raise DecodeError("version", "the outer IPv4 header has options, is a fragment, or is none")
    if internet_checksum(outer[at : at + IPv4.SIZE]):
        raise DecodeError("crc", "the outer IPv4 header's checksum is wrong")
    if ip.dst != endpoint.ip or ip.protocol != PROTOCOL_UDP:
        raise DecodeError("header", "the outer packet is for another endpoint, or no UDP")
    datagram = outer[at + IPv4.SIZE : at + ip.total_length]
    if len(datagram) != ip.payload_size:
        raise DecodeError("short", "the outer packet is cut off")
    udp = UDP.unpack(datagram)
    if udp.dst_port != VXLAN_PORT or udp.length != len(datagram):
        raise DecodeError("length", "the outer datagram is not for VXLAN's port, or its lengths differ")
    if udp.checksum:
        zeroed = bytes(datagram[:6]) + b"\0\0" + bytes(datagram[8:])
        if udp_checksum(ip, zeroed) != udp.checksum:
            raise DecodeError("crc", "the outer datagram's checksum is wrong")
    header = VxlanHeader.unpack(datagram, UDP.SIZE)
    if not header.instance:
        raise DecodeError("header", "the VXLAN header's I flag is not set")
    inner = bytes(datagram[UDP.SIZE + VxlanHeader.SIZE :])
    if len(inner) < 14:
        raise DecodeError("short", f"an inner frame of {len(inner)} bytes")
    return header.vni, inner
