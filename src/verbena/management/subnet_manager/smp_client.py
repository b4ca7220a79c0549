"""Questions to agents: many on the way at once, each with a time limit, repeated a few times.

An answer counts only if it fits its question in transaction, class, attribute, modifier and route; whatever else
comes is counted and forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from verbena.clock import Clock, Timer
from verbena.management.smi import SmpPort
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.management.subnet_manager.events import Statistics
from verbena.wire.mad import ManagementClass, Method
from verbena.wire.smp import DATA_OFFSET, directed_smp, lid_routed_smp

Done = Callable[[int | None, bytes], None]
"""Called with the answer's status (None: there was no answer) and its 64 data bytes."""


class Question(NamedTuple):
    """path: a directed route; None: to the LID `dlid`."""

    method: int
    attribute: int
    modifier: int
    path: bytes | None
    data: bytes
    done: Done
    dlid: int = 0


def ask(attribute: int, modifier: int, path: bytes, done: Done) -> Question:
    """A SubnGet by a directed route."""
    return Question(Method.GET, attribute, modifier, path, b"", done)


def tell(attribute: int, modifier: int, path: bytes, data: bytes, done: Done) -> Question:
    """A SubnSet by a directed route."""
    return Question(Method.SET, attribute, modifier, path, data, done)


@dataclass(slots=True)
class _Outstanding:
    question: Question
    mad: bytes
    tries: int
    deadline_ns: int


class SmpClient:
    """All questions of one subnet manager.

    `put` one, or `feed` it many, which are taken as there is room; `when_idle` is called once, when nothing is left.
    """

    def __init__(
        self, port: SmpPort, clock: Clock, config: SubnetManagerConfig, statistics: Statistics, first: int
    ) -> None:
        self._port = port
        self._clock = clock
        self._config = config
        self._statistics = statistics
        self._next = (first & 0xFFFFFFFF) << 32
        self._waiting: deque[Question] = deque()
        self._feed: Iterator[Question] | None = None
        self._outstanding: dict[int, _Outstanding] = {}
        self._deadlines: deque[tuple[int, int]] = deque()
        self._timer: Timer | None = None
        self._idle: Callable[[], None] | None = None
        self._pumping = False

    def put(self, question: Question) -> None:
        """Ask, as soon as there is room in the window."""
        self._waiting.append(question)
        self.pump()

    def feed(self, questions: Iterator[Question], when_idle: Callable[[], None]) -> None:
        """Ask all of these; then call `when_idle`."""
        self._feed = questions
        self._idle = when_idle
        self.pump()

    def abandon(self) -> None:
        """Forget everything; answers that still come are unexpected."""
        self._waiting.clear()
        self._outstanding.clear()
        self._deadlines.clear()
        self._feed = self._idle = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pump(self) -> None:
        """Send what there is room for."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while len(self._outstanding) < self._config.window:
                if self._waiting:
                    self._start(self._waiting.popleft())
                    continue
                question = next(self._feed, None) if self._feed is not None else None
                if question is None:
                    self._feed = None
                    break
                self._start(question)
        finally:
            self._pumping = False
        if not self._outstanding and self._idle is not None and not self._waiting:
            idle, self._idle = self._idle, None
            idle()

    def _start(self, question: Question) -> None:
        self._next = self._next & ~0xFFFFFFFF | (self._next + 1) & 0xFFFFFFFF
        method, attribute, modifier, path, data, _, _ = question
        key, tid = self._config.mkey, self._next
        if path is not None:
            mad = directed_smp(method, attribute, modifier, path, data=data, mkey=key, transaction_id=tid)
        else:
            mad = lid_routed_smp(method, attribute, modifier, data=data, mkey=key, transaction_id=tid)
        self._send(tid, _Outstanding(question, mad, 0, 0))

    def _send(self, tid: int, entry: _Outstanding) -> None:
        entry.deadline_ns = self._clock.now() + self._config.timeout_ns
        self._outstanding[tid] = entry
        self._deadlines.append((entry.deadline_ns, tid))
        if self._timer is None:
            self._timer = self._clock.call_at(entry.deadline_ns, self._expire)
        self._statistics.smps_sent += 1
        question = entry.question
        if question.path is None:
            self._port.send(entry.mad, path=None, dlid=question.dlid)
        else:
            self._port.send(entry.mad, path=tuple(question.path), dlid=None)

    def receive(self, mad: bytes) -> None:
        """A SubnGetResp."""
        entry = self._outstanding.get(int.from_bytes(mad[8:16], "big"))
        if entry is None or not self._fits(mad, entry):
            self._statistics.unexpected += 1
            return
        del self._outstanding[int.from_bytes(mad[8:16], "big")]
        status = (mad[4] << 8 | mad[5]) & 0x7FFF
        self._statistics.answers += 1
        if status:
            self._statistics.refused += 1
        entry.question.done(status, mad[DATA_OFFSET : DATA_OFFSET + 64])
        self.pump()

    @staticmethod
    def _fits(mad: bytes, entry: _Outstanding) -> bool:
        sent = entry.mad
        if mad[1] != sent[1] or mad[16:24] != sent[16:24]:
            return False
        if mad[1] == ManagementClass.SUBN_DIRECTED_ROUTE:
            return mad[4] >= 0x80 and mad[7] == sent[7] and mad[128:192] == sent[128:192]
        return True

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.now()
        late: list[tuple[int, _Outstanding]] = []
        while self._deadlines:
            deadline, tid = self._deadlines[0]
            entry = self._outstanding.get(tid)
            if entry is not None and entry.deadline_ns == deadline:
                if deadline > now:
                    self._timer = self._clock.call_at(deadline, self._expire)
                    break
                late.append((tid, entry))
            self._deadlines.popleft()
        for tid, entry in late:
            if self._outstanding.pop(tid, None) is None:
                continue  # abandoned by the one before
            if entry.tries < self._config.retries:
                entry.tries += 1
                self._statistics.repeated += 1
                self._send(tid, entry)
            else:
                self._statistics.timeouts += 1
                entry.question.done(None, b"")
        self.pump()
