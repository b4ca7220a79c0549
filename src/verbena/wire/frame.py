"""From the bytes of a captured frame to a packet: which layers there are, and what is not RoCEv2.

A frame is RoCEv2 if it is unfragmented UDP over IPv4 or IPv6 to port 4791 (annex A17.3.1); then it must
decode.  Everything else on an Ethernet is an `OtherPacket` with a summary.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from verbena.wire.erf import unwrap_erf
from verbena.wire.errors import DecodeError
from verbena.wire.ip import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_ROCE_V1,
    PROTOCOL_UDP,
    ROCE_PORT,
    UDP,
    Cooked,
    Ethernet,
    IPv4,
    IPv6,
)
from verbena.wire.layout import Buffer
from verbena.wire.packet import OtherPacket, Packet, RocePacket, TransportPacket, decode_infiniband


class LinkType(IntEnum):
    """Link types of capture files (https://www.tcpdump.org/linktypes.html) that can be decoded."""

    ETHERNET = 1
    RAW = 101
    LINUX_SLL = 113
    ERF = 197
    IPV4 = 228
    IPV6 = 229
    INFINIBAND = 247
    LINUX_SLL2 = 276


_ETHERTYPES = {
    ETHERTYPE_ARP: "ARP",
    ETHERTYPE_ROCE_V1: "RoCE version 1",
    0x8035: "RARP",
    0x8808: "MAC control",
    0x8809: "slow protocols",
    0x8847: "MPLS",
    0x8863: "PPPoE discovery",
    0x8864: "PPPoE",
    0x888E: "802.1X",
    0x88CC: "LLDP",
    0x88F7: "PTP",
}
_PROTOCOLS = {
    0: "hop-by-hop options",
    1: "ICMP",
    2: "IGMP",
    6: "TCP",
    44: "fragment",
    47: "GRE",
    58: "ICMPv6",
    132: "SCTP",
}


def decode_ethernet(data: Buffer, udp_port: int = ROCE_PORT) -> RocePacket | OtherPacket:
    """A frame from its destination address on, with or without its frame check sequence."""
    return _decode_frame(data, Ethernet.unpack(data), udp_port)


def decode_ip(data: Buffer, udp_port: int = ROCE_PORT) -> RocePacket | OtherPacket:
    """An IPv4 or IPv6 packet."""
    return _decode_ip(data, None, udp_port)


def decode(data: Buffer, link_type: int, udp_port: int = ROCE_PORT) -> Packet:
    """A captured packet of the given link type; of an ERF record, the packet in it."""
    decoder = _DECODERS.get(link_type)
    if decoder is None:
        raise DecodeError("header", f"packets of link type {link_type} cannot be decoded")
    return decoder(data, udp_port)


def _cooked(size: int, ethertype_at: int) -> Callable[[Buffer, int], Packet]:
    def decode_cooked(data: Buffer, udp_port: int) -> Packet:
        if len(data) < size:
            raise DecodeError("short", f"a cooked header needs {size} bytes, {len(data)} are there")
        ethertype = int.from_bytes(data[ethertype_at : ethertype_at + 2], "big")
        return _decode_frame(data, Cooked(bytes(data[:size]), ethertype), udp_port)

    return decode_cooked


_DECODERS: dict[int, Callable[[Buffer, int], Packet]] = {
    LinkType.ETHERNET: decode_ethernet,
    LinkType.RAW: decode_ip,
    LinkType.IPV4: decode_ip,
    LinkType.IPV6: decode_ip,
    LinkType.LINUX_SLL: _cooked(16, 14),
    LinkType.LINUX_SLL2: _cooked(20, 0),
    LinkType.ERF: lambda data, _: decode_infiniband(unwrap_erf(data)),
    LinkType.INFINIBAND: lambda data, _: decode_infiniband(data),
}


def _decode_frame(data: Buffer, link: Ethernet | Cooked, udp_port: int) -> RocePacket | OtherPacket:
    if link.ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return _decode_ip(data, link, udp_port)
    name = _ETHERTYPES.get(link.ethertype)
    if name is None:
        name = f"EtherType {link.ethertype:#06x}" if link.ethertype >= 0x600 else "802.3 LLC"
    ends = (link.src.hex(":"), link.dst.hex(":")) if isinstance(link, Ethernet) else ("?", "?")
    return OtherPacket(bytes(data), *ends, name)


def _decode_ip(data: Buffer, link: Ethernet | Cooked | None, udp_port: int) -> RocePacket | OtherPacket:
    view = memoryview(data)
    packet = view[link.size if link is not None else 0 :]
    if not packet:
        raise DecodeError("short", "there is no IP header")
    version = packet[0] >> 4
    if version not in (4, 6):
        raise DecodeError("version", f"IP version {version}")
    if link is not None and (version == 4) != (link.ethertype == ETHERTYPE_IPV4):
        raise DecodeError("version", f"IP version {version} behind EtherType {link.ethertype:#06x}")
    ip = (IPv4 if version == 4 else IPv6).unpack(packet)
    header_size = 4 * ip.header_words if isinstance(ip, IPv4) else IPv6.SIZE
    if header_size < ip.SIZE:
        raise DecodeError("length", f"an IPv4 header of {header_size} bytes")
    datagram = packet[header_size:]
    other = _other_ip(ip, datagram, udp_port)
    if other is not None:
        return OtherPacket(bytes(data), str(ip.source), str(ip.destination), *other)

    if header_size != ip.SIZE:
        raise DecodeError("header", "RoCEv2 does not allow IPv4 options")
    if ip.payload_size > len(datagram):
        raise DecodeError("short", f"the IP header says {ip.payload_size} bytes, {len(datagram)} follow it")
    udp = UDP.unpack(datagram)
    if udp.length != ip.payload_size:
        raise DecodeError("length", f"UDP length {udp.length} in an IP payload of {ip.payload_size} bytes")
    transport = TransportPacket.decode(datagram[UDP.SIZE : udp.length])
    return RocePacket(ip, udp, transport, link, bytes(datagram[udp.length :]))


def _other_ip(ip: IPv4 | IPv6, datagram: memoryview, udp_port: int) -> tuple[str, str] | None:
    """Kind and summary of an IP packet that is not RoCEv2, None if it is."""
    version = "IPv4" if isinstance(ip, IPv4) else "IPv6"
    if isinstance(ip, IPv4) and ip.is_fragment:
        return "IPv4 fragment", f"of protocol {ip.protocol}"
    if ip.protocol not in (PROTOCOL_UDP, 6):
        return _PROTOCOLS.get(ip.protocol, f"{version} protocol {ip.protocol}"), ""
    name = "UDP" if ip.protocol == PROTOCOL_UDP else "TCP"
    if len(datagram) < 4:
        return name, "cut off"
    src_port, dst_port = (int.from_bytes(datagram[at : at + 2], "big") for at in (0, 2))
    if name == "UDP" and dst_port == udp_port:
        return None
    return name, f"{src_port} -> {dst_port}"
