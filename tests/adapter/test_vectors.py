"""Vectors and the lines of events, beside a plain model; moderation; masks; the run queue; latencies."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from handlers_lab import Inbox, inbox, recorded
from lab import Lab
from verbena import DeviceAttributes, InvalidAttributeError, InvalidStateError, Notify, _pure
from verbena.adapter.figures import Latencies
from verbena.adapter.run_queue import RunQueue
from verbena.adapter.vectors import message_address, processor_at

HANDLERS, QUEUES = 3, 4
LIMITS = DeviceAttributes(max_qp=16, max_cq=16, completion_handlers=HANDLERS)


def two_handlers() -> tuple[Lab, Any, list[Inbox], Any]:
    """Handlers 1 and 2 with a queue each, whose interrupts are noted."""
    lab = Lab(record=False)
    lab.adapter(limits=LIMITS), lab.adapter()
    here, there = lab.pair()
    writes = recorded(here.ctx)
    ids = here.ctx.set_completion_handler(print, print, processor=5)
    return lab, here.ctx, [inbox(here, there, i) for i in ids], writes


# --- interrupts ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-19", "CQN-23")
def test_an_event_is_a_write_of_the_handlers_data_to_its_address() -> None:
    """Handlers 1 and 2 on one processor: it tells them apart by the data."""
    lab, ctx, boxes, writes = two_handlers()
    for box in (boxes[0], boxes[1], boxes[0]):
        box.send(solicited=True)
        lab.settle()
        ctx.adapter.handlers.take(ctx.adapter.handlers.find(box.cq.handler))
    first, second = (box.cq.handler for box in boxes)
    at = message_address(5)
    assert writes.take() == [(at, first), (at, second), (at, first)]
    assert processor_at(at) == 5
    assert processor_at(message_address(None)) is None
    assert len({ctx.completion_handler(i).vector.data for i in (first, second)}) == 2


@pytest.mark.requirement("CQN-23")
def test_a_masked_vector_stays_pending_and_loses_nothing() -> None:
    lab, ctx, (box, other), writes = two_handlers()
    handler = ctx.completion_handler(box.cq.handler)
    handler.mask()
    for _ in range(3):
        box.send(solicited=True)
        lab.settle()
    other.send(solicited=True)
    lab.settle()
    assert [data for _, data in writes.take()] == [other.cq.handler], "the other's is not masked"
    assert handler.vector.pending
    assert handler.vector.interrupts == 0
    handler.unmask()
    assert [data for _, data in writes.take()] == [box.cq.handler], "one, for all three"
    handler.unmask()
    assert writes.take() == [], "and only once"
    assert not handler.vector.pending
    event = ctx.adapter.handlers.take(ctx.adapter.handlers.find(handler.identifier))
    assert event is not None
    assert event.merged == 2


@pytest.mark.requirement("CQN-23")
def test_the_function_mask_and_a_vector_s_own() -> None:
    lab, ctx, boxes, writes = two_handlers()
    ctx.completion_handler(boxes[0].cq.handler).mask()
    ctx.mask_interrupts()
    for box in boxes:
        box.send(solicited=True)
    lab.settle()
    assert writes.take() == []
    ctx.mask_interrupts(False)
    assert [data for _, data in writes.take()] == [boxes[1].cq.handler], "the first has its own mask"
    ctx.completion_handler(boxes[0].cq.handler).unmask()
    assert [data for _, data in writes.take()] == [boxes[0].cq.handler]


@pytest.mark.requirement("CQN-20", "CQN-23")
def test_moving_a_vector_rewrites_its_address() -> None:
    lab, ctx, (box, _), writes = two_handlers()
    handler = ctx.completion_handler(box.cq.handler)
    box.send(solicited=True)
    lab.settle()
    assert writes.take() == [(message_address(5), handler.identifier)]
    handler.move(6)
    assert writes.take() == [(message_address(6), handler.identifier)], "what waits is announced there, too"
    assert handler.processor == 6
    for wrong in (-1, 255, "0", True, 1.0):
        with pytest.raises(InvalidAttributeError, match="0 to 254"):
            handler.move(wrong)
    assert handler.processor == 6


@pytest.mark.parametrize("count,times", [(3, [2, 5]), (100, [])])
def test_moderation_by_count_and_time(count: int, times: list[int]) -> None:
    """An interrupt for each `count` events, else some time after the first that was held back."""
    lab, ctx, (box, _), writes = two_handlers()
    handler = ctx.completion_handler(box.cq.handler)
    handler.moderate(count, 50_000)
    sent = []
    for i in range(7):
        box.send(solicited=True)
        lab.net.run_for(5_000)
        if writes.take():
            sent.append(i)
            ctx.adapter.handlers.take(ctx.adapter.handlers.find(handler.identifier))
    assert sent == times
    held = handler.vector.held
    assert held == 7 % count
    lab.net.run_for(10_000)
    assert writes.take() == []
    lab.net.run_for(40_000)
    assert len(writes.take()) == 1, "the timer"
    assert handler.vector.held == 0
    ctx.adapter.handlers.take(ctx.adapter.handlers.find(handler.identifier))
    box.send(solicited=True)
    lab.net.run_for(5_000)
    assert writes.take() == []
    handler.moderate()
    assert len(writes.take()) == 1, "what was held back comes when moderation ends"
    for wrong in ((0, 0), (2, 0), (1, -1), (65_536, 5), (1, 10**11), ("1", 0)):
        with pytest.raises(InvalidAttributeError):
            handler.moderate(*wrong)


# --- a model --------------------------------------------------------------------------------------------------------


class Model:
    """What a vector and its line are, in plain words."""

    def __init__(self) -> None:
        self.masked = self.pending = False
        self.line: list[int] = []
        self.count, self.time = 1, 0
        self.held = 0


class Machine(RuleBasedStateMachine):
    """Vectors, bindings, arming and masks of an adapter in random order, and the model beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(record=False)
        self.lab.adapter(limits=LIMITS), self.lab.adapter()
        here, there = self.lab.pair()
        self.ctx = here.ctx
        self.writes = recorded(here.ctx)
        self.ids = list(here.ctx.set_completion_handler(*[print] * HANDLERS))
        self.boxes = [inbox(here, there, None, 128, max_recv_wr=4) for _ in range(QUEUES)]
        self.models = {i: Model() for i in self.ids}
        self.bound: dict[int, int | None] = dict.fromkeys(range(QUEUES))
        self.armed = dict.fromkeys(range(QUEUES), 0)
        self.entries = dict.fromkeys(range(QUEUES), 0)
        self.function_masked = False
        self.due: list[int] = []

    def message(self, handler: int) -> None:
        model = self.models[handler]
        model.held = 0
        if model.masked or self.function_masked:
            model.pending = True
        else:
            self.due.append(handler)

    def interrupt(self, handler: int) -> None:
        model = self.models[handler]
        if model.time:
            model.held += 1
            if model.held < model.count:
                return
        self.message(handler)

    @rule(queue=st.integers(0, QUEUES - 1), solicited=st.booleans())
    def entry(self, queue: int, solicited: bool) -> None:
        if self.entries[queue] >= 100:
            return
        self.boxes[queue].send(solicited=solicited)
        self.lab.net.run_for(10_000)
        self.entries[queue] += 1
        asked = self.armed[queue] == Notify.ANY or (self.armed[queue] == Notify.SOLICITED and solicited)
        handler = self.bound[queue]
        if handler is None:
            if asked:
                self.armed[queue] = 0
                assert self.boxes[queue].cq.get_event(0)
            return
        if not (asked or solicited):
            return
        if asked:
            self.armed[queue] = 0
        model = self.models[handler]
        if queue in model.line:
            if model.held:
                self.interrupt(handler)
            return
        model.line.append(queue)
        self.interrupt(handler)

    @rule(queue=st.integers(0, QUEUES - 1), kind=st.sampled_from(Notify))
    def arm(self, queue: int, kind: Notify) -> None:
        self.boxes[queue].cq.req_notify(kind=kind)
        self.armed[queue] = max(self.armed[queue], kind)

    @rule(queue=st.integers(0, QUEUES - 1), handler=st.none() | st.integers(0, HANDLERS - 1))
    def bind(self, queue: int, handler: int | None) -> None:
        new = None if handler is None else self.ids[handler]
        self.ctx.modify_cq(self.boxes[queue].cq, handler=new)
        old, self.bound[queue] = self.bound[queue], new
        if old == new:
            return
        if new is None:
            self.armed[queue] = 0
        if old is not None and queue in self.models[old].line:
            self.models[old].line.remove(queue)
            if new is not None:
                self.models[new].line.append(queue)
                self.interrupt(new)

    @rule(queue=st.integers(0, QUEUES - 1), depth=st.integers(1, 128))
    def resize(self, queue: int, depth: int) -> None:
        cq = self.boxes[queue].cq
        if depth < self.entries[queue]:
            with pytest.raises(InvalidAttributeError, match="poll them first"):
                self.ctx.modify_cq(cq, depth=depth)
        else:
            self.ctx.modify_cq(cq, depth=depth)
            self.ctx.modify_cq(cq, depth=128)

    @rule(queue=st.integers(0, QUEUES - 1))
    def poll(self, queue: int) -> None:
        assert len(self.boxes[queue].cq.poll(1000)) == self.entries[queue]
        self.entries[queue] = 0

    @rule(handler=st.integers(0, HANDLERS - 1))
    def take(self, handler: int) -> None:
        identifier = self.ids[handler]
        event = self.ctx.adapter.handlers.take(self.ctx.adapter.handlers.find(identifier))
        line = self.models[identifier].line
        if not line:
            assert event is None
        else:
            assert event is not None
            assert event.cq == self.boxes[line.pop(0)].cq.index

    @rule(handler=st.integers(0, HANDLERS - 1), masked=st.booleans())
    def mask(self, handler: int, masked: bool) -> None:
        view, model = self.ctx.completion_handler(self.ids[handler]), self.models[self.ids[handler]]
        view.mask() if masked else view.unmask()
        model.masked = masked
        if not masked and model.pending and not self.function_masked:
            model.pending = False
            self.message(self.ids[handler])

    @rule(masked=st.booleans())
    def mask_all(self, masked: bool) -> None:
        self.ctx.mask_interrupts(masked)
        self.function_masked = masked
        for identifier, model in self.models.items():
            if not masked and model.pending and not model.masked:
                model.pending = False
                self.message(identifier)

    @rule(handler=st.integers(0, HANDLERS - 1), count=st.integers(1, 3), time=st.sampled_from([0, 10**9]))
    def moderate(self, handler: int, count: int, time: int) -> None:
        if count > 1 and not time:
            return
        model = self.models[self.ids[handler]]
        self.ctx.completion_handler(self.ids[handler]).moderate(count, time)
        model.count, model.time = count, time
        if model.held:
            self.message(self.ids[handler])

    @precondition(lambda self: any(model.held for model in self.models.values()))
    @rule()
    def wait(self) -> None:
        """Moderation's time is over for all."""
        self.lab.net.run_for(10**9)
        held = [identifier for identifier, model in self.models.items() if model.held]
        for identifier in held:
            self.message(identifier)
        made = sorted(data for _, data in self.writes.take())
        assert made == sorted(self.due)
        self.due.clear()

    @invariant()
    def same(self) -> None:
        assert [data for _, data in self.writes.take()] == self.due
        self.due.clear()
        for identifier, model in self.models.items():
            vector = self.ctx.completion_handler(identifier).vector
            assert (vector.masked, vector.pending) == (model.masked, model.pending)
            assert (vector.waiting, vector.held) == (len(model.line), model.held)
            assert vector.events - vector.merged == vector.taken + vector.discarded + vector.waiting
        for queue, box in enumerate(self.boxes):
            assert box.cq.handler == self.bound[queue]
            assert len(box.cq) == self.entries[queue]


TestVectors = Machine.TestCase
TestVectors.settings = settings(
    max_examples=40 if _pure.compiled() else 12, stateful_step_count=40, deadline=None
)
TestVectors = pytest.mark.requirement("CQN-08", "CQN-12", "CQN-16", "CQN-23")(TestVectors)


# --- run queues -----------------------------------------------------------------------------------------------------


class Member:
    def __init__(self, name: int, priority: int, share: int = 1) -> None:
        self.name, self.priority, self.share = name, priority, share


@pytest.mark.requirement("CQN-22")
@given(
    priorities=st.lists(st.integers(0, 7), min_size=2, max_size=8),
    most=st.integers(1, 20),
    data=st.data(),
)
@settings(max_examples=60)
def test_nobody_starves(priorities: list[int], most: int, data: Any) -> None:
    """Whoever is ready all the time is picked after at most `most` + n - 1 picks of others."""
    queue = RunQueue(most)
    members = [Member(i, p) for i, p in enumerate(priorities)]
    patient = members[data.draw(st.integers(0, len(members) - 1))]
    random = Random(data.draw(st.integers()))
    since = 0
    for _ in range(300):
        ready = [m for m in members if m is patient or random.random() < 0.9]
        chosen = queue.pick(ready)
        assert chosen is not None
        queue.charge(chosen, random.randrange(1, 10_000))
        since = 0 if chosen is patient else since + 1
        assert since <= most + len(members) - 1


@pytest.mark.requirement("CQN-22")
def test_the_higher_class_goes_first_and_shares_divide_a_class() -> None:
    low, high = Member(0, 0), Member(1, 5)
    queue = RunQueue(most_passed=10)
    picks = [queue.pick([low, high]) for _ in range(110)]
    assert picks[:10] == [high] * 10
    assert picks.count(low) == 10, "one of eleven"
    assert queue.pick([]) is None
    one, three = Member(0, 2, 1), Member(1, 2, 3)
    queue = RunQueue(most_passed=100)
    had = {one: 0, three: 0}
    for _ in range(4_000):
        chosen = queue.pick([one, three])
        assert chosen is not None
        queue.charge(chosen, 100)
        had[chosen] += 1
    assert had[three] / had[one] == pytest.approx(3, rel=0.02)


def test_who_was_away_has_no_claim() -> None:
    queue = RunQueue(most_passed=1_000)
    busy, late = Member(0, 0), Member(1, 0)
    queue.charge(late, 1)
    for _ in range(1_000):
        assert queue.pick([busy]) is busy
        queue.charge(busy, 100)
    picks = []
    for _ in range(100):
        chosen = queue.pick([busy, late])
        assert chosen is not None
        queue.charge(chosen, 100)
        picks.append(chosen)
    assert 45 <= picks.count(late) <= 55


# --- figures ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=300), st.floats(0, 100))
def test_percentiles_are_right_within_six_per_cent(values: list[int], percent: float) -> None:
    found = Latencies()
    for value in values:
        found.add(value)
    exact = sorted(values)[max(1, -int(-len(values) * percent // 100)) - 1]
    answer = found.percentile(percent)
    assert answer is not None
    assert exact <= answer <= exact * 17 / 16 + 1
    assert found.mean_ns == sum(values) / len(values)
    assert Latencies().percentile(50) is None


def test_vectors_run_out_and_come_back() -> None:
    lab = Lab()
    ctx = lab.adapter(limits=LIMITS)
    ids = ctx.set_completion_handler(*[print] * HANDLERS)
    ctx.set_completion_handler(None, id=ids[1])
    (again,) = ctx.set_completion_handler(repr)
    assert again not in ids, "an identifier is not used again"
    vectors = [ctx.completion_handler(i).vector.data for i in (ids[0], again, ids[2])]
    assert len(set(vectors)) == 3
    with pytest.raises(InvalidAttributeError, match="not registered"):
        ctx.completion_handler(ids[1])
    with pytest.raises(InvalidStateError, match="by_descriptor"):
        ctx.completion_handler(again).fileno()
