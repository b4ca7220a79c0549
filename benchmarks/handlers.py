"""Benchmarks of completion handlers: two processors of this machine, then eight simulated ones.

``wakeup``: from an entry to its consumer, a thread that sleeps in a poll of its handler's vector; one event at a time
with pauses between, so that all sleep.  A lower ratio is better.  Baseline, in turns with it: from a process's write to
an eventfd to a thread of this process that sleeps in a poll of it.  ``wakeup_call``: from an entry to the first line of
a handler that the adapter's own thread calls, beside the same baseline.

``two_vs_one_*``: two consumers that check what arrives (SHA-256 of 256 KiB, outside of the interpreter's lock); a
handler each, on two processors, beside one handler for both.  Throughput: eight messages on their way for each.  99th
percentile, from sending to checked: messages come at random, four in five of what the one handler managed.

``scaling_8``: eight handlers beside one on eight simulated processors, where moving data between caches costs
(`verbena.scenario.handler_study`); the same on every machine.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import select
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from endpoint import A, B, row, with_peer

import verbena
from verbena import CompletionEvent, CompletionHandler, CompletionQueue, QPType, RecvRequest, WorkRequest
from verbena.adapter.figures import Latencies
from verbena.runtime.pairs import Side, make_side
from verbena.scenario.handler_study import measure

WAKE_UPS = 200
REPEATS = 5
PAUSE_S = 0.002
CHECKED = bytes(1 << 18)
MESSAGES = 1_000  # of each consumer
OUTSTANDING = 8
STAMP = struct.Struct("=q")


# Two that this process may use, before anything is pinned; the same one twice where there is only one.
PROCESSORS = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))


# --- waking up ----------------------------------------------------------------------------------------------------


def _writes(processor: int, descriptor: int, stamps: mmap.mmap) -> int:
    """A process that notes the time and writes to an eventfd, again and again; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    os.sched_setaffinity(0, {processor})
    for i in range(WAKE_UPS):
        time.sleep(PAUSE_S)
        STAMP.pack_into(stamps, i * STAMP.size, time.monotonic_ns())
        os.eventfd_write(descriptor, 1)
    os._exit(0)


def _bare() -> float:
    """Microseconds that waking a thread by an eventfd takes, from another processor."""
    first, second = PROCESSORS
    descriptor, stamps = os.eventfd(0, os.EFD_SEMAPHORE), mmap.mmap(-1, WAKE_UPS * STAMP.size)
    took: list[float] = []

    def read() -> None:
        os.sched_setaffinity(0, {first})
        watched = select.poll()
        watched.register(descriptor, select.POLLIN)
        for i in range(WAKE_UPS):
            watched.poll()
            woken = time.monotonic_ns()
            os.eventfd_read(descriptor)
            took.append((woken - STAMP.unpack_from(stamps, i * STAMP.size)[0]) / 1e3)

    reader = threading.Thread(target=read)
    pid = _writes(second, descriptor, stamps)
    reader.start()
    reader.join()
    os.waitpid(pid, 0)
    os.close(descriptor)
    return statistics.median(took)


def _send_now_and_then(side: Side, pipe: Connection) -> None:
    request = WorkRequest(0, sg_list=[side.mr.sge(0, 8)])
    while pipe.recv() == "go":
        for _ in range(WAKE_UPS):
            time.sleep(PAUSE_S)
            side.qp.post_send(request)
            side.cq.poll()
        pipe.send("done")


def _wakeup(name: str, by_descriptor: bool) -> dict[str, Any]:
    took: list[float] = []
    done = threading.Event()

    def note(now: int, event: CompletionEvent) -> None:
        took.append((now - event.raised_ns) / 1e3)

    def handler(cq: CompletionQueue) -> None:
        now = time.monotonic_ns()
        if cq.event is not None:
            note(now, cq.event)
        cq.req_notify()
        cq.poll()

    def consume(consumer: CompletionHandler, cq: CompletionQueue, processor: int) -> None:
        """A thread of the program's own."""
        os.sched_setaffinity(0, {processor})
        watched = select.poll()
        watched.register(consumer, select.POLLIN)
        while True:
            watched.poll()
            now = time.monotonic_ns()
            if done.is_set():
                return
            for event in consumer.take_events():
                note(now, event)
            cq.req_notify()
            cq.poll()

    def run(side: Side, addr: int, rkey: int, pipe: Connection) -> tuple[float, float]:
        ctx, (first, second) = side.ctx, PROCESSORS
        for thread in threading.enumerate():
            if thread.name == "verbena progress":  # as the baseline: who wakes is not where the woken one is
                os.sched_setaffinity(thread.native_id or 0, {second})
        where = None if by_descriptor else first
        (identifier,) = ctx.set_completion_handler(handler, processor=where, by_descriptor=by_descriptor)
        ctx.modify_cq(side.cq, handler=identifier)
        receive = RecvRequest(0, [side.mr.sge(0, 8)])
        side.qp.post_recv_many([receive] * 1000)
        side.cq.req_notify()
        consumer = ctx.completion_handler(identifier)
        thread = threading.Thread(target=consume, args=(consumer, side.cq, first))
        if by_descriptor:
            thread.start()
        values, baselines = [], []
        for _ in range(REPEATS):
            took.clear()
            pipe.send("go")
            pipe.recv()
            values.append(statistics.median(took))
            baselines.append(_bare())
            side.qp.post_recv_many([receive] * WAKE_UPS)
        if by_descriptor:
            done.set()
            os.eventfd_write(consumer.fileno(), 1)
            thread.join()
        return statistics.median(values), statistics.median(baselines)

    value, baseline = with_peer(_send_now_and_then, run)
    return row(name, value, "us", baseline)


def wakeup() -> list[dict[str, Any]]:
    return [_wakeup("handlers.wakeup", True), _wakeup("handlers.wakeup_call", False)]


# --- two consumers ------------------------------------------------------------------------------------------------


class _Consumer:
    """A queue pair with a queue of its own, whose messages are checked, and the peer's."""

    def __init__(self, here: Side, there: Side, handler: int) -> None:
        self.times = Latencies()
        self.left = MESSAGES  # to be sent when others are done
        self.done = 0
        self.cq = here.ctx.create_cq(1024, handler=handler)
        self.qp = here.pd.create_qp(QPType.RC, self.cq, max_recv_wr=1024)
        self.far_cq = there.ctx.create_cq(1024)
        self.far = there.pd.create_qp(QPType.RC, self.far_cq, max_send_wr=1024)
        ends = self.qp.endpoint, self.far.endpoint
        self.qp.connect(ends[1])
        self.far.connect(ends[0])
        self.receive = RecvRequest(0, [here.mr.sge(0, 64)])
        self.request = WorkRequest(0, sg_list=[there.mr.sge(0, 64)])
        self.sent: deque[int] = deque()
        self.qp.post_recv_many([self.receive] * 1024)
        self.cq.req_notify()

    def send(self) -> None:
        self.left -= 1
        self.far_cq.poll(64)
        self.sent.append(time.monotonic_ns())
        self.far.post_send(self.request)

    def serve(self, again: bool) -> None:
        self.cq.req_notify()
        for _ in self.cq.poll(64):
            hashlib.sha256(CHECKED).digest()
            self.times.add(time.monotonic_ns() - self.sent.popleft())
            self.qp.post_recv(self.receive)
            self.done += 1
            if again and self.left > 0:
                self.send()
        if len(self.cq):
            self.serve(again)


def _consumers(handlers: int, run: Callable[[list[_Consumer]], None], again: bool) -> tuple[float, float]:
    """Messages a second, and the 99th percentile in milliseconds, of two consumers that `run` has messages sent to."""
    by_queue: dict[int, _Consumer] = {}

    def handler(cq: CompletionQueue) -> None:
        by_queue[cq.index].serve(again)

    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        here, there = make_side(one, QPType.RC), make_side(two, QPType.RC)
        where = PROCESSORS
        ids = [one.set_completion_handler(handler, processor=where[i])[0] for i in range(handlers)]
        consumers = [_Consumer(here, there, ids[i % handlers]) for i in range(2)]
        by_queue.update({consumer.cq.index: consumer for consumer in consumers})
        begun = time.perf_counter()
        run(consumers)
        while any(consumer.done < MESSAGES for consumer in consumers):
            time.sleep(0.001)
            if time.perf_counter() - begun > 120:
                raise TimeoutError("the consumers were not served")
        took = time.perf_counter() - begun
        return 2 * MESSAGES / took, max(consumer.times.percentile(99) or 0 for consumer in consumers) / 1e6


def _flood(consumers: list[_Consumer]) -> None:
    for consumer in consumers * OUTSTANDING:
        consumer.send()


def _paced(rate: float) -> Callable[[list[_Consumer]], None]:
    """As many to each, at random times, at a mean rate for both together."""

    def run(consumers: list[_Consumer]) -> None:
        random = Random(1)
        order = consumers * MESSAGES
        random.shuffle(order)
        when = time.perf_counter()
        for consumer in order:
            when += random.expovariate(rate)
            if (left := when - time.perf_counter()) > 0:
                time.sleep(left)
            consumer.send()

    return run


def two_vs_one() -> list[dict[str, Any]]:
    rates: dict[int, list[float]] = {1: [], 2: []}
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(REPEATS):
        for handlers, found in rates.items():
            found.append(_consumers(handlers, _flood, True)[0])
    rate = 0.8 * statistics.median(rates[1])
    for _ in range(REPEATS):
        for handlers, found in times.items():
            found.append(_consumers(handlers, _paced(rate), False)[1])
    one_rate, two_rate = (statistics.median(rates[n]) for n in (1, 2))
    one_time, two_time = (statistics.median(times[n]) for n in (1, 2))
    return [
        row("handlers.two_vs_one_throughput", two_rate, "messages/s", one_rate),
        row("handlers.two_vs_one_p99", two_time, "ms", one_time),
    ]


# --- simulated processors -----------------------------------------------------------------------------------------


def scaling_8() -> dict[str, Any]:
    one, eight = measure(1), measure(8)
    return row("handlers.scaling_8", eight.throughput / 1e6, "M messages/s", one.throughput / 1e6)


BENCHMARKS = {"wakeup": wakeup, "two_vs_one": two_vs_one, "scaling_8": scaling_8}
