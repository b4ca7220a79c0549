"""Capture files: pcap and pcapng, read and written.

Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.  The caller owns the file: readers take an object
with `read(n)` or bytes, writers one with `write(bytes)`.  Times are integer nanoseconds since the epoch.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Buffer

_PCAP_MICROSECONDS, _PCAP_NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_OPT_END, _OPT_COMMENT, _IF_NAME, _EPB_FLAGS, _IF_TSRESOL, _IF_TSOFFSET = 0, 1, 2, 2, 9, 14
_INBOUND, _OUTBOUND = 1, 2
_LARGEST_BLOCK = 16 << 20
"""No real record is larger; what says so is damaged, and must not make us allocate it."""

SNAPLEN = 262_144


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One packet of a capture file."""

    data: bytes
    time_ns: int
    link_type: int
    original_length: int
    """Its length on the wire: more than `len(data)` if the capture cut it off."""
    interface: str = ""
    comment: str = ""


class PcapWriter:
    """Writes a pcap file (little-endian, with nanoseconds): one link type, no names."""

    def __init__(self, file: Writable, link_type: int) -> None:
        self._file = file
        file.write(struct.pack("<IHHiIII", _PCAP_NANOSECONDS, 2, 4, 0, 0, SNAPLEN, link_type))

    def write(self, data: Buffer, time_ns: int, original_length: int | None = None) -> None:
        seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
        if not 0 <= seconds <= 0xFFFFFFFF:
            raise EncodeError(f"time {time_ns} ns is outside of what pcap can hold")
        length = len(data) if original_length is None else original_length
        self._file.write(struct.pack("<IIII", seconds, nanoseconds, len(data), length) + bytes(data))


class PcapngWriter:
    """Writes a pcapng file (one section, little-endian, nanoseconds) of any number of named interfaces."""

    def __init__(self, file: Writable, application: str = "verbena") -> None:
        self._file = file
        self._interfaces = 0
        self._block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1), ((4, application.encode()),))

    def add_interface(self, name: str, link_type: int) -> int:
        """Announce an interface; its number is what `write` takes."""
        options = (_IF_NAME, name.encode()), (_IF_TSRESOL, b"\x09")
        self._block(_INTERFACE, struct.pack("<HHI", link_type, 0, SNAPLEN), options)
        self._interfaces += 1
        return self._interfaces - 1

    def write(
        self,
        data: Buffer,
        time_ns: int,
        interface: int = 0,
        comment: str = "",
        original_length: int | None = None,
        outbound: bool | None = None,
    ) -> None:
        """Write a packet.  outbound: did it leave by the interface, or come in; None: not told."""
        if not 0 <= interface < self._interfaces:
            raise EncodeError(f"interface {interface} was not added; there are {self._interfaces}")
        if not 0 <= time_ns < 1 << 64:
            raise EncodeError(f"time {time_ns} ns is outside of what pcapng can hold")
        length = len(data) if original_length is None else original_length
        head = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length)
        options: tuple[tuple[int, bytes], ...] = ((_OPT_COMMENT, comment.encode()),) if comment else ()
        if outbound is not None:
            options += ((_EPB_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND)),)
        self._block(_ENHANCED, head + _padded(bytes(data)), options)

    def _block(self, kind: int, body: bytes, options: tuple[tuple[int, bytes], ...]) -> None:
        if options:
            for code, value in options:
                if len(value) > 0xFFFF:
                    raise EncodeError(f"an option holds at most 65535 bytes, not {len(value)}")
                body += struct.pack("<HH", code, len(value)) + _padded(value)
            body += struct.pack("<HH", _OPT_END, 0)
        size = len(body) + 12
        self._file.write(struct.pack("<II", kind, size) + body + struct.pack("<I", size))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def read_capture(source: Readable | Buffer) -> Iterator[CapturedPacket]:
    """All packets of a pcap or pcapng file, whichever it is, of either byte order.

    Raises `DecodeError`: at once if it is no capture file; where it is cut off or damaged, after the packets
    before.
    """
    file: Readable = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    magic = _read(file, 4)
    for order in "<", ">":
        number = struct.unpack(order + "I", magic)[0]
        if number in (_PCAP_MICROSECONDS, _PCAP_NANOSECONDS):
            return _read_pcap(file, order, 1 if number == _PCAP_NANOSECONDS else 1000)
        if number == _SECTION:
            return _Pcapng(file).packets()
    raise DecodeError("file", "this is no capture file: it begins like neither pcap nor pcapng")


def _read(file: Readable, size: int) -> bytes:
    if size > _LARGEST_BLOCK:
        raise DecodeError("file", f"the capture file is damaged: a record of {size} bytes")
    data = b""
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise DecodeError(
                "file", f"the capture file is cut off: {size} bytes expected, {len(data)} are there"
            )
        data += more
    return data


def _read_pcap(file: Readable, order: str, unit_ns: int) -> Iterator[CapturedPacket]:
    major, _, _, _, _, link = struct.unpack(order + "HHiIII", _read(file, 20))
    if major != 2:
        raise DecodeError("file", f"pcap version {major}; only 2 is known")
    record = struct.Struct(order + "IIII")
    while first := file.read(1):
        head = record.unpack(first + _read(file, record.size - 1))
        seconds, fraction, size, length = head
        # The high half of the link type field tells the length of frame check sequences.
        yield CapturedPacket(
            _read(file, size), seconds * 1_000_000_000 + fraction * unit_ns, link & 0xFFFF, length
        )


@dataclass(frozen=True, slots=True)
class _Interface:
    name: str
    link_type: int
    snaplen: int
    ticks_per_second: int
    offset_ns: int

    def time_ns(self, ticks: int) -> int:
        return ticks * 1_000_000_000 // self.ticks_per_second + self.offset_ns


class _Pcapng:
    """Reads the blocks of a pcapng file, whose first four bytes were read already."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._order = "<"
        self._interfaces: list[_Interface] = []

    def packets(self) -> Iterator[CapturedPacket]:
        self._section()
        while first := self._file.read(1):
            kind = first + _read(self._file, 3)
            if int.from_bytes(kind, "big") == _SECTION:
                self._section()
                continue
            packet = self._block(*struct.unpack(self._order + "I", kind))
            if packet is not None:
                yield packet

    def _section(self) -> None:
        """A section header, after its type; it sets the byte order and forgets the interfaces."""
        size, magic = _read(self._file, 4), _read(self._file, 4)
        orders = [o for o in "<>" if struct.unpack(o + "I", magic)[0] == _BYTE_ORDER]
        if not orders:
            raise DecodeError("file", "the capture file is damaged: a section without its byte-order mark")
        self._order = orders[0]
        self._interfaces = []
        body = self._body(struct.unpack(self._order + "I", size)[0], already=4, at_least=16)
        if struct.unpack_from(self._order + "H", body)[0] != 1:
            raise DecodeError("file", "only version 1 of pcapng is known")

    def _body(self, size: int, already: int, at_least: int) -> bytes:
        """The rest of a block of `size` bytes, of whose body `already` were read; checks both lengths."""
        if size < 12 + at_least or size % 4:
            raise DecodeError("file", f"the capture file is damaged: a block of {size} bytes")
        body = _read(self._file, size - 12 - already)
        if self._unpack("I", _read(self._file, 4)) != (size,):
            raise DecodeError("file", "the capture file is damaged: a block's two lengths differ")
        return body

    def _unpack(self, layout: str, data: bytes) -> tuple[int, ...]:
        size = struct.calcsize(self._order + layout)
        if len(data) < size:
            raise DecodeError("file", "the capture file is damaged: a block is too short for its kind")
        return struct.unpack_from(self._order + layout, data)

    def _block(self, kind: int) -> CapturedPacket | None:
        (size,) = self._unpack("I", _read(self._file, 4))
        body = self._body(size, already=0, at_least=0)
        if kind == _INTERFACE:
            self._add_interface(body)
        elif kind == _ENHANCED:
            number, high, low, captured, length = self._unpack("IIIII", body)
            return self._packet(number, high << 32 | low, body[20:], captured, length)
        elif kind == _OLD_PACKET:
            number, _, high, low, captured, length = self._unpack("HHIIII", body)
            return self._packet(number, high << 32 | low, body[20:], captured, length)
        elif kind == _SIMPLE:
            (length,) = self._unpack("I", body)
            snaplen = self._interface(0).snaplen or length
            return self._packet(0, 0, body[4:], min(length, snaplen), length)
        return None

    def _add_interface(self, body: bytes) -> None:
        link_type, _, snaplen = self._unpack("HHI", body)
        options = dict(self._options(body[8:]))
        resolution = (options.get(_IF_TSRESOL) or b"\x06")[0]
        ticks = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        offset = options.get(_IF_TSOFFSET, b"")
        seconds = struct.unpack(self._order + "q", offset)[0] if len(offset) == 8 else 0
        name = options.get(_IF_NAME, b"").decode(errors="replace")
        self._interfaces.append(_Interface(name, link_type, snaplen, ticks, seconds * 1_000_000_000))

    def _interface(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise DecodeError("file", f"the capture file is damaged: a packet of unknown interface {number}")
        return self._interfaces[number]

    def _packet(self, number: int, ticks: int, rest: bytes, captured: int, length: int) -> CapturedPacket:
        interface = self._interface(number)
        if captured > len(rest):
            raise DecodeError("file", "the capture file is damaged: a packet is longer than its block")
        options = dict(self._options(rest[captured + -captured % 4 :]))
        return CapturedPacket(
            rest[:captured],
            interface.time_ns(ticks),
            interface.link_type,
            length,
            interface.name,
            options.get(_OPT_COMMENT, b"").decode(errors="replace"),
        )

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        while len(data) >= 4:
            code, size = self._unpack("HH", data)
            if code == _OPT_END:
                return
            if 4 + size > len(data):
                raise DecodeError("file", "the capture file is damaged: an option is longer than its block")
            yield code, data[4 : 4 + size]
            data = data[4 + size + -size % 4 :]
