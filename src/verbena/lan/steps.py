"""Procedures of several questions, one after the other, written as generators.

A generator yields what it waits for (a `Pending`) and is sent the answer, or has the error raised inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from verbena.management.datagrams import Pending

Steps = Generator[Pending[Any], Any, None]


class Procedure:
    """Runs a generator to its end; `cancel` stops it at the question that it waits for."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.done = False
        self._advance(None)

    def _advance(self, answer: Pending[Any] | None) -> None:
        # What is there at once is sent on in a loop: thousands of answers that are there must not nest.
        while not self.done:
            try:
                if answer is None:
                    question = next(self._steps)
                elif answer.error is not None:
                    question = self._steps.throw(answer.error)
                else:
                    question = self._steps.send(answer.result())
            except StopIteration:
                self.done = True
                return
            if not question.done:
                question.when_done(self._advance)
                return
            answer = question

    def cancel(self) -> None:
        """Go no further."""
        if not self.done:
            self.done = True
            with contextlib.suppress(ValueError):  # it is being executed now, and stops at its next question
                self._steps.close()
