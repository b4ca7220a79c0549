"""What the verbs ask of whoever runs the adapter: get work sent, let things happen, wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from verbena.adapter.handlers import Dispatcher
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError

LONGEST_NS = 1 << 62


def nanoseconds(timeout: object) -> int | None:
    """A time-out in seconds as drivers take it; None and infinity are for ever.  Raises `InvalidAttributeError`."""
    if timeout is None or timeout == math.inf:
        return None
    if not isinstance(timeout, (int, float)) or math.isnan(timeout):
        raise InvalidAttributeError(f"timeout = {timeout!r}: seconds, or None to wait for ever")
    return max(0, min(LONGEST_NS, int(timeout * 1e9)))


class Driver(Protocol):
    """Runs one adapter: in virtual time, or on a socket."""

    @property
    def clock(self) -> Clock:
        """The time that the adapter lives in."""

    @property
    def dispatcher(self) -> Dispatcher:
        """Where completion handlers are called."""

    def kick(self) -> None:
        """Something was posted: send what can be sent."""

    def progress(self) -> None:
        """Take what has arrived and send what is due, without waiting."""

    def wait(self, ready: Callable[[], bool], timeout_ns: int | None) -> bool:
        """Let things happen until `ready()`, or until the time is over; returns `ready()`.

        In virtual time, raises `DeadlockError` when nothing is scheduled that could make it ready.
        """

    def wait_cq(self, index: int, timeout_ns: int | None) -> bool:
        """The same for a completion queue that has entries; the fastest way to wait."""

    def event_descriptor(self, index: int) -> int:
        """A file descriptor that becomes readable when the completion queue's notification comes.

        Raises `SystemLimitError` where there are no descriptors (virtual time).
        """

    def signal(self, index: int) -> None:
        """The completion queue's notification came: make its descriptor readable, if it has one."""

    def clear_descriptor(self, index: int) -> None:
        """Forget notifications that made the descriptor readable."""

    def release_descriptor(self, index: int) -> None:
        """Close the descriptor of a completion queue, if it has one."""

    def acknowledge(self, descriptor: int) -> None:
        """Make a vector's descriptor unreadable until its next interrupt."""

    def refresh_counters(self) -> None:
        """Bring those of the adapter's counters up to date that are counted outside of it."""

    def call_soon(self, function: Callable[[], Any]) -> None:
        """Run `function` outside the data path, soon."""

    def close(self) -> None:
        """Stop; the adapter is not used after it."""

    def abandon(self) -> None:
        """The same in the child of a fork, with no effect on the parent."""
