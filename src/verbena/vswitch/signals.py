"""Flow-control signals as interchangeable parts: what a receiver says, and how a sender obeys.

A `Granter` sits at a queue and turns its crossings (stop, start) or its free room (level) into *messages*: bytes that
can be seen on the link.  A `Throttle` sits at the sender, hears them, and answers `may_send`.  Each kind has both:

* ``onoff``: a grant for each crossing; ``rate``: a rate that falls at each stop and recovers (`signals_rate`);
* ``pfc`` (802.1Qbb) and ``pause`` (802.3x): `signals_pause`;
* ``pcie`` and ``ib``: credits (`signals_credit`).

Messages never wait behind data: whoever carries them (`link.Link`) sends them ahead.  A message that cannot be
understood is ignored and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from verbena.vswitch.kinds import CLASSES
from verbena.wire.credits import Grant, GrantKind
from verbena.wire.errors import DecodeError

Emit = Callable[[bytes], None]


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class Granter:
    """The receiver's end.  emit: sends a message to the peer.  Base: says nothing."""

    levels = False
    """Does it want to hear of every change of the queue, not only of crossings?"""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.said = 0

    def say(self, message: bytes) -> None:
        self.said += 1
        self._emit(message)

    def begin(self) -> None:
        """The link is up: say what the sender may do at first."""

    def stop(self, priority: int) -> None:
        """The queue of a class reached its high mark."""

    def start(self, priority: int) -> None:
        """It came down to its low mark."""

    def arrived(self, priority: int, length: int) -> None:
        """A frame came."""

    def level(self, priority: int, frames: int, octets: int) -> None:
        """What the queue of a class holds now."""


class Throttle:
    """The sender's end.  on_open: called when something may be sent that was not allowed before.  Base: never stops."""

    def __init__(self) -> None:
        self.on_open: Callable[[], None] = _ignore
        self.heard = self.malformed = 0

    def hear(self, message: bytes) -> None:
        """A message of the peer; what is none is counted and ignored."""
        try:
            self._obey(message)
        except DecodeError:
            self.malformed += 1
        else:
            self.heard += 1

    def _obey(self, message: bytes) -> None:
        raise DecodeError("header", "no message is known")

    def may_send(self, priority: int, length: int) -> bool:
        """May a frame of so many bytes of this class be sent now?"""
        return True

    def sent(self, priority: int, length: int) -> None:
        """It was."""


class Queue(Protocol):
    """What a granter watches."""

    on_stop: Callable[[int], None]
    on_start: Callable[[int], None]


def watch(queue: Queue, granter: Granter) -> None:
    """Let a queue's crossings be said."""
    queue.on_stop = granter.stop
    queue.on_start = granter.start


class OnOffGranter(Granter):
    """Off at the high mark, on at the low mark; numbered."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(emit)
        self._sequence = 0

    def _grant(self, kind: GrantKind, priority: int) -> None:
        self._sequence += 1
        self.say(Grant.say(kind, priority, self._sequence))

    def stop(self, priority: int) -> None:
        self._grant(GrantKind.OFF, priority)

    def start(self, priority: int) -> None:
        self._grant(GrantKind.ON, priority)


class OnOffThrottle(Throttle):
    """Obeys the newest grant of each class; one that was overtaken is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self._off = 0
        self._newest = [0] * CLASSES

    def _obey(self, message: bytes) -> None:
        grant = Grant.heard(message)
        if grant.kind == GrantKind.RATE:
            raise DecodeError("header", "a rate, where grants are on or off")
        if grant.sequence <= self._newest[grant.priority]:
            return
        self._newest[grant.priority] = grant.sequence
        if grant.kind == GrantKind.OFF:
            self._off |= 1 << grant.priority
        else:
            self._off &= ~(1 << grant.priority)
            self.on_open()

    def may_send(self, priority: int, length: int) -> bool:
        return not self._off >> priority & 1
