"""The clock of a fabric in real time: it stands still while the process does not run.

Whoever is stopped (SIGSTOP, a sleeping machine, a processor that is taken by others) and goes on finds all timers run
out at once, although what they wait for may be in the socket already.  So time in which nobody looked, although
something was due, does not count, but for `SLACK_NS` of it.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

from verbena.runtime.service import RealTimer

SLACK_NS = 50_000_000
NEVER = 1 << 62


class CoreClock:
    """Nanoseconds since the start, from the monotonic clock.  Implements `clock.Clock`.

    wake: called, from any thread, when something is due earlier than before.  Calls of `call_at` may come from any
    thread; what they ask for happens in `run_due`.  zero: the monotonic clock when this one shows 0.  first: no timer
    rings before that.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.zero = time.monotonic_ns()
        self._timers: list[tuple[int, int, RealTimer]] = []
        self._order = 0
        self._guard = threading.Lock()
        self._wake = wake
        self.stood_still_ns = 0
        self.first = NEVER

    def now(self) -> int:
        return time.monotonic_ns() - self.zero

    def monotonic(self, when_ns: int) -> int:
        """A time of this clock as one of the monotonic clock."""
        return when_ns + self.zero

    def stand_still(self, due_ns: int) -> None:
        """Somebody looks; something was due at `due_ns`."""
        late = self.now() - due_ns - SLACK_NS
        if late > 0:
            self.zero += late
            self.stood_still_ns += late

    def call_at(self, when_ns: int, function: Callable[[], None]) -> RealTimer:
        timer = RealTimer(function)
        with self._guard:
            self._order += 1
            heapq.heappush(self._timers, (when_ns, self._order, timer))
            first = self._timers[0][2] is timer
            self.first = self._timers[0][0]
        if first:
            self._wake()
        return timer

    def next_time(self) -> int | None:
        """When the next timer rings; None when there is none."""
        with self._guard:
            while self._timers and self._timers[0][2].function is None:
                heapq.heappop(self._timers)
            self.first = self._timers[0][0] if self._timers else NEVER
            return self._timers[0][0] if self._timers else None

    def run_due(self, now: int) -> bool:
        """Ring what is due; False if nothing was."""
        rang = False
        while True:
            with self._guard:
                if not self._timers or self._timers[0][0] > now:
                    return rang
                timer = heapq.heappop(self._timers)[2]
            function, timer.function = timer.function, None
            if function is not None:
                rang = True
                function()
