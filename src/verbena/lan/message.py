"""The header of a message of the transport services library, and what nodes tell of themselves.

The document leaves the header open (000:102: the library "performs segmentation and reassembly").  Sixteen bytes, in
front of each datagram and of each frame on a connection:

====== ===== ==========================================================================
offset bytes
====== ===== ==========================================================================
0      1     version (high 4 bits, 1) and kind (`Kind`)
1      1     flags (`Flags`)
2      2     base LID of the sender, which must be that of the packet's SLID
4      4     number of the message; a sender counts its messages
8      4     length of the whole message, without headers
12     4     offset of this fragment in it
====== ===== ==========================================================================

A connection's transport cuts messages itself (IBA vol. 1, 9.7), so there the offset is always 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from verbena.wire.errors import DecodeError
from verbena.wire.layout import Layout, raw, uint

HEADER = struct.Struct(">BBHIII")
HEADER_SIZE = HEADER.size
VERSION = 1
OFFLOAD_SIZE = 10
"""virtio_net_hdr, in front of a frame that is flagged so: checksum and segmentation still to be done."""


class Kind(IntEnum):
    """What a message is."""

    FRAME = 0
    HELLO = 1
    BYE = 2
    PROBE = 3
    PROBE_REPLY = 4


class Flags(IntFlag):
    """Bits of a message's header."""

    NONE = 0
    BRIDGED = 1
    """The frame comes from behind a bridge: its source is no card of this LAN."""
    OFFLOAD = 2
    """A virtio_net_hdr of 10 bytes precedes the frame."""


class Role(IntFlag):
    """What a node says that it is."""

    NONE = 0
    BRIDGE = 1
    BUNDLE = 2
    """Its card is one of several that are one card to the network layer."""
    GROUP = 4
    """It is a member of the LAN's multicast group on the fabric."""
    OFFLOAD = 8
    """It takes frames with a virtio_net_hdr."""


@dataclass(frozen=True, slots=True)
class NodeInfo(Layout):
    """What a node tells of itself, in HELLO and when its queue pair is asked for.

    instance: a random number of the driver's loading, so that peers notice a new one.  mtu: of the LAN, bytes.
    card: the LID that the address of its card holds; another than the port's where several ports are one card.
    """

    instance: int = uint(32, at=0)
    role: int = uint(16, at=4)
    card: int = uint(16, at=6)
    mtu: int = uint(32, at=8)
    platform: bytes = raw(8, at=12)
    port_guid: bytes = raw(8, at=20)


def parse_header(data: bytes) -> tuple[Kind, int, int, int, int, int]:
    """Kind, flags, LID, number, length, offset; raises `DecodeError`."""
    if len(data) < HEADER_SIZE:
        raise DecodeError("short", f"a message of {len(data)} bytes ends within its header")
    first, flags, lid, number, length, offset = HEADER.unpack_from(data)
    if first >> 4 != VERSION:
        raise DecodeError("version", f"version {first >> 4} of the LAN's header; only {VERSION} is known")
    try:
        kind = Kind(first & 0x0F)
    except ValueError:
        raise DecodeError("opcode", f"{first & 0x0F} is no kind of message") from None
    if offset + len(data) - HEADER_SIZE > length:
        raise DecodeError("length", f"{len(data) - HEADER_SIZE} bytes at {offset} of a message of {length}")
    return kind, flags, lid, number, length, offset
