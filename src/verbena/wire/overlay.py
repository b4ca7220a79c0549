"""What two virtual switches say to each other on an overlay: credits, in a frame of their own within the VXLAN tunnel.

VXLAN (RFC 7348) has no flow control, and its header no room for one.  So credits travel as an inner Ethernet frame with
the EtherType for local experiments (IEEE 802, 9.2.4) to an address that no bridge forwards; a tunnel endpoint that
knows nothing of them drops the frame.

For each class, as InfiniBand does it (IBA vol. 1, 7.9.4), but counted in frames, with 64 bits:

* ``sent``: how many data frames its sender has sent in this session.  What the receiver did not count was lost.
* ``limit``: up to which number it may send.  Valid only for the session that `echo` names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from verbena.wire.credits import ETHERTYPE_EXPERIMENTAL, GRANT_GROUP
from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.ethernet import HEADER_SIZE
from verbena.wire.layout import Buffer

MAGIC = b"vbov"
VERSION = 1
CLASSES = 8
_BODY = struct.Struct(">4sB3xII8Q8Q")
SIZE = HEADER_SIZE + _BODY.size
LARGEST_COUNT = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class OverlayCredits:
    """session: its sender's, 1 to 2^32 - 1; echo: the session of the peer as last heard, 0: none yet."""

    session: int
    echo: int
    sent: tuple[int, ...]
    limit: tuple[int, ...]

    def pack(self) -> bytes:
        """The inner frame.  Raises `EncodeError` for numbers that do not fit."""
        if len(self.sent) != CLASSES or len(self.limit) != CLASSES:
            raise EncodeError(f"credits are for {CLASSES} classes")
        if not 0 < self.session < 1 << 32 or not 0 <= self.echo < 1 << 32:
            raise EncodeError(f"sessions {self.session} and {self.echo}; 32 bits have room")
        if any(not 0 <= count <= LARGEST_COUNT for count in (*self.sent, *self.limit)):
            raise EncodeError("counts of frames have 64 bits")
        head = GRANT_GROUP + bytes(6) + ETHERTYPE_EXPERIMENTAL.to_bytes(2, "big")
        return head + _BODY.pack(MAGIC, VERSION, self.session, self.echo, *self.sent, *self.limit)

    @classmethod
    def unpack(cls, frame: Buffer) -> OverlayCredits:
        """Raises `DecodeError` for what is no such frame."""
        if not is_credits(frame):
            raise DecodeError("header", "this is no frame with an overlay's credits")
        if len(frame) < SIZE:
            raise DecodeError("short", f"credits have {SIZE} bytes, not {len(frame)}")
        _, version, session, echo, *counts = _BODY.unpack_from(frame, HEADER_SIZE)
        if version != VERSION or not session:
            raise DecodeError("version", f"credits of version {version} for session {session}")
        return cls(session, echo, tuple(counts[:CLASSES]), tuple(counts[CLASSES:]))


def is_credits(frame: Buffer) -> bool:
    """Is this an overlay's own frame, and none of a virtual machine's?"""
    return (
        len(frame) >= HEADER_SIZE + len(MAGIC)
        and bytes(frame[:6]) == GRANT_GROUP
        and int.from_bytes(frame[12:14], "big") == ETHERTYPE_EXPERIMENTAL
        and bytes(frame[HEADER_SIZE : HEADER_SIZE + len(MAGIC)]) == MAGIC
    )
