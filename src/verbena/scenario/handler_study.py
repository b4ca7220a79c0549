"""A study in virtual time: what one adapter's completion handlers deliver, one or many, on the same processors.

Document 001, paragraphs 3, 29 and 35.  A host has some processors, and two consumers on each, with a completion queue
and a connected peer of their own.  The consumers' queues are spread over the handlers, the handlers over the
processors.  Each message takes a consumer `work_ns`, wherever its handler is called; what a handler polls for a
consumer on another processor moves there line by line, over one memory bus for all (`runtime.processors`).

Two loads: a closed loop (`outstanding` messages for each consumer, the next one when one is done) shows how much can be
done; an open one (the same arrivals, at a fixed mean rate, drawn once) shows how long a message takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from verbena.adapter.attributes import DeviceAttributes
from verbena.adapter.figures import Latencies
from verbena.adapter.handlers import HandlerRecord, HandlerTable
from verbena.errors import InvalidAttributeError
from verbena.runtime.processors import TYPICAL, ProcessorCosts, Processors
from verbena.runtime.virtual import VirtualNetwork
from verbena.transport.kinds import QPType, SendFlags
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.queue_pair import QueuePair

SIZE = 64  # bytes of a message
DEPTH = 256


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """The host and the load.

    consumers: spread over the processors.  messages: of each run.  rate: of the open load, messages a second in all.
    """

    processors: int = 8
    consumers: int = 16
    messages: int = 8_000
    work_ns: int = 1_000
    outstanding: int = 16
    rate: float = 250_000.0
    seed: int = 0
    costs: ProcessorCosts = TYPICAL


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What one number of handlers delivered.

    throughput: messages a second in the closed loop.  busy: mean share of their time that the processors worked
    meanwhile; busiest: of the one that worked most.  moved_lines: cache lines that changed processors, for each
    message.  bus_wait_ns: waiting for the memory bus, for each message.  p50_ns, p99_ns: from sending to done, under
    the open load.
    """

    handlers: int
    throughput: float
    busy: float
    busiest: float
    moved_lines: float
    bus_wait_ns: float
    p50_ns: int
    p99_ns: int


@dataclass
class _Stream:
    """A consumer's queue, its queue pair and its peer's, and when each message that is on its way was sent."""

    cq: CompletionQueue
    qp: QueuePair
    far: QueuePair
    receive: RecvRequest
    request: WorkRequest
    sent: deque[int] = field(default_factory=deque)


class _Host:
    """The host of a study, with its peer: built, loaded, measured."""

    def __init__(self, handlers: int, options: StudyOptions) -> None:
        self.options = options
        self.net = VirtualNetwork(options.seed, rate_bps=400e9)
        self.processors = Processors(self.net.clock, options.processors, options.costs)
        limits = DeviceAttributes(max_qp=2 * options.consumers + 4, max_cq=2 * options.consumers + 4)
        self.here = self.net.open_device("10.0.0.1", limits=limits, processors=self.processors)
        self.there = self.net.open_device("10.0.0.2", limits=limits)
        self.times = Latencies()
        self.done = 0
        self.posted = 0
        self.last = 0
        self.again: Callable[[_Stream], None] = lambda stream: None
        self.processors.finished = self._finished
        self.ids = [
            self.here.set_completion_handler(self._call, processor=i % options.processors)[0]
            for i in range(handlers)
        ]
        self._polled: dict[int, int] = {}
        here, there = self.here.alloc_pd(), self.there.alloc_pd()
        memory, source = here.alloc_mr(SIZE), there.alloc_mr(SIZE)
        self._far_cq = self.there.create_cq(4 * DEPTH)
        self.streams: dict[int, _Stream] = {}
        for i in range(options.consumers):
            cq = self.here.create_cq(DEPTH, handler=self.ids[i % handlers])
            self.here.modify_cq(cq, processor=i % options.processors)
            qp = here.create_qp(QPType.RC, cq, max_recv_wr=DEPTH)
            far = there.create_qp(QPType.RC, self._far_cq, max_send_wr=DEPTH)
            ends = qp.endpoint, far.endpoint
            qp.connect(ends[1])
            far.connect(ends[0])
            receive = RecvRequest(0, [memory.sge(0, SIZE)])
            qp.post_recv_many([receive] * DEPTH)
            request = WorkRequest(0, sg_list=[source.sge(0, SIZE)], flags=SendFlags(0))
            self.streams[cq.index] = _Stream(cq, qp, far, receive, request)
            cq.req_notify()

    def send(self, stream: _Stream) -> None:
        """One message, if any is left to be sent."""
        if self.posted < self.options.messages:
            self.posted += 1
            stream.sent.append(self.net.now)
            stream.far.post_send(stream.request)

    def _call(self, cq: CompletionQueue) -> None:
        """The handler of all, by the rules: ask first, then take what is there."""
        cq.req_notify()
        found = cq.poll(DEPTH)
        if found:
            stream = self.streams[cq.index]
            stream.qp.post_recv_many([stream.receive] * len(found))
            self.here.work(len(found) * self.options.work_ns)
        self._polled[cq.index] = len(found)

    def _finished(self, table: HandlerTable, record: HandlerRecord, cq: int, entries: int, when: int) -> None:
        stream = self.streams[cq]
        for _ in range(self._polled.pop(cq, 0)):
            self.times.add(when - stream.sent.popleft())
            self.done += 1
            self.again(stream)
        self.last = when

    def run(self) -> int:
        """Until all is done; returns the nanoseconds from now to the last message's end."""
        begun = self.net.now
        self.net.run_until_idle()
        if self.done != self.options.messages:
            raise RuntimeError(f"{self.done} of {self.options.messages} messages were done")
        return self.last - begun


def measure(handlers: int, options: StudyOptions | None = None) -> StudyResult:
    """Run both loads with so many handlers.  The same options give the same result, to the nanosecond.

    Raises `InvalidAttributeError` for less than one handler or processor.
    """
    options = options or StudyOptions()
    if handlers < 1 or options.processors < 1:
        raise InvalidAttributeError(
            f"handlers = {handlers}, processors = {options.processors}: 1 or more each"
        )
    closed = _Host(handlers, options)
    closed.again = closed.send
    for _ in range(options.outstanding):
        for stream in closed.streams.values():
            closed.send(stream)
    took = closed.run()
    figures = [p.figures for p in closed.processors.processors.values()]
    busy = [f.busy_ns / took for f in figures]
    opened = _open_load(handlers, options)
    return StudyResult(
        handlers,
        options.messages / took * 1e9,
        sum(busy) / options.processors,
        max(busy),
        sum(f.moved_lines for f in figures) / options.messages,
        sum(f.bus_wait_ns for f in figures) / options.messages,
        opened.percentile(50) or 0,
        opened.percentile(99) or 0,
    )


def _open_load(handlers: int, options: StudyOptions) -> Latencies:
    host = _Host(handlers, options)
    random = Random(options.seed)
    streams = list(host.streams.values())
    when = host.net.now
    for _ in range(options.messages):
        when += round(random.expovariate(options.rate / 1e9))
        stream = random.choice(streams)
        host.net.clock.call_at(when, lambda s=stream: host.send(s))  # type: ignore[misc]
    host.run()
    return host.times


def study(numbers: Sequence[int] = (1, 2, 4, 8), options: StudyOptions | None = None) -> list[StudyResult]:
    """`measure` for each number of handlers."""
    return [measure(number, options) for number in numbers]
