"""Queues that are bound to completion handlers, each with a queue pair and its peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verbena import (
    CompletionQueue,
    Context,
    QPType,
    QueuePair,
    RecvRequest,
    SendFlags,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side

SIGNALED = SendFlags.SIGNALED
SOLICITED = SendFlags.SIGNALED | SendFlags.SOLICITED


@dataclass
class Inbox:
    """A completion queue of `here` with a queue pair, and a queue pair of another adapter that sends to it."""

    cq: CompletionQueue
    qp: QueuePair
    here: Side
    far: QueuePair
    there: Side

    def expect(self, count: int = 1) -> None:
        """Post receive buffers."""
        self.qp.post_recv_many([RecvRequest(i, [self.here.mr.sge(0, 64)]) for i in range(count)])

    def request(self, wr_id: int = 0, solicited: bool = False) -> WorkRequest:
        flags = SOLICITED if solicited else SIGNALED
        return WorkRequest(wr_id, WROpcode.SEND, [self.there.mr.sge(0, 8)], flags)

    def send(self, wr_id: int = 0, solicited: bool = False, expected: bool = False) -> None:
        """Have one message sent to it."""
        if not expected:
            self.expect()
        self.there.cq.poll(1_000)  # its own completions
        self.far.post_send(self.request(wr_id, solicited))


def inbox(here: Side, there: Side, handler: int | None, depth: int = 64, **sizes: Any) -> Inbox:
    """A bound queue, whose queue pair only receives."""
    cq = here.ctx.create_cq(depth, handler)
    qp = here.pd.create_qp(QPType.RC, here.cq, cq, **sizes)
    far = there.pd.create_qp(QPType.RC, there.cq, **sizes)
    here_end, there_end = qp.endpoint, far.endpoint
    qp.connect(there_end)
    far.connect(here_end)
    return Inbox(cq, qp, here, far, there)


def taker(log: list[Any], again: bool = True) -> Callable[[CompletionQueue], None]:
    """A handler that follows the rules (ask first, then poll), and notes what it was called for, and what it found."""

    def handler(cq: CompletionQueue) -> None:
        if again:
            cq.req_notify()
        event = cq.event
        assert event is not None
        log.append((event.handler, cq, [entry.wr_id for entry in cq.poll(1000)]))

    return handler


class RecordedWrites:
    """A dispatcher that calls nobody: it notes each write of an interrupt, as (address, data)."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    def attach(self, table: Any, record: Any) -> int:
        return -1

    def detach(self, table: Any, record: Any) -> None:
        pass

    def interrupt(self, table: Any, address: int, data: int, descriptor: int) -> None:
        self.writes.append((address, data))

    def work(self, duration_ns: int) -> None:
        pass

    def is_quiet(self, table: Any) -> bool:
        return True

    def end(self, table: Any) -> None:
        pass

    def take(self) -> list[tuple[int, int]]:
        taken, self.writes = self.writes, []
        return taken


def recorded(ctx: Context) -> RecordedWrites:
    """Have a context's interrupts noted, in the place of handlers being called."""
    made = RecordedWrites()
    ctx.driver.dispatcher = made  # type: ignore[misc]
    return made
