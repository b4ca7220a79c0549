"""Multi-packet transfers: on bad networks, against a plain reference, and against hostile datagrams."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verbena.management.rmpp import IDLE_NS, RETRIES, WINDOW, RmppReceiver, RmppSender
from verbena.runtime.virtual import VirtualClock
from verbena.wire.rmpp import RmppFlags, RmppMad, RmppStatus, RmppType, joined, segments
from verbena.wire.sa import SA_HEADER, SaMethod, sa_mad

SECOND = 1_000_000_000


class Transfer:
    """A sender and a receiver, and a network between them that does what `fate` says: delays of each copy."""

    def __init__(self, payload: bytes, random: Random, loss: float = 0.0, **more: int) -> None:
        self.clock = VirtualClock()
        self.random, self.loss = random, loss
        self.sent: list[RmppMad] = []
        self.received: list[tuple[bytes, RmppStatus]] = []
        self.ended: list[RmppStatus] = []
        header = bytes(range(SA_HEADER))
        self.parts = segments(sa_mad(SaMethod.GET_TABLE_RESPONSE, 0x11, transaction_id=5), header, payload)
        self.sender = RmppSender(self.parts, clock=self.clock, emit=self.to_receiver, done=self.ended.append)
        self.receiver = RmppReceiver(
            header_size=SA_HEADER,
            clock=self.clock,
            emit=self.to_sender,
            done=lambda data, status: self.received.append((data, status)),
            **more,
        )

    def carry(self, mad: RmppMad, take: object) -> None:
        self.sent.append(mad)
        raw = mad.pack()
        chance = self.random.random
        for _ in range(0 if chance() < self.loss else 2 if chance() < self.loss else 1):
            later = self.random.randrange(100_000) if chance() < 2 * self.loss else 1_000
            self.clock.call_at(self.clock.now() + later, lambda: take(RmppMad.unpack(raw)))  # type: ignore[operator]

    def to_receiver(self, mad: RmppMad) -> None:
        self.carry(mad, self.receiver.receive)

    def to_sender(self, mad: RmppMad) -> None:
        self.carry(mad, self.sender.receive)

    def run(self) -> None:
        self.sender.start()
        while self.clock.next_time() is not None:
            self.clock.step()


@pytest.mark.parametrize("count", [0, 1, 2, WINDOW, WINDOW + 1, 2 * WINDOW + 1, 300])
def test_whole_transfers(count: int, seed: int) -> None:
    payload = Random(seed).randbytes(count * 200)
    transfer = Transfer(payload, Random(seed))
    transfer.run()
    assert transfer.received == [(payload, RmppStatus.NORMAL)]
    assert transfer.ended == [RmppStatus.NORMAL]
    acknowledgements = [mad for mad in transfer.sent if mad.rmpp_type == RmppType.ACK]
    assert (
        len(acknowledgements) <= 2 + count // WINDOW + 1
    )  # one for the first, one a window, one for the last
    assert {mad.method for mad in acknowledgements} == {SaMethod.GET_TABLE}


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.3])
def test_transfers_on_a_bad_network(loss: float, seed: int) -> None:
    """What arrives is what was sent, or both sides hear that it failed; loss up to a tenth does no harm."""
    whole = 0
    for round_ in range(40):
        random = Random(f"{seed} {loss} {round_}")
        payload = random.randbytes(random.randrange(20_000))
        transfer = Transfer(payload, random, loss)
        transfer.run()
        assert len(transfer.received) == len(transfer.ended) == 1
        data, status = transfer.received[0]
        if status is RmppStatus.NORMAL:
            assert data == payload == joined(transfer.parts, SA_HEADER)
            whole += 1
        else:
            assert data == b""
            assert transfer.ended[0] is not RmppStatus.NORMAL
    assert whole == 40 or loss > 0.1


def test_the_sender_keeps_to_the_window(seed: int) -> None:
    transfer = Transfer(bytes(40_000), Random(seed), 0.1)
    ahead = []
    seen = 1
    emit = transfer.to_receiver

    def spy(mad: RmppMad) -> None:
        ahead.append(mad.data1 <= seen)
        emit(mad)

    original = transfer.sender.receive

    def note(mad: RmppMad) -> None:
        nonlocal seen
        if mad.rmpp_type == RmppType.ACK:
            seen = max(seen, mad.data2)
        original(mad)

    transfer.sender._emit = spy
    transfer.sender.receive = note  # type: ignore[method-assign]
    transfer.run()
    assert all(ahead)
    assert transfer.received[0][1] is RmppStatus.NORMAL


def test_a_receiver_that_is_gone(seed: int) -> None:
    transfer = Transfer(bytes(1_000), Random(seed), loss=1.0)
    transfer.run()
    assert transfer.ended == [RmppStatus.TOO_MANY_RETRIES]
    assert [mad.rmpp_type for mad in transfer.sent] == [RmppType.DATA] * (1 + RETRIES) + [RmppType.ABORT]
    assert transfer.received == [(b"", RmppStatus.TOTAL_TIME_TOO_LONG)]
    assert transfer.clock.now() >= IDLE_NS


def test_a_transfer_that_is_too_long_is_stopped(seed: int) -> None:
    transfer = Transfer(bytes(100_000), Random(seed), largest=20_000)
    transfer.run()
    assert transfer.received == [(b"", RmppStatus.RESOURCES_EXHAUSTED)]
    assert transfer.ended == [RmppStatus.RESOURCES_EXHAUSTED]
    assert transfer.sent[-1].rmpp_type == RmppType.STOP


def parts_of(count: int) -> list[RmppMad]:
    return segments(sa_mad(SaMethod.GET_TABLE_RESPONSE, 0x11), bytes(SA_HEADER), bytes(200 * count))


def receiver() -> tuple[RmppReceiver, list[RmppMad], list[RmppStatus], VirtualClock]:
    said: list[RmppMad] = []
    ended: list[RmppStatus] = []
    clock = VirtualClock()
    made = RmppReceiver(
        header_size=SA_HEADER, clock=clock, emit=said.append, done=lambda data, status: ended.append(status)
    )
    return made, said, ended, clock


@pytest.mark.parametrize(
    ("before", "number", "changes", "status"),
    [
        (0, 1, {"rmpp_version": 2}, RmppStatus.UNSUPPORTED_VERSION),
        (0, 1, {"rmpp_type": 9}, RmppStatus.BAD_TYPE),
        (0, 1, {"rmpp_type": RmppType.ACK}, RmppStatus.BAD_TYPE),
        (0, 1, {"rmpp_flags": RmppFlags.ACTIVE}, RmppStatus.INCONSISTENT_FIRST),
        (0, 1, {"data1": 0}, RmppStatus.INCONSISTENT_FIRST),
        (1, 2, {"rmpp_flags": RmppFlags.ACTIVE | RmppFlags.FIRST}, RmppStatus.INCONSISTENT_FIRST),
        (3, 4, {"data2": 221}, RmppStatus.INCONSISTENT_LAST),
        (3, 4, {"data2": SA_HEADER - 1}, RmppStatus.INCONSISTENT_LAST),
        (3, 2, {"rmpp_flags": RmppFlags.ACTIVE | RmppFlags.LAST, "data2": 220}, RmppStatus.INCONSISTENT_LAST),
        (3, 4, {"data2": 30}, RmppStatus.INCONSISTENT_LAST),  # the first segment said another length
    ],
)
def test_what_makes_a_receiver_abort(
    before: int, number: int, changes: dict[str, int], status: RmppStatus
) -> None:
    made, said, ended, _ = receiver()
    parts = parts_of(4)
    for part in parts[:before]:
        made.receive(part)
    made.receive(replace(parts[number - 1], **changes))
    assert ended == [status]
    assert (said[-1].rmpp_type, said[-1].rmpp_status) == (RmppType.ABORT, status)
    count = len(said)
    made.receive(parts[0])  # it is over: nothing is answered any more
    assert len(said) == count


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"data1": 2, "data2": 33}, RmppStatus.SEGMENT_TOO_BIG),
        ({"data1": 1, "data2": 0}, RmppStatus.WINDOW_TOO_SMALL),
        ({"rmpp_status": 5}, RmppStatus.ILLEGAL_STATUS),
        ({"rmpp_version": 0}, RmppStatus.UNSUPPORTED_VERSION),
        ({"rmpp_type": RmppType.DATA}, RmppStatus.BAD_TYPE),
        ({"rmpp_type": RmppType.ABORT, "rmpp_status": 200}, RmppStatus.UNSPECIFIED),
        ({"rmpp_type": RmppType.STOP, "rmpp_status": 1}, RmppStatus.RESOURCES_EXHAUSTED),
    ],
)
def test_what_ends_a_sender(changes: dict[str, int], status: RmppStatus) -> None:
    sent: list[RmppMad] = []
    ended: list[RmppStatus] = []
    sender = RmppSender(parts_of(4), clock=VirtualClock(), emit=sent.append, done=ended.append)
    sender.start()
    base = {"rmpp_type": RmppType.ACK, "data1": 1, "data2": 33, "rmpp_status": 0}
    sender.receive(replace(sent[0], **base | changes))
    assert ended == [status]
    own = "rmpp_type" not in changes or changes["rmpp_type"] == RmppType.DATA
    assert (sent[-1].rmpp_type == RmppType.ABORT) is own


FIELDS = st.fixed_dictionaries(
    {
        "rmpp_version": st.sampled_from([1, 1, 1, 0, 2]),
        "rmpp_type": st.sampled_from([1, 1, 1, 2, 3, 4, 0, 200]),
        "rmpp_flags": st.integers(0, 7),
        "rmpp_status": st.sampled_from([0, 0, 1, 120, 255]),
        "data1": st.one_of(st.integers(0, 8), st.integers(0, 0xFFFFFFFF)),
        "data2": st.one_of(st.integers(0, 230), st.integers(0, 0xFFFFFFFF)),
    }
)


@settings(max_examples=300)
@given(st.lists(FIELDS, max_size=30))
def test_any_datagrams_end_at_most_once_and_pile_nothing_up(datagrams: list[dict[str, int]]) -> None:
    made, said, ended, clock = receiver()
    sent: list[RmppMad] = []
    over: list[RmppStatus] = []
    sender = RmppSender(parts_of(4), clock=clock, emit=sent.append, done=over.append)
    sender.start()
    for fields in datagrams:
        mad = replace(parts_of(1)[0], **fields)
        before = len(said), len(sent)
        made.receive(mad)
        sender.receive(mad)
        assert len(said) - before[0] <= 1
        assert len(sent) - before[1] <= 4
        assert len(made._ahead) <= WINDOW
        assert len(ended) <= 1
        assert len(over) <= 1
    made.close()
    sender.close()
    assert clock.next_time() is None
