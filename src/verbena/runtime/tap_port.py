"""A port of a virtual switch that ends in a TAP device: what a container, or the machine itself, sends by it.

Frames to the kernel are written at once.  Frames from it are read as soon as they come, also while the switch takes
none (they wait here, in memory, up to `AHEAD_BYTES`), because the kernel drops what its device has no room for; and the
producer is made to wait by a shaper, whose rate follows what the switch takes (`pacing`).  What the kernel drops
nevertheless is in `counters`, as the kernel's.
"""

from __future__ import annotations

import contextlib
from collections import deque

from verbena.clock import Timer
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.frame_pump import FramePump
from verbena.runtime.pacing import FRAME_BYTES, Bucket, Pacer
from verbena.runtime.poll_port import PollPort
from verbena.runtime.rtnetlink import LinkControl
from verbena.runtime.tap import BUFFER, Tap
from verbena.vswitch.switch import SwitchPort

AHEAD_BYTES = 64 << 20
AHEAD_BATCH = 1024
DEVICE_FRAMES = 16_384
"""What the device itself keeps: what may come until its reader is scheduled again."""
QDISC_BYTES = 256 << 20
"""What may wait in the shaper: more than the send buffers of all sockets, or it would drop instead of them waiting."""
STEP_NS = 5_000_000
SLOW_FRAME = 1_522
LATE_FRAMES = DEVICE_FRAMES // 8
"""So many at once show that the device's queue had to wait for its reader."""


class TapPort(PollPort):
    """tap: is closed with the port.  paced False: nothing slows the kernel down, it drops instead.

    rate_bps: bits/s of the frames that go out to the device, as over a link of that rate; 0: no limit.

    With the device's offloads, frames carry their ``virtio_net_hdr`` behind them within the switch (`frame_pump`);
    all ports of a switch must do so, or none.
    """

    def __init__(
        self, tap: Tap, *, paced: bool = True, pacer: Pacer | None = None, rate_bps: float = 0
    ) -> None:
        super().__init__()
        self.tap = tap
        self.paced = paced
        self.pacer = pacer or Pacer()
        self._pump = FramePump(tap.fd, BUFFER, tap.offload)
        self._link = LinkControl(tap.name, tap.namespace)
        self._ahead: deque[bytes] = deque()
        self._waiting = self._read_ahead = 0
        self._in_time = True
        self._taken = 0
        self._stepped = 0
        self._timer: Timer | None = None
        self._rate_bps = rate_bps
        self._bucket: Bucket | None = None
        self._refill: Timer | None = None
        self._kernel: dict[str, int] = {}
        try:
            self._link.set_queue_length(DEVICE_FRAMES)
            if paced:
                self._shape()
        except BaseException:
            self._link.close()
            super().close()
            raise
        self.watch(tap.fd, True)

    def attach(self, port: SwitchPort) -> None:
        super().attach(port)
        clock = port.switch.clock
        if self._rate_bps:
            if clock is None:
                raise InvalidAttributeError("a limited port needs a switch with a clock")
            self._bucket = Bucket(self._rate_bps, clock.now())
        if self.paced and clock is not None:
            self._stepped = clock.now()
            self._timer = clock.call_at(self._stepped + STEP_NS, self._step)

    # --- frames -----------------------------------------------------------------------------------------------

    def feed(self, most: int) -> int:
        pump = self._pump
        moved = self._offer_ahead(most)
        if not self._ahead:
            before = pump.octets
            count: int = pump.feed(self.port.switch.engine, self.port.number, most)
            moved += count
            self._taken += pump.octets - before + FRAME_BYTES * count
            if count >= LATE_FRAMES:
                self._in_time = False
            if pump.held:
                self._keep()
        if self._ahead:
            self._look_ahead()
        self.closed = self.closed or pump.gone
        return moved

    def _offer_ahead(self, most: int) -> int:
        moved = 0
        while self._ahead and moved < most and self.offer(self._ahead[0]):
            size = len(self._ahead.popleft())
            self._waiting -= size
            self._taken += size + FRAME_BYTES
            moved += 1
        return moved

    def _keep(self) -> None:
        """A frame that was read, and that the switch did not take."""
        for frame in self._pump.take(1):
            self._taken -= len(frame)
            self._append(frame)

    def _append(self, frame: bytes) -> None:
        self._ahead.append(frame)
        self._waiting += len(frame)
        self._read_ahead += 1

    def _look_ahead(self) -> None:
        """Empty the device, whatever the switch does."""
        while self._waiting < AHEAD_BYTES:
            found = self._pump.take(AHEAD_BATCH)
            for frame in found:
                self._append(frame)
            if self._pump.drained or not found:
                break
        self.watch(self.tap.fd, self._waiting < AHEAD_BYTES, bool(self._pump.full))

    def drain(self, most: int) -> int:
        was_full = self._pump.full
        count: int
        if self._bucket is None:
            count = self._pump.drain(self.port.switch.engine, self.port.number, most)
        else:
            count = self._drain_slowly(self._bucket, most)
        if self._pump.full != was_full:
            self.watch(self.tap.fd, self._waiting < AHEAD_BYTES, bool(self._pump.full))
        return count

    def _drain_slowly(self, bucket: Bucket, most: int) -> int:
        """What the rate allows; the loop comes back when it allows more."""
        clock, pump = self.port.switch.clock, self._pump
        assert clock is not None
        if self._refill is not None:
            return 0
        moved = 0
        while moved < most and (left := bucket.available(clock.now())) > 0:
            before = pump.written
            at_once = max(1, min(most - moved, left // SLOW_FRAME))
            count: int = pump.drain(self.port.switch.engine, self.port.number, at_once)
            bucket.spend(pump.written - before)
            moved += count
            if count < at_once:
                return moved
        self._refill = clock.call_at(bucket.ready(), self._refilled)
        return moved

    def _refilled(self) -> None:
        self._refill = None

    # --- pacing -----------------------------------------------------------------------------------------------

    def _shape(self) -> None:
        self._link.shape(self.pacer.rate, self.pacer.burst, QDISC_BYTES, FRAME_BYTES)

    def _step(self) -> None:
        clock = self.port.switch.clock
        if self.closed or clock is None:
            return
        now = clock.now()
        if self._waiting < AHEAD_BYTES:
            self.watch(self.tap.fd, True, bool(self._pump.full))
        changed = self.pacer.step(max(0, self._taken), now - self._stepped, self._waiting, self._in_time)
        self._taken, self._stepped, self._in_time = 0, now, True
        if changed:
            try:
                self._shape()
            except (SystemLimitError, OSError):
                # Somebody has removed the device: reading it will say so.  Or a shaper of his stands in the way.
                self.tally["shaper_refused"] += 1
        self._timer = clock.call_at(now + STEP_NS, self._step)

    # --- the rest ---------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """``kernel.*``: what the kernel dropped; the rest is what happened here."""
        pump = self._pump
        with contextlib.suppress(SystemLimitError, OSError):  # it may be gone: what it last told stays
            self._kernel = self._link.counters()
        found = {f"kernel.{name}": count for name, count in self._kernel.items()}
        return (
            found
            | dict(self.tally)
            | {
                "refused_by_kernel": pump.refused,
                "waiting_bytes": self._waiting,
                "read_ahead": self._read_ahead,
                "rate_bytes_s": self.pacer.rate if self.paced else 0,
                "rate_changes": self.pacer.changes,
                "runts": pump.runts,
            }
        )

    def close(self) -> None:
        for timer in (self._timer, self._refill):
            if timer is not None:
                timer.cancel()
        super().close()
        self._link.close()
        self.tap.close()
