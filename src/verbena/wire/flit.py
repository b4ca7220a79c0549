"""Flits: what a packet is cut into on a link, and how the link's two ends talk about them (document 003:658-662).

A flit is a 12-byte header and at most 80 bytes of a packet.  The header has what the document asks for: the virtual
lane, error check, size, and credit for the reverse channel.  With 80 bytes, a packet with 256 bytes of payload and a
local header is four flits, and an acknowledgment packet is one, with a global header or without (document 003:685-697).

The link protocol is that of PCI Express' data link layer (go-back-N with 12-bit sequence numbers, ACK, NAK, replay
timer); credits are InfiniBand's (IBA vol. 1, 7.9: a limit, FCCL, in 64-byte blocks modulo 4096, of one lane at a time).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Buffer, Layout, flag, uint

try:
    from isal.isal_zlib import crc32
except ImportError:  # the library is fast, not necessary
    from zlib import crc32

FLIT_PAYLOAD = 80
"""Bytes of a packet in a flit, at most."""

SEQUENCES = 4096
"""Sequence numbers and credit limits count modulo this."""

CREDIT_BLOCK = 64
"""Bytes of receive buffer that a credit stands for (IBA vol. 1, 7.9)."""


class FlitKind(IntEnum):
    """What a flit is for."""

    DATA = 1
    """A piece of a packet.  Only these are numbered, acknowledged and retransmitted."""
    ACK = 2
    """Everything up to `sequence` has arrived."""
    NAK = 3
    """Everything up to `sequence` has arrived, and what followed was damaged or lost: send it again."""
    CREDIT = 4
    """Only for its credit field.  `first`: the sender is short of credit on lane `vl` and asks to be told."""


@dataclass(frozen=True, slots=True)
class FlitHeader(Layout):
    """The 12 bytes before a flit's payload.  `crc`: CRC-32 over the 8 bytes before it and the payload."""

    kind: int = uint(4, FlitKind.DATA, at=0)
    vl: int = uint(4)
    first: bool = flag(at=1)
    size: int = uint(7)
    last: bool = flag(at=2)
    reserved3: int = uint(3)
    sequence: int = uint(12)
    credit_vl: int = uint(4, at=4)
    credit_limit: int = uint(12)
    reserved16: int = uint(16, at=6)
    crc: int = uint(32, at=8)


@dataclass(frozen=True, slots=True)
class Flit:
    """A flit.  `first` and `last` mark the ends of a packet; `payload` is empty but for DATA (1 to 80 bytes).

    `credit_limit` is the number of blocks that the peer may have sent on lane `credit_vl`, modulo 4096, since the link
    came up.
    """

    kind: FlitKind
    vl: int = 0
    sequence: int = 0
    payload: bytes = b""
    first: bool = False
    last: bool = False
    credit_vl: int = 0
    credit_limit: int = 0

    def encode(self) -> bytes:
        """The bytes on the wire; raises `EncodeError` for what does not fit."""
        size = len(self.payload)
        if (self.kind is FlitKind.DATA) is not (0 < size <= FLIT_PAYLOAD):
            raise EncodeError(f"a {self.kind.name} flit with {size} bytes: DATA has 1 to 80, the others none")
        header = FlitHeader(
            self.kind,
            self.vl,
            self.first,
            size,
            self.last,
            0,
            self.sequence,
            self.credit_vl,
            self.credit_limit,
        ).pack()[:8]
        crc = crc32(self.payload, crc32(header))
        return header + crc.to_bytes(4, "big") + self.payload

    @property
    def wire_size(self) -> int:
        """Bytes on the wire."""
        return FlitHeader.SIZE + len(self.payload)


def decode_flit(buf: Buffer, offset: int = 0) -> Flit:
    """The flit that begins at `offset`; raises `DecodeError` ("short", "header", "length" or "crc")."""
    header = FlitHeader.unpack(buf, offset)
    start = offset + FlitHeader.SIZE
    if header.size > FLIT_PAYLOAD:
        raise DecodeError("length", f"a flit says that it has {header.size} bytes; 80 is the most")
    payload = bytes(buf[start : start + header.size])
    if len(payload) != header.size:
        raise DecodeError("short", f"a flit of {header.size} bytes ends after {len(payload)}")
    if crc32(payload, crc32(bytes(buf[offset : offset + 8]))) != header.crc:
        raise DecodeError("crc", "a flit's CRC does not fit its bytes")
    if header.kind not in FlitKind.__members__.values():
        raise DecodeError("header", f"there is no flit of kind {header.kind}")
    kind = FlitKind(header.kind)
    if (kind is FlitKind.DATA) is not (header.size > 0):
        raise DecodeError("length", f"a {kind.name} flit with {header.size} bytes")
    return Flit(
        kind,
        header.vl,
        header.sequence,
        payload,
        header.first,
        header.last,
        header.credit_vl,
        header.credit_limit,
    )


def flits_of(packet: Buffer, vl: int, sequence: int = 0) -> Iterator[Flit]:
    """A packet (LRH to VCRC) as DATA flits, numbered from `sequence` on."""
    view = memoryview(packet)
    for at in range(0, len(view), FLIT_PAYLOAD):
        piece = bytes(view[at : at + FLIT_PAYLOAD])
        yield Flit(
            FlitKind.DATA,
            vl,
            (sequence + at // FLIT_PAYLOAD) % SEQUENCES,
            piece,
            at == 0,
            at + FLIT_PAYLOAD >= len(view),
        )
