"""The one interface to time.  Everything below `runtime/` that needs time is handed a `Clock`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that was asked for and has not happened yet."""

    def cancel(self) -> None:
        """Forget the call; harmless when it already happened."""


class Clock(Protocol):
    """Integer nanoseconds since an origin of the clock's own; never goes back."""

    def now(self) -> int:
        """The time, in nanoseconds."""

    def call_at(self, when_ns: int, function: Callable[[], None]) -> Timer:
        """Call `function` once, at `when_ns` or as soon after it as the clock can."""
