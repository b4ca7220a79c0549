"""Both ends of an overlay's credits, without sockets: how far one may send, what was lost, how far the other may.

A receiver grants `window` frames of each class beyond what its switch has taken.  What is sent and not taken is
therefore never more than `window`, wherever it is: in the network, in the socket's buffer, or in hand; and when the
switch of one host takes no more, the sender's output queue fills on the other host, and then the inputs that feed it.

A datagram that is lost takes its credit along, until the sender tells how many it has sent: then it is counted as lost,
and its room granted again.
"""

from __future__ import annotations

from verbena.errors import InvalidAttributeError
from verbena.wire.overlay import CLASSES, OverlayCredits

WINDOW_PART = 4
"""A grant is worth telling when a fourth of the window has become free."""


class CreditLedger:
    """session: a number that no earlier run of this endpoint had, 1 to 2^32 - 1.  window: frames of each class."""

    def __init__(self, session: int, window: int) -> None:
        if not 0 < session < 1 << 32 or window < 1:
            raise InvalidAttributeError(f"session {session}, window {window}: both from 1 on")
        self.session, self.window = session, window
        self.peer = 0
        self.lost = 0
        self.sent = [0] * CLASSES
        self.limit = [0] * CLASSES
        self._received = [0] * CLASSES
        self._taken = [0] * CLASSES
        self._told = [0] * CLASSES

    # --- sending ----------------------------------------------------------------------------------------------

    @property
    def closed(self) -> int:
        """The classes that may not be sent now, as a mask."""
        return sum(1 << c for c in range(CLASSES) if self.sent[c] >= self.limit[c])

    def may_send(self, priority: int) -> bool:
        return self.sent[priority] < self.limit[priority]

    def send(self, priority: int) -> None:
        """A frame was sent."""
        self.sent[priority] += 1

    # --- receiving --------------------------------------------------------------------------------------------

    def receive(self, priority: int) -> bool:
        """A frame came.  False: it was not granted, and must be dropped."""
        if not self.peer or self._received[priority] - self._taken[priority] >= self.window:
            return False
        self._received[priority] += 1
        return True

    def take(self, priority: int) -> bool:
        """The switch took a frame that came.  True: tell the peer that it may send more."""
        self._taken[priority] += 1
        free = self._taken[priority] + self.window - self._told[priority]
        return free * WINDOW_PART >= self.window

    # --- messages ---------------------------------------------------------------------------------------------

    def say(self) -> OverlayCredits:
        """What to tell the peer now."""
        self._told = [taken + self.window for taken in self._taken]
        granted = self._told if self.peer else [0] * CLASSES
        return OverlayCredits(self.session, self.peer, tuple(self.sent), tuple(granted))

    def hear(self, message: OverlayCredits) -> bool:
        """What the peer told.  True: it must be answered, because it begins, or does not know us yet."""
        begins = message.session != self.peer
        for priority, sent in enumerate(message.sent):
            waiting = 0 if begins else self._received[priority] - self._taken[priority]
            if begins:
                self._received[priority] = self._taken[priority] = sent
                self._told[priority] = 0
            elif sent != self._received[priority]:
                # Datagrams of one socket come in order: what was sent before this message came, or never will.  One
                # that was late all the same, and counted as lost, came after the last message: it makes up for that.
                self.lost += sent - self._received[priority]
                self._received[priority] = sent
                self._taken[priority] = sent - waiting
        self.peer = message.session
        if message.echo == self.session:
            for priority, limit in enumerate(message.limit):
                self.limit[priority] = max(self.limit[priority], limit)
        return begins or message.echo != self.session
