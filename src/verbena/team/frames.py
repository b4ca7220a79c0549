"""VLAN tags put on and taken off, and the flow that a frame belongs to (IEEE 802.1Q, 9.6; RFC 791, 8200, 9293)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from verbena.wire.ip import ETHERTYPE_IPV4, ETHERTYPE_IPV6

ETHERTYPE_VLAN = b"\x81\x00"
FIRST_VLAN, LAST_VLAN = 1, 4094
"""0 is "no VLAN, only a priority", 4095 is reserved (IEEE 802.1Q, table 9-2)."""
_PORTS = (6, 17)


class Tagged(NamedTuple):
    """A frame without its tag, and the VLAN of the tag; 0 for an untagged or a priority-tagged frame."""

    vlan: int
    frame: bytes


class OffloadFrame(bytes):
    """A frame whose checksum or segmentation is still to be done, as its virtio_net_hdr (10 bytes) says."""

    header: bytes

    def __new__(cls, frame: bytes | memoryview, header: bytes) -> OffloadFrame:
        made = super().__new__(cls, frame)
        made.header = header
        return made


def like(frame: bytes, made: bytes, shift: int = 0) -> bytes:
    """`made` with what is to be done to `frame`, of which it is a changed copy.

    shift: bytes by which what follows the addresses has moved.
    """
    header = getattr(frame, "header", None)
    if header is None:
        return made
    return OffloadFrame(made, later(header, shift) if shift else header)


@lru_cache(maxsize=512)  # those of a stream are nearly all the same
def later(header: bytes, shift: int) -> bytes:
    """A virtio_net_hdr whose frame has got so many bytes more (or, negative, less) in front of what it speaks of."""
    if not header[0] & 1:
        return header
    size, start = (int.from_bytes(header[at : at + 2], "little") for at in (2, 6))
    size += shift if size else 0
    start += shift
    return header[:2] + size.to_bytes(2, "little") + header[4:6] + start.to_bytes(2, "little") + header[8:]


def is_large(frame: bytes) -> bool:
    """Will it be cut into segments?"""
    header = getattr(frame, "header", None)
    return header is not None and header[1] != 0


def with_source(frame: bytes, mac: bytes) -> bytes:
    """The frame from another address."""
    return like(frame, frame[:6] + mac + frame[12:])


def tag_of(vlan: int) -> bytes:
    """The tag of a VLAN; nothing for VLAN 0."""
    return ETHERTYPE_VLAN + vlan.to_bytes(2, "big") if vlan else b""


def add_tag(frame: bytes, vlan: int) -> bytes:
    """The frame with a tag; as it is for VLAN 0."""
    if not vlan:
        return frame
    return like(frame, b"".join((frame[:12], tag_of(vlan), memoryview(frame)[12:])), 4)


def take_tag(frame: bytes) -> Tagged:
    """Take off the outer tag, if there is one."""
    if frame[12:14] != ETHERTYPE_VLAN or len(frame) < 18:
        return Tagged(0, frame)
    return Tagged((frame[14] << 8 | frame[15]) & 0xFFF, like(frame, frame[:12] + frame[16:], -4))


class Flow(NamedTuple):
    """What a conversation is known by.  layer4: (protocol, addresses, ports); empty for what is not IP."""

    vlan: int
    destination: bytes
    source: bytes
    layer4: bytes


def flow_of(frame: bytes, vlan: int) -> Flow:
    """The flow of an untagged frame.

    Fragments have no ports, so that all of one packet go the same way; IPv6 extension headers are not looked behind.
    """
    kind = frame[12] << 8 | frame[13]
    layer4 = b""
    if kind == ETHERTYPE_IPV4 and len(frame) >= 34:
        layer4 = frame[23:24] + frame[26:34]
        at = 14 + ((frame[14] & 0x0F) << 2)
        whole = not (frame[20] & 0x3F or frame[21])
        if whole and frame[23] in _PORTS and len(frame) >= at + 4:
            layer4 += frame[at : at + 4]
    elif kind == ETHERTYPE_IPV6 and len(frame) >= 54:
        layer4 = frame[20:21] + frame[22:54]
        if frame[20] in _PORTS and len(frame) >= 58:
            layer4 += frame[54:58]
    return Flow(vlan, frame[:6], frame[6:12], layer4)
