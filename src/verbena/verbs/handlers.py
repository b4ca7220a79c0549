"""Completion handlers as programs see them: registered, queried, moved, masked, served.

Document 001, paragraphs 24 to 39.  `Context.set_completion_handler` registers them; the numbers that it returns are
what queues are bound by.  Where their calls run is the driver's matter: on a thread of the processor that was chosen,
or in the program's own loop, or on a simulated processor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from verbena.adapter.channel_adapter import AsyncEvent
from verbena.adapter.handlers import (
    CompletionEvent,
    HandlerFigures,
    HandlerMemory,
    HandlerRecord,
    HandlerResources,
    check_priority,
)
from verbena.adapter.vectors import VectorState
from verbena.errors import InvalidAttributeError, InvalidStateError, SystemLimitError
from verbena.transport.kinds import AsyncEventType

if TYPE_CHECKING:
    from verbena.verbs.completion import CompletionQueue
    from verbena.verbs.context import Context

log = logging.getLogger("verbena")
Function = Callable[["CompletionQueue"], object]


class CompletionHandler:
    """One registered handler: `Context.completion_handler` gives it.  All calls may come from any thread."""

    def __init__(self, context: Context, record: HandlerRecord) -> None:
        self.context = context
        self._record = record
        self._table = context.adapter.handlers

    def _checked(self) -> HandlerRecord:
        return self._table.find(self._record.identifier)

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def identifier(self) -> int:
        """By which queues are bound to it, and which its interrupts carry."""
        return self._record.identifier

    @property
    def processor(self) -> int | None:
        """The processor that it is called on; None: any."""
        return self._record.processor

    @property
    def priority(self) -> int:
        """Its class of service on its processor, 0 to 7; higher is sooner."""
        return self._record.priority

    @property
    def resources(self) -> HandlerResources:
        """What it may have."""
        return self._record.resources

    @property
    def memory(self) -> HandlerMemory:
        """Its section of the adapter's memory."""
        return self._table.memory(self.identifier)

    @property
    def queues(self) -> tuple[CompletionQueue, ...]:
        """The completion queues that are bound to it."""
        found = (self.context.queue_at(number) for number in tuple(self._record.queues))
        return tuple(cq for cq in found if cq is not None)

    @property
    def figures(self) -> HandlerFigures:
        """What it did so far."""
        return self._record.figures

    @property
    def vector(self) -> VectorState:
        """Its interrupt."""
        return self._table.vectors.query(self._checked().vector)

    # --- changes ------------------------------------------------------------------------------------------

    def set_class(self, priority: int | None = None, resources: HandlerResources | None = None) -> None:
        """Another priority, or other resources; raises `InvalidAttributeError` if its queues have more already."""
        with self._table.engine:
            record = self._checked()
            if priority is not None:
                check_priority(priority)
            if resources is not None:
                slots, entries = resources.event_slots, resources.entries
                if slots is not None and len(record.queues) > slots:
                    raise InvalidAttributeError(f"event_slots = {slots}: {len(record.queues)} are in use")
                if entries is not None and sum(record.queues.values()) > entries:
                    raise InvalidAttributeError(
                        f"entries = {entries}: {sum(record.queues.values())} are in use"
                    )
                self._table.reserve(record, resources)
            if priority is not None:
                record.priority = priority

    def move(self, processor: int | None) -> None:
        """To another processor: its interrupts go there from now on, and its calls are made there."""
        self._table.move(self.identifier, processor, self.context.driver.dispatcher)
        self.context.adapter.on_work()

    def mask(self) -> None:
        """Hold its interrupts back; events pend."""
        self._table.vectors.mask(self._checked().vector)

    def unmask(self) -> None:
        """Let them go: one interrupt if any event came meanwhile."""
        self._table.vectors.mask(self._checked().vector, False)
        self.context.adapter.on_work()

    def moderate(self, count: int = 1, longest_ns: int = 0) -> None:
        """One interrupt for `count` events, `longest_ns` after the first of them at the latest."""
        self._table.vectors.moderate(self._checked().vector, count, longest_ns)
        self.context.adapter.on_work()

    # --- for handlers that the program calls itself -------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor of its vector: readable after an interrupt, until `serve` or `take_events`.

        Raises `InvalidStateError` unless the handler was registered with ``by_descriptor=True``, `SystemLimitError` in
        virtual time.
        """
        record = self._checked()
        if not record.by_descriptor:
            raise InvalidStateError(
                f"handler {self.identifier} is called by its processor's thread: register it with by_descriptor=True"
            )
        if record.descriptor < 0:
            raise SystemLimitError(
                "virtual time has no file descriptors: handlers are called by their processor"
            )
        return record.descriptor

    def take_events(self, most: int = 1 << 30) -> list[CompletionEvent]:
        """The events that wait, without calling the function."""
        record = self._own()
        found: list[CompletionEvent] = []
        while len(found) < most and (event := self._table.take(record)) is not None:
            found.append(event)
        self._again(record)
        return found

    def serve(self, most: int = 1 << 30) -> int:
        """Call the function for the events that wait, in this thread; returns how many calls were made.

        One thread at a time serves a handler: 0 while another does.
        """
        record = self._own()
        with self._table.engine:
            if record.running:
                return 0
            record.running = True
        done = 0
        try:
            while done < most and self._table.serve_one(record) is not None:
                done += 1
        finally:
            record.running = False
        self._again(record)
        return done

    def _own(self) -> HandlerRecord:
        self.fileno()
        record = self._checked()
        self.context.driver.acknowledge(record.descriptor)
        return record

    def _again(self, record: HandlerRecord) -> None:
        """Events that were left have the descriptor readable again."""
        if self._table.ready(record):
            self.context.driver.dispatcher.interrupt(self._table, 0, record.identifier, record.descriptor)

    def __repr__(self) -> str:
        where = "any processor" if self.processor is None else f"processor {self.processor}"
        return f"<CompletionHandler {self.identifier}, {where}, priority {self.priority}>"


class Calls:
    """Calls the handlers of one context, and reports what they did wrong."""

    def __init__(self, context: Context) -> None:
        self._context = context
        table = context.adapter.handlers
        table.deliver = self._call
        table.report = self._failed
        table.consumer_of = self._consumer_of

    def _call(self, record: HandlerRecord, event: CompletionEvent) -> bool:
        cq = self._context.queue_at(event.cq)
        if cq is None or not cq.is_open:
            return False  # closed since the event was taken
        cq.event = event
        try:
            more = record.function(cq)
        except (Exception, SystemExit):
            log.exception("a completion handler failed: handler %d on %r", record.identifier, cq)
            raise
        return more is True and cq.is_open

    def _consumer_of(self, number: int) -> int | None:
        cq = self._context.queue_at(number)
        return None if cq is None else cq.processor

    def _failed(self, record: HandlerRecord, stuck: bool) -> None:
        if stuck:
            log.warning(
                "completion handler %d has not returned for long: others go on without it", record.identifier
            )
        kind = AsyncEventType.HANDLER_STUCK if stuck else AsyncEventType.HANDLER_ERR
        self._context.adapter.event_sink(AsyncEvent(kind, handler=record.identifier))


def check_functions(functions: Sequence[object]) -> None:
    """Raise `InvalidAttributeError` unless they are one or more callables."""
    if not functions or not all(callable(f) for f in functions):
        raise InvalidAttributeError("give one or more callables, each taking a CompletionQueue")
