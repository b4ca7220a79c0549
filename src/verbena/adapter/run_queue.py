"""Which handler a processor calls next: classes of service without starvation.

Document 001, paragraphs 24 and 30.  Among the handlers with events the one of the highest priority is called; among
equals the one that had least of the processor, measured by its share (stride scheduling).  A handler that was passed
over `most_passed` times is called next, whatever its priority, the longest waiting first.  So it is called after at
most `most_passed` + n - 1 calls of others, where n handlers have events on that processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

MOST_PASSED = 16


class Runnable(Protocol):
    """What stands in a run queue."""

    @property
    def priority(self) -> int:
        """Higher is sooner."""

    @property
    def share(self) -> int:
        """Of the processor, beside others of the same priority; 1 or more."""


R = TypeVar("R", bound=Runnable)


class _Turn:
    """Where a handler stands: how often it was passed over, and what it had of the processor, for its share."""

    __slots__ = ("had", "passed")

    def __init__(self, had: float) -> None:
        self.passed = 0
        self.had = had


class RunQueue:
    """The order of the handlers of one processor.  most_passed: 1 or more."""

    def __init__(self, most_passed: int = MOST_PASSED) -> None:
        self.most_passed = most_passed
        self._turns: WeakKeyDictionary[Runnable, _Turn] = WeakKeyDictionary()
        self._last = 0.0

    def pick(self, ready: Sequence[R]) -> R | None:
        """Whose turn it is among those that have events; None when there are none."""
        if not ready:
            return None
        if len(ready) == 1:
            return self._chosen(ready[0])
        turns = [self._turn(one) for one in ready]
        overdue = [i for i, turn in enumerate(turns) if turn.passed >= self.most_passed]
        if overdue:
            chosen = max(overdue, key=lambda i: turns[i].passed)
        else:
            chosen = max(range(len(ready)), key=lambda i: (ready[i].priority, -turns[i].had, turns[i].passed))
        for turn in turns:
            turn.passed += 1
        return self._chosen(ready[chosen])

    def _chosen(self, one: R) -> R:
        turn = self._turn(one)
        turn.passed = 0
        # Who was away has no claim on the time that others had meanwhile.
        self._last = turn.had = max(turn.had, self._last)
        return one

    def charge(self, one: Runnable, cost_ns: int) -> None:
        """A call was so long."""
        self._turn(one).had += max(1, cost_ns) / one.share

    def _turn(self, one: Runnable) -> _Turn:
        turn = self._turns.get(one)
        if turn is None:
            turn = self._turns[one] = _Turn(self._last)
        return turn
