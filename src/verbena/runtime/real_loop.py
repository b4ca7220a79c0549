"""A thread that waits for descriptors and times, and calls functions under one lock.

What is below `runtime/` and was made for virtual time runs in it unchanged: it sees a `Clock`, and one call at a time.
Other threads take the lock to call into it themselves, without waiting for this one.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger("verbena.loop")
Call = Callable[[], Any]
URGENT = -10


class LoopTimer:
    """A call that will happen; `cancel` it as long as it has not."""

    __slots__ = ("function",)

    def __init__(self, function: Call) -> None:
        self.function: Call | None = function

    def cancel(self) -> None:
        self.function = None


class RealLoop:
    """Implements `clock.Clock` on the monotonic clock.  lock: held during every call; others take it, too.

    urgent: the thread carries other programs' frames, as a driver does, and asks to run before programs (nice -10);
    without the right to, it runs like all others.
    """

    def __init__(self, name: str = "verbena loop", *, urgent: bool = False) -> None:
        self.lock = threading.RLock()
        self._timers: list[tuple[int, int, LoopTimer]] = []
        self._order = 0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._soon: list[Call] = []
        self._first: set[int] = set()
        self._watched: dict[int, tuple[Call | None, Call | None]] = {}
        self._open = True
        self._urgent = urgent
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def now(self) -> int:
        return time.monotonic_ns()

    def call_at(self, when_ns: int, function: Call) -> LoopTimer:
        timer = LoopTimer(function)
        with self.lock:
            self._order += 1
            heapq.heappush(self._timers, (when_ns, self._order, timer))
            first = self._timers[0][2] is timer
        if first:
            self._wake()
        return timer

    def call_soon(self, function: Call) -> None:
        """Call a function in the loop's thread, soon; from any thread."""
        self._soon.append(function)
        self._wake()

    def watch(
        self, fd: int, readable: Call | None, writable: Call | None = None, *, first: bool = False
    ) -> None:
        """Call functions while a descriptor is readable, or writable; neither: no longer.

        first: before those of all others that are ready at the same time.
        """
        with self.lock:
            if first and readable is not None:
                self._first.add(fd)
            else:
                self._first.discard(fd)
            events = (selectors.EVENT_READ if readable else 0) | (selectors.EVENT_WRITE if writable else 0)
            known = self._watched.pop(fd, None) is not None
            if not events:
                if known:
                    self._selector.unregister(fd)
            else:
                made = self._watched[fd] = (readable, writable)
                (self._selector.modify if known else self._selector.register)(fd, events, made)
        self._wake()

    def _wake(self) -> None:
        if threading.current_thread() is not self._thread:
            try:
                os.write(self._wake_write, b"x")
            except (BlockingIOError, OSError):
                return

    def _run(self) -> None:
        if self._urgent:
            with contextlib.suppress(OSError):  # in Linux a thread has a priority of its own (sched(7))
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), URGENT)
        while self._open:
            with self.lock:
                first = self._timers[0][0] if self._timers else None
            timeout = None if first is None else max(0.0, (first - self.now()) / 1e9)
            ready = self._selector.select(0 if self._soon else timeout)
            if self._first and len(ready) > 1:
                ready.sort(key=lambda each: each[0].fd not in self._first)
            with self.lock:
                for key, mask in ready:
                    if key.data is None:
                        os.read(self._wake_read, 4096)
                        continue
                    for event, function in zip((1, 2), key.data, strict=True):
                        # What ran before may have closed the descriptor, or have changed who is to be called: whatever
                        # is still true then comes again.
                        if mask & event and function is not None and self._watched.get(key.fd) is key.data:
                            self._call(function)
                soon, self._soon = self._soon, []
                for function in soon:
                    self._call(function)
                self._ring()

    def _ring(self) -> None:
        while self._open and self._timers and self._timers[0][0] <= self.now():
            timer = heapq.heappop(self._timers)[2]
            function, timer.function = timer.function, None
            if function is not None:
                self._call(function)

    @staticmethod
    def _call(function: Call) -> None:
        try:
            function()
        except Exception:
            log.exception("a call of the loop failed")

    def close(self) -> None:
        """Stop; nothing is called any more."""
        self._open = False
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(10)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
