"""What is called whenever something completes, and may itself let more complete."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager


class OneAtATime:
    """Calls `work`, and again when it was called for meanwhile: calls neither nest nor are missed.

    guard: protects the two flags; `work` is called without it.  It can be a completion queue's sink as it stands.
    """

    def __init__(self, guard: AbstractContextManager[object], work: Callable[[], None]) -> None:
        self._guard = guard
        self._work = work
        self._busy = False
        self._missed = False

    def __call__(self, asked: bool = True) -> None:
        with self._guard:
            if self._busy:
                self._missed = True
                return
            self._busy = True
        while True:
            self._missed = False
            self._work()
            with self._guard:
                if not self._missed:
                    self._busy = False
                    return
