"""ICMPv6 error messages (RFC 4443): what a router tells the sender of an IPv6 packet that it cannot forward."""

from __future__ import annotations

from enum import IntEnum

from verbena.wire.ip import IPv6, upper_layer_checksum
from verbena.wire.layout import Buffer

PROTOCOL_ICMP6 = 58
MINIMUM_MTU = 1280
"""An error message is never longer than the smallest MTU that IPv6 allows (RFC 4443, 2.4 (c))."""
_ECHO_REQUEST = 128
_HEADER = 8


class Icmp6Error(IntEnum):
    """Types of error messages (RFC 4443, chapter 3)."""

    DESTINATION_UNREACHABLE = 1
    PACKET_TOO_BIG = 2
    TIME_EXCEEDED = 3


NO_ROUTE = 0
BEYOND_SCOPE = 2
ADDRESS_UNREACHABLE = 3
"""Codes of DESTINATION_UNREACHABLE (RFC 4443, 3.1)."""


def icmp6_error(kind: Icmp6Error, code: int, parameter: int, source: bytes, packet: Buffer) -> bytes | None:
    """The IPv6 packet that reports an error about `packet` to its sender; None when none may be sent.

    code, parameter: the message's code and its second word (the MTU of PACKET_TOO_BIG, else 0).  source: 16 bytes, an
    address of the router.  None: the packet is itself an ICMPv6 error, or was sent to a multicast address (except for
    PACKET_TOO_BIG), or its source names no single node (RFC 4443, 2.4 (e)).
    """
    offending = bytes(packet)
    if len(offending) < IPv6.SIZE:
        return None
    ip = IPv6.unpack(offending)
    if ip.src[0] == 0xFF or not any(ip.src):
        return None
    if ip.dst[0] == 0xFF and kind is not Icmp6Error.PACKET_TOO_BIG:
        return None
    body = offending[IPv6.SIZE :]
    if ip.next_header == PROTOCOL_ICMP6 and (not body or body[0] < _ECHO_REQUEST):
        return None
    quoted = offending[: MINIMUM_MTU - IPv6.SIZE - _HEADER]
    message = bytes((kind, code, 0, 0)) + parameter.to_bytes(4, "big") + quoted
    reply = IPv6(payload_length=len(message), next_header=PROTOCOL_ICMP6, src=bytes(source), dst=ip.src)
    checksum = upper_layer_checksum(reply, PROTOCOL_ICMP6, message)
    return reply.pack() + message[:2] + checksum.to_bytes(2, "big") + message[4:]
