"""Waiting for what service code brings about: in a blocking call, or in a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from verbena.verbs.driver import Driver, nanoseconds


class Signal:
    """Says that something has changed.  `notify` may come from any thread."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def notify(self) -> None:
        """Let those who wait look again."""
        waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_wake, future)

    def block(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `ready()`, for `timeout` seconds at most; returns `ready()`."""
        return self._driver.wait(ready, nanoseconds(timeout))

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`."""
        while not ready():
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            waiter = (loop, future)
            self._waiters.append(waiter)
            try:
                if not ready():  # else it came between the look and the entry
                    await future
            finally:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
