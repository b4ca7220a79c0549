"""Document 001, figure 4: the flow chart of completion notification, block by block."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from handlers_lab import Inbox, inbox, recorded, taker
from lab import Lab, statuses, take, write
from verbena import (
    ClosedError,
    CompletionQueue,
    DeviceAttributes,
    InvalidAttributeError,
    InvalidStateError,
    Notify,
    QPState,
    QPType,
    RecvRequest,
    VerbError,
    _pure,
)
from verbena.wire.opcodes import OPCODES

RC = QPType.RC


def small(**limits: Any) -> DeviceAttributes:
    return DeviceAttributes(max_qp=64, max_cq=64, **limits)


def bound(log: list[Any], again: bool = False, **limits: Any) -> tuple[Lab, Inbox]:
    """A queue with a handler; it asks for no further event unless `again`."""
    lab = Lab()
    lab.adapter(limits=small(**limits)), lab.adapter()
    here, there = lab.pair()
    (identifier,) = here.ctx.set_completion_handler(taker(log, again))
    return lab, inbox(here, there, identifier)


def blocks(box: Inbox) -> list[tuple[int, int]]:
    """The blocks that the queue's requests passed, with their answers."""
    steps = box.here.ctx.notification_steps()
    return [(s.block, s.answer) for s in steps if s.cq == box.cq.index and s.block >= 414]


# --- the branches -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-12", "CQN-14", "CQN-15")
@pytest.mark.parametrize("solicited,armed", product([False, True], repeat=2))
def test_the_truth_table(solicited: bool, armed: bool) -> None:
    log: list[Any] = []
    lab, box = bound(log)
    if armed:
        box.cq.req_notify()
    box.send(7, solicited)
    lab.settle()
    assert len(log) == (solicited or armed)
    if log:
        (identifier, cq, found) = log[0]
        assert (identifier, cq, found) == (box.cq.handler, box.cq, [0])
        assert box.cq.event.solicited is solicited
        assert box.cq.event.asked is armed
        assert box.cq.event.qp_num == box.qp.qp_num
    else:
        assert [e.ok for e in box.cq.poll()] == [True], "the entry is there in every branch"


@pytest.mark.requirement("CQN-14", "CQN-15")
@pytest.mark.parametrize("solicited,armed", product([False, True], repeat=2))
def test_the_other_rule_needs_an_armed_queue(solicited: bool, armed: bool) -> None:
    log: list[Any] = []
    lab, box = bound(log, solicited_needs_arming=True)
    if armed:
        box.cq.req_notify(solicited_only=True)
    box.send(7, solicited)
    lab.settle()
    assert len(log) == (solicited and armed)


@pytest.mark.requirement("CQN-14")
def test_solicited_without_a_handler_is_an_entry_only() -> None:
    lab = Lab()
    here, there = lab.pair()
    box = inbox(here, there, None)
    box.send(solicited=True)
    lab.settle()
    assert not box.cq.get_event(0)
    assert statuses(box.cq.poll()) == [(0, "SUCCESS")]
    assert here.ctx.get_async_event(0) is None


def fail_queue(box: Inbox) -> None:
    box.expect()
    box.qp.modify(QPState.ERR)


@pytest.mark.requirement("CQN-12")
@pytest.mark.parametrize(
    "kind,expected",
    [
        (None, ["solicited"]),
        (Notify.ERROR, ["solicited", "error"]),
        (Notify.SOLICITED, ["solicited", "error"]),
        (Notify.ANY, ["plain", "solicited", "error"]),
    ],
)
def test_the_next_entry_of_a_kind(kind: Notify | None, expected: list[str]) -> None:
    """Each kind of entry alone, on a queue armed for each kind (a solicited one raises an event in any case)."""
    raised = []
    for what in ("plain", "solicited", "error"):
        log: list[Any] = []
        lab, box = bound(log)
        if kind is not None:
            box.cq.req_notify(kind=kind)
        if what == "error":
            fail_queue(box)
        else:
            box.send(solicited=what == "solicited")
        lab.settle()
        if log:
            raised.append(what)
            assert box.cq.event.error is (what == "error")
    assert raised == expected


def test_armed_for_errors_where_the_armed_rule_holds() -> None:
    log: list[Any] = []
    lab, box = bound(log, solicited_needs_arming=True)
    box.cq.req_notify(kind=Notify.ERROR)
    box.send(solicited=True)
    box.send()
    lab.settle()
    assert log == []
    fail_queue(box)
    lab.settle()
    assert len(log) == 1


def test_one_event_for_each_arming_and_the_widest_request_holds() -> None:
    log: list[Any] = []
    lab, box = bound(log)
    box.cq.req_notify(kind=Notify.ANY)
    box.cq.req_notify(kind=Notify.ERROR)
    for _ in range(3):
        box.send()
        lab.settle()
    assert len(log) == 1
    for wrong in (0, 4, "any", None):
        if wrong is not None:
            with pytest.raises(InvalidAttributeError, match=r"Notify\.ANY"):
                box.cq.req_notify(kind=wrong)  # type: ignore[arg-type]


@pytest.mark.requirement("CQN-12")
def test_a_request_with_its_notification() -> None:
    """Block 414: the work request itself asks to be told of the next completion."""
    log: list[Any] = []
    lab = Lab()
    a, b = lab.pair()
    (identifier,) = a.ctx.set_completion_handler(taker(log, again=False))
    cq = a.ctx.create_cq(8, identifier)
    qp, far = a.pd.create_qp(RC, cq), b.pd.create_qp(RC, b.cq)
    there, here = far.endpoint, qp.endpoint
    qp.connect(there)
    far.connect(here)
    a.ctx.post_send(qp, write(a, b, 8, 1))
    lab.settle()
    assert log == [], "without one, there is no event"
    a.ctx.post_send(qp, write(a, b, 8, 2), notify=Notify.ANY)
    a.ctx.post_send(qp, write(a, b, 8, 3))
    lab.settle()
    assert [entry[2] for entry in log] == [[1, 2]], "one event, and the entries so far"
    with pytest.raises(InvalidAttributeError):
        a.ctx.post_send(qp, write(a, b, 8), notify="next")  # type: ignore[arg-type]


# --- the trace --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-05", "CQN-06", "CQN-07", "CQN-11", "CQN-15", "CQN-16", "CQN-17", "CQN-18")
def test_the_chart_walked_block_by_block() -> None:
    log: list[Any] = []
    lab = Lab()
    here, there = lab.pair()
    ctx = here.ctx
    ctx.trace_notification()
    first, second = ctx.set_completion_handler(taker(log, False), taker(log, False))
    assert [(s.block, s.answer) for s in ctx.notification_steps()] == [
        (402, 2),
        (404, first),
        (406, 1),
        (404, second),
        (406, 0),
    ]
    box = inbox(here, there, second)
    assert [(s.block, s.cq, s.answer) for s in ctx.notification_steps()] == [(408, box.cq.index, second)]

    box.send(solicited=False)  # neither solicited nor asked for
    lab.settle()
    steps = ctx.notification_steps()
    assert [s.block for s in steps] == [412, 416, 418, 420, 426, 428]
    assert [s.answer for s in steps][2:] == [0, 0, 0, 0]
    assert {s.qp_num for s in steps} == {box.qp.qp_num}

    box.cq.req_notify()  # asked for
    box.send()
    lab.settle()
    assert blocks(box) == [
        (414, Notify.ANY),
        (416, 1),
        (418, 0),
        (420, 1),
        (422, second),
        (424, second),
        (426, 0),
        (428, 0),
    ]

    box.send(solicited=True)  # solicited: block 420 is not asked
    lab.settle()
    assert blocks(box) == [(416, 1), (418, 1), (422, second), (424, second), (426, 0), (428, 0)]
    assert [entry[0] for entry in log] == [second, second]

    assert ctx.shutdown()
    assert [s.block for s in ctx.notification_steps()][-1] == 430
    ctx.trace_notification(False)
    assert ctx.notification_steps() == []


@pytest.mark.requirement("CQN-17")
def test_the_other_order_posts_the_entry_first() -> None:
    log: list[Any] = []
    lab, box = bound(log, entry_before_event=True)
    box.here.ctx.trace_notification()
    box.send(solicited=True)
    lab.settle()
    assert [block for block, _ in blocks(box)] == [416, 418, 426, 422, 424, 428]
    assert log[0][2] == [0]


def test_the_trace_keeps_the_newest_and_stops() -> None:
    lab = Lab()
    a, b = lab.pair()
    a.ctx.trace_notification()
    for i in range(3_000):
        a.qp.post_send(write(a, b, 8, i))
        take(a.cq, 1)
    steps = a.ctx.notification_steps()
    assert len(steps) == 16_384
    assert steps == sorted(steps, key=lambda s: s.when_ns)
    assert a.ctx.notification_steps() == []


# --- validation (block 416) ---------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-13")
def test_wrong_numbers_reach_no_queue() -> None:
    """A queue pair's number that is not there, or no more: no entry on any queue, no event."""
    log: list[Any] = []
    lab, box = bound(log)
    other = inbox(box.here, box.there, box.cq.handler)
    for cq in (box.cq, other.cq):
        cq.req_notify()
    box.here.ctx.trace_notification()

    def misdirect(packet: Any) -> list[bytes]:
        if packet.is_answer:
            return [packet.data]
        data = bytearray(packet.data)
        wrong = number if OPCODES[packet.code].name.startswith("RC") else packet.qpn
        data[5:8] = wrong.to_bytes(3, "big")
        return [_sealed(lab, bytes(data))]

    for number in (box.qp.qp_num ^ 0x10000, 0xFFFF, 63):  # noqa: B007 - `misdirect` reads it
        lab.taps[1].gate = misdirect
        box.expect()
        box.far.post_send(box.request(5, True))
        lab.net.run_for(2_000_000)
    lab.taps[1].gate = None
    assert log == []
    assert len(box.cq) == len(other.cq) == 0
    refused = [s for s in box.here.ctx.notification_steps() if s.block == 416]
    assert refused
    assert all(s.answer == 0 and s.cq == -1 for s in refused)
    assert box.here.ctx.counters()["drop.no_qp"] >= 3


def _sealed(lab: Lab, data: bytes) -> bytes:
    from lab import sealed

    here, there = lab.contexts
    return sealed(data, there.gids[0].raw, here.gids[0].raw)


@pytest.mark.requirement("CQN-10", "CQN-13")
def test_queues_of_another_adapter_and_destroyed_ones_are_refused() -> None:
    lab = Lab()
    a, b = lab.pair()
    dead = a.ctx.create_cq(8)
    dead.close()
    for wrong, error in ((b.cq, InvalidAttributeError), (dead, InvalidStateError), (a.cq.index, VerbError)):
        for queues in ((wrong, a.cq), (a.cq, wrong)):
            with pytest.raises(error):
                a.pd.create_qp(RC, *queues)
    assert a.pd.create_qp(RC, a.cq, a.ctx.create_cq(8)), "a queue pair that names two of its own is made"
    with pytest.raises(InvalidAttributeError):
        a.ctx.post_send(b.qp, write(a, b, 8))
    with pytest.raises(InvalidAttributeError):
        a.ctx.post_recv(b.qp, RecvRequest(1))
    with pytest.raises(InvalidAttributeError, match="of this adapter"):
        a.ctx.modify_cq(b.cq, handler=None)
    with pytest.raises(ClosedError):
        a.ctx.modify_cq(dead, depth=4)


@pytest.mark.requirement("CQN-11")
def test_requests_are_taken_on_a_right_queue_pair_only() -> None:
    log: list[Any] = []
    lab, box = bound(log, again=True)
    box.cq.req_notify()
    box.expect(2)
    box.send(1, expected=True)
    box.send(2, expected=True)
    lab.settle()
    assert sum(len(entry[2]) for entry in log) == 2
    fresh = box.here.pd.create_qp(RC, box.cq)
    with pytest.raises(InvalidStateError):
        fresh.post_recv(RecvRequest(1))
    with pytest.raises(InvalidStateError):
        fresh.post_send(box.request())


@pytest.mark.requirement("CQN-16")
def test_an_event_goes_to_its_queue_s_handler_only() -> None:
    lab = Lab()
    here, there = lab.pair()
    writes = recorded(here.ctx)
    first, second = here.ctx.set_completion_handler(print, print)
    boxes = [inbox(here, there, first), inbox(here, there, second)]
    boxes[1].send(9, solicited=True)
    lab.settle()
    table = here.ctx.adapter.handlers
    assert [data for _, data in writes.take()] == [second]
    assert table.take(table.find(first)) is None
    event = table.take(table.find(second))
    assert event is not None
    assert (event.handler, event.cq, event.qp_num) == (second, boxes[1].cq.index, boxes[1].qp.qp_num)
    assert (event.wr_id, event.solicited, event.error, event.merged) == (0, True, False, 0)
    assert 0 < event.raised_ns <= lab.net.now
    assert here.ctx.completion_handler(first).vector.events == 0


# --- the entry is there ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-17")
@pytest.mark.parametrize("entry_first", [False, True])
def test_a_handler_never_finds_an_empty_queue(entry_first: bool) -> None:
    """100,000 entries under load; a handler is not called for what an earlier call polled already."""
    lab = Lab(record=False)
    lab.adapter(limits=small(entry_before_event=entry_first)), lab.adapter()
    here, there = lab.pair()
    calls = empty = entries = 0

    def handler(cq: CompletionQueue) -> None:
        nonlocal calls, empty, entries
        calls += 1
        found = len(cq.poll(100))
        empty += not found
        entries += found

    (identifier,) = here.ctx.set_completion_handler(handler)
    cq = here.ctx.create_cq(256, identifier)
    qp = here.pd.create_qp(RC, cq, max_send_wr=64)
    there_end = there.pd.create_qp(RC, there.cq)
    one, two = qp.endpoint, there_end.endpoint
    qp.connect(two)
    there_end.connect(one)
    qp.modify(QPState.ERR)  # what is posted completes at once, as flushed
    request = write(here, there, 8)
    rounds = 100_000 if _pure.compiled() or entry_first else 10_000
    for i in range(rounds):
        cq.req_notify(kind=Notify.ERROR if i & 1 else Notify.ANY)
        qp.post_send(request)
    assert (calls, empty, entries) == (rounds, 0, rounds)


# --- shutdown (blocks 428, 430) -----------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-18")
def test_shutdown_finishes_the_present_requests_and_takes_no_more() -> None:
    log: list[Any] = []
    lab, box = bound(log, again=True)
    ctx = box.there.ctx
    (identifier,) = ctx.set_completion_handler(taker(log, again=True))
    cq = ctx.create_cq(64, identifier)
    qp, far = box.there.pd.create_qp(RC, cq), box.here.pd.create_qp(RC, box.here.cq)
    there, here = far.endpoint, qp.endpoint
    qp.connect(there)
    far.connect(here)
    cq.req_notify()
    for i in range(20):
        qp.post_send(write(box.there, box.here, 4096, i))
    assert log == [], "nothing has completed yet"
    assert ctx.shutdown(), "all of it finished"
    done = [wr_id for _, queue, found in log if queue is cq for wr_id in found]
    assert done == list(range(20)), "each request has its entry, and the handler was called for it"
    calls = len(log)
    for post in (
        lambda: qp.post_send(write(box.there, box.here, 8)),
        lambda: qp.post_recv(RecvRequest(1)),
        lambda: box.there.pd.create_srq(4).post_recv(RecvRequest(1)),
    ):
        with pytest.raises(InvalidStateError, match="shuts down"):
            post()
    with pytest.raises(InvalidStateError, match="shut down"):
        ctx.set_completion_handler(print)
    box.here.qp.modify(QPState.ERR)
    far.modify(QPState.ERR)
    qp.close()
    lab.settle()
    assert len(log) == calls, "no handler is called after the end"


@pytest.mark.requirement("CQN-18")
def test_shutdown_flushes_what_cannot_finish() -> None:
    log: list[Any] = []
    lab, box = bound(log, again=True)
    box.cq.req_notify()
    box.expect(3)  # nobody sends
    ctx = box.here.ctx
    assert ctx.shutdown(timeout=0.001)
    assert sorted(wr_id for _, _, found in log for wr_id in found) == [0, 1, 2]
    assert all(not e.ok for e in box.cq.poll())
    lab.taps[1].gate = lambda packet: []
    ctx = box.there.ctx
    box.far.post_send(box.request(1))
    assert not ctx.shutdown(timeout=0.001), "it did not finish in time"
    assert statuses(box.there.cq.poll()) == [(1, "WR_FLUSH_ERR")]
