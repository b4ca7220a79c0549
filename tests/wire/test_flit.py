"""Flits: every bit round trips, damage is recognized, and the compiled encoder agrees byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena import wire
from verbena.fabric.codec import decoded, encoded
from verbena.wire.flit import Flit, FlitKind, decode_flit, flits_of

CONTROL = st.builds(
    Flit,
    st.sampled_from([FlitKind.ACK, FlitKind.NAK, FlitKind.CREDIT]),
    st.integers(0, 15),
    st.integers(0, 4095),
    st.just(b""),
    st.booleans(),
    st.booleans(),
    st.integers(0, 15),
    st.integers(0, 4095),
)
DATA = st.builds(
    Flit,
    st.just(FlitKind.DATA),
    st.integers(0, 15),
    st.integers(0, 4095),
    st.binary(min_size=1, max_size=80),
    st.booleans(),
    st.booleans(),
    st.integers(0, 15),
    st.integers(0, 4095),
)
FLITS = CONTROL | DATA


@given(FLITS, st.binary(max_size=5))
def test_flits_round_trip(flit: Flit, before: bytes) -> None:
    raw = flit.encode()
    assert len(raw) == flit.wire_size == 12 + len(flit.payload)
    assert decode_flit(before + raw + b"tail", len(before)) == flit


@given(FLITS)
def test_the_simulators_codec_agrees(flit: Flit) -> None:
    fields = (flit.kind, flit.vl, flit.sequence, flit.payload, flit.first, flit.last)
    fields += (flit.credit_vl, flit.credit_limit)
    assert encoded(*fields) == flit.encode()
    assert decoded(flit.encode()) == fields


@pytest.mark.requirement("LNK-06")
@given(FLITS, st.data())
def test_every_flipped_bit_is_recognized(flit: Flit, data: st.DataObject) -> None:
    raw = bytearray(flit.encode())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(wire.DecodeError) as caught:
        decode_flit(raw)
    assert caught.value.reason in ("crc", "short", "length", "header")
    assert decoded(bytes(raw)) is None


@pytest.mark.requirement("LNK-06")
@given(st.binary(min_size=1, max_size=500))
def test_a_packets_flits(packet: bytes) -> None:
    flits = list(flits_of(packet, 3, 4090))
    assert b"".join(flit.payload for flit in flits) == packet
    assert [flit.first for flit in flits] == [True] + [False] * (len(flits) - 1)
    assert [flit.last for flit in flits] == [False] * (len(flits) - 1) + [True]
    assert len(flits[-1].payload) == (len(packet) - 1) % 80 + 1
    assert [flit.sequence for flit in flits] == [(4090 + i) % 4096 for i in range(len(flits))]


@given(st.binary(max_size=120))
def test_hostile_bytes_are_decode_errors(raw: bytes) -> None:
    try:
        flit = decode_flit(raw)
    except wire.DecodeError:
        return
    assert flit.encode() == raw[: flit.wire_size]


def test_what_does_not_fit_is_refused() -> None:
    for flit in (
        Flit(FlitKind.DATA),
        Flit(FlitKind.DATA, payload=bytes(81)),
        Flit(FlitKind.ACK, payload=b"x"),
    ):
        with pytest.raises(wire.EncodeError, match="flit"):
            flit.encode()


def test_packets_of_the_document() -> None:
    """Document 003:687-697: a frame with 256 bytes is four flits, an ACK frame one, also with a global header."""
    assert len(list(flits_of(bytes(8 + 12 + 256 + 4 + 2), 0))) == 4
    for grh in (0, 40):
        assert len(list(flits_of(bytes(8 + grh + 12 + 4 + 4 + 2), 0))) == 1
