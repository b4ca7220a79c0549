"""Real time: threads on processors that call completion handlers.

Each processor that handlers were given (and "any", for those without) has a lane: an eventfd, which stands for the
address that vectors write to, a run queue (`adapter.run_queue`), and a worker thread, pinned to the processor.  The
worker sleeps in a read of the eventfd.  The progress loop writes to it, without the interpreter lock, as soon as the
entry can be seen, so that nobody stands between an entry and its consumer.

A handler that has not returned for `patience_ns` is reported, and another worker takes over the lane; the first one
ends when the handler comes back.  Meanwhile only the stuck handler's own events wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading

from verbena.adapter.handlers import HandlerRecord, HandlerTable
from verbena.adapter.run_queue import RunQueue
from verbena.clock import Clock
from verbena.errors import SystemLimitError
from verbena.runtime.handler_window import open_window
from verbena.runtime.status_socket import StatusSocket

log = logging.getLogger("verbena")
PATIENCE_NS = 1_000_000_000
LONGEST_JOIN_S = 1.0


class Lane:
    """One processor: its handlers, and the thread that calls them."""

    def __init__(self, name: str, processor: int | None, clock: Clock, patience_ns: int) -> None:
        self.processor = processor
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC)
        self.workers: list[threading.Thread] = []
        self._name = name
        self._clock = clock
        self._patience_ns = patience_ns
        self._queue = RunQueue()
        self._members: list[tuple[HandlerTable, HandlerRecord]] = []
        self._guard = threading.Lock()
        self._ended = False
        self._watched = False
        self._running: tuple[HandlerTable, HandlerRecord] | None = None
        self._since = 0
        self._refused: OSError | None = None
        if self._start(wait=True) is not None:
            self.end()
            able = ", ".join(map(str, sorted(os.sched_getaffinity(os.getpid()))))
            raise SystemLimitError(f"processor {processor} is not to be had: this process runs on {able}")

    # --- members ------------------------------------------------------------------------------------------

    def add(self, table: HandlerTable, record: HandlerRecord) -> None:
        with self._guard:
            self._members.append((table, record))

    def remove(self, table: HandlerTable, record: HandlerRecord) -> None:
        with self._guard, contextlib.suppress(ValueError):
            self._members.remove((table, record))

    @property
    def is_idle(self) -> bool:
        """Is nobody being called?"""
        return not any(record.running for _, record in self._members)

    # --- the worker ---------------------------------------------------------------------------------------

    def _start(self, wait: bool = False) -> OSError | None:
        """A new worker; with `wait`, returns why it may not run on the processor, if it may not."""
        ready = threading.Event()
        where = "any" if self.processor is None else str(self.processor)
        worker = threading.Thread(
            target=self._run, args=(ready,), name=f"verbena handlers {self._name} {where}", daemon=True
        )
        self.workers.append(worker)
        worker.start()
        if wait:
            ready.wait()
        return self._refused

    def _run(self, ready: threading.Event) -> None:
        me = threading.current_thread()
        if self.processor is not None:
            try:
                os.sched_setaffinity(0, {self.processor})
            except OSError as error:
                self._refused = error
        ready.set()
        while not self._ended and self.workers[-1] is me:
            os.eventfd_read(self.descriptor)
            while self._serve(me):
                pass
        if self._ended and self.workers[-1] is not me:
            return
        self.poke()  # whoever took over looks again for what came to the handler that was stuck

    def _serve(self, me: threading.Thread) -> bool:
        """Call the handler whose turn it is; False when there is none, or when another worker has taken over."""
        with self._guard:
            if self._ended or self.workers[-1] is not me:
                return False
            ready = [m[1] for m in self._members if not m[1].running and m[0].ready(m[1])]
            record = self._queue.pick(ready)
            if record is None:
                return False
            table = next(m[0] for m in self._members if m[1] is record)
            record.running = True
            self._running, self._since = (table, record), self._clock.now()
            watch = not self._watched
            self._watched = True
        if watch:
            self._clock.call_at(self._since + self._patience_ns, self._watch)
        start = self._since
        try:
            table.serve_one(record)
        except BaseException:  # not a handler's fault: reported where threads' failures are
            log.exception("a completion event could not be delivered")
        finally:
            with self._guard:
                record.running = False
                self._queue.charge(record, self._clock.now() - start)
                if self.workers[-1] is me:
                    self._running = None
                moved = (table, record) not in self._members
            if moved and record.vector >= 0 and record.descriptor >= 0:
                # Its new lane passed it over while it was running here.
                with contextlib.suppress(OSError):
                    os.eventfd_write(record.descriptor, 1)
        return True

    def _watch(self) -> None:
        """Has the present call been going on for too long?"""
        stuck: tuple[HandlerTable, HandlerRecord] | None = None
        with self._guard:
            self._watched = False
            running, since = self._running, self._since
            if running is None or self._ended:
                return
            when = since + self._patience_ns
            if when <= self._clock.now():
                stuck, self._running = running, None
                self._start()
            else:
                self._watched = True
        if stuck is None:
            self._clock.call_at(when, self._watch)
            return
        table, record = stuck
        table.is_stuck(record)
        self.poke()

    def poke(self) -> None:
        """Have the worker look around."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self.descriptor, 1)

    # --- end ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Call nobody any more.  A call that does not return is left behind, with its thread."""
        self._ended = True
        self.poke()
        alive = False
        for worker in self.workers:
            if worker is threading.current_thread():
                alive = True
            else:
                self.poke()
                worker.join(0 if self._is_lost(worker) else LONGEST_JOIN_S)
                alive = alive or worker.is_alive()
        if not alive:  # else a thread may still come to read it
            os.close(self.descriptor)

    def _is_lost(self, worker: threading.Thread) -> bool:
        return worker is not self.workers[-1]

    def abandon(self) -> None:
        """`end` in the child of a fork, where the threads do not exist."""
        self._ended = True
        os.close(self.descriptor)


class ThreadDispatcher:
    """Calls the handlers of one adapter on threads.  Implements `adapter.handlers.Dispatcher`.

    clock: of the adapter; its `call_at` runs the watch.  patience_ns: how long a call may last before others go on
    without it.
    """

    def __init__(self, name: str, clock: Clock, patience_ns: int = PATIENCE_NS) -> None:
        self.patience_ns = patience_ns
        self._name = name
        self._clock = clock
        self._lanes: dict[int | None, Lane] = {}
        self._own: set[int] = set()
        self._window: StatusSocket | None = None

    def attach(self, table: HandlerTable, record: HandlerRecord) -> int:
        if self._window is None:
            self._window = open_window(self._name, table)
        if record.by_descriptor:
            made = record.descriptor
            if made < 0:
                made = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._own.add(made)
            return made
        lane = self._lanes.get(record.processor)
        if lane is None:
            lane = Lane(self._name, record.processor, self._clock, self.patience_ns)
            self._lanes[record.processor] = lane
        lane.add(table, record)
        return lane.descriptor

    def detach(self, table: HandlerTable, record: HandlerRecord) -> None:
        if not record.by_descriptor:
            self._lanes[record.processor].remove(table, record)
        elif record.vector < 0 and record.descriptor in self._own:  # it is not moving, it is gone
            self._own.discard(record.descriptor)
            os.close(record.descriptor)

    def interrupt(self, table: HandlerTable, address: int, data: int, descriptor: int) -> None:
        if descriptor in self._own or any(lane.descriptor == descriptor for lane in self._lanes.values()):
            os.eventfd_write(descriptor, 1)

    def work(self, duration_ns: int) -> None:
        """Real work takes its time by itself."""

    def is_quiet(self, table: HandlerTable) -> bool:
        records = [record for record in table.records.values() if not record.by_descriptor]
        return not any(record.running or table.waiting(record) for record in records)

    def end(self, table: HandlerTable) -> None:
        if self._window is not None:
            self._window.close()
        with table.engine:
            for record in table.records.values():
                if record.vector >= 0:
                    table.engine.set_vector(record.vector, 0, record.identifier, -1)
            lanes, self._lanes = list(self._lanes.values()), {}
            own, self._own = self._own, set()
        for lane in lanes:
            lane.end()
        for descriptor in own:
            os.close(descriptor)

    def abandon(self) -> None:
        """`end` in the child of a fork."""
        if self._window is not None:
            self._window.abandon()
        for lane in self._lanes.values():
            lane.abandon()
        for descriptor in self._own:
            os.close(descriptor)
        self._lanes, self._own = {}, set()
