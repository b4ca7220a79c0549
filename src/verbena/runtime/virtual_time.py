"""Virtual time: an event queue, asyncio programs that live in it, and waiting that lets it pass.

Events of the same nanosecond happen in the order in which they were asked for, so that a run with a given seed does
the same at the same times on every machine.  A compiled event queue (`fabric.core`) can be attached: its events and
the clock's own happen in one order of time, at the same nanosecond the attached ones first.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from verbena.errors import DeadlockError, SystemLimitError

T = TypeVar("T")


class EventSource(Protocol):
    """An event queue beside the clock's own."""

    def next_time(self) -> int | None:
        """When its next event happens; None when it has none."""

    def run(self, until_ns: int) -> int:
        """Let events up to `until_ns` happen; stop early after one that concerns others.  Returns where it stopped."""

    def dispatch(self) -> bool:
        """Tell others what happened; False when it concerned nobody."""


class Event:
    """A call that will happen; `cancel` it as long as it has not."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        self.function = None


class VirtualClock:
    """The event queue.  Implements `clock.Clock`; time starts at 0."""

    def __init__(self) -> None:
        self._now = 0
        self._order = 0
        self._queue: list[tuple[int, int, Event]] = []
        self._source: EventSource | None = None

    def attach(self, source: EventSource) -> None:
        """Let another event queue run in this time; one at most."""
        self._source = source

    def now(self) -> int:
        return self._now

    def call_at(self, when_ns: int, function: Callable[[], None]) -> Event:
        event = Event(function)
        self._order += 1
        heapq.heappush(self._queue, (max(when_ns, self._now), self._order, event))
        return event

    def _own_time(self) -> int | None:
        while self._queue and self._queue[0][2].function is None:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else None

    def next_time(self) -> int | None:
        """When the next event happens; None when there is none."""
        own = self._own_time()
        other = self._source.next_time() if self._source is not None else None
        if own is None or other is None:
            return own if other is None else other
        return min(own, other)

    def step(self, limit_ns: int | None = None) -> bool:
        """Let the next event happen; False when there is none.

        limit_ns: no event after it is due; an attached queue may let many happen at once, up to there.
        """
        own = self._own_time()
        if self._source is not None and self._step_source(self._source, own, limit_ns):
            return True
        if own is None:
            return False
        self._now, _, event = heapq.heappop(self._queue)
        function, event.function = event.function, None
        if function is not None:
            function()
        return True

    def _step_source(self, source: EventSource, own: int | None, limit: int | None) -> bool:
        """Let the attached queue run up to the next event of our own; False when that one is due."""
        following = source.next_time()
        if own is None and limit is None:
            if following is None:
                return False
            end = following
        else:
            end = min(when for when in (own, limit) if when is not None)
        self._now = max(self._now, source.run(end))
        return source.dispatch() or (following is not None and following <= end)

    def advance(self, when_ns: int) -> None:
        """Let time pass without events."""
        self._now = max(self._now, when_ns)
        if self._source is not None:
            self._source.run(self._now)


class _Selector(selectors.SelectSelector):
    """What asyncio asks when it has nothing to do: lets virtual time pass."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return []
        deadline = None if timeout is None else self._clock.now() + max(1, round(timeout * 1e9))
        following = self._clock.next_time()
        if following is not None and (deadline is None or following <= deadline):
            self._clock.step(deadline)
        elif deadline is not None:
            self._clock.advance(deadline)
        else:
            raise DeadlockError("every task waits, and nothing is scheduled that could wake one")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose time is a `VirtualClock`'s."""

    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        super().__init__(_Selector(clock))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now() / 1e9

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)


class VirtualWaiting:
    """The part of `verbs.driver.Driver` that is about waiting, in virtual time."""

    def __init__(self, clock: VirtualClock, has_entries: Callable[[int], bool]) -> None:
        self.clock = clock
        self._has_entries = has_entries

    def progress(self) -> None:
        """In virtual time nothing happens between events."""

    def wait(self, ready: Callable[[], bool], timeout_ns: int | None) -> bool:
        deadline = None if timeout_ns is None else self.clock.now() + timeout_ns
        while not ready():
            following = self.clock.next_time()
            if following is not None and (deadline is None or following <= deadline):
                self.clock.step(deadline)
            elif deadline is not None:
                self.clock.advance(deadline)
                break
            else:
                raise DeadlockError("the wait could never end: nothing is scheduled")
        return ready()

    def wait_cq(self, index: int, timeout_ns: int | None) -> bool:
        return self.wait(lambda: bool(self._has_entries(index)), timeout_ns)

    def event_descriptor(self, index: int) -> int:
        raise SystemLimitError(
            "virtual time has no file descriptors: await the completion queue, or wait for it"
        )

    def signal(self, index: int) -> None:
        """There are no descriptors."""

    def clear_descriptor(self, index: int) -> None:
        """There are none."""

    def release_descriptor(self, index: int) -> None:
        """There are none."""

    def acknowledge(self, descriptor: int) -> None:
        """There are none."""

    def refresh_counters(self) -> None:
        """They are always up to date."""

    def call_soon(self, function: Callable[[], Any]) -> None:
        self.clock.call_at(self.clock.now(), lambda: (function(), None)[1])


class VirtualTime:
    """Lets asyncio programs run in the time of a `VirtualClock`, and that time pass."""

    def __init__(self) -> None:
        self.clock = VirtualClock()

    @property
    def now(self) -> int:
        """Nanoseconds since the start."""
        return self.clock.now()

    def run(self, program: Coroutine[Any, Any, T]) -> T:
        """Run an asyncio program in virtual time, to its end; returns its result.

        Raises `DeadlockError` when all its tasks wait for what can never come.
        """
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(self.clock)) as runner:
            return runner.run(program)

    def run_for(self, duration_ns: int) -> None:
        """Let that much time pass."""
        end = self.clock.now() + duration_ns
        while (following := self.clock.next_time()) is not None and following <= end:
            self.clock.step(end)
        self.clock.advance(end)

    def run_until_idle(self, limit: int = 10_000_000) -> None:
        """Let events happen until none is left; raises `DeadlockError` after `limit` of them."""
        for _ in range(limit):
            if not self.clock.step():
                return
        raise DeadlockError(f"{limit} events happened, and there are still some left")
