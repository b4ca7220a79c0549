"""Where management datagrams come from and go to, and answers that come later.

Everything in management that speaks over queue pair 1 is handed a `send(address, datagram)`; it calls no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from verbena.errors import ManagementError, VerbenaError
from verbena.wire import DEFAULT_PKEY, GSI_QP

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MadAddress:
    """The other end of a datagram on queue pair 1.

    lid: its LID, 0 on fabrics that have none (RoCE).  qpn: its queue pair.  sl: the service level.  path_bits: of the
    LID at this end, what it adds to the port's base LID.  gid: of the global route header, None if there is none.
    port: the number of the port at this end, which it came by or leaves from.
    """

    lid: int = 0
    qpn: int = GSI_QP
    sl: int = 0
    path_bits: int = 0
    gid: bytes | None = None
    pkey: int = DEFAULT_PKEY
    port: int = 1


Send = Callable[[MadAddress, bytes], None]
"""Sends the 256 bytes of a datagram; it may be lost."""


class Pending(Generic[T]):
    """An answer that is there, or will be."""

    __slots__ = ("_error", "_value", "_watchers", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._watchers: list[Callable[[Pending[T]], None]] = []

    def result(self) -> T:
        """The answer.  Raises what went wrong; `ManagementError` if it is not there yet."""
        if self._error is not None:
            raise self._error
        if not self.done:
            raise ManagementError("the answer is not there yet: wait until it is done")
        return self._value  # type: ignore[return-value]

    @property
    def error(self) -> Exception | None:
        """What went wrong, None if nothing did (yet)."""
        return self._error

    def when_done(self, watcher: Callable[[Pending[T]], None]) -> None:
        """Call `watcher` with this, once, when it is done; at once if it is."""
        if self.done:
            watcher(self)
        else:
            self._watchers.append(watcher)

    def resolve(self, value: T) -> None:
        """It is there; does nothing if it was before."""
        if not self.done:
            self._value = value
            self._finish()

    def fail(self, error: Exception) -> None:
        """It went wrong; does nothing if it was done before."""
        if not self.done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self.done = True
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher(self)


U = TypeVar("U")


def then(pending: Pending[T], change: Callable[[T], U]) -> Pending[U]:
    """What `change` makes of an answer; what it raises on purpose becomes the error."""
    made: Pending[U] = Pending()

    def done(found: Pending[T]) -> None:
        try:
            made.resolve(change(found.result()))
        except (VerbenaError, TimeoutError) as error:
            made.fail(error)

    pending.when_done(done)
    return made
