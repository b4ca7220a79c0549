"""Multicast groups are written into the switches between sweeps: one pass after the other.

Two writes of one block that are on the way at once may be repeated, and then the older one could come last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from verbena.management.subnet_manager.smp_client import Done, Question, SmpClient

Pass = Callable[[], Iterator[Question]]


class GroupWriter:
    """failed: is called after a pass in which a switch did not answer, or refused."""

    def __init__(self, client: SmpClient, failed: Callable[[], None]) -> None:
        self._client = client
        self._failed = failed
        self._open = 0
        self._faults = 0
        self._next: Pass | None = None

    @property
    def busy(self) -> bool:
        """Is a pass under way?"""
        return self._open > 0

    def write(self, questions: Pass) -> None:
        """Ask these, when what is under way has been answered; of several that wait, the last."""
        if self._open:
            self._next = questions
            return
        made = list(questions())
        self._open, self._faults = len(made), 0
        for question in made:
            self._client.put(question._replace(done=partial(self._answered, question.done)))

    def forget(self) -> None:
        """The client has forgotten its questions: nothing will be answered."""
        self._open = 0
        self._next = None

    def _answered(self, done: Done, status: int | None, data: bytes) -> None:
        done(status, data)
        self._faults += status != 0
        self._open -= 1
        if self._open:
            return
        if self._faults:
            self._failed()
        following, self._next = self._next, None
        if following is not None:
            self.write(following)
