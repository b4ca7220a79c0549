"""Congestion controls of the TCP model: Reno (RFC 5681), CUBIC (RFC 9438), DCTCP (RFC 8257).

Windows are in bytes.  A control is told of what was acknowledged, of the beginning of a recovery, and of a timeout;
what to retransmit is not its business.  HyStart and pacing are left out.
"""

from __future__ import annotations

from verbena.errors import InvalidAttributeError

CUBIC_C = 0.4
CUBIC_BETA = 0.7
DCTCP_GAIN = 1 / 16
MOST_WINDOW = 1 << 30


class Reno:
    """mss: bytes of a full segment.  window: congestion window; threshold: slow start ends there."""

    name = "reno"
    ecn = False

    def __init__(self, mss: int, initial_segments: int = 10) -> None:
        self.mss = mss
        self.window = float(initial_segments * mss)
        self.threshold = float(MOST_WINDOW)

    def acknowledged(
        self, octets: int, now_ns: int, rtt_ns: int, marked: bool, sequence: int, following: int
    ) -> None:
        """octets: newly acknowledged.  marked: was congestion echoed?

        sequence, following: the first byte that is not acknowledged, the next byte to be sent.
        """
        if self.window < self.threshold:
            self.window = min(self.window + octets, MOST_WINDOW)
        else:
            self.avoid(octets, now_ns, rtt_ns)

    def avoid(self, octets: int, now_ns: int, rtt_ns: int) -> None:
        """Congestion avoidance: a segment for each window."""
        self.window += self.mss * octets / self.window

    def lost(self, now_ns: int) -> None:
        """A recovery begins."""
        self.threshold = max(self.window / 2, 2 * self.mss)
        self.window = self.threshold

    def timed_out(self, now_ns: int) -> None:
        """The retransmission timer ran out."""
        self.lost(now_ns)
        self.window = float(self.mss)


class Cubic(Reno):
    """Grows as a cubic of the time since the last loss, at least as fast as Reno would."""

    name = "cubic"

    def __init__(self, mss: int, initial_segments: int = 10) -> None:
        super().__init__(mss, initial_segments)
        self._most = 0.0  # segments, at the last loss
        self._epoch: int | None = None
        self._k = 0.0
        self._reno = 0.0

    def avoid(self, octets: int, now_ns: int, rtt_ns: int) -> None:
        segments = self.window / self.mss
        if self._epoch is None:
            self._epoch = now_ns
            self._most = max(self._most, segments)
            self._k = ((self._most - segments) / CUBIC_C) ** (1 / 3)
            self._reno = segments
        t = (now_ns - self._epoch + rtt_ns) / 1e9
        target = CUBIC_C * (t - self._k) ** 3 + self._most
        self._reno += 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA) * octets / self.window
        target = min(max(target, segments), 1.5 * segments)
        grown = segments + (target - segments) * octets / self.window
        self.window = max(grown, self._reno) * self.mss

    def lost(self, now_ns: int) -> None:
        segments = self.window / self.mss
        # Fast convergence (RFC 9438, 4.7).
        self._most = segments * (1 + CUBIC_BETA) / 2 if segments < self._most else segments
        self._epoch = None
        self.threshold = max(self.window * CUBIC_BETA, 2 * self.mss)
        self.window = self.threshold


class Dctcp(Reno):
    """Reduces by the share of marked bytes, once for each window."""

    name = "dctcp"
    ecn = True

    def __init__(self, mss: int, initial_segments: int = 10) -> None:
        super().__init__(mss, initial_segments)
        self.alpha = 1.0
        self._came = self._came_marked = 0
        self._window_end = 0

    def acknowledged(
        self, octets: int, now_ns: int, rtt_ns: int, marked: bool, sequence: int, following: int
    ) -> None:
        self._came += octets
        self._came_marked += octets if marked else 0
        super().acknowledged(octets, now_ns, rtt_ns, marked, sequence, following)
        if sequence < self._window_end or not self._came:
            return
        share = self._came_marked / self._came
        self.alpha += DCTCP_GAIN * (share - self.alpha)
        if self._came_marked:
            self.threshold = max(self.window * (1 - self.alpha / 2), 2 * self.mss)
            self.window = self.threshold
        self._came = self._came_marked = 0
        self._window_end = following


CONTROLS: dict[str, type[Reno]] = {c.name: c for c in (Reno, Cubic, Dctcp)}


def control(name: str, mss: int) -> Reno:
    """A congestion control by name; raises `InvalidAttributeError`."""
    if name not in CONTROLS:
        raise InvalidAttributeError(f"no congestion control is called {name!r}: {', '.join(CONTROLS)}")
    return CONTROLS[name](mss)
