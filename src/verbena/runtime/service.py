"""Real time: the clock, and the thread that serves what is not on the data path.

One service thread for each adapter on a socket: it runs timers that Python code asked for, hands the engine's reports
(notifications, asynchronous events) to those who wait, and wakes threads that wait.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from verbena.adapter.channel_adapter import ChannelAdapter

log = logging.getLogger("verbena")


class RealTimer:
    """A call that will happen in real time."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        self.function = None


class Service(threading.Thread):
    """The service thread of one adapter.  Implements `clock.Clock` (monotonic time).

    report_fd: an eventfd that is written to when the engine has reports.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=f"verbena service {name}", daemon=True)
        self.report_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.changed = threading.Condition()
        self._adapter: ChannelAdapter | None = None
        self._timers: list[tuple[int, int, RealTimer]] = []
        self._soon: deque[Callable[[], Any]] = deque()
        self._order = 0
        self._guard = threading.Lock()
        self._ended = False

    def serve(self, adapter: ChannelAdapter) -> None:
        """Begin to serve an adapter."""
        self._adapter = adapter
        self.start()

    def now(self) -> int:
        return time.monotonic_ns()

    def call_at(self, when_ns: int, function: Callable[[], None]) -> RealTimer:
        timer = RealTimer(function)
        with self._guard:
            self._order += 1
            heapq.heappush(self._timers, (when_ns, self._order, timer))
            first = self._timers[0][2] is timer
        if first:
            self.wake()
        return timer

    def call_soon(self, function: Callable[[], Any]) -> None:
        """Run `function` in this thread."""
        self._soon.append(function)
        self.wake()

    def wake(self) -> None:
        """Have the thread look around."""
        if not self._ended:
            os.eventfd_write(self.report_fd, 1)

    def run(self) -> None:
        poller = select.poll()
        poller.register(self.report_fd, select.POLLIN)
        while not self._ended:
            if poller.poll(self._sleep_ms()):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.report_fd)
            self._run_due()
            if self._adapter is not None:
                self._guarded(self._adapter.dispatch)
            with self.changed:
                self.changed.notify_all()

    def _guarded(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception:
            log.exception("a call in the service thread failed")

    def _sleep_ms(self) -> int | None:
        with self._guard:
            while self._timers and self._timers[0][2].function is None:
                heapq.heappop(self._timers)
            if self._soon:
                return 0
            if not self._timers:
                return None
            return max(0, -(-(self._timers[0][0] - time.monotonic_ns()) // 1_000_000))

    def _run_due(self) -> None:
        while self._soon:
            self._guarded(self._soon.popleft())
        while True:
            with self._guard:
                if not self._timers or self._timers[0][0] > time.monotonic_ns():
                    return
                timer = heapq.heappop(self._timers)[2]
            function, timer.function = timer.function, None
            if function is not None:
                self._guarded(function)

    def abandon(self) -> None:
        """`end` in the child of a fork, where the thread does not exist."""
        self._ended = True
        self._guard = threading.Lock()
        self.changed = threading.Condition()
        os.close(self.report_fd)

    def end(self) -> None:
        """Stop, and wait for the thread unless this is it."""
        self.wake()
        self._ended = True
        os.eventfd_write(self.report_fd, 1)
        if threading.current_thread() is not self and self.ident is not None:
            self.join()
        os.close(self.report_fd)
