"""Completion handlers as programs see them: registration, binding, resources, default queues."""

from __future__ import annotations

from typing import Any

import pytest

from handlers_lab import inbox, recorded, taker
from lab import Lab, take, write
from verbena import (
    AsyncEventType,
    CompletionQueue,
    DeviceAttributes,
    HandlerResources,
    InvalidAttributeError,
    InvalidStateError,
    ProcessorCosts,
    Processors,
    QPType,
    ResourceError,
    SystemLimitError,
)
from verbena.adapter.handlers import ENTRY_BYTES, EVENT_BYTES


def small(**limits: Any) -> DeviceAttributes:
    return DeviceAttributes(max_qp=64, max_cq=64, **limits)


# --- registration -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-04")
@pytest.mark.parametrize("number", [1, 2, 2_048])
def test_an_adapter_has_as_many_as_it_says(number: int) -> None:
    ctx = Lab().adapter(limits=small(completion_handlers=number))
    assert ctx.query_adapter().completion_handlers == number
    ids = ctx.set_completion_handler(*[print] * number)
    assert len(set(ids)) == number
    with pytest.raises(ResourceError, match=f"the adapter has {number}"):
        ctx.set_completion_handler(print)
    assert len(ctx.completion_handlers) == number, "the earlier ones stay"


@pytest.mark.requirement("CQN-04")
@pytest.mark.parametrize("number", [0, -1, 2_049, "2"])
def test_an_adapter_has_one_at_least(number: Any) -> None:
    with pytest.raises(InvalidAttributeError, match="completion_handlers"):
        Lab().adapter(limits=small(completion_handlers=number))


@pytest.mark.requirement("CQN-05")
def test_replacing_and_removing() -> None:
    lab = Lab()
    here, there = lab.pair()
    old: list[Any] = []
    new: list[Any] = []
    (identifier,) = here.ctx.set_completion_handler(taker(old))
    box = inbox(here, there, identifier)
    box.send(solicited=True)
    lab.settle()
    assert here.ctx.set_completion_handler(taker(new), id=identifier) == (identifier,)
    box.send(solicited=True)
    lab.settle()
    assert (len(old), len(new)) == (1, 1)
    with pytest.raises(InvalidStateError, match="1 completion queues are bound"):
        here.ctx.set_completion_handler(None, id=identifier)
    here.ctx.modify_cq(box.cq, handler=None)
    assert here.ctx.set_completion_handler(None, id=identifier) == ()
    for call in (
        lambda: here.ctx.set_completion_handler(None, id=identifier),
        lambda: here.ctx.set_completion_handler(print, id=identifier),
        lambda: here.ctx.set_completion_handler(print, id=True),
    ):
        with pytest.raises(InvalidAttributeError, match="is not registered"):
            call()
    for wrong in ((None,), (print, None), ()):
        with pytest.raises(InvalidAttributeError, match="callables"):
            here.ctx.set_completion_handler(*wrong)
    with pytest.raises(InvalidAttributeError, match="one callable"):
        here.ctx.set_completion_handler(print, print, id=1)


def test_all_of_one_call_or_none() -> None:
    """The second of three finds no memory: the first is not left behind."""
    ctx = Lab().adapter(limits=small(handler_memory=3 * ENTRY_BYTES * 100))
    resources = HandlerResources(entries=200)
    with pytest.raises(ResourceError, match="bytes for a completion handler"):
        ctx.set_completion_handler(print, print, print, resources=resources)
    assert ctx.completion_handlers == ()
    (one,) = ctx.set_completion_handler(print, resources=resources)
    assert ctx.completion_handler(one).memory.base == 0


@pytest.mark.parametrize("wrong", [{"priority": 8}, {"priority": -1}, {"processor": 255}, {"priority": True}])
def test_classes_and_processors_that_are_none(wrong: dict[str, Any]) -> None:
    ctx = Lab().adapter(limits=small())
    with pytest.raises(InvalidAttributeError):
        ctx.set_completion_handler(print, **wrong)
    assert ctx.completion_handlers == ()


# --- binding ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-07")
def test_binding_to_an_unknown_handler_makes_no_queue() -> None:
    lab = Lab()
    ctx = lab.adapter(limits=small())
    (identifier,) = ctx.set_completion_handler(print)
    before = len(ctx._objects)
    for wrong in (identifier + 1, 0, -1, "1", True):
        with pytest.raises(InvalidAttributeError, match="is not registered"):
            ctx.create_cq(8, wrong)
    assert len(ctx._objects) == before
    cq = ctx.create_cq(8, identifier)
    assert cq.index == 0, "no number was used up"
    assert ctx.completion_handler(identifier).queues == (cq,)
    cq.close()
    assert ctx.completion_handler(identifier).queues == ()


@pytest.mark.requirement("CQN-08")
def test_rebinding_in_mid_stream_each_event_reaches_one() -> None:
    lab = Lab()
    here, there = lab.pair()
    log: list[Any] = []
    first, second = here.ctx.set_completion_handler(taker(log), taker(log))
    box = inbox(here, there, first)
    box.cq.req_notify()
    for i in range(400):
        box.expect()
        box.far.post_send(box.request(i, solicited=i % 3 == 0))
        if i % 7 == 0:
            here.ctx.modify_cq(box.cq, handler=second if i % 2 else first)
        lab.net.run_for(500 * (i % 5))
    lab.settle()
    assert sum(len(found) for _, _, found in log) == 400, "every entry was found by a handler"
    figures = [here.ctx.completion_handler(i) for i in (first, second)]
    for view in figures:
        vector = view.vector
        assert vector.events - vector.merged == vector.taken == view.figures.calls
        assert vector.discarded == 0
        assert view.figures.calls == sum(1 for identifier, _, _ in log if identifier == view.identifier) > 20


@pytest.mark.requirement("CQN-08")
def test_an_event_that_waits_goes_to_the_new_handler() -> None:
    lab = Lab()
    here, there = lab.pair()
    writes = recorded(here.ctx)
    first, second = here.ctx.set_completion_handler(print, print)
    box = inbox(here, there, first)
    box.send(solicited=True)
    lab.settle()
    writes.take()
    with pytest.raises(InvalidAttributeError, match="99 is not registered"):
        here.ctx.modify_cq(box.cq, handler=99)
    assert box.cq.handler == first
    here.ctx.modify_cq(box.cq, handler=second)
    assert [data for _, data in writes.take()] == [second]
    table = here.ctx.adapter.handlers
    assert table.take(table.find(first)) is None
    event = table.take(table.find(second))
    assert event is not None
    assert event.handler == second
    assert table.take(table.find(second)) is None, "announced once"


@pytest.mark.requirement("CQN-08")
def test_after_removal_entries_arrive_without_events() -> None:
    lab = Lab()
    here, there = lab.pair()
    log: list[Any] = []
    (identifier,) = here.ctx.set_completion_handler(taker(log))
    box = inbox(here, there, identifier)
    box.cq.req_notify()
    here.ctx.modify_cq(box.cq, handler=None)
    for solicited in (False, True):
        box.send(solicited=solicited)
        lab.settle()
    assert log == []
    assert len(box.cq) == 2
    assert not box.cq.get_event(0), "what was asked for was a call of the handler"
    box.cq.req_notify()
    box.send()
    assert box.cq.get_event(1)
    here.ctx.modify_cq(box.cq, handler=identifier)
    with pytest.raises(InvalidStateError, match=f"go to completion handler {identifier}"):
        box.cq.get_event(0)
    with pytest.raises(InvalidStateError, match=f"go to completion handler {identifier}"):
        box.cq.fileno()
    box.send(solicited=True)
    lab.settle()
    assert [len(found) for _, _, found in log] == [4]


def test_awaiting_a_bound_queue_takes_no_event() -> None:
    lab = Lab()
    here, there = lab.pair()
    log: list[Any] = []
    (identifier,) = here.ctx.set_completion_handler(taker(log, again=False))
    box = inbox(here, there, identifier)

    async def program() -> int:
        box.send()
        return len(await box.cq)

    assert lab.net.run(program()) == 1
    assert log == []
    box.cq.req_notify()
    box.send()
    lab.settle()
    assert len(log) == 1


# --- resizing -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-03", "CQN-08")
def test_resizing_keeps_entries_in_order() -> None:
    lab = Lab()
    here, there = lab.pair()
    box = inbox(here, there, None, depth=10)
    wanted = []
    found = []
    number = 0
    for step in range(60):
        for _ in range(step % 4):
            box.expect()
            box.far.post_send(box.request(number))
            number += 1
        lab.settle()
        wanted = len(box.cq)
        depth = 1 + (step * 7) % 23
        if depth < wanted:
            with pytest.raises(InvalidAttributeError, match=f"{wanted} entries wait"):
                here.ctx.modify_cq(box.cq, depth=depth)
        else:
            here.ctx.modify_cq(box.cq, depth=depth)
            assert box.cq.depth == depth
        assert len(box.cq) == wanted
        found += take(box.cq, wanted)
        here.ctx.modify_cq(box.cq, depth=max(4, box.cq.depth))
    assert len(found) == number
    assert not box.cq.overrun
    for wrong in (0, -1, "8", 1 << 40):
        with pytest.raises(InvalidAttributeError, match="this adapter takes"):
            here.ctx.modify_cq(box.cq, depth=wrong)
    with pytest.raises(InvalidAttributeError, match="colour: a queue has"):
        here.ctx.modify_cq(box.cq, colour=1)


def test_a_resized_queue_is_as_deep_as_it_says() -> None:
    lab = Lab()
    a, b = lab.pair()
    cq = a.ctx.create_cq(2)
    qp, far = a.pd.create_qp(QPType.RC, cq), b.pd.create_qp(QPType.RC, b.cq)
    there, here = far.endpoint, qp.endpoint
    qp.connect(there)
    far.connect(here)
    a.ctx.modify_cq(cq, depth=5)
    for i in range(5):
        qp.post_send(write(a, b, 8, i))
    lab.settle()
    assert not cq.overrun
    assert len(cq) == 5
    qp.post_send(write(a, b, 8, 6))
    lab.settle()
    assert cq.overrun
    assert [e.wr_id for e in cq.poll()] == [0, 1, 2, 3, 4]


# --- default queues -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-09")
def test_completion_queues_that_come_with_the_adapter() -> None:
    lab = Lab()
    ctx = lab.adapter(limits=small(default_cqs=2, default_cq_depth=7))
    assert [cq.depth for cq in ctx.default_cqs] == [7, 7]
    qp = ctx.alloc_pd().create_qp(QPType.RC, ctx.default_cqs[0], ctx.default_cqs[1])
    assert qp.send_cq is ctx.default_cqs[0]
    (identifier,) = ctx.set_completion_handler(print)
    ctx.modify_cq(ctx.default_cqs[0], handler=identifier)
    assert ctx.default_cqs[0].handler == identifier
    assert lab.adapter(limits=small()).default_cqs == ()


# --- resources ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-24")
def test_sections_of_memory_and_their_exhaustion() -> None:
    total = ENTRY_BYTES * 300 + EVENT_BYTES * 4
    ctx = Lab().adapter(limits=small(handler_memory=total))
    reserved = HandlerResources(entries=100, event_slots=2)
    first, second = ctx.set_completion_handler(print, print, resources=reserved)
    sections = [ctx.completion_handler(i).memory for i in (first, second)]
    assert [s.reserved for s in sections] == [reserved.section_bytes] * 2
    assert sections[1].base == sections[0].base + sections[0].reserved, "they do not overlap"
    ctx.create_cq(60, first)
    with pytest.raises(ResourceError, match="has 100 entries, 60 are in use"):
        ctx.create_cq(41, first)
    ctx.create_cq(40, first)
    with pytest.raises(ResourceError, match="all 2 event slots"):
        ctx.create_cq(1, first)
    assert ctx.completion_handler(first).memory.used == 100 * ENTRY_BYTES + 2 * EVENT_BYTES
    assert ctx.completion_handler(second).memory.used == 0
    with pytest.raises(ResourceError, match="bytes for a completion handler"):
        ctx.set_completion_handler(print, resources=HandlerResources(entries=101))
    (third,) = ctx.set_completion_handler(print)
    with pytest.raises(ResourceError, match="for completion handlers"):
        ctx.create_cq(101, third)
    assert len(ctx.completion_handlers) == 3
    ctx.set_completion_handler(None, id=second)
    (fourth,) = ctx.set_completion_handler(print, resources=reserved)
    assert ctx.completion_handler(fourth).memory.base == sections[1].base, "a free section is used again"


@pytest.mark.requirement("CQN-22", "CQN-24")
def test_class_and_resources_are_changed_by_a_verb() -> None:
    ctx = Lab().adapter(limits=small())
    (identifier,) = ctx.set_completion_handler(print, priority=3, resources=HandlerResources(share=2))
    view = ctx.completion_handler(identifier)
    assert (view.priority, view.resources.share) == (3, 2)
    cq = ctx.create_cq(50, identifier)
    view.set_class(priority=7, resources=HandlerResources(entries=60, share=9))
    assert (view.priority, view.resources) == (7, HandlerResources(entries=60, share=9))
    for wrong in (HandlerResources(entries=49), HandlerResources(event_slots=1, entries=10)):
        with pytest.raises(InvalidAttributeError, match="are in use"):
            view.set_class(resources=wrong)
    with pytest.raises(ResourceError, match="60 entries"):
        ctx.modify_cq(cq, depth=61)
    assert cq.depth == 50
    for bad in ({"entries": 0}, {"event_slots": -1}, {"share": 0}, {"share": None}, {"share": 1_001}):
        with pytest.raises(InvalidAttributeError):
            HandlerResources(**bad)
    with pytest.raises(InvalidAttributeError):
        view.set_class(priority=8)
    assert repr(view) == "<CompletionHandler 1, any processor, priority 7>"


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("mine"), SystemExit(3)])
def test_a_failure_is_counted_and_reported(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    lab = Lab()
    here, there = lab.pair()
    log: list[Any] = []

    def failing(cq: CompletionQueue) -> None:
        raise error

    bad, good = here.ctx.set_completion_handler(failing, taker(log))
    boxes = [inbox(here, there, bad), inbox(here, there, good)]
    for _ in range(3):
        for box in boxes:
            box.send(solicited=True)
        lab.settle()
    view = here.ctx.completion_handler(bad)
    assert (view.figures.calls, view.figures.failures) == (3, 3)
    event = here.ctx.get_async_event(0)
    assert event is not None
    assert (event.type, event.handler) == (AsyncEventType.HANDLER_ERR, bad)
    assert event.source.identifier == bad
    assert "a completion handler failed" in caplog.text
    assert len(log) == 3, "the other one goes on"
    assert len(boxes[0].cq) == 3, "its entries are there"


def test_virtual_time_has_no_descriptors_for_handlers() -> None:
    ctx = Lab().adapter(limits=small())
    (identifier,) = ctx.set_completion_handler(print, by_descriptor=True)
    with pytest.raises(SystemLimitError, match="virtual time"):
        ctx.completion_handler(identifier).fileno()


def test_a_processor_that_a_host_does_not_have() -> None:
    lab = Lab()
    host = Processors(lab.net.clock, 4, ProcessorCosts())
    ctx = lab.adapter(processors=host)
    with pytest.raises(SystemLimitError, match="the host has 0 to 3"):
        ctx.set_completion_handler(print, processor=4)
    (identifier,) = ctx.set_completion_handler(print, processor=3)
    with pytest.raises(SystemLimitError):
        ctx.completion_handler(identifier).move(9)
    assert ctx.completion_handler(identifier).processor == 3
