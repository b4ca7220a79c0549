"""Segmentation and checksums that were left to the card, against a plain reference that knows only the standards."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.wire.errors import DecodeError
from verbena.wire.offload import (
    PLAIN,
    OffloadFlag,
    OffloadHeader,
    Segmentation,
    checksum,
    finish,
    internet_sum,
)

MACS = bytes.fromhex("027662000003027662000002")
FOUR = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
SIX = socket.inet_pton(socket.AF_INET6, "fd00::1"), socket.inet_pton(socket.AF_INET6, "fd00::2")
TAGS = (b"", b"\x81\x00\x20\x2a", b"\x88\xa8\x00\x07\x81\x00\x00\x2a")
KINDS = {
    (4, 6): Segmentation.TCP4,
    (6, 6): Segmentation.TCP6,
    (4, 17): Segmentation.UDP,
    (6, 17): Segmentation.UDP,
}


def added(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(version: int, protocol: int, length: int) -> bytes:
    if version == 4:
        return FOUR[0] + FOUR[1] + struct.pack("!BBH", 0, protocol, length)
    return SIX[0] + SIX[1] + struct.pack("!IHBB", length, 0, 0, protocol)


def transport(
    protocol: int, options: bytes, data: bytes, flags: int = 0x18, sequence: int = 0xFFFFFF00
) -> bytes:
    if protocol == 17:
        return struct.pack("!HHHH", 1000, 2000, 8 + len(data), 0) + data
    words = 5 + len(options) // 4
    return struct.pack("!HHIIBBHHH", 1, 2, sequence, 7, words << 4, flags, 500, 0, 0) + options + data


def ip(version: int, protocol: int, length: int, identification: int = 0xFFFE) -> bytes:
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + SIX[0] + SIX[1]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, identification, 0x4000, 64, protocol, 0)
    summed = 0xFFFF - added(head + FOUR[0] + FOUR[1])
    return head[:10] + summed.to_bytes(2, "big") + FOUR[0] + FOUR[1]


def unfinished(
    version: int, protocol: int, tag: bytes, options: bytes, data: bytes, step: int
) -> tuple[bytes, bytes]:
    """A frame as an operating system hands it over: the checksum field holds the sum of the pseudo header."""
    body = bytearray(transport(protocol, options, data))
    at = 6 if protocol == 17 else 16
    body[at : at + 2] = added(pseudo(version, protocol, len(body))).to_bytes(2, "big")
    kind = b"\x08\x00" if version == 4 else b"\x86\xdd"
    head = MACS + tag + kind + ip(version, protocol, len(body))
    header = OffloadHeader(
        OffloadFlag.NEEDS_CHECKSUM, KINDS[version, protocol] if step else 0, 0, step, len(head), at
    )
    return head + bytes(body), header.pack()


cases = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(TAGS),
    st.sampled_from((b"", b"\1\1\1\1", bytes(12))),
    st.binary(min_size=1, max_size=3000),
    st.integers(1, 1500),
)


@given(cases)
def test_segments_are_those_that_tcp_and_udp_would_have_sent(
    case: tuple[tuple[int, int], bytes, bytes, bytes, int],
) -> None:
    (version, protocol), tag, options, data, step = case
    step = max(step, -(-len(data) // 40))
    frame, header = unfinished(version, protocol, tag, options, data, step)
    made = finish(frame, header)
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    assert len(made) == len(parts)
    at = 14 + len(tag)
    start = at + (20 if version == 4 else 40)
    for place, (segment, part) in enumerate(zip(made, parts, strict=True)):
        assert segment[: at - 2] == frame[: at - 2]
        body = segment[start:]
        assert segment[at:start] == ip(version, protocol, len(body), 0xFFFE + place & 0xFFFF)
        assert added(pseudo(version, protocol, len(body)) + body) == 0xFFFF  # a right checksum
        last = place == len(parts) - 1
        sequence = 0xFFFFFF00 + place * step & 0xFFFFFFFF
        expected = transport(protocol, options, part, 0x18 if last else 0x10, sequence)
        field = 6 if protocol == 17 else 16
        assert body[:field] + body[field + 2 :] == expected[:field] + expected[field + 2 :]


@given(cases)
def test_a_checksum_is_completed(case: tuple[tuple[int, int], bytes, bytes, bytes, int]) -> None:
    (version, protocol), tag, options, data, _ = case
    frame, header = unfinished(version, protocol, tag, options, data, 0)
    (made,) = finish(frame, header)
    body = made[14 + len(tag) + (20 if version == 4 else 40) :]
    assert added(pseudo(version, protocol, len(body)) + body) == 0xFFFF
    field = 6 if protocol == 17 else 16
    assert body[field : field + 2] != b"\0\0"  # in UDP that would mean that there is none
    assert len(made) == len(frame)


def test_nothing_to_do() -> None:
    assert finish(b"any bytes", PLAIN) == [b"any bytes"]
    assert finish(b"x" * 60, OffloadHeader(OffloadFlag.DATA_VALID).pack()) == [b"x" * 60]


def test_fin_and_cwr_stay_where_they_belong() -> None:
    frame, header = unfinished(4, 6, b"", b"", bytes(2500), 1000)
    frame = frame[:47] + bytes([0x80 | 0x10 | 0x08 | 0x01]) + frame[48:]
    assert [segment[47] for segment in finish(frame, header)] == [0x90, 0x10, 0x19]


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_whatever_comes_is_finished_or_refused(frame: bytes, header: bytes) -> None:
    try:
        made = finish(frame, header)
    except DecodeError:
        return
    assert all(isinstance(each, bytes) for each in made)


@given(cases, st.integers(0, 9), st.integers(0, 255))
def test_a_header_that_lies(
    case: tuple[tuple[int, int], bytes, bytes, bytes, int], at: int, value: int
) -> None:
    (version, protocol), tag, options, data, step = case
    frame, header = unfinished(version, protocol, tag, options, data, step)
    lying = header[:at] + bytes([value]) + header[at + 1 :]
    try:
        made = finish(frame, lying)
    except DecodeError:
        return
    assert sum(map(len, made)) <= len(frame) + 4096 * 120


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segment_size": 0}, "length"),
        ({"flags": 0}, "header"),
        ({"checksum_start": 20}, "header"),
        ({"segmentation": Segmentation.TCP6}, "header"),
        ({"segmentation": 3}, "header"),
    ],
)
def test_refusals(change: dict[str, int], reason: str) -> None:
    frame, packed = unfinished(4, 6, b"", b"", bytes(3000), 1000)
    header = OffloadHeader.unpack(packed)
    fields = {name: getattr(header, name) for name in header.__slots__} | change
    with pytest.raises(DecodeError) as told:
        finish(frame, OffloadHeader(**fields).pack())
    assert told.value.reason == reason


@given(st.binary(max_size=2000), st.integers(0, 0xFFFF))
def test_sums(data: bytes, start: int) -> None:
    expected = added(start.to_bytes(2, "big") + data)
    assert internet_sum(data, start) % 0xFFFF == expected % 0xFFFF
    assert checksum(data, start) != 0


def test_the_header_is_lower_byte_first() -> None:
    header = OffloadHeader(1, 1, 66, 1448, 34, 16)
    assert header.pack() == bytes.fromhex("01014200a80522001000")
    assert OffloadHeader.unpack(header.pack() + b"more") == header
    with pytest.raises(DecodeError):
        OffloadHeader.unpack(bytes(9))
