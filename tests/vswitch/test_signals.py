"""Flow-control signals: every kind, every pairing, unlike ones joined, malformed and forged ones, in bounded time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.errors import InvalidAttributeError
from verbena.runtime.virtual_time import VirtualClock, VirtualTime
from verbena.vswitch.config import Marks
from verbena.vswitch.link import KINDS, Link, Meeting
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.signals_pause import PauseGranter, PauseThrottle, pfc_marks
from verbena.vswitch.switch import SwitchPort
from verbena.wire.credits import Grant, GrantKind, IbFlowControl, PcieFlowControl
from verbena.wire.errors import DecodeError
from verbena.wire.pause import PauseFrame, PfcFrame, headroom_bytes, ns_quanta, quanta_ns, unpack_pause
from vswitch.lab import frame, make, number_of

GIGABIT = 1e9


class Producer:
    """Software that sends as fast as it may, and sleeps when it may not."""

    def __init__(self, port: SwitchPort, frames: list[bytes]) -> None:
        self.port, self.frames = port, frames
        port.on_room = lambda _: self.go()

    def go(self) -> None:
        while self.frames and self.port.send(self.frames[0]):
            del self.frames[0]


class Reader:
    """A consumer that takes a frame every `pause_ns`, whether it is told or not."""

    def __init__(self, clock: VirtualClock, source: SwitchPort | FrameQueue, pause_ns: int) -> None:
        self.clock, self.source, self.pause_ns = clock, source, pause_ns
        self.got: list[int] = []
        self.timed = False
        source.on_frames = self.wake
        self.wake()

    def wake(self) -> None:
        if not self.timed:
            self.timed = True
            self.clock.call_at(self.clock.now() + self.pause_ns, self.read)

    def read(self) -> None:
        self.timed = False
        found = self.source.receive()
        if found is not None:
            self.got.append(number_of(found.data))
            self.wake()


def queue_of(frames: list[bytes], priority: int = 0) -> FrameQueue:
    """A sending card that has these frames."""
    queue = FrameQueue("card", Marks(1, 1 << 20, 1 << 20))
    for data in frames:
        queue.arrive(Item(data, len(data), priority))
    return queue


PAIRINGS = [("software", "software"), *((k, "software") for k in KINDS), *(("software", k) for k in KINDS)]
UNLIKE = [("pfc", "ib"), ("ib", "pfc"), ("pcie", "pfc"), ("onoff", "pcie"), ("rate", "ib"), ("pause", "rate")]


@pytest.mark.requirement("VSW-12", "VSW-13")
@pytest.mark.parametrize("left, right", PAIRINGS + UNLIKE)
def test_every_kind_and_pairing_is_lossless_and_in_order(left: str, right: str) -> None:
    time = VirtualTime()
    clock = time.clock
    switch, (a, b) = make(2, input=Marks(4, 16, 20), output=Marks(4, 16, 20), clock=clock)
    frames = [frame(0, 1, n, 64 + 37 * n % 1400) for n in range(300)]
    if left == "software":
        producer = Producer(a, list(frames))
        clock.call_at(0, producer.go)
    else:
        meeting = Meeting(clock, queue_of(frames), a, left, rate_bps=10 * GIGABIT)
        clock.call_at(0, meeting.link.kick)
    target: SwitchPort | FrameQueue = b
    if right != "software":
        target = FrameQueue("far")
        out = Meeting(clock, b, target, right, rate_bps=10 * GIGABIT)
        clock.call_at(0, out.link.kick)
    reader = Reader(clock, target, 20_000)  # 16 times slower than the link
    time.run_until_idle()
    assert reader.got == list(range(300))
    assert switch.losses() == {}
    if isinstance(target, FrameQueue):
        assert target.counts.dropped == 0
        assert out.link.messages > 0, "the receiver never said anything"
    if left != "software":
        assert meeting.link.messages > 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_signal_the_same_path_loses(kind: str) -> None:
    """The negative: the sender does not obey, and the same frames overrun the queue."""
    time = VirtualTime()
    target = FrameQueue("far")
    link = Meeting(
        time.clock, queue_of([frame(0, 1, n, 1400) for n in range(300)]), target, kind, rate_bps=1e10
    ).link
    link.throttle.may_send = lambda priority, length: True  # type: ignore[method-assign]
    time.clock.call_at(0, link.kick)
    Reader(time.clock, target, 20_000)
    time.run_until_idle()
    assert target.counts.dropped > 0


@pytest.mark.requirement("VSW-12", "VSW-15")
def test_pfc_pauses_only_the_class_that_it_names() -> None:
    time = VirtualTime()
    source = queue_of([frame(0, 1, n, 1000) for n in range(50)], 3)
    for n in range(50):
        source.arrive(Item(frame(0, 1, n, 1000), 1000, 5))
    got: list[int] = []
    throttle = PauseThrottle(time.clock, GIGABIT)
    link = Link(
        time.clock, source, lambda item: got.append(item.priority), rate_bps=GIGABIT, throttle=throttle
    )
    throttle.hear(PfcFrame.of(3, 65_535).pack())
    time.run_for(2_000_000)
    assert got.count(5) == 50
    assert got.count(3) == 0
    link.signal(PfcFrame.of(3, 0).pack())
    time.run_until_idle()
    assert got.count(3) == 50
    assert time.now < quanta_ns(65_535, GIGABIT), "it was the resume that opened it, not the end of the time"


def test_a_pause_ends_after_its_quanta() -> None:
    """802.1Qbb: 512 bit times each; at 10 Gb/s 1,000 quanta are 51.2 us."""
    assert quanta_ns(1000, 10 * GIGABIT) == 51_200
    assert ns_quanta(51_200, 10 * GIGABIT) == 1000
    time = VirtualTime()
    opened: list[int] = []
    throttle = PauseThrottle(time.clock, 10 * GIGABIT)
    throttle.on_open = lambda: opened.append(time.now)
    throttle.hear(PfcFrame.of(2, 1000).pack())
    assert not throttle.may_send(2, 64)
    assert throttle.may_send(1, 64)
    time.run_until_idle()
    assert opened == [51_200]
    assert throttle.may_send(2, 64)


def test_pauses_are_renewed_while_the_queue_is_full_and_a_dead_receivers_end() -> None:
    time = VirtualTime()
    throttle = PauseThrottle(time.clock, GIGABIT)
    granter = PauseGranter(throttle.hear, time.clock, GIGABIT, quanta=100)
    granter.stop(0)
    time.run_for(1_000_000)
    assert granter.said > 10
    assert not throttle.may_send(0, 64)
    granter._emit = lambda _: None  # it died
    time.run_for(quanta_ns(100, GIGABIT))
    assert throttle.may_send(0, 64)


def test_headroom_is_enough_and_not_much_too_much() -> None:
    """At the marks that the arithmetic gives nothing is lost; with an eighth of the headroom, something is."""
    for cable_m, rate in ((10, 1e10), (300, 1e10), (100, 1e11)):
        lost = []
        for share in (1.0, 0.125):
            time = VirtualTime()
            marks = pfc_marks(400_000, rate, cable_m, 1522)
            assert marks.high_bytes is not None
            room = marks.high_bytes + int((400_000 - marks.high_bytes) * share)
            target = FrameQueue("far", Marks(9000, 9001, 9001, marks.low_bytes, marks.high_bytes, room))
            response = quanta_ns(60, rate)
            source = queue_of([frame(0, 1, n, 1518) for n in range(1000)])
            throttle = PauseThrottle(time.clock, rate)
            link = Link(
                time.clock,
                source,
                target.arrive,
                rate_bps=rate,
                delay_ns=5 * cable_m + response // 2,
                throttle=throttle,
            )
            granter = PauseGranter(link.signal, time.clock, rate)
            target.on_stop, target.on_start = granter.stop, granter.start
            time.clock.call_at(0, link.kick)
            time.run_for(1_000_000)
            lost.append(target.counts.dropped)
        assert lost[0] == 0
        assert lost[1] > 0
    with pytest.raises(InvalidAttributeError, match="headroom takes"):
        pfc_marks(2_000, 1e10, 10, 1522)
    assert headroom_bytes(1e10, 0, 1522, 0) == 2 * 1542 + 84


@pytest.mark.requirement("VSW-12")
@pytest.mark.parametrize("kind", KINDS)
def test_malformed_signals_are_ignored_and_counted(kind: str, seed: int) -> None:
    time = VirtualTime()
    link = Meeting(time.clock, queue_of([]), FrameQueue("far"), kind, rate_bps=1e10).link
    time.run_for(1000)
    heard = link.throttle.heard
    random = Random(seed)
    for size in (0, 1, 5, 6, 59, 60, 64, 1500):
        link.throttle.hear(random.randbytes(size))
    assert link.throttle.malformed == 8
    assert link.throttle.heard == heard
    assert link.throttle.may_send(0, 64)


def test_forged_pauses_are_contained() -> None:
    """From a port that may not pause: counted, never forwarded, nobody is paused."""
    _, (a, b) = make(2)
    heard: list[bytes] = []
    a.on_control = heard.append
    forged = PfcFrame((65_535,) * 8).pack()
    assert a.send(forged)
    a.arrive(PauseFrame(65_535).pack())
    assert heard == []
    assert a.state()["drop.reserved"] == 2
    assert b.receive() is None
    allowed, (c, _) = make(2, may_pause=True)
    c.on_control = heard.append
    c.send(forged)
    assert heard == [forged]
    assert len(set(allowed.balance())) == 1


@pytest.mark.requirement("VSW-29")
@pytest.mark.parametrize("kind", ["pfc", "onoff", "ib", "pcie"])
def test_commands_arrive_in_bounded_time_whatever_the_data_do(kind: str) -> None:
    """Both directions saturated, the data queues full: every command is heard after the link's delay."""
    time = VirtualTime()
    clock = time.clock
    delay = 500
    meetings, said, heard = [], [], []
    for _ in range(2):
        target = FrameQueue("far")
        frames = [frame(0, 1, n, 1400) for n in range(400)]
        meeting = Meeting(clock, queue_of(frames), target, kind, rate_bps=1e10, delay_ns=delay)
        meetings.append((meeting, Reader(clock, target, 15_000)))
        link, hear = meeting.link, meeting.link.throttle.hear
        emit = meeting.granter._emit
        meeting.granter._emit = lambda m, emit=emit: (said.append(clock.now()), emit(m))  # type: ignore[func-returns-value]
        link.throttle.hear = lambda m, hear=hear: (heard.append(clock.now()), hear(m))[1]  # type: ignore[method-assign]
        clock.call_at(0, link.kick)
    time.run_until_idle()
    told = sorted(said)
    assert len(told) > 20
    # those said when the meeting was made were on their way already
    assert sorted(heard)[-len(told) :] == [t + delay for t in told]
    for meeting, reader in meetings:
        assert len(reader.got) == 400
        assert meeting.target.counts.dropped == 0  # type: ignore[union-attr]
        assert meeting.target.counts.stops > 0 or kind in ("ib", "pcie")  # type: ignore[union-attr]


# --- formats ----------------------------------------------------------------------------------------------------

quanta = st.one_of(st.none(), st.integers(0, 0xFFFF))


@given(st.tuples(*[quanta] * 8), st.binary(min_size=6, max_size=6))
def test_pfc_frames_survive_a_round_trip(times: tuple[int | None, ...], source: bytes) -> None:
    made = PfcFrame(times, source)
    assert unpack_pause(made.pack()) == made
    assert len(made.pack()) == 60


def test_a_pfc_frame_byte_by_byte() -> None:
    """802.1Qbb: class-enable vector, then eight times; here class 3 for 0x1234 quanta."""
    expected = "0180c2000001020000000007880801010008" + "0000" * 3 + "1234" + "0000" * 4
    assert PfcFrame.of(3, 0x1234, bytes.fromhex("020000000007")).pack() == bytes.fromhex(expected).ljust(
        60, b"\0"
    )
    pause = "0180c200000102000000000788080001ffff"
    assert PauseFrame(0xFFFF, bytes.fromhex("020000000007")).pack() == bytes.fromhex(pause).ljust(60, b"\0")


@given(st.binary(max_size=80))
def test_no_bytes_break_a_decoder(data: bytes) -> None:
    for decode in (unpack_pause, Grant.heard, IbFlowControl.opened, PcieFlowControl.opened):
        try:
            decode(data)
        except DecodeError:
            continue


@given(st.integers(0, 15), st.integers(0, 4095), st.integers(0, 4095))
def test_credit_messages_survive_a_round_trip_and_no_flipped_bit_does(
    lane: int, sent: int, limit: int
) -> None:
    packet = IbFlowControl(0, sent, lane, limit)
    sealed = packet.sealed()
    assert IbFlowControl.opened(sealed) == packet
    update = PcieFlowControl(headers=limit & 0xFF, data=sent)
    assert PcieFlowControl.opened(update.sealed()) == update
    for bit in range(48):
        damaged = (int.from_bytes(sealed, "big") ^ 1 << bit).to_bytes(6, "big")
        with pytest.raises(DecodeError):
            IbFlowControl.opened(damaged)
    heard = Grant.heard(Grant.say(GrantKind.RATE, 5, sent, limit))
    assert (heard.kind, heard.priority, heard.sequence, heard.rate_bps) == (GrantKind.RATE, 5, sent, limit)
