"""Completion queues as a program meets them: polled, waited for, awaited, with events and handlers."""

from __future__ import annotations

import asyncio

import pytest

from lab import RC, Lab, statuses, take, write
from verbena import (
    AsyncEventType,
    ClosedError,
    CompletionError,
    CompletionQueue,
    CompletionQueueEntry,
    DeadlockError,
    DeviceAttributes,
    InvalidAttributeError,
    QPState,
    RecvRequest,
    ResourceError,
    SendFlags,
    SystemLimitError,
    VirtualNetwork,
    WorkRequest,
    WROpcode,
    connected_pair,
)
from verbena.runtime.pairs import Side


def send(side: Side, wr_id: int = 0, solicited: bool = False) -> WorkRequest:
    flags = SendFlags.SIGNALED | (SendFlags.SOLICITED if solicited else SendFlags.NONE)
    return WorkRequest(wr_id, WROpcode.SEND, [side.mr.sge(0, 8)], flags)


# --- polling and waiting ----------------------------------------------------------------------------------------


def test_poll_takes_at_most_as_many_and_never_waits() -> None:
    lab = Lab()
    a, b = lab.pair()
    assert a.cq.poll() == []
    a.qp.post_send_many([write(a, b, 8, i) for i in range(40)])
    assert a.cq.poll() == [], "no time has passed"
    lab.settle()
    assert len(a.cq) == 40
    assert [e.wr_id for e in a.cq.poll(3)] == [0, 1, 2]
    assert [e.wr_id for e in a.cq.poll()] == list(range(3, 19))
    assert [e.wr_id for e in a.cq.wait(n=100)] == list(range(19, 40))
    assert a.cq.poll(0) == []


def test_wait_has_a_timeout_in_simulated_seconds() -> None:
    lab = Lab()
    a, b = lab.pair()
    assert a.cq.wait(timeout=0) == []
    assert a.cq.wait(timeout=0.5) == []
    assert lab.net.now == 500_000_000
    with pytest.raises(DeadlockError):
        a.cq.wait()
    a.qp.post_send(write(a, b, 8, 1))
    assert statuses(a.cq.wait(timeout=1)) == [(1, "SUCCESS")]
    assert lab.net.now < 501_000_000, "no longer than needed"


def test_a_bad_completion_can_be_raised() -> None:
    lab = Lab()
    a, b = lab.pair()
    request = write(a, b, 8, 5)
    a.qp.post_send(request)
    (entry,) = take(a.cq, 1)
    assert entry.raise_for_status() is entry
    assert entry.imm_data is entry.invalidated_rkey is None
    request.rkey ^= 1
    a.qp.post_send(request)
    (entry,) = take(a.cq, 1)
    with pytest.raises(
        CompletionError, match=f"work request 5 of queue pair {a.qp.qp_num:#x} ended with REM_ACCESS"
    ):
        entry.raise_for_status()
    assert not entry.ok
    assert "REM_ACCESS_ERR" in repr(entry)


# --- asyncio in virtual time ------------------------------------------------------------------------------------


def test_awaiting() -> None:
    lab = Lab(delay_ns=5_000)
    a, b = lab.pair()

    async def server() -> list[int]:
        found = []
        async for entry in b.cq:
            found.append(entry.wr_id)
            if len(found) == 10:
                return found
        return []

    async def client() -> None:
        for i in range(10):
            a.qp.post_send(send(a, i))
            (entry,) = await a.cq
            assert entry.raise_for_status().wr_id == i
            await asyncio.sleep(0.001)

    async def program() -> list[int]:
        b.qp.post_recv_many([RecvRequest(100 + i, [b.mr.sge(0, 8)]) for i in range(10)])
        got, _ = await asyncio.gather(server(), client())
        return got

    assert lab.net.run(program()) == list(range(100, 110))
    assert 10_000_000 < lab.net.now < 10_300_000, "ten milliseconds of sleep, and little else"


def test_many_tasks_wait_for_one_queue() -> None:
    lab = Lab()
    a, b = lab.pair()
    found: list[int] = []

    async def worker() -> None:
        while len(found) < 50:
            found.extend(e.wr_id for e in await a.cq.completions(1))

    async def poster() -> None:
        for i in range(50):
            a.qp.post_send(write(a, b, 8, i))
            await asyncio.sleep(i % 3 * 1e-6)

    async def program() -> None:
        tasks = [asyncio.create_task(worker()) for _ in range(4)]
        await poster()
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert done
        for task in pending:
            task.cancel()

    lab.net.run(program())
    assert found == list(range(50))


def test_sleep_costs_no_real_time_and_exactly_its_own() -> None:
    net = VirtualNetwork()

    async def program() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        return net.now, loop.time() - before

    assert net.run(program()) == (3_600_000_000_000, 3600.0)


def test_a_program_that_waits_for_nothing_is_told_so() -> None:
    lab = Lab()
    a, _ = lab.pair()

    async def program() -> None:
        await a.cq

    with pytest.raises(DeadlockError, match="every task waits"):
        lab.net.run(program())
    with pytest.raises(ZeroDivisionError):
        lab.net.run(failing())
    assert lab.net.run(succeeding()) == 5


async def failing() -> None:
    await asyncio.sleep(1)
    raise ZeroDivisionError


async def succeeding() -> int:
    return 5


def test_a_timeout_leaves_nothing_behind() -> None:
    lab = Lab()
    a, b = lab.pair()

    async def program() -> None:
        for _ in range(100):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(a.cq.completions(), 0.001)
        assert a.cq._signal._waiters == []
        a.qp.post_send(write(a, b, 8, 3))
        assert statuses(await a.cq) == [(3, "SUCCESS")]

    lab.net.run(program())


def test_closing_wakes_those_who_wait() -> None:
    """Also for the requests that closing a queue pair flushes."""
    lab = Lab()
    a, _ = lab.pair()

    async def close_soon(thing: object) -> None:
        await asyncio.sleep(1)
        thing.close()  # type: ignore[attr-defined]

    async def program() -> list[CompletionQueueEntry]:
        a.qp.post_recv(RecvRequest(4))
        task = asyncio.create_task(close_soon(a.qp))
        found = await a.cq
        await task
        task = asyncio.create_task(close_soon(a.cq))
        with pytest.raises(ClosedError, match="closed"):
            await a.cq
        await task
        return found

    assert statuses(lab.net.run(program())) == [(4, "WR_FLUSH_ERR")]


def test_receives_posted_in_the_error_state_wake_those_who_wait() -> None:
    lab = Lab()
    a, _ = lab.pair()

    async def program() -> list[CompletionQueueEntry]:
        a.qp.modify(QPState.ERR)
        task = asyncio.ensure_future(a.cq.completions())
        await asyncio.sleep(0.1)
        a.qp.post_recv(RecvRequest(6))
        return await task

    assert statuses(lab.net.run(program())) == [(6, "WR_FLUSH_ERR")]


def test_asynchronous_events_are_awaited() -> None:
    lab = Lab()
    a, _ = lab.pair()

    async def program() -> None:
        waiting = asyncio.ensure_future(a.ctx.async_event())
        await asyncio.sleep(0.1)
        a.qp.modify(QPState.SQD)
        event = await waiting
        assert (event.type, event.qp_num, event.source) == (AsyncEventType.SQ_DRAINED, a.qp.qp_num, a.qp)
        waiting = asyncio.ensure_future(a.ctx.async_event())
        await asyncio.sleep(0.1)
        a.ctx.close()
        with pytest.raises(ClosedError):
            await waiting

    lab.net.run(program())


def test_asynchronous_events_are_waited_for() -> None:
    lab = Lab()
    a, _ = lab.pair()
    assert a.ctx.get_async_event(0.5) is None
    assert lab.net.now == 500_000_000
    a.qp.modify(QPState.SQD)
    event = a.ctx.get_async_event()
    assert event
    assert event.type is AsyncEventType.SQ_DRAINED


def test_a_program_runs_the_same_each_time() -> None:
    def once() -> tuple[str, int]:
        lab = Lab(7)
        a, b = lab.pair()

        async def program() -> None:
            async def client(k: int) -> None:
                for i in range(20):
                    a.qp.post_send(write(a, b, 100 * k + i, i))
                    await asyncio.sleep(k * 1e-6)

            await asyncio.gather(*(client(k) for k in range(4)))

        lab.net.run(program())
        lab.settle()
        return lab.digest(), lab.net.now

    assert once() == once()


# --- notification -------------------------------------------------------------------------------------------------


def test_one_event_for_each_request() -> None:
    lab = Lab()
    a, b = lab.pair()
    assert not a.cq.get_event(0)
    a.qp.post_send(write(a, b, 8))
    lab.settle()
    assert not a.cq.get_event(0), "nobody had asked"
    a.cq.req_notify()
    lab.settle()
    assert not a.cq.get_event(0), "an entry that came before raises no event"
    a.qp.post_send_many([write(a, b, 8), write(a, b, 8)])
    assert a.cq.get_event()
    assert not a.cq.get_event(0.01), "one for each request"


def test_an_event_that_came_early_is_not_lost() -> None:
    lab = Lab()
    a, b = lab.pair()
    a.cq.req_notify()
    a.qp.post_send(write(a, b, 8))
    lab.settle()
    assert a.cq.get_event(0)
    assert not a.cq.get_event(0)
    a.cq.req_notify()
    a.qp.post_send(write(a, b, 8))
    lab.settle()
    a.cq.clear_event()
    assert not a.cq.get_event(0)


def test_solicited_events_only() -> None:
    lab = Lab()
    a, b = lab.pair()
    b.qp.post_recv_many([RecvRequest(i, [b.mr.sge(0, 8)]) for i in range(5)])
    b.cq.req_notify(solicited_only=True)
    a.qp.post_send(send(a))
    lab.settle()
    assert not b.cq.get_event(0)
    a.qp.post_send(send(a, solicited=True))
    lab.settle()
    assert b.cq.get_event(0)
    b.cq.req_notify(solicited_only=True)
    b.cq.req_notify()
    b.cq.req_notify(solicited_only=True)  # the wider request stays
    a.qp.post_send(send(a))
    assert b.cq.get_event()
    b.cq.req_notify(solicited_only=True)
    b.qp.modify(QPState.ERR)
    assert b.cq.get_event(0), "an error is always reported"


def test_events_and_awaiting_do_not_take_each_others() -> None:
    lab = Lab()
    a, b = lab.pair()

    async def program() -> None:
        a.qp.post_send(write(a, b, 8))
        await a.cq

    lab.net.run(program())
    assert not a.cq.get_event(0), "the program had not asked for one"


def test_virtual_time_has_no_descriptors() -> None:
    with pytest.raises(SystemLimitError, match="await the completion queue"):
        Lab().adapter().create_cq(1).fileno()


# --- handlers -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-04")
@pytest.mark.parametrize("number", [1, 2])
def test_query_tells_how_many_handlers(number: int) -> None:
    ctx = Lab().adapter(limits=DeviceAttributes(max_qp=4, max_cq=4, completion_handlers=number))
    assert ctx.query_adapter().completion_handlers == number
    assert ctx.query_device().completion_handlers == number


@pytest.mark.requirement("CQN-05", "CQN-06")
def test_registering_handlers() -> None:
    ctx = Lab().adapter(limits=DeviceAttributes(max_qp=4, max_cq=4, completion_handlers=3))
    (first,) = ctx.set_completion_handler(print)
    with pytest.raises(ResourceError, match="1 completion handlers are registered, and the adapter has 3"):
        ctx.set_completion_handler(print, print, print)
    second, third = ctx.set_completion_handler(print, repr)
    assert len({first, second, third}) == 3
    with pytest.raises(ResourceError, match="3 completion handlers"):
        ctx.set_completion_handler(print)
    for handler in (first, second, third):
        ctx.create_cq(1, handler).close()
    for wrong in ((), (5,), (print, None)):
        with pytest.raises(InvalidAttributeError, match="callables"):
            ctx.set_completion_handler(*wrong)  # type: ignore[arg-type]


@pytest.mark.requirement("CQN-05", "CQN-06", "CQN-07")
def test_one_handler_for_two_queues() -> None:
    lab = Lab()
    lab.adapter(limits=DeviceAttributes(max_qp=4096, max_cq=4096, completion_handlers=1))
    a, b = lab.pair()
    calls: list[tuple[CompletionQueue, list[int]]] = []

    def handler(cq: CompletionQueue) -> None:
        calls.append((cq, [e.wr_id for e in cq.poll()]))
        cq.req_notify()

    (identifier,) = a.ctx.set_completion_handler(handler)
    with pytest.raises(ResourceError, match="1 completion handlers are registered, and the adapter has 1"):
        a.ctx.set_completion_handler(handler)
    queues = [a.ctx.create_cq(8, identifier), a.ctx.create_cq(8, identifier)]
    pairs = []
    for cq in queues:
        assert cq.handler == identifier
        cq.req_notify()
        qp = a.pd.create_qp(RC, cq)
        far = b.pd.create_qp(RC, b.cq)
        there, here = far.endpoint, qp.endpoint
        qp.connect(there)
        far.connect(here)
        pairs.append(qp)
    for i, qp in enumerate((*pairs, *pairs)):
        qp.post_send(write(a, b, 8, i))
        lab.settle()
    first, second = queues
    assert calls == [(first, [0]), (second, [1]), (first, [2]), (second, [3])]
    made = a.ctx.adapter.engine
    with pytest.raises(InvalidAttributeError, match="completion handler 99 is not registered"):
        a.ctx.create_cq(8, 99)
    for _ in range(4096 - 3 - 1):
        made.make_cq(1)
    assert a.ctx.create_cq(1), "the refused ones left none behind"


def test_a_handler_that_raises_ends_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    lab = Lab()
    a, b = lab.pair()

    def handler(cq: CompletionQueue) -> None:
        raise RuntimeError("mine")

    (identifier,) = a.ctx.set_completion_handler(handler)
    cq = a.ctx.create_cq(8, identifier)
    qp, far = a.pd.create_qp(RC, cq), b.pd.create_qp(RC, b.cq)
    there, here = far.endpoint, qp.endpoint
    qp.connect(there)
    far.connect(here)
    cq.req_notify()
    qp.post_send(write(a, b, 8, 1))
    assert statuses(take(cq, 1)) == [(1, "SUCCESS")]
    assert "a completion handler failed" in caplog.text


# --- in one line ------------------------------------------------------------------------------------------------


def test_a_connected_pair() -> None:
    with connected_pair() as pair:
        pair.a.mr.buf[:5] = b"hello"
        pair.a.qp.post_send(write(pair.a, pair.b, 5))
        assert pair.a.cq.wait()[0].ok
        assert pair.b.mr.buf[:5] == b"hello"
    with pytest.raises(ClosedError):
        pair.a.cq.poll()
