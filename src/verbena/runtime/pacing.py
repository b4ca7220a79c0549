"""How fast a producer may be that can only be slowed by a shaper: the rate follows what its reader takes.

Linux drops what finds a TAP device's queue full, and tells nobody.  A longer queue only drops later.  What makes a
producer wait is a queueing discipline that is slower than the reader: frames there still count against the socket's
send buffer.  So, from time to time:

* more waits than `high`: half of what is taken now, so that the backlog goes;
* more waits than `low`, or the reader came late to the device's queue: a tenth less than is taken now;
* nothing waits, and the rate is below the first one: twice as much.  At the lowest rates a frame comes so seldom that
  most steps see none, and a producer would wait long after its reader is quick again;
* nothing waits, and at least a fourth of the rate is used: a quarter more, up to `most`.  A rate that nobody uses is
  not raised: nothing has shown that the reader can keep up with it;
* an eighth of the rate was not used for `IDLE_NS`: half, down to the first one.  Who begins at full speed after a pause
  finds the reader asleep, and until it has been scheduled, only the shaper protects the device's queue.

A device's queue is limited in frames; so each frame counts `FRAME_BYTES` more than it has, here and in the shaper.

Linux gives a shaper that is changed a full bucket; so it is changed only by a sixteenth or more.
"""

from __future__ import annotations

from verbena.errors import InvalidAttributeError

FRAME_BYTES = 1024
MOST_BYTES_S = 5_000_000_000
FIRST_BYTES_S = 125_000_000
LEAST_BYTES_S = 65_536
LEAST_BURST = 1 << 17
"""More than a frame of 64 KiB with the headers of all its segments: a smaller bucket would have it cut."""
MOST_BURST = 1 << 22
IDLE_NS = 200_000_000
BURST_NS = 500_000
"""What a limited output may catch up with, when its loop was late."""


class Pacer:
    """Rates in bytes/s, first: the one to begin with; low, high: bytes that wait."""

    def __init__(
        self,
        most: int = MOST_BYTES_S,
        least: int = LEAST_BYTES_S,
        *,
        first: int = FIRST_BYTES_S,
        low: int = 1 << 18,
        high: int = 1 << 20,
    ) -> None:
        if not 0 < least <= most or not 0 <= low < high:
            raise InvalidAttributeError(
                f"rates {least} to {most}, marks {low} and {high}: 0 < least <= most, 0 <= low < high are right"
            )
        self.most, self.least, self.low, self.high = most, least, low, high
        self.rate = self._first = max(least, min(most, first))
        self.changes = 0
        self._unused_ns = 0

    @property
    def burst(self) -> int:
        """Bytes of the shaper's bucket: what passes in a millisecond, within limits."""
        return max(LEAST_BURST, min(MOST_BURST, self.rate // 1000))

    def step(self, taken: int, elapsed_ns: int, waiting: int, in_time: bool) -> bool:
        """In `elapsed_ns`, `taken` bytes were taken; so many wait.  in_time: as they came?  True: a new rate."""
        speed = taken * 1_000_000_000 // max(1, elapsed_ns)
        self._unused_ns = self._unused_ns + elapsed_ns if speed * 8 < self.rate else 0
        if waiting > self.high:
            wanted = min(self.rate, speed // 2)
        elif waiting > self.low or not in_time:
            wanted = min(self.rate, speed * 9 // 10)
        elif waiting == 0 and speed * 4 >= self.rate:
            wanted = max(self.rate * 5 // 4, min(self._first, 2 * self.rate))
        elif waiting == 0 and self.rate < self._first:
            wanted = min(self._first, 2 * self.rate)
        elif self._unused_ns >= IDLE_NS and self.rate > self._first:
            wanted = max(self._first, self.rate // 2)
        else:
            wanted = self.rate
        wanted = max(self.least, min(self.most, wanted))
        if abs(wanted - self.rate) * 16 < self.rate and wanted not in (self.least, self.most):
            return False
        if wanted == self.rate:
            return False
        self.rate = wanted
        self.changes += 1
        return True


class Bucket:
    """How many bytes may go out now at a rate: tokens (RFC 2697), at most those of `BURST_NS`, or of two frames.

    A frame goes while there are any at all, so that the longest one does, too; what it takes too much is waited for.
    """

    def __init__(self, rate_bps: float, now: int) -> None:
        if rate_bps <= 0:
            raise InvalidAttributeError(f"rate_bps = {rate_bps}: more than 0")
        self._rate = rate_bps / 8e9
        self._most = max(2.0 * FRAME_BYTES, self._rate * BURST_NS)
        self._tokens = self._most
        self._filled = now

    def available(self, now: int) -> int:
        """Bytes that may go; 0 or less: none yet."""
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return int(self._tokens)

    def spend(self, size: int) -> None:
        """So many have gone."""
        self._tokens -= size

    def ready(self) -> int:
        """When there are tokens again, in ns of the clock."""
        return self._filled + max(1, int((1 - self._tokens) / self._rate) + 1)
