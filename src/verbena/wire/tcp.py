"""TCP segments over IPv4 (RFC 9293, 3.1 and 3.2; window scale: RFC 7323)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Self

from verbena.wire.errors import DecodeError
from verbena.wire.ip import IPv4, IPv6, upper_layer_checksum
from verbena.wire.layout import Buffer

PROTOCOL_TCP = 6
HEADER_SIZE = 20
OPTION_END, OPTION_NOP, OPTION_MSS, OPTION_SCALE = 0, 1, 2, 3
LARGEST_SCALE = 14


class TcpFlag(IntFlag):
    """Control bits (RFC 9293, 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


@dataclass(frozen=True, slots=True)
class TcpSegment:
    """A segment.  window: as it is in the header, before scaling.  mss, scale: options of a SYN; None: not there."""

    src_port: int
    dst_port: int
    seq: int
    ack: int
    flags: int
    window: int
    data: bytes = b""
    mss: int | None = None
    scale: int | None = None

    def pack(self, ip: IPv4 | IPv6) -> bytes:
        """The segment with its checksum; `ip` gives the addresses of the pseudo header."""
        options = b""
        if self.mss is not None:
            options += bytes((OPTION_MSS, 4)) + self.mss.to_bytes(2, "big")
        if self.scale is not None:
            options += bytes((OPTION_NOP, OPTION_SCALE, 3, self.scale))
        head = self.src_port.to_bytes(2, "big") + self.dst_port.to_bytes(2, "big")
        head += self.seq.to_bytes(4, "big") + self.ack.to_bytes(4, "big")
        head += bytes(((HEADER_SIZE + len(options)) << 2, self.flags)) + self.window.to_bytes(2, "big")
        body = b"\0\0" + options + self.data
        summed = upper_layer_checksum(ip, PROTOCOL_TCP, head + b"\0\0" + body)
        return head + summed.to_bytes(2, "big") + body

    @classmethod
    def parse(cls, payload: Buffer, ip: IPv4 | IPv6) -> Self:
        """A segment whose checksum is right; raises `DecodeError`."""
        if len(payload) < HEADER_SIZE:
            raise DecodeError("short", f"a TCP header has {HEADER_SIZE} bytes, not {len(payload)}")
        offset = payload[12] >> 4 << 2
        if offset < HEADER_SIZE or offset > len(payload):
            raise DecodeError("length", f"a TCP header of {offset} bytes in a segment of {len(payload)}")
        if upper_layer_checksum(ip, PROTOCOL_TCP, payload):
            raise DecodeError("crc", "a TCP segment's checksum is wrong")
        mss, scale = _options(bytes(payload[HEADER_SIZE:offset]))
        number = int.from_bytes
        return cls(
            number(payload[0:2], "big"),
            number(payload[2:4], "big"),
            number(payload[4:8], "big"),
            number(payload[8:12], "big"),
            payload[13],
            number(payload[14:16], "big"),
            bytes(payload[offset:]),
            mss,
            scale,
        )


def _options(data: bytes) -> tuple[int | None, int | None]:
    """Largest segment and window scale; raises `DecodeError` for options that do not fit the header."""
    mss = scale = None
    at = 0
    while at < len(data) and data[at] != OPTION_END:
        if data[at] == OPTION_NOP:
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        if size < 2 or at + size > len(data):
            raise DecodeError("length", f"a TCP option of {size} bytes")
        if data[at] == OPTION_MSS and size == 4:
            mss = data[at + 2] << 8 | data[at + 3]
        elif data[at] == OPTION_SCALE and size == 3:
            scale = min(data[at + 2], LARGEST_SCALE)
        at += size
    return mss, scale
