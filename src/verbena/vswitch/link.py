"""A link in virtual time, and what joins unlike flow controls.

`Link` carries frames one way, from something that has them (a `switch.SwitchPort` or a `queue.FrameQueue`) to something
that takes them, at a rate and with a delay; messages of flow control come back the other way with the same delay, ahead
of all data.  A frame that may not be sent is held in hand, one for each class; so a stopped class stops no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import Marks
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.signals import Granter, OnOffGranter, OnOffThrottle, Throttle, watch
from verbena.vswitch.signals_credit import (
    IB_MOST_BYTES,
    PCIE_MOST_BYTES,
    PCIE_MOST_HEADERS,
    IbGranter,
    IbThrottle,
    PcieGranter,
    PcieThrottle,
    credit_marks,
)
from verbena.vswitch.signals_pause import PauseGranter, PauseThrottle, pfc_marks
from verbena.vswitch.signals_rate import RateGranter, RateThrottle
from verbena.vswitch.switch import SwitchPort
from verbena.wire.pause import NS_PER_METRE

FRAME_OVERHEAD = 24
"""Preamble, check sequence and gap: bytes that a frame takes on the link beside its own."""
KINDS = ("onoff", "rate", "pfc", "pause", "pcie", "ib")


class Source(Protocol):
    """Where a link gets its frames."""

    on_frames: Callable[[], None]

    def receive(self) -> Any:
        """A frame (`Item` or `Delivered`), or None."""

    def pause(self, classes: int) -> None:
        """Give none of these classes."""


class Link:
    """One direction.  sink: called with each frame.  rate_bps 0: infinitely fast.

    tap: called with the bytes of every frame that is sent, and of every message that is said on the way back.
    """

    def __init__(
        self,
        clock: Clock,
        source: Source,
        sink: Callable[[Item], object],
        *,
        rate_bps: float,
        delay_ns: int = 0,
        throttle: Throttle | None = None,
    ) -> None:
        if rate_bps < 0 or delay_ns < 0:
            raise InvalidAttributeError("rate_bps and delay_ns are 0 or more")
        self._clock, self._source, self._sink = clock, source, sink
        self.rate_bps, self.delay_ns = rate_bps, delay_ns
        self.throttle = throttle or Throttle()
        self.throttle.on_open = self.kick
        self.frames = self.octets = self.messages = 0
        self.tap: Callable[[bytes], None] = lambda _: None
        self.up = True
        self.lost = 0
        self._hand: list[Item | None] = [None] * CLASSES
        self._held = 0
        self._busy = self._kicking = self._again = False
        self._turn = 0
        source.on_frames = self.kick
        clock.call_at(clock.now(), self.kick)  # for what the source has already

    def signal(self, message: bytes) -> None:
        """A message of flow control from the far end; it is heard after the delay, whatever the data do."""
        self.messages += 1
        self.tap(message)
        self._clock.call_at(self._clock.now() + self.delay_ns, lambda: self.throttle.hear(message))

    def kick(self) -> None:
        """Send, if something may be sent."""
        # The source may call back here while it is asked: that is done afterwards, not forgotten.
        self._again = True
        if self._kicking:
            return
        self._kicking = True
        try:
            while self._again and not self._busy:
                self._again = False
                while not self._busy and (item := self._from_hand() or self._from_source()) is not None:
                    self._transmit(item)
        finally:
            self._kicking = False

    def _from_hand(self) -> Item | None:
        if not self._held:
            return None
        for at in range(CLASSES):
            priority = (self._turn + at) % CLASSES
            item = self._hand[priority]
            if item is not None and self.throttle.may_send(priority, item.length):
                self._turn = priority + 1
                self._hold(priority, None)
                return item
        return None

    def _hold(self, priority: int, item: Item | None) -> None:
        self._hand[priority] = item
        if item is None:
            self._held &= ~(1 << priority)
        else:
            self._held |= 1 << priority
        self._source.pause(self._held)

    def _from_source(self) -> Item | None:
        while (found := self._source.receive()) is not None:
            item = Item(found.data, found.length, found.priority, found.marked)
            if self.throttle.may_send(item.priority, item.length):
                return item
            self._hold(item.priority, item)
        return None

    def _transmit(self, item: Item) -> None:
        self.throttle.sent(item.priority, item.length)
        self.frames += 1
        self.octets += item.length
        self.tap(item.data)
        now = self._clock.now()
        taken = 0
        if self.rate_bps:
            taken = int((item.length + FRAME_OVERHEAD) * 8e9 / self.rate_bps)
        if taken or self.delay_ns:
            self._busy = bool(taken)
            if taken:
                self._clock.call_at(now + taken, self._free)
            self._clock.call_at(now + taken + self.delay_ns, lambda: self._deliver(item))
        else:
            self._deliver(item)

    def _free(self) -> None:
        self._busy = False
        self.kick()

    def _deliver(self, item: Item) -> None:
        if self.up:
            self._sink(item)
        else:
            self.lost += 1


def signal_pair(
    kind: str,
    clock: Clock,
    emit: Callable[[bytes], None],
    *,
    rate_bps: float,
    buffer_bytes: int = 30_000,
    cable_m: float = 10,
    max_frame: int = 1522,
) -> tuple[Granter, Throttle, Marks]:
    """Both ends of a kind of flow control, and the marks that its receiver's queue needs on such a link.

    Credits can tell of so much room and no more; what a buffer has beyond that is not used.

    Raises `InvalidAttributeError` for an unknown kind, or a buffer that is too small for the link.
    """
    rate = int(rate_bps)
    pause_marks = None if kind in ("pcie", "ib") else pfc_marks(buffer_bytes, rate_bps, cable_m, max_frame)
    if kind == "onoff":
        assert pause_marks is not None
        return OnOffGranter(emit), OnOffThrottle(), pause_marks
    if kind == "rate":
        assert pause_marks is not None
        return RateGranter(emit, rate), RateThrottle(clock, rate), pause_marks
    if kind in ("pfc", "pause"):
        assert pause_marks is not None
        by_class = kind == "pfc"
        return (
            PauseGranter(emit, clock, rate_bps, by_class=by_class),
            PauseThrottle(clock, rate_bps, by_class=by_class),
            pause_marks,
        )
    if kind == "pcie":
        room = min(buffer_bytes, PCIE_MOST_BYTES)
        return PcieGranter(emit, PCIE_MOST_HEADERS, room, clock), PcieThrottle(), credit_marks(room)
    if kind == "ib":
        room = min(buffer_bytes, IB_MOST_BYTES)
        return IbGranter(emit, room, clock), IbThrottle(), credit_marks(room)
    raise InvalidAttributeError(f"no flow control is called {kind!r}: {', '.join(KINDS)}")


class Meeting:
    """Two queues meet over a link, with one kind of flow control between them.

    The first queue is whatever `source` is; the second is a `FrameQueue`, or a port's input queue of a switch.  Each
    adapter between unlike signals is this: the queue in the middle has one meeting on its left and another on its
    right, and its thresholds turn the one's stops into the other's.
    """

    def __init__(
        self,
        clock: Clock,
        source: Source,
        target: FrameQueue | SwitchPort,
        kind: str,
        *,
        rate_bps: float,
        delay_ns: int = 50,
        buffer_bytes: int = 30_000,
    ) -> None:
        self.target = target
        self.granter, throttle, self.marks = signal_pair(
            kind,
            clock,
            lambda message: self.link.signal(message),
            rate_bps=rate_bps,
            buffer_bytes=buffer_bytes,
            cable_m=delay_ns / NS_PER_METRE,
        )
        self.link = Link(
            clock, source, self._arrived, rate_bps=rate_bps, delay_ns=delay_ns, throttle=throttle
        )
        watch(target, self.granter)
        if isinstance(target, SwitchPort):
            for priority in range(CLASSES):
                target.switch.set_marks(target.name, priority, input=self.marks)
            if self.granter.levels:
                target.switch.watchers.append(self._level)
        else:
            target.marks = self.marks
            if self.granter.levels:
                target.on_taken = self._level
        self._seen: list[tuple[int, int]] = [(0, 0)] * CLASSES
        self.granter.begin()

    def _arrived(self, item: Item) -> None:
        self.granter.arrived(item.priority, item.length)
        # A frame that went straight through leaves the queue as it was, and its room must be granted again.
        self._seen[item.priority] = (-1, -1)
        if isinstance(self.target, SwitchPort):
            self.target.arrive(item.data, item.length)
        else:
            self.target.arrive(item)
        if self.granter.levels:
            self._level()

    def _level(self) -> None:
        for priority in range(CLASSES):
            if isinstance(self.target, SwitchPort):
                now = self.target.occupancy(priority, outgoing=False)
            else:
                now = self.target.occupancy(priority)
            if now != self._seen[priority]:
                self._seen[priority] = now
                self.granter.level(priority, *now)
