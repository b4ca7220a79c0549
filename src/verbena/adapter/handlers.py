"""Completion handlers: many per adapter, each with an identifier, a vector, a processor, a class and resources.

Document 001: registration (blocks 402 to 406), queues bound by identifier (block 408), what an event tells (block 424),
classes of service (paragraph 30), memory of their own (paragraph 28).  The table knows neither threads nor time: a
`Dispatcher` in `runtime` has it serve one event after the other, on the handler's processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from verbena.adapter.figures import Latencies
from verbena.adapter.vectors import VectorTable, check_processor
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError

ENTRY_BYTES = 48  # of a completion entry, as the adapter keeps it (`Cqe`)
EVENT_BYTES = 48  # of the event of one queue
HIGHEST_PRIORITY = 7
MOST_SHARE = 1_000
EVENT_SOLICITED, EVENT_ERROR, EVENT_ASKED = 1, 2, 4  # as in transport/notification.pxd


class CompletionEvent(NamedTuple):
    """What a handler is called for (document 001, block 424).

    handler: its identifier, read from the queue.  qp_num, wr_id: of the entry that raised it.  solicited, error: of
    that entry.  asked: the queue was armed for it (if not, it is a solicited one).  merged: events of the same queue
    that came until this one was taken, beside it.  raised_ns: when, by the adapter's clock.
    """

    handler: int
    cq: int
    qp_num: int
    wr_id: int
    solicited: bool
    error: bool
    asked: bool
    merged: int
    raised_ns: int


@dataclass(frozen=True, slots=True)
class HandlerResources:
    """What one handler may have; None: no bound of its own.

    entries: completion entries of all its queues together.  event_slots: its queues, each of which has one event at
    most that nobody has taken.  share: of its processor, beside handlers of the same priority (1 to 1000).
    """

    entries: int | None = None
    event_slots: int | None = None
    share: int = 1

    def __post_init__(self) -> None:
        for name, value, high in (
            ("entries", self.entries, 1 << 32),
            ("event_slots", self.event_slots, 1 << 24),
            ("share", self.share, MOST_SHARE),
        ):
            if (value is None and name != "share") or (isinstance(value, int) and 1 <= value <= high):
                continue
            raise InvalidAttributeError(f"{name} = {value!r}: 1 to {high}")

    @property
    def section_bytes(self) -> int:
        """The memory that is set aside for them when the handler is registered."""
        return (self.entries or 0) * ENTRY_BYTES + (self.event_slots or 0) * EVENT_BYTES


@dataclass(frozen=True, slots=True)
class HandlerMemory:
    """A handler's section of the adapter's memory, in bytes: its base, what is set aside, what its queues use."""

    base: int
    reserved: int
    used: int


@dataclass(slots=True)
class HandlerFigures:
    """What a handler did.  Times in nanoseconds; waits: from an event to the call."""

    calls: int = 0
    failures: int = 0
    stuck: int = 0
    busy_ns: int = 0
    longest_ns: int = 0
    waits: Latencies = field(default_factory=Latencies)


@dataclass(eq=False, slots=True, weakref_slot=True)
class HandlerRecord:
    """One handler of the table.  queues: depth of each bound completion queue.  running: a call has not returned."""

    identifier: int
    function: Callable[[Any], object]
    processor: int | None
    priority: int
    resources: HandlerResources
    by_descriptor: bool
    base: int = 0
    vector: int = -1
    descriptor: int = -1
    queues: dict[int, int] = field(default_factory=dict)
    figures: HandlerFigures = field(default_factory=HandlerFigures)
    running: bool = False

    @property
    def share(self) -> int:
        """Of the processor."""
        return self.resources.share

    @property
    def used_bytes(self) -> int:
        """What its queues take."""
        return sum(self.queues.values()) * ENTRY_BYTES + len(self.queues) * EVENT_BYTES


class Dispatcher(Protocol):
    """Where interrupts go, and who calls the handlers then: processors, real or simulated."""

    def attach(self, table: HandlerTable, record: HandlerRecord) -> int:
        """A handler begins; returns the descriptor that its vector writes to, -1 where `interrupt` is told instead.

        Raises `SystemLimitError` when its processor cannot be had.
        """

    def detach(self, table: HandlerTable, record: HandlerRecord) -> None:
        """A handler has gone, or moves."""

    def interrupt(self, table: HandlerTable, address: int, data: int, descriptor: int) -> None:
        """A vector's write arrives."""

    def work(self, duration_ns: int) -> None:
        """What a handler that is being called does takes so long."""

    def is_quiet(self, table: HandlerTable) -> bool:
        """Is no handler being called, and does none have events?"""

    def end(self, table: HandlerTable) -> None:
        """Call none of its handlers any more."""


class HandlerTable:
    """The completion handlers of one adapter.

    limit: how many there may be, 1 or more.  memory_bytes: for all of them.  deliver(record, event) is who calls the
    function, and says whether it left entries for later; report(record, stuck) hears of a handler that raised, or that
    has not returned for long.  consumer_of(cq) is the processor of a queue's consumer, where that was said.
    """

    def __init__(self, engine: Any, clock: Clock, limit: int, memory_bytes: int) -> None:
        if not isinstance(limit, int) or not 1 <= limit <= 2_048:
            raise InvalidAttributeError(f"completion_handlers = {limit!r}: 1 to 2048, as vectors of MSI-X")
        self.engine = engine
        self.clock = clock
        self.limit = limit
        self.memory_bytes = memory_bytes
        self.vectors = VectorTable(engine, limit)
        self.records: dict[int, HandlerRecord] = {}
        self.deliver: Callable[[HandlerRecord, CompletionEvent], bool] = lambda record, event: False
        self.report: Callable[[HandlerRecord, bool], None] = lambda record, stuck: None
        self.consumer_of: Callable[[int], int | None] = lambda cq: None
        self.ended = False
        self._next = 1

    # --- registration (blocks 402 to 406) -----------------------------------------------------------------

    def register(
        self,
        functions: Sequence[Callable[[Any], object]],
        dispatcher: Dispatcher,
        *,
        processor: int | None = None,
        priority: int = 0,
        resources: HandlerResources | None = None,
        by_descriptor: bool = False,
    ) -> tuple[int, ...]:
        """Register handlers, all or none; returns their identifiers, which are never used again.

        Raises `ResourceError` beyond the limit or the memory, `InvalidAttributeError`, `SystemLimitError`.
        """
        check_processor(processor)
        check_priority(priority)
        made: list[HandlerRecord] = []
        with self.engine:
            if self.ended:
                raise InvalidStateError("the adapter has shut down: it takes no completion handlers")
            if len(self.records) + len(functions) > self.limit:
                raise ResourceError(
                    f"{len(self.records)} completion handlers are registered, and the adapter has {self.limit}"
                )
            for function in functions:
                record = HandlerRecord(
                    self._next, function, processor, priority, resources or HandlerResources(), by_descriptor
                )
                try:
                    record.base = self._section(record.resources.section_bytes)
                    self.records[record.identifier] = record
                    record.descriptor = dispatcher.attach(self, record)
                    record.vector = self.vectors.allocate(record.identifier, processor, record.descriptor)
                except Exception:
                    self.records.pop(record.identifier, None)
                    for one in made:
                        self._forget(one, dispatcher)
                    raise
                self._next += 1
                made.append(record)
                self.engine.note(404, -1, 0, record.identifier)
                self.engine.note(406, -1, 0, int(len(made) < len(functions)))
        return tuple(record.identifier for record in made)

    def find(self, identifier: object) -> HandlerRecord:
        """A registered handler; raises `InvalidAttributeError` for an unknown identifier."""
        if isinstance(identifier, bool) or not isinstance(identifier, int) or identifier not in self.records:
            raise InvalidAttributeError(f"completion handler {identifier} is not registered")
        return self.records[identifier]

    def remove(self, identifier: int, dispatcher: Dispatcher) -> None:
        """Take a handler out; raises `InvalidStateError` while queues are bound to it."""
        with self.engine:
            record = self.find(identifier)
            if record.queues:
                raise InvalidStateError(
                    f"{len(record.queues)} completion queues are bound to handler {identifier}: bind them to another"
                )
            self._forget(record, dispatcher)

    def _forget(self, record: HandlerRecord, dispatcher: Dispatcher) -> None:
        del self.records[record.identifier]
        self.vectors.release(record.vector)
        record.vector = -1
        dispatcher.detach(self, record)

    def move(self, identifier: int, processor: int | None, dispatcher: Dispatcher) -> None:
        """Move a handler's interrupts, and its calls, to another processor; none is lost on the way."""
        check_processor(processor)
        with self.engine:
            record = self.find(identifier)
            before = record.processor
            dispatcher.detach(self, record)
            record.processor = processor
            try:
                record.descriptor = dispatcher.attach(self, record)
            except Exception:
                record.processor = before
                record.descriptor = dispatcher.attach(self, record)
                raise
            finally:
                self.vectors.move(record.vector, record.processor, record.descriptor)

    # --- memory (paragraph 28) ------------------------------------------------------------------------------

    def _section(self, length: int) -> int:
        """The first place where so many bytes are free."""
        at = 0
        for record in sorted(self.records.values(), key=lambda r: r.base):
            if record.resources.section_bytes:
                if record.base - at >= length:
                    break
                at = record.base + record.resources.section_bytes
        if length and (at + length > self.memory_bytes or self._used() + length > self.memory_bytes):
            raise ResourceError(
                f"{length} bytes for a completion handler: the adapter has {self.memory_bytes} for all, "
                f"{self._used()} are in use"
            )
        return at

    def reserve(self, record: HandlerRecord, resources: HandlerResources) -> None:
        """Give a handler other resources, in a new section; raises `ResourceError`, and then nothing has changed."""
        before, record.resources = record.resources, HandlerResources()
        try:
            base = self._section(resources.section_bytes)
        except ResourceError:
            record.resources = before
            raise
        record.base, record.resources = base, resources

    def _used(self) -> int:
        return sum(max(r.resources.section_bytes, r.used_bytes) for r in self.records.values())

    def memory(self, identifier: int) -> HandlerMemory:
        """A handler's section, and what its queues use."""
        record = self.find(identifier)
        return HandlerMemory(record.base, record.resources.section_bytes, record.used_bytes)

    # --- bindings (block 408) ---------------------------------------------------------------------------------

    def admit(self, identifier: int, cq: int | None, depth: int) -> HandlerRecord:
        """The handler, if a queue of that depth may be bound to it; cq: its number, once it has one."""
        record = self.find(identifier)
        queues = {number: size for number, size in record.queues.items() if number != cq}
        slots, entries = record.resources.event_slots, record.resources.entries
        if slots is not None and len(queues) >= slots:
            raise ResourceError(f"all {slots} event slots of completion handler {identifier} are in use")
        if entries is not None and sum(queues.values()) + depth > entries:
            raise ResourceError(
                f"depth = {depth}: completion handler {identifier} has {entries} entries, "
                f"{sum(queues.values())} are in use"
            )
        if slots is None or entries is None:
            more = (depth - record.queues.get(cq or -1, 0)) * ENTRY_BYTES
            if self._used() + more > self.memory_bytes:
                raise ResourceError(
                    f"depth = {depth}: the adapter has {self.memory_bytes} bytes for completion handlers, "
                    f"{self._used()} are in use"
                )
        return record

    def bind(self, cq: int, depth: int, identifier: int | None) -> None:
        """Bind a completion queue to a handler, or to none; an event that nobody has taken goes with it."""
        with self.engine:
            record = None if identifier is None else self.admit(identifier, cq, depth)
            self.engine.bind(cq, -1 if record is None else record.vector)
            for other in self.records.values():
                other.queues.pop(cq, None)
            if record is not None:
                record.queues[cq] = depth

    def resized(self, cq: int, depth: int) -> None:
        """A bound queue has another depth now."""
        for record in self.records.values():
            if cq in record.queues:
                record.queues[cq] = depth

    # --- delivery (block 424) -----------------------------------------------------------------------------------

    def waiting(self, record: HandlerRecord) -> int:
        """Queues of a handler whose event waits to be taken."""
        return int(self.engine.waiting(record.vector)) if record.vector >= 0 and not self.ended else 0

    def ready(self, record: HandlerRecord) -> int:
        """Those of them that an interrupt told of: none while its vector is masked, or holds them back."""
        return int(self.engine.announced(record.vector)) if record.vector >= 0 and not self.ended else 0

    def take(self, record: HandlerRecord) -> CompletionEvent | None:
        """The handler's oldest event; None when there is none, or after the adapter's end."""
        with self.engine:
            taken = self.engine.take_event(record.vector) if self.waiting(record) else None
        if taken is None:
            return None
        cq, qpn, wr_id, kind, when, merged = taken
        return CompletionEvent(
            record.identifier,
            cq,
            qpn,
            wr_id,
            bool(kind & EVENT_SOLICITED),
            bool(kind & EVENT_ERROR),
            bool(kind & EVENT_ASKED),
            merged,
            when,
        )

    def serve_one(self, record: HandlerRecord) -> CompletionEvent | None:
        """Take a handler's oldest event and have the handler called; returns the event.

        What the handler raises is reported, and ends only that call.
        """
        event = self.take(record)
        if event is None:
            return None
        figures = record.figures
        figures.calls += 1
        start = self.clock.now()
        try:
            if self.deliver(record, event):
                with self.engine:
                    self.engine.announce_again(event.cq)
        except (Exception, SystemExit):
            figures.failures += 1
            self.report(record, False)
        finally:
            duration = self.clock.now() - start
            figures.busy_ns += duration
            figures.longest_ns = max(figures.longest_ns, duration)
            figures.waits.add(max(0, start - event.raised_ns))
        return event

    def is_stuck(self, record: HandlerRecord) -> None:
        """A call has not returned for long: count and report it."""
        record.figures.stuck += 1
        self.report(record, True)


def check_priority(priority: object) -> None:
    """Raise `InvalidAttributeError` unless it is a class of service."""
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= HIGHEST_PRIORITY:
        raise InvalidAttributeError(
            f"priority = {priority!r}: 0 to {HIGHEST_PRIORITY}, the higher the sooner"
        )
