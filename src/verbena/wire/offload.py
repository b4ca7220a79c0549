"""Frames whose checksum or segmentation was left to the network card, and what a card makes of them.

An operating system hands a card large TCP and UDP messages in one frame, with a ``virtio_net_hdr`` in front that says
how to cut it (Virtual I/O Device 1.2, 5.1.6; Linux, uapi/linux/virtio_net.h).  Where both ends of a LAN understand
the header, the frame crosses whole.  `finish` is for all others: it does what the hardware would have done: it cuts
the message into segments with headers of their own (RFC 9293, RFC 768), and completes the checksums (RFC 1071).

The header comes from another node, or from an operating system: whatever contradicts the frame raises `DecodeError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple, Self

from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import payload_offset
from verbena.wire.ip import ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_UDP
from verbena.wire.layout import Buffer

PROTOCOL_TCP = 6
IP4_HEADER, IP6_HEADER, TCP_HEADER, UDP_HEADER = 20, 40, 20, 8
MOST_SEGMENTS = 4096
FIN, SYN, RST, PSH, CWR = 0x01, 0x02, 0x04, 0x08, 0x80


class OffloadFlag(IntFlag):
    """What is still to be done, or known."""

    NEEDS_CHECKSUM = 1
    """From `checksum_start` on, the sum of what follows has to be put at `checksum_offset`."""
    DATA_VALID = 2


class Segmentation(IntEnum):
    """How a frame has to be cut; `ECN` (0x80) may be added to TCP's."""

    NONE = 0
    TCP4 = 1
    TCP6 = 4
    UDP = 5


ECN = 0x80


@dataclass(frozen=True, slots=True)
class OffloadHeader:
    """The first ten bytes of a ``virtio_net_hdr``, lower byte first.

    segment_size: bytes of payload of each segment.  checksum_start, checksum_offset: from the frame's first byte, and
    from checksum_start.
    """

    flags: int = 0
    segmentation: int = Segmentation.NONE
    header_size: int = 0
    segment_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0

    SIZE = 10

    def pack(self) -> bytes:
        numbers = (self.header_size, self.segment_size, self.checksum_start, self.checksum_offset)
        return bytes((self.flags, self.segmentation)) + b"".join(n.to_bytes(2, "little") for n in numbers)

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Raises `DecodeError` for fewer than ten bytes."""
        if len(data) < cls.SIZE:
            raise DecodeError("short", f"a virtio_net_hdr has {cls.SIZE} bytes, not {len(data)}")
        numbers = [int.from_bytes(data[at : at + 2], "little") for at in range(2, cls.SIZE, 2)]
        return cls(data[0], data[1], *numbers)

    @property
    def kind(self) -> int:
        return self.segmentation & ~ECN


PLAIN = bytes(OffloadHeader.SIZE)
"""Nothing is left to be done."""


def internet_sum(data: Buffer, start: int = 0) -> int:
    """The one's complement sum of 16-bit words (RFC 1071), continued; an odd last byte is padded with 0."""
    number = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    # 2^16 is 1 modulo 2^16 - 1, so a remainder is the sum of all words with the carries added back in.
    return (number + start) % 0xFFFF


def checksum(data: Buffer, start: int = 0) -> int:
    """What goes into a header's checksum; never 0, which in UDP means that there is none: 0xFFFF is the same sum."""
    return 0xFFFF - internet_sum(data, start)


class _Packet(NamedTuple):
    """A frame taken apart: where its IP header, transport header and payload begin, and where all of it ends."""

    ip: int
    version: int
    transport: int
    payload: int
    end: int


def _take_apart(frame: bytes, header: OffloadHeader) -> _Packet:
    kind = header.kind
    at = payload_offset(frame)
    ethertype = frame[at - 2] << 8 | frame[at - 1]
    if ethertype == ETHERTYPE_IPV4 and kind in (Segmentation.TCP4, Segmentation.UDP):
        version, least = 4, IP4_HEADER
    elif ethertype == ETHERTYPE_IPV6 and kind in (Segmentation.TCP6, Segmentation.UDP):
        version, least = 6, IP6_HEADER
    else:
        raise DecodeError("header", f"a frame with type {ethertype:#06x} cannot be cut in way {kind}")
    transport = header.checksum_start
    if not header.flags & OffloadFlag.NEEDS_CHECKSUM or transport < at + least:
        raise DecodeError("header", "a frame to be cut must say where its TCP or UDP header begins")
    if version == 4 and transport != at + 4 * (frame[at] & 0x0F):
        raise DecodeError("header", f"the IPv4 header does not end at byte {transport}")
    if len(frame) < transport + (UDP_HEADER if kind == Segmentation.UDP else TCP_HEADER):
        raise DecodeError("short", f"a frame of {len(frame)} bytes ends within its headers")
    size = UDP_HEADER if kind == Segmentation.UDP else frame[transport + 12] >> 4 << 2
    payload = transport + size
    if size < (UDP_HEADER if kind == Segmentation.UDP else TCP_HEADER) or len(frame) <= payload:
        raise DecodeError("short", f"a frame of {len(frame)} bytes has nothing behind its headers to be cut")
    return _Packet(at, version, transport, payload, len(frame))


def _pseudo_header(head: bytearray, packet: _Packet, protocol: int, length: int) -> int:
    """The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1)."""
    at = packet.ip
    addresses = head[at + 12 : at + 20] if packet.version == 4 else head[at + 8 : at + 40]
    return internet_sum(addresses, protocol + length)


def _set_ip(head: bytearray, packet: _Packet, length: int, place: int) -> None:
    """The IP header of a segment: its length, and of IPv4 its identification and checksum."""
    at = packet.ip
    if packet.version == 6:
        head[at + 4 : at + 6] = (length - IP6_HEADER).to_bytes(2, "big")
        return
    head[at + 2 : at + 4] = length.to_bytes(2, "big")
    identification = (head[at + 4] << 8 | head[at + 5]) + place
    head[at + 4 : at + 6] = (identification & 0xFFFF).to_bytes(2, "big")
    head[at + 10 : at + 12] = b"\0\0"
    head[at + 10 : at + 12] = checksum(head[at : packet.transport]).to_bytes(2, "big")


def _set_tcp(head: bytearray, packet: _Packet, offset: int, last: bool) -> None:
    """The TCP header of a segment but for its checksum (as Linux's `tcp_gso_segment`)."""
    at = packet.transport
    sequence = int.from_bytes(head[at + 4 : at + 8], "big") + offset
    head[at + 4 : at + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
    if not last:
        head[at + 13] &= ~(FIN | PSH) & 0xFF
    if offset:
        head[at + 13] &= ~CWR & 0xFF


def _segments(frame: bytes, header: OffloadHeader) -> list[bytes]:
    packet = _take_apart(frame, header)
    step = header.segment_size
    length = packet.end - packet.payload
    if not step or -(-length // step) > MOST_SEGMENTS:
        raise DecodeError("length", f"{length} bytes cannot be cut into segments of {step}")
    is_udp = header.kind == Segmentation.UDP
    protocol, at = (PROTOCOL_UDP, 6) if is_udp else (PROTOCOL_TCP, 16)
    place_of_sum = packet.transport + at
    made = []
    for place, offset in enumerate(range(0, length, step)):
        data = frame[packet.payload + offset : packet.payload + min(offset + step, length)]
        head = bytearray(frame[: packet.payload])
        inner = packet.payload - packet.transport + len(data)
        _set_ip(head, packet, packet.transport - packet.ip + inner, place)
        if is_udp:
            head[packet.transport + 4 : packet.transport + 6] = inner.to_bytes(2, "big")
        else:
            _set_tcp(head, packet, offset, offset + step >= length)
        head[place_of_sum : place_of_sum + 2] = b"\0\0"
        start = _pseudo_header(head, packet, protocol, inner)
        segment = bytes(head) + data
        summed = checksum(memoryview(segment)[packet.transport :], start)
        made.append(segment[:place_of_sum] + summed.to_bytes(2, "big") + segment[place_of_sum + 2 :])
    return made


def finish(frame: bytes, header: bytes) -> list[bytes]:
    """The frames that a card without offloads has to send in place of this one.

    header: the ten bytes of its ``virtio_net_hdr``.  Raises `DecodeError` where that does not fit the frame.
    """
    parsed = OffloadHeader.unpack(header)
    if parsed.kind != Segmentation.NONE:
        return _segments(frame, parsed)
    if not parsed.flags & OffloadFlag.NEEDS_CHECKSUM:
        return [frame]
    start, at = parsed.checksum_start, parsed.checksum_start + parsed.checksum_offset
    if start >= len(frame) or at + 2 > len(frame):
        raise DecodeError("length", f"a checksum at {at} of a frame of {len(frame)} bytes")
    # The field holds the sum of the pseudo header, so that it counts like any other word.
    summed = checksum(memoryview(frame)[start:])
    return [frame[:at] + summed.to_bytes(2, "big") + frame[at + 2 :]]
