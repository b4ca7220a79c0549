"""Headers and opcodes: every bit round trips, every limit holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena import wire
from verbena.wire.headers import CREDITS
from verbena.wire.layout import Layout
from wire.samples import HEADERS, layouts


@pytest.mark.parametrize("kind", HEADERS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_header_values_round_trip(kind: type[Layout], data: st.DataObject) -> None:
    header = data.draw(layouts(kind))
    assert kind.unpack(header.pack()) == header


@pytest.mark.parametrize("kind", HEADERS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_header_bytes_round_trip_at_any_offset(kind: type[Layout], data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=kind.SIZE, max_size=kind.SIZE))
    assert kind.unpack(b"xyz" + raw + b"tail", 3).pack() == raw


@pytest.mark.parametrize("kind", HEADERS, ids=lambda kind: kind.__name__)
def test_short_buffers_are_decode_errors(kind: type[Layout]) -> None:
    for size in range(kind.SIZE):
        with pytest.raises(wire.DecodeError, match=kind.__name__) as caught:
            kind.unpack(bytes(size))
        assert caught.value.reason == "short"
    with pytest.raises(wire.DecodeError):
        kind.unpack(bytes(kind.SIZE), kind.SIZE + 5)


@pytest.mark.parametrize("kind", HEADERS, ids=lambda kind: kind.__name__)
def test_every_field_refuses_what_does_not_fit(kind: type[Layout]) -> None:
    for field in kind._FIELDS:
        for wrong in (
            (field.mask + 1, -1, "1", None) if field.kind in ("uint", "flag") else (b"", b"x" * 99, 1)
        ):
            with pytest.raises(wire.EncodeError, match=f"{kind.__name__}.{field.name}"):
                kind(**{field.name: wrong}).pack()


SIZES: dict[type[Layout], int] = dict(
    zip(HEADERS[:12], (8, 40, 4, 12, 4, 8, 16, 28, 4, 8, 4, 4), strict=True)
)


def test_sizes_are_the_standards() -> None:
    assert {kind: kind.SIZE for kind in SIZES} == SIZES


def test_bits_stand_where_the_standard_puts_them() -> None:
    bth = wire.BTH(
        opcode=0x0A,
        solicited=True,
        pad_count=3,
        version=1,
        pkey=0x8001,
        becn=True,
        dest_qp=0xABCDEF,
        psn=0x010203,
    )
    assert bth.pack().hex() == "0ab1800140abcdef00010203"
    assert (
        wire.BTH(mig_req=True, fecn=True, ack_request=True, pkey=0).pack().hex() == "004000008000000080000000"
    )
    lrh = wire.LRH(vl=7, sl=1, lnh=2, dlid=0x375C, packet_length=14, slid=0x17D2)
    assert lrh.pack().hex() == "7012375c000e17d2"
    assert wire.DETH(qkey=0x80010000, src_qp=1).pack().hex() == "8001000000000001"


@pytest.mark.parametrize(
    ("aeth", "syndrome"),
    [
        (wire.AETH.ack(5), 0x1F),
        (wire.AETH.ack(5, credit_code=3), 0x03),
        (wire.AETH.rnr_nak(5, 12), 0x2C),
        (wire.AETH.nak(5, wire.NakCode.PSN_SEQUENCE_ERROR), 0x60),
        (wire.AETH.nak(5, wire.NakCode.REMOTE_ACCESS_ERROR), 0x62),
    ],
)
def test_syndromes(aeth: wire.AETH, syndrome: int) -> None:
    assert aeth.syndrome == syndrome
    assert aeth.msn == 5


def test_syndromes_read_back() -> None:
    assert wire.AETH.ack(1).credits is None
    assert wire.AETH.ack(1, 5).credits == 6
    assert wire.AETH.nak(1, wire.NakCode.INVALID_REQUEST).kind is wire.AethKind.NAK
    assert wire.AETH.nak(1, wire.NakCode.INVALID_REQUEST).credits is None
    assert wire.AETH.rnr_nak(1, 12).value == 12
    with pytest.raises(wire.EncodeError, match="RNR timer code"):
        wire.AETH.rnr_nak(1, 32)


def test_timer_and_credit_tables() -> None:
    milliseconds = [time / 1e6 for time in wire.RNR_TIMER_NS]
    assert milliseconds[:8] == [655.36, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12]
    assert milliseconds[12:15] == [0.64, 0.96, 1.28]
    assert milliseconds[-4:] == [163.84, 245.76, 327.68, 491.52]
    assert (len(CREDITS), CREDITS[4:8], CREDITS[-1]) == (31, (4, 6, 8, 12), 32768)
    assert [wire.credit_code(count) for count in (0, 1, 5, 6, 7, 10**6)] == [0, 1, 4, 5, 5, 30]
    assert [wire.rnr_timer_code(ns) for ns in (0, 10_001, 600_000_000, 10**12)] == [1, 2, 0, 0]
    assert wire.ack_timeout_ns(0) is None
    assert wire.ack_timeout_ns(14) == 67_108_864


def test_the_opcode_table_is_complete() -> None:
    counts = dict.fromkeys(wire.Service, 0)
    for code, info in wire.OPCODES.items():
        assert code == info.opcode
        counts[info.service] += 1
        assert info.is_request is not info.is_response
    assert counts == {
        wire.Service.RC: 23,
        wire.Service.UC: 12,
        wire.Service.RD: 22,
        wire.Service.UD: 2,
        wire.Service.CNP: 1,
    }


@pytest.mark.parametrize(
    ("code", "name", "headers"),
    [
        (0x0B, "RC RDMA_WRITE_ONLY_WITH_IMMEDIATE", (wire.RETH, wire.ImmDt)),
        (0x0E, "RC RDMA_READ_RESPONSE_MIDDLE", ()),
        (0x12, "RC ATOMIC_ACKNOWLEDGE", (wire.AETH, wire.AtomicAckETH)),
        (0x17, "RC SEND_ONLY_WITH_INVALIDATE", (wire.IETH,)),
        (0x27, "UC RDMA_WRITE_MIDDLE", ()),
        (0x4B, "RD RDMA_WRITE_ONLY_WITH_IMMEDIATE", (wire.RDETH, wire.DETH, wire.RETH, wire.ImmDt)),
        (0x4E, "RD RDMA_READ_RESPONSE_MIDDLE", (wire.RDETH,)),
        (0x51, "RD ACKNOWLEDGE", (wire.RDETH, wire.AETH)),
        (0x54, "RD FETCH_ADD", (wire.RDETH, wire.DETH, wire.AtomicETH)),
        (0x55, "RD RESYNC", (wire.RDETH, wire.DETH)),
        (0x65, "UD SEND_ONLY_WITH_IMMEDIATE", (wire.DETH, wire.ImmDt)),
    ],
)
def test_opcodes_have_their_headers(code: int, name: str, headers: tuple[type[Layout], ...]) -> None:
    info = wire.OPCODES[code]
    assert (info.name, info.headers) == (name, headers)
    assert info.header_size == 12 + sum(header.SIZE for header in headers)
    assert info.has_immediate is name.endswith("IMMEDIATE")
    assert info.has_invalidate is name.endswith("INVALIDATE")


def test_a_layout_that_contradicts_itself_is_refused() -> None:
    from dataclasses import dataclass

    from verbena.wire.layout import uint

    with pytest.raises(TypeError, match="begins in byte 1"):

        @dataclass(frozen=True, slots=True)
        class Wrong(Layout):
            a: int = uint(8, at=0)
            b: int = uint(8, at=2)

    with pytest.raises(TypeError, match="no whole number"):

        @dataclass(frozen=True, slots=True)
        class Odd(Layout):
            a: int = uint(7)
