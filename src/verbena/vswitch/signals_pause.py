"""Pause frames: 802.1Qbb priority flow control, and 802.3x.

A pause lasts as many quanta as its frame says; the receiver renews it at half of its time while the queue is above its
low mark, and ends it with a time of 0.  So a lost frame costs a delay, and a dead receiver stops its sender for no
longer than the last pause it sent.  `pfc_marks` puts the headroom above the high mark that makes this lossless.
"""

from __future__ import annotations

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import Marks
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.signals import Emit, Granter, Throttle
from verbena.wire.errors import DecodeError
from verbena.wire.pause import LONGEST_QUANTA, PauseFrame, PfcFrame, headroom_bytes, quanta_ns, unpack_pause

ALL = (1 << CLASSES) - 1


def pfc_marks(
    buffer_bytes: int, rate_bps: float, cable_m: float, max_frame: int, *, hysteresis_bytes: int | None = None
) -> Marks:
    """Marks for a lossless queue of `buffer_bytes`: the headroom of the link above high, low at least an MTU below it.

    Raises `InvalidAttributeError` when the buffer has no room for that.
    """
    headroom = headroom_bytes(rate_bps, cable_m, max_frame)
    high = buffer_bytes - headroom
    low = high - (2 * max_frame if hysteresis_bytes is None else hysteresis_bytes)
    if low < 0:
        raise InvalidAttributeError(
            f"a buffer of {buffer_bytes} bytes; headroom takes {headroom}, and below it at least two frames "
            "must have room"
        )
    # As many of the smallest frames as it has bytes for: bytes decide.
    frames = buffer_bytes // 60 + 2
    return Marks(frames, frames + 1, frames + 1, low, high, buffer_bytes)


class PauseGranter(Granter):
    """Sends pauses.  by_class: PFC frames about one class each; else 802.3x, which stops the whole link."""

    def __init__(
        self,
        emit: Emit,
        clock: Clock,
        rate_bps: float,
        *,
        by_class: bool = True,
        quanta: int = LONGEST_QUANTA,
        source: bytes = bytes(6),
    ) -> None:
        super().__init__(emit)
        if not 2 <= quanta <= LONGEST_QUANTA:
            raise InvalidAttributeError(f"quanta = {quanta}: 2 to {LONGEST_QUANTA}")
        self._clock, self._quanta, self._source, self._by_class = clock, quanta, source, by_class
        self._renew_ns = quanta_ns(quanta // 2, rate_bps)
        self.stopped = 0
        self._timer: Timer | None = None

    def _frame(self, classes: int, quanta: int) -> None:
        if self._by_class:
            times = tuple(quanta if classes >> c & 1 else None for c in range(CLASSES))
            self.say(PfcFrame(times, self._source).pack())
        else:
            self.say(PauseFrame(quanta, self._source).pack())

    def stop(self, priority: int) -> None:
        self.stopped |= 1 << priority
        self._frame(1 << priority, self._quanta)
        if self._timer is None:
            self._timer = self._clock.call_at(self._clock.now() + self._renew_ns, self._renew)

    def start(self, priority: int) -> None:
        self.stopped &= ~(1 << priority)
        if self._by_class or not self.stopped:
            self._frame(1 << priority, 0)
        if not self.stopped and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _renew(self) -> None:
        self._frame(self.stopped, self._quanta)
        self._timer = self._clock.call_at(self._clock.now() + self._renew_ns, self._renew)


class PauseThrottle(Throttle):
    """Obeys pauses: a timer for each class.  allowed: is the peer one that may send pauses?  If not: counted."""

    def __init__(self, clock: Clock, rate_bps: float, *, by_class: bool = True, allowed: bool = True) -> None:
        super().__init__()
        self._clock, self._rate, self._by_class, self._allowed = clock, rate_bps, by_class, allowed
        self.until = [0] * CLASSES
        self.pauses = self.forged = 0
        self._timers: list[Timer | None] = [None] * CLASSES

    def _obey(self, message: bytes) -> None:
        frame = unpack_pause(message)
        if not self._allowed:
            self.forged += 1
            return
        if isinstance(frame, PauseFrame):
            if self._by_class:
                raise DecodeError("opcode", "an 802.3x pause on a link with priority flow control")
            times: tuple[int | None, ...] = (frame.quanta,) * CLASSES
        else:
            if not self._by_class:
                raise DecodeError("opcode", "a PFC frame on a link with 802.3x pause")
            times = frame.quanta
        opened = False
        for priority, quanta in enumerate(times):
            if quanta is not None:
                opened |= self._set(priority, quanta)
        if opened:
            self.on_open()

    def _set(self, priority: int, quanta: int) -> bool:
        now = self._clock.now()
        was_closed = self.until[priority] > now
        timer = self._timers[priority]
        if timer is not None:
            timer.cancel()
            self._timers[priority] = None
        self.until[priority] = now + quanta_ns(quanta, self._rate) if quanta else 0
        if quanta:
            self.pauses += not was_closed
            self._timers[priority] = self._clock.call_at(self.until[priority], lambda: self._over(priority))
        return was_closed and not quanta

    def _over(self, priority: int) -> None:
        self._timers[priority] = None
        self.on_open()

    def may_send(self, priority: int, length: int) -> bool:
        return self.until[priority] <= self._clock.now()
