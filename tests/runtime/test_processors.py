"""Simulated processors: run queues, what interrupts cost, what moving data between caches costs, who holds up whom."""

from __future__ import annotations

import os
from random import Random
from typing import Any

import pytest

from handlers_lab import Inbox, inbox, taker
from lab import Lab, write
from verbena import (
    AsyncEventType,
    CompletionQueue,
    InvalidAttributeError,
    ProcessorCosts,
    Processors,
    QPState,
    QPType,
    SystemLimitError,
    _pure,
)
from verbena.fabric.topology import Topology
from verbena.runtime.fabric import Fabric
from verbena.runtime.pairs import connect_sides, make_side
from verbena.runtime.processors import TYPICAL
from verbena.scenario.handler_study import StudyOptions, measure

MESSAGES = 1_600 if _pure.compiled() else 400
ROUNDS = int(os.environ.get("VERBENA_RACE_ROUNDS", 100_000 if _pure.compiled() else 5_000))


def host(costs: ProcessorCosts | None = None, number: int = 8, **options: Any) -> tuple[Lab, Processors]:
    """An adapter on a host of so many processors, and a peer."""
    lab = Lab(record=False)
    processors = Processors(lab.net.clock, number, costs, **options)
    lab.adapter(processors=processors)
    lab.adapter()
    return lab, processors


def boxes_on(lab: Lab, *handlers: Any, **options: Any) -> list[Inbox]:
    """A bound and armed queue for each handler, given as (function, processor, priority)."""
    here, there = lab.pair()
    made = []
    for function, processor, priority in handlers:
        (identifier,) = here.ctx.set_completion_handler(
            function, processor=processor, priority=priority, **options
        )
        made.append(inbox(here, there, identifier))
        made[-1].cq.req_notify()
    return made


# --- which processor ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-19", "CQN-20")
def test_each_handler_runs_on_its_processor() -> None:
    """Two on two processors, then both on one, which tells them apart by their identifiers (paragraph 34)."""
    lab, processors = host()
    log: list[Any] = []
    boxes = boxes_on(lab, (taker(log), 2, 0), (taker(log), 5, 0))
    for box in boxes * 3:
        box.send()
        lab.settle()
    calls = {number: p.figures.calls for number, p in processors.processors.items()}
    assert calls == {2: 3, 5: 3}
    ctx = boxes[0].here.ctx
    ctx.completion_handler(boxes[1].cq.handler).move(2)
    for box in boxes * 3:
        box.send()
        lab.settle()
    assert {number: p.figures.calls for number, p in processors.processors.items()} == {2: 9, 5: 3}
    assert {(identifier, cq) for identifier, cq, _ in log} == {(b.cq.handler, b.cq) for b in boxes}
    with pytest.raises(SystemLimitError, match="the host has 0 to 7"):
        ctx.completion_handler(boxes[1].cq.handler).move(8)
    with pytest.raises(SystemLimitError, match="the host has 0 to 7"):
        ctx.set_completion_handler(print, processor=8)
    boxes[1].send()
    lab.settle()
    assert processors.processors[2].figures.calls == 10, "after a refused move, it is where it was"


def test_a_handler_that_is_moved_while_it_runs_loses_nothing() -> None:
    lab, processors = host(ProcessorCosts(dispatch_ns=1_000))
    log: list[int] = []
    moves = iter([6, 2] * 50)

    def handler(cq: CompletionQueue) -> None:
        cq.req_notify()
        log.extend(e.wr_id for e in cq.poll(100))
        box.here.ctx.work(50_000)
        box.here.ctx.completion_handler(cq.handler).move(next(moves))

    (box,) = boxes_on(lab, (handler, 2, 0))
    for i in range(40):
        box.send(i)
        lab.net.run_for(20_000)
    lab.settle()
    assert len(log) == 40
    assert processors.processors[2].figures.calls > 0 < processors.processors[6].figures.calls


# --- costs --------------------------------------------------------------------------------------------------------


def test_an_interrupt_a_call_and_its_entries_cost_what_was_said() -> None:
    costs = ProcessorCosts(interrupt_ns=1_500, dispatch_ns=400, entry_ns=150)
    lab, processors = host(costs)
    called: list[int] = []
    finished: list[tuple[int, int]] = []

    def handler(cq: CompletionQueue) -> None:
        called.append(lab.net.now)
        cq.req_notify()
        cq.poll()

    (box,) = boxes_on(lab, (handler, 1, 0))
    processors.finished = lambda table, record, cq, entries, when: finished.append((entries, when))
    box.send()
    lab.settle()
    event = box.cq.event
    assert event is not None
    assert called == [event.raised_ns + 1_500 + 400]
    assert finished == [(1, called[0] + 150)]
    figures = processors.processors[1].figures
    assert (figures.interrupts, figures.calls, figures.entries, figures.busy_ns) == (1, 1, 1, 2_050)


def test_an_interrupt_steals_time_from_what_is_running() -> None:
    costs = ProcessorCosts(interrupt_ns=3_000)
    lab, processors = host(costs)
    called: list[int] = []

    def handler(cq: CompletionQueue) -> None:
        called.append(lab.net.now)
        cq.req_notify()
        cq.poll()
        box.here.ctx.work(100_000)

    (box,) = boxes_on(lab, (handler, 1, 0))
    box.send()
    lab.net.run_for(50_000)
    box.send()
    lab.settle()
    assert called[1] - called[0] == 100_000 + 3_000
    assert processors.processors[1].figures.busy_ns == 2 * 103_000


def test_only_handlers_work() -> None:
    lab, _ = host()
    ctx = lab.contexts[0]
    with pytest.raises(InvalidAttributeError, match="only handlers work"):
        ctx.work(10)
    for wrong in (-1, 1.5, "1"):
        with pytest.raises(InvalidAttributeError, match="nanoseconds"):
            ctx.work(wrong)


@pytest.mark.parametrize("consumer,lines", [(None, 0), (3, 0), (4, 8)])
def test_what_a_consumer_elsewhere_costs(consumer: int | None, lines: int) -> None:
    """Two entries of four lines each move to the consumer's processor; none, if that is the handler's."""
    costs = ProcessorCosts(snoop_ns=60, invalidate_ns=50, transfer_ns=20, lines=4)
    lab, processors = host(costs)
    (box,) = boxes_on(lab, (taker([]), 3, 0))
    box.here.ctx.modify_cq(box.cq, processor=consumer)
    for _ in range(2):
        box.send()
        lab.settle()
    figures = processors.processors[3].figures
    assert figures.moved_lines == lines
    assert figures.coherency_ns == lines * 130


def test_a_queue_that_changes_processors_is_fetched_from_the_other_s_cache() -> None:
    lab, processors = host(ProcessorCosts(snoop_ns=60, invalidate_ns=50, transfer_ns=20))
    (box,) = boxes_on(lab, (taker([]), 0, 0))
    handler = box.here.ctx.completion_handler(box.cq.handler)
    for processor in (0, 1, 1, 0):
        handler.move(processor)
        box.send()
        lab.settle()
    moved = {number: p.figures.moved_lines for number, p in processors.processors.items()}
    assert moved == {0: 1, 1: 1}


def test_the_bus_is_one_for_all() -> None:
    """Four processors that move lines at the same time wait for one another (data sloshing)."""
    costs = ProcessorCosts(transfer_ns=1_000, lines=8)
    lab, processors = host(costs)
    boxes = boxes_on(lab, *[(taker([]), i, 0) for i in range(4)])
    for i, box in enumerate(boxes):
        box.here.ctx.modify_cq(box.cq, processor=i + 4)
        box.expect()
    for box in boxes:
        box.send(expected=True)
    lab.settle()
    waits = sorted(p.figures.bus_wait_ns for p in processors.processors.values())
    assert waits[0] == 0
    assert waits[3] > 20_000, "the last one waited for three others, of 8 lines each"


@pytest.mark.requirement("CQN-20")
def test_throughput_scales_until_processors_run_out() -> None:
    options = StudyOptions(messages=MESSAGES)
    results = {n: measure(n, options) for n in (1, 2, 8, 16)}
    assert results[1].busiest > 0.95, "the bottleneck: one processor works all the time"
    assert results[1].busy < 0.2, "and the others do nothing"
    assert results[2].throughput > 1.8 * results[1].throughput
    assert results[8].throughput > 6 * results[1].throughput
    assert results[16].throughput < 1.1 * results[8].throughput, "processors have run out"
    assert results[8].moved_lines == 0 < results[1].moved_lines
    assert results[8].p99_ns < results[1].p99_ns
    assert measure(2, options) == results[2], "the same each time"


def test_without_the_cost_of_moving_one_handler_is_only_slowed_by_its_processor() -> None:
    """The control: what eight handlers gain beyond eightfold is what was not moved."""
    free = ProcessorCosts(interrupt_ns=1_500, dispatch_ns=400, entry_ns=150)
    options = {"messages": MESSAGES}
    gain = measure(8, StudyOptions(**options)).throughput / measure(1, StudyOptions(**options)).throughput
    without = (
        measure(8, StudyOptions(costs=free, **options)).throughput
        / measure(1, StudyOptions(costs=free, **options)).throughput
    )
    assert without <= 8.05 < gain


def test_a_host_has_processors() -> None:
    lab = Lab()
    for wrong in (0, 256):
        with pytest.raises(InvalidAttributeError, match="1 to 255 processors"):
            Processors(lab.net.clock, wrong)
    with pytest.raises(InvalidAttributeError, match="1 or more"):
        measure(0)


# --- classes of service -------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-22", "CQN-25")
def test_priorities_under_overload() -> None:
    """Bulk handlers get more than their processor can do; the low-latency one waits for one call at most, and they go
    on all the same."""
    lab, processors = host(TYPICAL, number=1)
    ctx = lab.contexts[0]
    order: list[int] = []

    def bulk(cq: CompletionQueue) -> None:
        order.append(cq.handler or 0)
        cq.req_notify()
        cq.poll(100)
        ctx.work(40_000)

    def quick(cq: CompletionQueue) -> None:
        order.append(cq.handler or 0)
        cq.req_notify()
        cq.poll(100)

    boxes = boxes_on(lab, (quick, 0, 7), (bulk, 0, 0), (bulk, 0, 0))
    for _ in range(200):
        for box in boxes:
            box.send()
        lab.net.run_for(20_000)
    lab.settle()
    low = [ctx.completion_handler(box.cq.handler).figures for box in boxes[1:]]
    high = ctx.completion_handler(boxes[0].cq.handler).figures
    assert (high.waits.percentile(100) or 0) < 60_000, "one call of a bulk handler, and its own"
    assert min(f.calls for f in low) > 20, "nobody starves"
    assert all((f.waits.percentile(50) or 0) > 35_000 for f in low), "it was an overload"
    assert processors.processors[0].figures.busy_ns > 200 * 20_000 * 0.9
    assert len(boxes[0].cq) == len(boxes[1].cq) == 0


@pytest.mark.requirement("CQN-22")
def test_a_flood_of_the_higher_class_does_not_starve_the_lower_one() -> None:
    lab, _ = host(number=1)
    ctx = lab.contexts[0]
    order: list[int] = []

    def busy(cq: CompletionQueue) -> None:
        order.append(cq.handler or 0)
        cq.req_notify()
        cq.poll(100)
        ctx.work(10_000)

    flood, other, low = boxes = boxes_on(lab, (busy, 0, 7), (busy, 0, 7), (busy, 0, 0))
    for _ in range(300):
        flood.send(solicited=True)
        other.send(solicited=True)
        lab.net.run_for(5_000)
        if len(order) == 20:
            low.send(solicited=True)
    lab.settle()
    at = order.index(low.cq.handler)
    assert order[at - 1] != low.cq.handler
    assert at <= 20 + 16 + len(boxes), "after at most 16 + n - 1 calls of others"


@pytest.mark.requirement("CQN-22")
def test_a_handler_that_leaves_entries_is_called_again_after_others() -> None:
    lab, _ = host(number=1)
    ctx = lab.contexts[0]
    order: list[int] = []

    def one_by_one(cq: CompletionQueue) -> object:
        order.append(cq.handler or 0)
        cq.req_notify()
        taken = cq.poll(1)
        ctx.work(1_000)
        return True if taken else None

    boxes = boxes_on(lab, (one_by_one, 0, 0), (one_by_one, 0, 0))
    ids = [box.cq.handler for box in boxes]
    ctx.mask_interrupts()
    for box in boxes:
        for _ in range(10):
            box.send()
    lab.settle()
    assert order == []
    ctx.mask_interrupts(False)
    lab.settle()
    assert order == ids * 10, "in turns, with one interrupt each"
    assert [ctx.completion_handler(i).vector.interrupts for i in ids] == [1, 1]
    assert len(boxes[0].cq) == len(boxes[1].cq) == 0
    box = boxes[0]
    for _ in range(3):
        box.expect()
    ctx.completion_handler(ids[0]).mask()
    box.send(expected=True)
    box.send(expected=True)
    lab.settle()
    assert len(order) == 20, "masked in the middle of it: the rest waits for the unmasking"
    ctx.completion_handler(ids[0]).unmask()
    lab.settle()
    assert order[20:] == [ids[0]] * 2


# --- who holds up whom ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-25")
@pytest.mark.parametrize("misdeed", ["slow", "raises", "for ever"])
def test_a_bad_handler_holds_up_nobody(misdeed: str) -> None:
    """On a processor of its own not at all; on the same one for its patience at most.  What it did is reported."""
    lab, _ = host(TYPICAL, patience_ns=1_000_000)
    ctx = lab.contexts[0]
    good: list[Any] = []

    def bad(cq: CompletionQueue) -> None:
        cq.req_notify()
        cq.poll()
        if misdeed == "raises":
            raise ValueError("mine")
        ctx.work(500_000 if misdeed == "slow" else 10**12)

    boxes = boxes_on(lab, (bad, 0, 0), (taker(good), 1, 0), (taker(good), 0, 0))
    for _ in range(20):
        for box in boxes:
            box.send()
        lab.net.run_for(1_000_000)
    lab.net.run_for(1_000_000)
    apart, beside = (ctx.completion_handler(box.cq.handler).figures for box in boxes[1:])
    assert apart.calls == 20
    assert beside.calls >= 19, "of one call's events, the second came before the first was taken"
    assert sum(len(found) for _, _, found in good) == 40
    assert (apart.waits.percentile(100) or 0) < 10_000
    assert (beside.waits.percentile(100) or 0) < 1_100_000
    figures = ctx.completion_handler(boxes[0].cq.handler).figures
    kinds = [event.type for event in iter(lambda: ctx.get_async_event(0), None)]
    if misdeed == "raises":
        assert figures.failures == figures.calls == 20
        assert kinds == [AsyncEventType.HANDLER_ERR] * 20
    elif misdeed == "for ever":
        assert (figures.calls, figures.stuck) == (1, 1)
        assert kinds == [AsyncEventType.HANDLER_STUCK]
    else:
        assert figures.calls > 10
        assert kinds == []
    assert len(boxes[1].cq) == len(boxes[2].cq) == 0


def test_a_stuck_handler_that_comes_back_finds_what_came() -> None:
    lab, _ = host(patience_ns=1_000)
    ctx = lab.contexts[0]
    found: list[int] = []

    def handler(cq: CompletionQueue) -> None:
        cq.req_notify()
        found.append(len(cq.poll(100)))
        ctx.work(1_000_000 if len(found) == 1 else 0)

    (box,) = boxes_on(lab, (handler, 0, 0))
    for _ in range(5):
        box.send()
        lab.net.run_for(10_000)
    assert found == [1]
    lab.settle()
    assert sum(found) == 5


# --- arming against arrivals ----------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-08", "CQN-21")
@pytest.mark.parametrize("costs", [None, TYPICAL])
def test_arming_races_with_arrivals(costs: ProcessorCosts | None) -> None:
    """Entries come at every moment of a handler's call: before, between and after asking and polling, while its queue
    changes handlers, and while vectors are masked and unmasked.  Each is found; nothing is left when all is quiet."""
    lab, _ = host(costs, number=2)
    random = Random(7)
    here, there = lab.pair()
    ctx = here.ctx
    polled = arrived = 0

    def arrive() -> None:
        """An entry at this very moment: a request that is flushed at once."""
        nonlocal arrived
        arrived += 1
        qp.post_send(request)

    def handler(cq: CompletionQueue) -> None:
        nonlocal polled
        for step in (lambda: None, cq.req_notify, lambda: None):
            step()
            while random.random() < 0.4 and arrived < ROUNDS:
                arrive()
        polled += len(cq.poll(random.choice((1, 64, 512))))
        while len(cq):
            polled += len(cq.poll(512))

    ids = ctx.set_completion_handler(handler, handler, processor=0)
    cq = ctx.create_cq(512, handler=ids[0])
    qp, far = here.pd.create_qp(QPType.RC, cq, max_send_wr=64), there.pd.create_qp(QPType.RC, there.cq)
    ends = qp.endpoint, far.endpoint
    qp.connect(ends[1])
    far.connect(ends[0])
    qp.modify(QPState.ERR)
    request = write(here, there, 8)
    cq.req_notify()
    while arrived < ROUNDS:
        what = random.random()
        if what < 0.02:
            ctx.modify_cq(cq, handler=random.choice(ids), depth=random.choice((256, 512)))
        elif what < 0.04:
            ctx.completion_handler(random.choice(ids)).mask()
        elif what < 0.08:
            for one in ids:
                ctx.completion_handler(one).unmask()
        elif what < 0.09:
            ctx.completion_handler(random.choice(ids)).move(random.randrange(2))
        elif len(cq) < 100:
            arrive()
        if costs is not None:
            lab.net.run_for(random.randrange(3_000))
    for one in ids:
        ctx.completion_handler(one).unmask()
    lab.settle()
    assert polled == arrived == ROUNDS
    assert len(cq) == 0
    vectors = [ctx.completion_handler(one).vector for one in ids]
    assert sum(v.events - v.merged for v in vectors) == sum(v.taken for v in vectors)
    assert all(v.discarded == v.waiting == 0 for v in vectors)


# --- simulated fabrics ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-20")
def test_hosts_of_simulated_fabrics_have_processors_too() -> None:
    topology = Topology()
    topology.add_switch("switch", 2)
    for name in ("one", "two"):
        topology.add_host(name)
        topology.connect(name, "switch")
    fabric = Fabric(topology)
    processors = Processors(fabric.clock, 4, TYPICAL)
    here = make_side(fabric.open_device("one", processors=processors), QPType.RC)
    there = make_side(fabric.open_device("two"), QPType.RC)
    connect_sides(here, there)
    log: list[Any] = []
    ids = here.ctx.set_completion_handler(taker(log), taker(log), processor=3)
    boxes = [inbox(here, there, identifier) for identifier in ids]
    here.ctx.completion_handler(ids[0]).mask()
    for box in boxes:
        box.cq.req_notify()
        for i in range(5):
            box.send(i, solicited=i == 4)
    fabric.run_for(2_000_000)
    assert {identifier for identifier, _, _ in log} == {ids[1]}, "the other's vector is masked"
    here.ctx.completion_handler(ids[0]).unmask()
    fabric.run_for(1_000_000)
    assert sorted(sum(len(f) for i, _, f in log if i == identifier) for identifier in ids) == [5, 5]
    assert processors.processors[3].figures.entries == 10
    assert here.ctx.shutdown(0.01)
