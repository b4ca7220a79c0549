"""How much TCP may have in flight, and how long it waits: congestion control and the retransmission time-out.

RFC 5681 (slow start, congestion avoidance, fast retransmit), RFC 6582 (NewReno), RFC 6298.
"""

from __future__ import annotations

from verbena.team.stack.tcp_states import TcpOptions

DUPLICATES = 3
MASK = 0xFFFFFFFF
HALF = 1 << 31


def minus(a: int, b: int) -> int:
    """a - b as sequence numbers: negative if a is before b."""
    return (a - b + HALF & MASK) - HALF


class Congestion:
    """The congestion window.  window: bytes.  recover: the number that ends fast recovery; None: not in it."""

    def __init__(self, mss: int, segments: int) -> None:
        self.mss = mss
        self.window = segments * mss
        self.threshold = 1 << 30
        self.recover: int | None = None
        self._duplicates = 0

    def acknowledged(self, ack: int, size: int) -> bool:
        """New bytes were acknowledged; True: the first that are not have to be sent again at once."""
        self._duplicates = 0
        if self.recover is not None:
            if minus(ack, self.recover) < 0:
                self.window = max(self.window - size + self.mss, self.mss)
                return True
            self.recover = None
            self.window = self.threshold
        elif self.window < self.threshold:
            self.window += min(size, 2 * self.mss)
        else:
            self.window += max(1, self.mss * self.mss // self.window)
        return False

    def duplicate(self, flight: int, most: int) -> bool:
        """An acknowledgement came again; True: fast retransmission is due.

        flight: bytes that are not acknowledged; most: the number behind the last byte that was sent.
        """
        self._duplicates += 1
        if self.recover is not None:
            self.window += self.mss
            return False
        if self._duplicates != DUPLICATES:
            return False
        self.threshold = max(flight // 2, 2 * self.mss)
        self.window = self.threshold + DUPLICATES * self.mss
        self.recover = most
        return True

    def timed_out(self, flight: int, lost: bool) -> None:
        """The time-out; lost: it was no probe of a shut window."""
        if lost:
            self.threshold = max(flight // 2, 2 * self.mss)
            self.window = self.mss
        self._duplicates = 0
        self.recover = None


class RoundTrip:
    """The retransmission time-out, in nanoseconds."""

    def __init__(self, options: TcpOptions) -> None:
        self.timeout = options.first_rto_ns
        self._options = options
        self._smoothed = 0
        self._variation = 0

    def sample(self, took: int) -> None:
        """A round trip was measured."""
        if self._smoothed:
            self._variation = (3 * self._variation + abs(self._smoothed - took)) // 4
            self._smoothed = (7 * self._smoothed + took) // 8
        else:
            self._smoothed, self._variation = took, took // 2
        self.restore()

    def restore(self) -> None:
        """New bytes were acknowledged: the time-out is as measured again."""
        wanted = self._smoothed + max(1, 4 * self._variation) if self._smoothed else 0
        self.timeout = min(max(wanted, self._options.least_rto_ns), self._options.most_rto_ns)

    def back_off(self) -> None:
        """It has run out: twice as long the next time."""
        self.timeout = min(2 * self.timeout, self._options.most_rto_ns)
