"""Capture files: what is written is read back; what is damaged is said so."""

from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena import wire
from verbena.wire.pcap import PcapngWriter, PcapWriter, read_capture
from wire.samples import CAPTURES

PACKETS = st.lists(st.tuples(st.binary(max_size=70), st.integers(0, 2**32 * 10**9 - 1)), max_size=5)


@given(packets=PACKETS)
def test_pcap_round_trips(packets: list[tuple[bytes, int]]) -> None:
    file = io.BytesIO()
    writer = PcapWriter(file, wire.LinkType.RAW)
    for data, time_ns in packets:
        writer.write(data, time_ns)
    read = list(read_capture(file.getvalue()))
    assert [(p.data, p.time_ns, p.link_type, p.original_length) for p in read] == [
        (data, time_ns, 101, len(data)) for data, time_ns in packets
    ]


@given(
    packets=PACKETS,
    names=st.lists(st.text(max_size=20), min_size=1, max_size=3),
    comment=st.text(max_size=20),
)
def test_pcapng_round_trips(packets: list[tuple[bytes, int]], names: list[str], comment: str) -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    interfaces = [writer.add_interface(name, 200 + at) for at, name in enumerate(names)]
    expected = []
    for at, (data, time_ns) in enumerate(packets):
        interface = interfaces[at % len(interfaces)]
        writer.write(data, time_ns, interface, comment, original_length=len(data) + at)
        expected.append(
            wire.CapturedPacket(data, time_ns, 200 + interface, len(data) + at, names[interface], comment)
        )
    assert list(read_capture(io.BytesIO(file.getvalue()))) == expected


def _swapped_pcap() -> bytes:
    """A big-endian capture with microseconds."""
    head = struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + struct.pack(">IIII", 7, 5, 3, 60) + b"abc"


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack(">II", kind, size) + body + struct.pack(">I", size)


def _swapped_pcapng() -> bytes:
    """Big-endian, microseconds by default and 2**-10 s by option, an offset, unknown, old and simple blocks."""
    options = struct.pack(">HHB3xHHq", 9, 1, 0x8A, 14, 8, 1000) + struct.pack(">HH", 0, 0)
    return b"".join(
        (
            _block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1)),
            _block(1, struct.pack(">HHI", 247, 0, 0)),
            _block(1, struct.pack(">HHI", 1, 0, 0) + options),
            _block(0x0BAD, b"unknown!"),
            _block(6, struct.pack(">IIIII", 0, 0, 3_000_000, 2, 2) + b"hi\0\0"),
            _block(6, struct.pack(">IIIII", 1, 0, 512, 1, 9) + b"x\0\0\0"),
            _block(2, struct.pack(">HHIIII", 0, 0, 0, 5, 4, 4) + b"good"),
            _block(3, struct.pack(">I", 4) + b"easy"),
        )
    )


def test_the_other_byte_order() -> None:
    (packet,) = read_capture(_swapped_pcap())
    assert (packet.data, packet.time_ns, packet.original_length) == (b"abc", 7_000_005_000, 60)
    read = [(p.data, p.time_ns, p.link_type) for p in read_capture(_swapped_pcapng())]
    assert read == [
        (b"hi", 3_000_000_000, 247),
        (b"x", 1000_500_000_000, 1),
        (b"good", 5_000, 247),
        (b"easy", 0, 247),
    ]


def _read_or_refuse(data: bytes) -> list[wire.CapturedPacket]:
    """The packets before the first damage; nothing but `DecodeError` may come of it."""
    packets = []
    with contextlib.suppress(wire.DecodeError):
        for packet in read_capture(data):
            packets.append(packet)
    return packets


@pytest.mark.parametrize("make", [_swapped_pcap, _swapped_pcapng, lambda: CAPTURES[0].read_bytes()[:200]])
def test_files_that_are_cut_off(make: object) -> None:
    whole = make()  # type: ignore[operator]
    for size in range(len(whole)):
        # Cut exactly between two records, a file is whole.
        assert len(_read_or_refuse(whole[:size])) < 5


@given(noise=st.binary(max_size=200), at=st.integers(0, 300), replace=st.booleans())
def test_damaged_files_never_do_worse_than_decode_errors(noise: bytes, at: int, replace: bool) -> None:
    for whole in (_swapped_pcap(), _swapped_pcapng()):
        damaged = whole[:at] + noise + whole[at + (len(noise) if replace else 0) :]
        for packet in _read_or_refuse(damaged):
            assert len(packet.data) <= len(damaged)


def test_what_is_no_capture_file() -> None:
    for data in (b"", b"abc", b"#!/bin/sh\n", bytes(100)):
        with pytest.raises(wire.DecodeError):
            read_capture(data)


def test_writers_refuse_what_files_cannot_hold() -> None:
    with pytest.raises(wire.EncodeError, match="time"):
        PcapWriter(io.BytesIO(), 1).write(b"", -1)
    writer = PcapngWriter(io.BytesIO())
    with pytest.raises(wire.EncodeError, match="interface 0 was not added"):
        writer.write(b"", 0)
