"""Latencies, counted by size: little memory, no matter how many, and any percentile to within 6 %."""

from __future__ import annotations

STEPS = 16  # of each power of two


class Latencies:
    """A histogram of durations in nanoseconds, in classes whose width is a sixteenth of a power of two (HDR)."""

    __slots__ = ("_counts", "count", "total_ns")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one, of 0 ns or more."""
        if duration_ns < STEPS:
            place = duration_ns
        else:
            shift = duration_ns.bit_length() - 5
            place = (shift + 1) * STEPS + (duration_ns >> shift) - STEPS
        self._counts[place] = self._counts.get(place, 0) + 1
        self.count += 1
        self.total_ns += duration_ns

    def percentile(self, percent: float) -> int | None:
        """The smallest class that so many percent (0 to 100) do not exceed: its upper bound; None without any."""
        left = max(1, -(-self.count * percent // 100)) if self.count else 0
        for place in sorted(self._counts.copy()):
            left -= self._counts[place]
            if left <= 0:
                return _upper(place)
        return None

    @property
    def mean_ns(self) -> float | None:
        """The mean; None without any."""
        return self.total_ns / self.count if self.count else None


def _upper(place: int) -> int:
    if place < STEPS:
        return place
    shift, step = divmod(place, STEPS)
    return ((STEPS + step + 1) << (shift - 1)) - 1
