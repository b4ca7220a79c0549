"""Records, streams, tags: what is written comes back, and nothing that comes does harm; beside plain models."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from verbena.team.frames import OffloadFrame, add_tag, flow_of, take_tag, with_source
from verbena.team.member import Meter
from verbena.team.offload.record import HEAD, Kind, Record, RecordReader
from verbena.team.offload.stream import ReceiveStream, SendStream
from verbena.wire.errors import DecodeError
from verbena.wire.offload import OffloadFlag, OffloadHeader, Segmentation, finish

records = st.builds(
    Record,
    st.sampled_from(Kind),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
    st.integers(0, 2**32 - 1),
)


@given(st.lists(records, max_size=6), st.integers(1, 300))
def test_records_survive_a_stream_however_it_is_cut(made: list[Record], step: int) -> None:
    stream = b"".join(record.pack() for record in made)
    reader = RecordReader()
    got = [r for at in range(0, len(stream), step) for r in reader.feed(stream[at : at + step])]
    assert got == made
    for record in made:
        assert Record.parse(memoryview(record.pack())) == record


@given(st.binary(max_size=120))
def test_what_is_no_record_raises_one_error_and_stops(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert not list(RecordReader().feed(b"VD" + data))
    with pytest.raises(DecodeError) as told:
        Record.parse(data)
    assert told.value.reason in ("short", "header", "length", "opcode")


@pytest.mark.parametrize(
    ("at", "value", "reason"), [(0, 0, "header"), (2, 9, "header"), (3, 99, "opcode"), (34, 1, "length")]
)
def test_a_damaged_header(at: int, value: int, reason: str) -> None:
    good = Record(Kind.DATA, body=b"12345").pack()
    with pytest.raises(DecodeError) as told:
        Record.parse(good[:at] + bytes((value,)) + good[at + 1 :])
    assert told.value.reason == reason
    assert len(good) == HEAD + 5


class Streams(RuleBasedStateMachine):
    """A sender and a receiver whose path fails now and then, against the bytes that were written."""

    def __init__(self) -> None:
        super().__init__()
        self.tx, self.rx = SendStream(500), ReceiveStream(300)
        self.written, self.read = b"", b""
        self.way: list[tuple[int, bytes | None]] = []

    @rule(data=st.binary(min_size=1, max_size=300))
    def write(self, data: bytes) -> None:
        if not self.tx.closed:
            taken = self.tx.write(data)
            assert taken == min(len(data), 500 - (len(self.written) - min(self.tx.base, len(self.written))))
            self.written += data[:taken]

    @rule()
    def close(self) -> None:
        if len(self.written) > 400:
            self.tx.close()

    @rule(most=st.integers(1, 200))
    def send(self, most: int) -> None:
        size = min(most, self.rx.limit - self.tx.following, self.tx.unsent)
        if size > 0:
            self.way.append((self.tx.following, self.tx.take(size)))
        elif self.tx.fin_due:
            self.way.append((self.tx.take_fin(), None))

    @rule()
    def arrive(self) -> None:
        if self.way:
            offset, data = self.way.pop(0)
            assert self.rx.put_end(offset) if data is None else self.rx.put(offset, data)

    @rule()
    def acknowledge(self) -> None:
        assert self.tx.acknowledge(self.rx.expected)

    @rule()
    def fail(self) -> None:
        """What was on its way is lost; the receiver says where it is."""
        self.way.clear()
        assert self.tx.rewind(self.rx.expected)

    @rule()
    def forget_the_last_answer(self) -> None:
        """The sender begins at what it knows, which is less than the receiver has."""
        self.way.clear()
        assert self.tx.rewind(self.tx.base)

    @rule(most=st.integers(1, 300))
    def take(self, most: int) -> None:
        self.read += self.rx.read(most)

    @rule(offset=st.integers(0, 2000), data=st.binary(min_size=1, max_size=50))
    def wrong(self, offset: int, data: bytes) -> None:
        """A gap, or beyond the limit: refused, and nothing changes."""
        if offset > self.rx.expected or offset + len(data) > self.rx.limit:
            before = (self.rx.expected, len(self.rx))
            assert not self.rx.put(offset, data)
            assert (self.rx.expected, len(self.rx)) == before
        assert not self.tx.acknowledge(self.tx.most + 1 + offset)

    @invariant()
    def exact(self) -> None:
        got = self.read + b"".join(self.rx._pieces)
        assert self.written.startswith(got)
        assert self.tx.base <= self.tx.following <= self.tx.most <= self.tx.end
        if self.tx.done:
            assert got == self.written
            assert self.rx.ended


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.binary(min_size=14, max_size=80), st.integers(1, 4094))
def test_tags_go_on_and_come_off(frame: bytes, vlan: int) -> None:
    if frame[12:14] == b"\x81\x00":
        return
    tagged = add_tag(frame, vlan)
    assert len(tagged) == len(frame) + 4
    assert take_tag(tagged) == (vlan, frame)
    assert add_tag(frame, 0) is frame
    assert flow_of(frame, vlan).vlan == vlan


def test_a_large_frame_keeps_what_is_to_be_done_to_it() -> None:
    """Tagged and from another address, it is still cut as it should be; and so when the tag is off again."""
    payload = bytes(range(256)) * 12
    ip = bytes.fromhex("45000000000040004006000 00a0000010a000002".replace(" ", ""))
    ip = ip[:2] + (40 + len(payload)).to_bytes(2, "big") + ip[4:]
    tcp = bytes.fromhex("0001000200000000000000005010ffff00000000")
    frame = bytes(12) + b"\x08\x00" + ip + tcp + payload
    head = OffloadHeader(OffloadFlag.NEEDS_CHECKSUM, Segmentation.TCP4, 54, 1000, 34, 16).pack()
    large = OffloadFrame(frame, head)
    plain = finish(bytes(large), large.header)
    assert len(plain) == 4
    tagged = with_source(add_tag(large, 7), b"\x02" * 6)
    assert isinstance(tagged, OffloadFrame)
    assert [take_tag(f) for f in finish(bytes(tagged), tagged.header)] == [
        (7, f[:6] + b"\x02" * 6 + f[12:]) for f in plain
    ]
    vlan, back = take_tag(add_tag(large, 7))
    assert vlan == 7
    assert back == large
    assert back.header == head  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3_000_000)), max_size=40))
def test_a_meter_forgets(passed: list[tuple[int, int]]) -> None:
    """Never more than what passed in its window, and nothing when that is over."""
    meter, now, seen = Meter(2_000_000), 0, []
    for size, later in passed:
        now += later
        meter.count(size, now)
        seen.append((now, size))
        recent = sum(s for at, s in seen if now - at < 2_000_000)
        assert meter.rate(now) <= recent * 1e9 / 1_000_000 + 1
    assert meter.rate(now + 4_000_000) == 0
