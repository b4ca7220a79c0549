"""Rate increase and decrease: a receiver that says how fast.

At a stop the rate falls to half of what it was, and the sender is told 0 until the queue is low again; at the start it
is told that half.  While the queue stays below its high mark, each further `recover_bytes` that came raise the rate by
a sixteenth of the link's, up to all of it.  The sender spaces its frames by the rate.
"""

from __future__ import annotations

from verbena.clock import Clock, Timer
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.signals import Emit, Granter, Throttle
from verbena.wire.credits import Grant, GrantKind
from verbena.wire.errors import DecodeError


class RateGranter(Granter):
    """link_bps: the rate at first, and the highest."""

    def __init__(self, emit: Emit, link_bps: int, recover_bytes: int = 1 << 16) -> None:
        super().__init__(emit)
        self._link, self._recover = link_bps, recover_bytes
        self.rates = [link_bps] * CLASSES
        self._stopped = 0
        self._came = [0] * CLASSES
        self._sequence = 0

    def _tell(self, priority: int, rate: int) -> None:
        self._sequence += 1
        self.say(Grant.say(GrantKind.RATE, priority, self._sequence, rate))

    def stop(self, priority: int) -> None:
        self._stopped |= 1 << priority
        self.rates[priority] = max(self._link // 1024, self.rates[priority] // 2)
        self._tell(priority, 0)

    def start(self, priority: int) -> None:
        self._stopped &= ~(1 << priority)
        self._came[priority] = 0
        self._tell(priority, self.rates[priority])

    def arrived(self, priority: int, length: int) -> None:
        self._came[priority] += length
        rate = self.rates[priority]
        if self._stopped >> priority & 1 or rate >= self._link or self._came[priority] < self._recover:
            return
        self._came[priority] = 0
        self.rates[priority] = min(self._link, rate + max(1, self._link // 16))
        self._tell(priority, self.rates[priority])


class RateThrottle(Throttle):
    """Spaces frames by the rate it was told."""

    def __init__(self, clock: Clock, link_bps: int) -> None:
        super().__init__()
        self._clock = clock
        self.rates = [link_bps] * CLASSES
        self._free_at = [0] * CLASSES
        self._newest = [0] * CLASSES
        self._timer: Timer | None = None

    def _obey(self, message: bytes) -> None:
        grant = Grant.heard(message)
        if grant.kind != GrantKind.RATE:
            raise DecodeError("header", "a grant on or off, where rates are told")
        if grant.sequence <= self._newest[grant.priority]:
            return
        self._newest[grant.priority] = grant.sequence
        self.rates[grant.priority] = grant.rate_bps
        if grant.rate_bps:
            self.on_open()

    def may_send(self, priority: int, length: int) -> bool:
        if not self.rates[priority]:
            return False
        free_at = self._free_at[priority]
        if free_at <= self._clock.now():
            return True
        if self._timer is None:
            self._timer = self._clock.call_at(free_at, self._open)
        return False

    def _open(self) -> None:
        self._timer = None
        self.on_open()

    def sent(self, priority: int, length: int) -> None:
        rate = self.rates[priority]
        if rate:
            self._free_at[priority] = self._clock.now() + length * 8 * 1_000_000_000 // rate
