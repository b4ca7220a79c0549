"""A queue with thresholds, as every stage outside of the switch's core has one: sockets, cards, disciplines, adapters.

It has the same two ends as a `switch.SwitchPort`: `send` or `arrive` and ``on_room`` for producers, ``on_stop`` and
``on_start`` for signals, `receive`, `pause` and ``on_frames`` for consumers; so either can be put behind a `link.Link`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from verbena.vswitch.config import Marks
from verbena.vswitch.kinds import CLASSES


class Item(NamedTuple):
    """A frame in a queue.  length: its true length; marked: congestion was experienced."""

    data: bytes
    length: int
    priority: int = 0
    marked: bool = False


class Counts:
    """What a queue counted."""

    def __init__(self) -> None:
        self.entered = self.left = self.dropped = 0
        self.stops = self.starts = self.slept = self.woken = 0
        self.peak = self.peak_bytes = 0


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class FrameQueue:
    """A queue for each class, with the same marks.

    controlled: is flow control on at this meeting point?  If not, nothing is refused and nobody is stopped: what finds
    no room is dropped, and counted.
    """

    def __init__(self, name: str, marks: Marks | None = None, *, controlled: bool = True) -> None:
        self.name = name
        self.marks = marks or Marks()
        self.controlled = controlled
        self.counts = Counts()
        self.paused = 0
        self.pauses = 0
        self.on_room: Callable[[int], None] = _ignore
        self.on_frames: Callable[[], None] = _ignore
        self.on_stop: Callable[[int], None] = _ignore
        self.on_start: Callable[[int], None] = _ignore
        self.on_taken: Callable[[], None] = _ignore
        self._lines: list[deque[Item]] = [deque() for _ in range(CLASSES)]
        self._octets = [0] * CLASSES
        self._stopped = 0
        self._asleep = 0  # classes whose producer waits
        self._consumer_sleeps = False
        self._turn = 0

    def send(self, item: Item) -> bool:
        """Offer a frame.  False: not taken; ``on_room`` will be called."""
        if self.controlled and (self._stopped >> item.priority & 1 or not self._fits(item)):
            if not self._asleep >> item.priority & 1:
                self._asleep |= 1 << item.priority
                self.counts.slept += 1
            return False
        self.arrive(item)
        return True

    def arrive(self, item: Item) -> bool:
        """A frame that cannot wait.  False: there was no room, and it is lost."""
        if not self._fits(item):
            self.counts.dropped += 1
            return False
        priority = item.priority
        line = self._lines[priority]
        line.append(item)
        self._octets[priority] += item.length
        counts = self.counts
        counts.entered += 1
        counts.peak = max(counts.peak, len(line))
        counts.peak_bytes = max(counts.peak_bytes, self._octets[priority])
        if self.controlled and not self._stopped >> priority & 1 and self._reached(priority):
            self._stopped |= 1 << priority
            counts.stops += 1
            self.on_stop(priority)
        if self._consumer_sleeps and not self.paused >> priority & 1:
            self._consumer_sleeps = False
            counts.woken += 1
            self.on_frames()
        return True

    def _fits(self, item: Item) -> bool:
        held = self._octets[item.priority]
        return (
            len(self._lines[item.priority]) < self.marks.room and held + item.length <= self.marks.octets[2]
        )

    def _reached(self, priority: int) -> bool:
        return len(self._lines[priority]) >= self.marks.high or self._octets[priority] >= self.marks.octets[1]

    def receive(self) -> Item | None:
        """The next frame, classes in turn; None: there is none, ``on_frames`` will be called."""
        for at in range(CLASSES):
            priority = (self._turn + at) % CLASSES
            if self._lines[priority] and not self.paused >> priority & 1:
                self._turn = priority + 1
                return self._take(priority)
        self._consumer_sleeps = True
        return None

    def _take(self, priority: int) -> Item:
        item = self._lines[priority].popleft()
        self._octets[priority] -= item.length
        self.counts.left += 1
        low = len(self._lines[priority]) <= self.marks.low and self._octets[priority] <= self.marks.octets[0]
        if self._stopped >> priority & 1 and low:
            self._stopped &= ~(1 << priority)
            self.counts.starts += 1
            self.on_start(priority)
        if self._asleep >> priority & 1 and not self._stopped >> priority & 1:
            self._asleep &= ~(1 << priority)
            self.on_room(priority)
        self.on_taken()
        return item

    def pause(self, classes: int) -> None:
        """The consumer takes no frames of these classes (a mask)."""
        self.pauses += (classes & ~self.paused).bit_count()
        opened = self.paused & ~classes
        self.paused = classes
        if self._consumer_sleeps and any(opened >> c & 1 and self._lines[c] for c in range(CLASSES)):
            self._consumer_sleeps = False
            self.counts.woken += 1
            self.on_frames()

    def stopped(self, priority: int = 0) -> bool:
        """Has it said stop?"""
        return bool(self._stopped >> priority & 1)

    def occupancy(self, priority: int = 0) -> tuple[int, int]:
        """(frames, bytes) of a class."""
        return len(self._lines[priority]), self._octets[priority]

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines)
