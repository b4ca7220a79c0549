"""Completion handlers in real time: threads on processors, descriptors, and what handlers do to one another."""

from __future__ import annotations

import asyncio
import json
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import verbena
from handlers_lab import Inbox, inbox, taker
from real_lab import address, served
from verbena import (
    AsyncEventType,
    CompletionQueue,
    Context,
    InvalidStateError,
    Notify,
    QPState,
    QPType,
    RecvRequest,
    SystemLimitError,
    Topology,
    WorkRequest,
    _pure,
    open_fabric_device,
)
from verbena.runtime import handler_window
from verbena.runtime.pairs import Side, connect_sides, make_side

pytestmark = pytest.mark.loopback
A, B = "127.0.74.1", "127.0.74.2"
PATIENCE_S = 30.0
ROUNDS = int(os.environ.get("VERBENA_RACE_ROUNDS", 20_000 if _pure.compiled() else 1_000))
PROCESSORS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def ends() -> Iterator[tuple[Side, Side]]:
    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        a, b = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(a, b)
        yield a, b


def eventually(condition: Callable[[], object], limit: float = PATIENCE_S) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def armed(here: Side, there: Side, handler: int, depth: int = 256) -> Inbox:
    made = inbox(here, there, handler, depth)
    made.cq.req_notify()
    return made


# --- threads on processors ----------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-19", "CQN-20")
def test_each_handler_has_its_processor_s_thread(ends: tuple[Side, Side]) -> None:
    here, there = ends
    seen: list[tuple[int | None, str, set[int]]] = []

    def handler(cq: CompletionQueue) -> None:
        cq.req_notify()
        cq.poll()
        seen.append((cq.handler, threading.current_thread().name, os.sched_getaffinity(0)))

    first, last = PROCESSORS[0], PROCESSORS[-1]
    ids = [
        here.ctx.set_completion_handler(handler, processor=processor)[0] for processor in (first, last, None)
    ]
    boxes = [armed(here, there, identifier) for identifier in ids]
    for box in boxes:
        box.send()
    eventually(lambda: len(seen) == 3)
    where = {identifier: (name, processors) for identifier, name, processors in seen}
    assert where[ids[0]][1] == {first}
    assert where[ids[1]][1] == {last}
    assert where[ids[2]][1] == set(PROCESSORS), "any"
    assert threading.current_thread().name not in {name for _, name, _ in seen}
    here.ctx.completion_handler(ids[0]).move(last)
    boxes[0].send()
    eventually(lambda: len(seen) == 4)
    assert seen[3] == (ids[0], where[ids[1]][0], {last})
    beyond = next(n for n in range(255) if n not in PROCESSORS)
    with pytest.raises(SystemLimitError, match=f"processor {beyond} is not to be had"):
        here.ctx.completion_handler(ids[0]).move(beyond)
    with pytest.raises(SystemLimitError, match=f"processor {beyond} is not to be had"):
        here.ctx.set_completion_handler(print, processor=beyond)
    boxes[0].send()
    eventually(lambda: len(seen) == 5)
    assert len(here.ctx.completion_handlers) == 3


def test_moving_a_handler_while_it_runs_loses_nothing(ends: tuple[Side, Side]) -> None:
    here, there = ends
    found: list[int] = []
    inside, go = threading.Event(), threading.Event()

    def handler(cq: CompletionQueue) -> None:
        cq.req_notify()
        found.extend(e.wr_id for e in cq.poll())
        inside.set()
        go.wait(PATIENCE_S)

    (identifier,) = here.ctx.set_completion_handler(handler, processor=PROCESSORS[0])
    box = armed(here, there, identifier)
    box.send()
    assert inside.wait(PATIENCE_S)
    box.send()  # its event waits for the call to return
    eventually(lambda: len(box.cq) == 1)
    here.ctx.completion_handler(identifier).move(None)
    time.sleep(0.02)  # the new lane looks at it in vain
    go.set()
    eventually(lambda: len(found) == 2)


# --- descriptors --------------------------------------------------------------------------------------------------


def by_descriptor(here: Side, there: Side, log: list[Any]) -> tuple[verbena.CompletionHandler, Inbox]:
    (identifier,) = here.ctx.set_completion_handler(taker(log), by_descriptor=True)
    return here.ctx.completion_handler(identifier), armed(here, there, identifier)


@pytest.mark.requirement("CQN-21", "CQN-23")
def test_a_vector_is_an_eventfd_for_epoll_and_selectors(ends: tuple[Side, Side]) -> None:
    log: list[Any] = []
    handler, box = by_descriptor(*ends, log)
    with select.epoll() as poller, selectors.DefaultSelector() as selector:
        poller.register(handler.fileno(), select.EPOLLIN)
        selector.register(handler, selectors.EVENT_READ)  # it has a fileno
        assert poller.poll(0) == selector.select(0) == []
        for i in range(3):
            box.send(i)
            assert poller.poll(PATIENCE_S)
            assert selector.select(PATIENCE_S)
            assert handler.serve() == 1
            assert poller.poll(0) == selector.select(0) == []
        assert [found for _, _, found in log] == [[0]] * 3
        handler.mask()
        box.send()
        eventually(lambda: len(box.cq) == 1)
        assert poller.poll(0.02) == []
        assert handler.vector.pending
        handler.unmask()
        assert poller.poll(PATIENCE_S), "the interrupt that was masked is not lost"
        (event,) = handler.take_events()
        assert (event.handler, event.cq, event.asked) == (handler.identifier, box.cq.index, True)
        assert handler.take_events() == []
        assert handler.serve() == 0
    assert handler.figures.calls == 3


def test_events_that_are_left_keep_it_readable(ends: tuple[Side, Side]) -> None:
    here, there = ends
    log: list[Any] = []
    handler, first = by_descriptor(here, there, log)
    second = armed(here, there, handler.identifier)
    for box in (first, second):
        box.send()
    eventually(lambda: handler.vector.waiting == 2)
    assert handler.serve(most=1) == 1
    assert select.select([handler], [], [], PATIENCE_S)[0], "one waits yet"
    assert len(handler.take_events(most=1)) == 1
    assert select.select([handler], [], [], 0)[0] == []


@pytest.mark.requirement("CQN-21")
def test_asyncio_wakes_up_for_it(ends: tuple[Side, Side]) -> None:
    here, there = ends
    log: list[Any] = []
    handler, box = by_descriptor(here, there, log)

    async def program() -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def readable() -> None:
            handler.serve()
            woken.set()

        loop.add_reader(handler.fileno(), readable)
        for i in range(20):
            woken.clear()
            box.send(i)
            await asyncio.wait_for(woken.wait(), PATIENCE_S)
        loop.remove_reader(handler.fileno())

    asyncio.run(program())
    assert len(log) == 20


@pytest.mark.parametrize("count", [1, 4])
def test_moderation_by_the_clock(ends: tuple[Side, Side], count: int) -> None:
    log: list[Any] = []
    handler, boxes = by_descriptor(*ends, log)[0], []
    boxes = [armed(*ends, handler.identifier) for _ in range(3)]
    handler.moderate(count, 200_000_000)
    begun = time.monotonic()
    for box in boxes:
        box.send()
    assert select.select([handler], [], [], PATIENCE_S)[0]
    took = time.monotonic() - begun
    assert took > 0.15 if count == 4 else took < 0.15
    if count == 4:
        assert handler.vector.interrupts == 1, "one for three"
    eventually(lambda: handler.serve() + handler.figures.calls >= 3)


def test_a_thread_s_handler_has_no_descriptor(ends: tuple[Side, Side]) -> None:
    ctx = ends[0].ctx
    (identifier,) = ctx.set_completion_handler(print)
    for call in ("fileno", "serve", "take_events"):
        with pytest.raises(InvalidStateError, match="by_descriptor"):
            getattr(ctx.completion_handler(identifier), call)()


# --- races --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-21")
def test_arming_races_with_arrivals(ends: tuple[Side, Side]) -> None:
    """A sender in one thread, a handler in another: each round's entry is found before the next one is sent.  One
    wake-up that is lost stops the exchange for ever."""
    here, there = ends
    polled = 0
    more = threading.Semaphore(0)

    def handler(cq: CompletionQueue) -> None:
        nonlocal polled
        cq.req_notify()
        found = cq.poll(64)
        if found:
            here_qp.post_recv_many([receive] * len(found))
        polled += len(found)
        for _ in found:
            more.release()

    (identifier,) = here.ctx.set_completion_handler(handler)
    box = armed(here, there, identifier)
    here_qp, receive = box.qp, RecvRequest(0, [here.mr.sge(0, 64)])
    box.qp.post_recv_many([receive] * 8)
    request = WorkRequest(0, sg_list=[there.mr.sge(0, 8)], flags=verbena.SendFlags(0))
    for _ in range(4):
        box.far.post_send(request)
    for i in range(ROUNDS):
        assert more.acquire(timeout=PATIENCE_S), f"lost in round {i}"
        there.cq.poll()  # lets the sender's adapter take acknowledgements
        box.far.post_send(request)
    eventually(lambda: polled == ROUNDS + 4)
    figures, vector = (
        here.ctx.completion_handler(identifier).figures,
        box.here.ctx.completion_handlers[0].vector,
    )
    assert vector.events - vector.merged == vector.taken == figures.calls <= ROUNDS + 8
    assert vector.discarded == 0


@pytest.mark.requirement("CQN-08", "CQN-21")
def test_rebinding_moving_masking_and_resizing_under_load(ends: tuple[Side, Side]) -> None:
    here, there = ends
    ctx = here.ctx
    polled = 0
    guard = threading.Lock()

    def handler(cq: CompletionQueue) -> None:
        nonlocal polled
        cq.req_notify()
        with guard:
            polled += len(cq.poll(1_000))

    ids = [
        ctx.set_completion_handler(handler, processor=processor)[0]
        for processor in (PROCESSORS[0], PROCESSORS[-1], None)
    ]
    cq = ctx.create_cq(1_000, handler=ids[0])
    qp = here.pd.create_qp(QPType.RC, cq, max_send_wr=64)
    far = there.pd.create_qp(QPType.RC, there.cq)
    one, two = qp.endpoint, far.endpoint
    qp.connect(two)
    far.connect(one)
    qp.modify(QPState.ERR)  # what is posted completes at once, as flushed
    request = WorkRequest(0, sg_list=[here.mr.sge(0, 8)])
    cq.req_notify()
    rounds = ROUNDS // 2
    done = threading.Event()

    def change() -> None:
        step = 0
        while not done.is_set():
            step += 1
            ctx.modify_cq(cq, handler=ids[step % 3])
            handler = ctx.completion_handler(ids[step % 2])
            handler.mask()
            handler.move(PROCESSORS[step % len(PROCESSORS)])
            if step % 5 == 0 and len(cq) < 100:
                ctx.modify_cq(cq, depth=900 + step % 100)
            handler.unmask()
            time.sleep(0.0002)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for i in range(rounds):
            while len(cq) > 800:
                time.sleep(0.0001)
            qp.post_send(request)
            if i % 100 == 0:
                time.sleep(0.0005)
    finally:
        done.set()
        changer.join()
    eventually(lambda: polled == rounds)
    views = [ctx.completion_handler(i) for i in ids]
    eventually(lambda: not any(view.vector.waiting for view in views))
    assert sum(v.vector.events - v.vector.merged for v in views) == sum(v.vector.taken for v in views)
    assert sum(v.vector.discarded for v in views) == 0
    assert sum(v.figures.calls for v in views) <= rounds + 1
    assert not cq.overrun


# --- bad handlers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misdeed", ["raises", "never returns"])
def test_a_bad_handler_holds_up_nobody(
    ends: tuple[Side, Side], misdeed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On its own processor's thread: the others of that thread go on, and the program is told."""
    here, there = ends
    ctx = here.ctx
    ctx.driver.dispatcher.patience_ns = 50_000_000  # type: ignore[attr-defined]
    release = threading.Event()
    good: list[Any] = []

    def bad(cq: CompletionQueue) -> None:
        cq.req_notify()
        cq.poll()
        if misdeed == "raises":
            raise ValueError("mine")
        release.wait(PATIENCE_S)

    ids = ctx.set_completion_handler(bad, taker(good), processor=PROCESSORS[0])
    boxes = [armed(here, there, identifier) for identifier in ids]
    boxes[0].send()
    for i in range(5):
        boxes[1].send()
        eventually(lambda n=i: len(good) == n + 1, 5)  # type: ignore[misc]
    kind = AsyncEventType.HANDLER_ERR if misdeed == "raises" else AsyncEventType.HANDLER_STUCK
    event = ctx.get_async_event(PATIENCE_S)
    assert event is not None
    assert (event.type, event.handler, event.source.identifier) == (kind, ids[0], ids[0])
    figures = ctx.completion_handler(ids[0]).figures
    assert (figures.failures, figures.stuck) == ((1, 0) if misdeed == "raises" else (0, 1))
    assert f"handler {ids[0]}" in caplog.text
    boxes[0].send()
    time.sleep(0.02)
    assert figures.calls == (2 if misdeed == "raises" else 1), "not called again before it returns"
    release.set()
    eventually(lambda: figures.calls == 2)
    eventually(lambda: len(boxes[0].cq) == 0)


def test_a_stuck_handler_does_not_hold_up_the_end() -> None:
    release = threading.Event()
    inside = threading.Event()

    def stuck(cq: CompletionQueue) -> None:
        inside.set()
        release.wait(PATIENCE_S)

    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        here, there = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(here, there)
        box = armed(here, there, one.set_completion_handler(stuck)[0])
        box.send()
        assert inside.wait(PATIENCE_S)
        begun = time.monotonic()
        one.close()
        assert time.monotonic() - begun < 10
    release.set()


@pytest.mark.requirement("CQN-18")
def test_shutdown_calls_the_handlers_for_what_was_posted_and_then_no_more(ends: tuple[Side, Side]) -> None:
    here, there = ends
    log: list[Any] = []
    (identifier,) = there.ctx.set_completion_handler(taker(log))
    cq = there.ctx.create_cq(64, identifier)
    qp, far = there.pd.create_qp(QPType.RC, cq), here.pd.create_qp(QPType.RC, here.cq)
    one, two = qp.endpoint, far.endpoint
    qp.connect(two)
    far.connect(one)
    far.post_recv_many([RecvRequest(i, [here.mr.sge(0, 64)]) for i in range(20)])
    cq.req_notify()
    for i in range(20):
        qp.post_send(WorkRequest(i, sg_list=[there.mr.sge(0, 8)]))
    assert there.ctx.shutdown(PATIENCE_S)
    assert [wr_id for _, _, found in log for wr_id in found] == list(range(20))
    with pytest.raises(InvalidStateError, match="shuts down"):
        qp.post_send(WorkRequest(0, sg_list=[there.mr.sge(0, 8)]))
    calls = len(log)
    qp.close()
    time.sleep(0.02)
    assert len(log) == calls


# --- a fabric of processes ----------------------------------------------------------------------------------------


@pytest.mark.requirement("CQN-20", "CQN-21")
def test_adapters_that_joined_a_fabric_have_them_too() -> None:
    topology = Topology()
    topology.add_switch("switch", 2)
    for name in ("h0", "h1"):
        topology.add_host(name)
        topology.connect(name, "switch")
    log: list[Any] = []
    with served(topology) as server:
        at = address(server)
        with open_fabric_device("h0", at) as one, open_fabric_device("h1", at) as two:
            here, there = make_side(one, QPType.RC), make_side(two, QPType.RC)
            connect_sides(here, there, timeout=18)
            handler, box = by_descriptor(here, there, log)
            (pinned,) = one.set_completion_handler(taker(log), processor=PROCESSORS[-1])
            other = armed(here, there, pinned)
            for i in range(30):
                other.send(i)
                eventually(lambda n=i: len(log) == n + 1)  # type: ignore[misc]
            box.send()
            assert select.select([handler], [], [], PATIENCE_S)[0]
            assert handler.serve() == 1
            assert {identifier for identifier, _, _ in log} == {pinned, handler.identifier}
            assert sum(len(found) for _, _, found in log) == 31
            assert one.shutdown(PATIENCE_S)


# --- seen by others -----------------------------------------------------------------------------------------------


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "verbena"


def test_other_processes_see_the_handlers(apart: Path, ends: tuple[Side, Side]) -> None:
    here, there = ends
    assert handler_window.look_around() == []
    log: list[Any] = []
    (identifier,) = here.ctx.set_completion_handler(taker(log), priority=3)
    box = armed(here, there, identifier)
    box.send()
    eventually(lambda: len(log) == 1)
    (told,) = handler_window.look_around()
    assert (told["pid"], told["adapter"]) == (os.getpid(), A)
    (one,) = told["handlers"]
    assert (one["id"], one["priority"], one["queues"]) == (identifier, 3, {str(box.cq.index): 256})
    assert one["calls"] == one["events"] == 1
    assert apart.stat().st_mode & 0o077 == 0, "nobody else may look"
    here.ctx.close()
    assert handler_window.look_around() == []
    assert list(apart.iterdir()) == []


def test_what_is_left_or_not_ours_is_passed_over(apart: Path) -> None:
    apart.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(apart / "1-0"))  # bound, but nobody listens: its process was killed
    (apart / "notes").write_text("mine")
    answers = iter([b"nonsense", b"[]", json.dumps({"handlers": 3}).encode()])
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(apart / "2-0"))
        odd.listen(3)

        def answer() -> None:
            for text in answers:
                peer = odd.accept()[0]
                peer.sendall(text)
                peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(3):
            assert handler_window.look_around() == []
        thread.join()
    assert not (apart / "1-0").exists()
    assert (apart / "notes").exists()


def test_a_folder_that_others_may_enter_is_not_used(apart: Path, ends: tuple[Side, Side]) -> None:
    apart.mkdir(mode=0o755)
    assert handler_window.folder() is None
    ends[0].ctx.set_completion_handler(print)
    assert handler_window.look_around() == []
    assert list(apart.iterdir()) == []


def test_a_fork_leaves_the_handlers_to_the_parent(apart: Path, ends: tuple[Side, Side]) -> None:
    here, there = ends
    log: list[Any] = []
    (identifier,) = here.ctx.set_completion_handler(taker(log))
    box = armed(here, there, identifier)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not box.cq.is_open else 1)
    assert os.waitpid(pid, 0)[1] == 0
    box.send()
    eventually(lambda: len(log) == 1)
    assert len(handler_window.look_around()) == 1


# --- polling ------------------------------------------------------------------------------------------------------


def test_queues_that_are_not_armed_make_no_interrupts(ends: tuple[Side, Side]) -> None:
    """Polling costs nothing more because there are handlers: no event, no write, no wake-up."""
    here, there = ends

    def context_switches() -> int:
        return sum(
            int(
                Path(f"/proc/self/task/{thread}/status")
                .read_text()
                .split("voluntary_ctxt_switches:\t")[1]
                .split()[0]
            )
            for thread in workers
        )

    (identifier,) = here.ctx.set_completion_handler(print, processor=PROCESSORS[0])
    workers = [t.native_id for t in threading.enumerate() if t.name.startswith(f"verbena handlers {A}")]
    assert len(workers) == 1
    box = inbox(here, there, identifier)
    before = context_switches()
    for _ in range(200):
        box.send()
        assert box.cq.wait(PATIENCE_S)
    vector = here.ctx.completion_handler(identifier).vector
    assert (vector.events, vector.interrupts) == (0, 0)
    assert context_switches() - before <= 2, "its thread slept all the time"


def test_contexts_with_handlers_close_with_all_their_descriptors() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def once() -> None:
        with verbena.open_device(A) as one:
            one.set_completion_handler(print, processor=PROCESSORS[0])
            one.set_completion_handler(print, by_descriptor=True)
            _: Context = one

    once()
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        once()
    assert descriptors() == before
    assert threading.active_count() == threads


def test_kinds_of_notification_in_real_time(ends: tuple[Side, Side]) -> None:
    here, there = ends
    log: list[Any] = []
    (identifier,) = here.ctx.set_completion_handler(taker(log, again=False))
    box = inbox(here, there, identifier)
    box.cq.req_notify(kind=Notify.ERROR)
    box.send()
    eventually(lambda: len(box.cq) == 1)
    assert log == []
    box.send(solicited=True)
    eventually(lambda: len(log) == 1)
