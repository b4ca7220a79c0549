"""Virtual time: a host's processors, what an interrupt costs them, and what moving data between them costs.

Document 001, paragraphs 29 and 35.  Each processor has a run queue (`adapter.run_queue`) of the handlers whose vectors
write to it.  An interrupt takes time, also from what the processor is doing; a call of a handler takes time, and more
for each entry that it polls.  The lines of a completion queue belong to the cache of the processor that used them
last: if another one uses them, it has to snoop for them and to invalidate them there.  What a handler hands to a
consumer on another processor (`CompletionQueue.processor`) moves in the same way, line by line.  All that moves goes
over one memory bus, so that processors that exchange much hold one another up ("data sloshing").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from verbena.adapter.handlers import HandlerRecord, HandlerTable
from verbena.adapter.run_queue import RunQueue
from verbena.adapter.vectors import processor_at
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, SystemLimitError

PATIENCE_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ProcessorCosts:
    """What things cost, in nanoseconds.  By default nothing: programs then see only the network's time.

    interrupt_ns: entry and exit.  dispatch_ns: a call of a handler.  entry_ns: an entry that it polls.  snoop_ns,
    invalidate_ns: asking where the latest version of a line is, and having others give theirs up.  transfer_ns: a line
    on the memory bus.  lines: of one entry with what belongs to it.
    """

    interrupt_ns: int = 0
    dispatch_ns: int = 0
    entry_ns: int = 0
    snoop_ns: int = 0
    invalidate_ns: int = 0
    transfer_ns: int = 0
    lines: int = 1


TYPICAL = ProcessorCosts(
    interrupt_ns=1_500,
    dispatch_ns=400,
    entry_ns=150,
    snoop_ns=60,
    invalidate_ns=60,
    transfer_ns=20,
    lines=4,
)
"""The order of magnitude of a server of 2020."""


@dataclass(slots=True)
class ProcessorFigures:
    """What one processor did.  Times in nanoseconds.  bus_wait_ns: for the memory bus, behind other processors."""

    interrupts: int = 0
    calls: int = 0
    entries: int = 0
    busy_ns: int = 0
    moved_lines: int = 0
    coherency_ns: int = 0
    bus_wait_ns: int = 0


@dataclass(slots=True)
class Processor:
    """One processor: whose vectors write to it, and until when it is busy."""

    number: int
    queue: RunQueue = field(default_factory=RunQueue)
    members: list[tuple[HandlerTable, HandlerRecord]] = field(default_factory=list)
    busy: bool = False
    stolen_ns: int = 0  # by interrupts, from what it was doing
    figures: ProcessorFigures = field(default_factory=ProcessorFigures)


class Processors:
    """The processors of one host, for one adapter or several.  Implements `adapter.handlers.Dispatcher`.

    number: 1 to 255.  A handler that was given none runs on processor 0.  patience_ns: a call that lasts longer is
    reported, and the processor goes on with others beside it.
    """

    def __init__(
        self,
        clock: Clock,
        number: int = 255,
        costs: ProcessorCosts | None = None,
        patience_ns: int = PATIENCE_NS,
    ) -> None:
        if not 1 <= number <= 255:
            raise InvalidAttributeError(f"number = {number}: a host has 1 to 255 processors")
        self.clock = clock
        self.number = number
        self.costs = costs or ProcessorCosts()
        self.patience_ns = patience_ns
        self.processors: dict[int, Processor] = {}
        self.finished: Callable[[HandlerTable, HandlerRecord, int, int, int], None] = (
            lambda table, record, cq, entries, when: None
        )
        """Called with table, handler, queue, entries and the time when a call's work is done."""
        self._owners: dict[tuple[int, int], int] = {}
        self._bus_free = 0
        self._worked: int | None = None

    # --- a dispatcher -------------------------------------------------------------------------------------

    def attach(self, table: HandlerTable, record: HandlerRecord) -> int:
        wanted = record.processor or 0
        if wanted >= self.number:
            raise SystemLimitError(
                f"processor {wanted} is not to be had: the host has 0 to {self.number - 1}"
            )
        self._at(wanted).members.append((table, record))
        return -1

    def detach(self, table: HandlerTable, record: HandlerRecord) -> None:
        self._at(record.processor or 0).members.remove((table, record))

    def interrupt(self, table: HandlerTable, address: int, data: int, descriptor: int) -> None:
        processor = self._at(processor_at(address) or 0)
        processor.figures.interrupts += 1
        cost = self.costs.interrupt_ns
        if processor.busy:
            processor.stolen_ns += cost
            processor.figures.busy_ns += cost
            return
        processor.busy = True
        processor.figures.busy_ns += cost
        self._after(cost, processor)

    def work(self, duration_ns: int) -> None:
        """The handler that is being called works so long; its processor is busy with it, after the call.

        Raises `InvalidAttributeError` outside of a call.
        """
        if self._worked is None:
            raise InvalidAttributeError("no handler is being called: only handlers work on processors")
        self._worked += duration_ns

    def is_quiet(self, table: HandlerTable) -> bool:
        members = [m for p in self.processors.values() for m in p.members if m[0] is table]
        return not any(record.running or table.waiting(record) for _, record in members)

    def end(self, table: HandlerTable) -> None:
        for processor in self.processors.values():
            processor.members = [m for m in processor.members if m[0] is not table]

    def abandon(self) -> None:
        """There is nothing that a fork would share."""

    # --- processors ---------------------------------------------------------------------------------------

    def _at(self, number: int) -> Processor:
        if number not in self.processors:
            self.processors[number] = Processor(number)
        return self.processors[number]

    def _after(self, delay_ns: int, processor: Processor) -> None:
        """Let a processor go on: at once where things cost nothing, so that nothing happens between."""
        if delay_ns:
            self.clock.call_at(self.clock.now() + delay_ns, lambda: self._run(processor))
        else:
            self._run(processor)

    def _run(self, processor: Processor) -> None:
        """Call handlers, one after the other, as long as any has events."""
        while True:
            if processor.stolen_ns:
                delay, processor.stolen_ns = processor.stolen_ns, 0
                self._after(delay, processor)
                return
            ready = [m[1] for m in processor.members if not m[1].running and m[0].ready(m[1])]
            record = processor.queue.pick(ready)
            if record is None:
                processor.busy = False
                return
            table = next(m[0] for m in processor.members if m[1] is record)
            record.running = True
            if self.costs.dispatch_ns:
                self.clock.call_at(
                    self.clock.now() + self.costs.dispatch_ns,
                    lambda t=table, r=record: self._begin(processor, t, r),  # type: ignore[misc]
                )
                return
            if not self._call(processor, table, record):
                return

    def _begin(self, processor: Processor, table: HandlerTable, record: HandlerRecord) -> None:
        if self._call(processor, table, record):
            self._run(processor)

    def _call(self, processor: Processor, table: HandlerTable, record: HandlerRecord) -> bool:
        """Call a handler; True when the processor is free at once, else it goes on when the work is done."""
        before = {cq: table.engine.consumed(cq) for cq in record.queues}
        self._worked = 0
        try:
            event = table.serve_one(record)
        finally:
            worked, self._worked = self._worked, None
        figures = processor.figures
        figures.calls += 1
        cost, entries = self.costs.dispatch_ns + worked, 0
        for cq, was in before.items():
            polled = (table.engine.consumed(cq) - was) & 0xFFFFFFFF
            entries += polled
            cost += polled * self.costs.entry_ns + self._moved(processor, table, record, cq, polled)
        figures.entries += entries
        figures.busy_ns += cost
        processor.queue.charge(record, cost)
        left = cost - self.costs.dispatch_ns
        cq = -1 if event is None else event.cq
        if not left:
            self._done(table, record, cq, entries)
            return True
        now = self.clock.now()
        self.clock.call_at(now + left, lambda: self._done(table, record, cq, entries))
        if left > self.patience_ns:
            self.clock.call_at(now + self.patience_ns, lambda: self._give_up(processor, table, record))
        else:
            self.clock.call_at(now + left, lambda: self._run(processor))
        return False

    def _done(self, table: HandlerTable, record: HandlerRecord, cq: int, entries: int) -> None:
        record.running = False
        self.finished(table, record, cq, entries, self.clock.now())
        processor = self._at(record.processor or 0)
        if not processor.busy and table.ready(record):
            processor.busy = True  # it was stuck, or moved meanwhile, and its events waited for it
            self._run(processor)

    def _give_up(self, processor: Processor, table: HandlerTable, record: HandlerRecord) -> None:
        """The call lasts too long: others go on beside it."""
        table.is_stuck(record)
        self._run(processor)

    # --- caches -------------------------------------------------------------------------------------------

    def _moved(
        self, processor: Processor, table: HandlerTable, record: HandlerRecord, cq: int, entries: int
    ) -> int:
        """What it costs that a queue's lines, and its entries' data, are or have to be in another cache."""
        costs = self.costs
        if not entries:
            return 0
        key = (id(table), cq)
        lines = 0
        if self._owners.get(key, processor.number) != processor.number:
            lines += 1  # the queue's own: its indices
        self._owners[key] = processor.number
        consumer = table.consumer_of(cq)
        if consumer is not None and consumer != processor.number:
            lines += entries * costs.lines
        if not lines:
            return 0
        now = self.clock.now()
        begin = max(now, self._bus_free)
        self._bus_free = begin + lines * costs.transfer_ns
        wait = begin - now
        cost = wait + lines * (costs.snoop_ns + costs.invalidate_ns + costs.transfer_ns)
        processor.figures.moved_lines += lines
        processor.figures.coherency_ns += cost
        processor.figures.bus_wait_ns += wait
        return cost
