"""Native packets in Endace's record format, the one capture format in which Wireshark decodes them.

Wireshark does not know the link type for native packets (247); it knows ERF (197), whose records of type 21 hold
one.  A record: 16 bytes of header (time, type, flags, record length, loss counter, wire length), then the packet.
"""

from __future__ import annotations

import struct

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Buffer

_TIME = struct.Struct("<Q")
_REST = struct.Struct(">BBHHH")
HEADER_SIZE = _TIME.size + _REST.size
TYPE_INFINIBAND = 21
_FLAGS = 0x04  # records vary in length; interface 0


def wrap_erf(packet: Buffer, time_ns: int) -> bytes:
    """The record that holds a native packet, for a file of link type `LinkType.ERF`."""
    size = HEADER_SIZE + len(packet)
    if size > 0xFFFF:
        raise EncodeError(f"a packet of {len(packet)} bytes is too long for an ERF record")
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    time = seconds << 32 | (nanoseconds << 32) // 1_000_000_000
    return _TIME.pack(time) + _REST.pack(TYPE_INFINIBAND, _FLAGS, size, 0, len(packet)) + bytes(packet)


def unwrap_erf(record: Buffer) -> memoryview:
    """The native packet in a record."""
    if len(record) < HEADER_SIZE:
        raise DecodeError("short", f"an ERF record begins with {HEADER_SIZE} bytes, {len(record)} are there")
    kind, _, size, _, length = _REST.unpack_from(record, _TIME.size)
    if kind != TYPE_INFINIBAND:
        raise DecodeError("header", f"ERF records of type {kind} cannot be decoded")
    if not HEADER_SIZE + length <= size <= len(record):
        raise DecodeError("length", f"an ERF record of {size} bytes for a packet of {length}")
    return memoryview(record)[HEADER_SIZE : HEADER_SIZE + length]
