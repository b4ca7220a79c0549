"""What a router looks at in a packet, and the little that it changes (IBA vol. 1, chapter 19, 8.3.6; RFC 8200).

Packets are LRH … ICRC (raw packets: LRH … last word), without the VCRC, which belongs to the link.
"""

from __future__ import annotations

from verbena.wire.headers import GRH_NEXT_HEADER_IBA, LinkNextHeader

LRH_SIZE = 8
IP_SIZE = 40
LARGEST_HEADERS = 124
"""A packet has at most so many bytes more than its payload (IBA vol. 1, 7.7.8, without the VCRC).

A router knows no transport header, so it cannot tell headers from payload; MTUs being powers of two, a full packet of
a larger MTU is always longer than this allows.
"""

_SRC, _DST, _HOPS = LRH_SIZE + 8, LRH_SIZE + 24, LRH_SIZE + 7


def link_problem(packet: bytes) -> str:
    """Why a packet's local header cannot be believed: a drop's reason, or ""."""
    if len(packet) < LRH_SIZE:
        return "short"
    if packet[0] & 0x0F:
        return "version"
    if len(packet) != 4 * ((packet[4] & 7) << 8 | packet[5]):
        return "length"
    return ""


def network_problem(packet: bytes) -> str:
    """Why the IPv6 header behind the local one (a GRH is one, too) cannot be believed: a drop's reason, or ""."""
    if len(packet) < LRH_SIZE + IP_SIZE:
        return "short"
    if packet[LRH_SIZE] >> 4 != 6:
        return "version"
    padding = len(packet) - LRH_SIZE - IP_SIZE - (packet[LRH_SIZE + 4] << 8 | packet[LRH_SIZE + 5])
    if packet[1] & 3 == LinkNextHeader.IBA_GLOBAL:
        if packet[LRH_SIZE + 6] != GRH_NEXT_HEADER_IBA:
            return "header"
        return "length" if padding else ""
    # A raw packet is filled up to whole words; its IPv6 header says where it ends.
    return "" if 0 <= padding < 4 else "length"


def source(packet: bytes) -> bytes:
    return bytes(packet[_SRC : _SRC + 16])


def destination(packet: bytes) -> bytes:
    return bytes(packet[_DST : _DST + 16])


def hop_limit(packet: bytes) -> int:
    return packet[_HOPS]


def ip_packet(packet: bytes) -> bytes:
    """The IPv6 packet in a raw packet, without the padding to whole words."""
    size = IP_SIZE + (packet[LRH_SIZE + 4] << 8 | packet[LRH_SIZE + 5])
    return bytes(packet[LRH_SIZE : LRH_SIZE + size])


def raw_packet(datagram: bytes, lnh: LinkNextHeader = LinkNextHeader.IPV6) -> bytes:
    """A raw packet with a local header that still has no addresses; filled up to whole words."""
    words = (LRH_SIZE + len(datagram) + 3) // 4
    return bytes((0, lnh, 0, 0, words >> 8, words & 0xFF, 0, 0)) + datagram + bytes(-len(datagram) % 4)


def hopped(packet: bytes) -> bytes:
    """The packet with its hop limit one lower."""
    return packet[:_HOPS] + bytes((packet[_HOPS] - 1,)) + packet[_HOPS + 1 :]


def readdressed(packet: bytes, lane: int, sl: int, dlid: int, slid: int) -> bytes:
    """The packet with a new local header for the subnet that it enters (document 003:612: "slightly").

    Kept are what follows and how long it all is; lane, service level and both LIDs are new.
    """
    head = bytes(((lane << 4), sl << 4 | packet[1] & 3, dlid >> 8, dlid & 0xFF))
    return head + bytes((packet[4] & 7,)) + packet[5:6] + slid.to_bytes(2, "big") + packet[8:]


def scope(address: bytes) -> int:
    """The scope of an address (RFC 4291, 2.7; RFC 4007): 1 this interface, 2 this subnet, … 14 everywhere.

    0 for what names nobody (::), 15 is reserved.
    """
    if address[0] == 0xFF:
        return address[1] & 0x0F
    if address[:15] == bytes(15):
        return 1 if address[15] == 1 else 0 if address[15] == 0 else 14
    if address[0] == 0xFE and address[1] & 0xC0 == 0x80:
        return 2
    return 14


def scope_problem(sender: bytes, target: bytes, boundary: int) -> str:
    """Why a packet between these addresses may not leave its subnet: a drop's reason, or "".

    boundary: the largest multicast scope that ends here (2: only what is local to a subnet).
    """
    if sender[0] == 0xFF or scope(sender) in (0, 1):
        return "source"
    if scope(sender) == 2 or scope(target) == 2:
        return "link_local"
    if target[0] == 0xFF:
        return "" if boundary < scope(target) < 15 else "multicast_scope"
    return "no_route" if scope(target) < 2 else ""
