"""What a virtual switch and its ports are set to, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from verbena.errors import InvalidAttributeError
from verbena.vswitch.kinds import CLASSES

NO_LIMIT = 1 << 60
DEFAULT_LOSSLESS = frozenset({0})


@dataclass(frozen=True, slots=True)
class Marks:
    """Thresholds of a queue: stop at `high` or above, start again at `low` or below, `room` is what it can hold.

    In frames and in bytes; whichever is reached first stops, both must be low to start.  A byte mark of None: no limit
    in bytes.  Raises `InvalidAttributeError` unless 0 <= low < high <= room.
    """

    low: int = 128
    high: int = 256
    room: int = 320
    low_bytes: int | None = None
    high_bytes: int | None = None
    room_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= self.room:
            raise InvalidAttributeError(
                f"marks in frames {self.low}, {self.high}, {self.room}: 0 <= low < high <= room is right"
            )
        low, high, room = self.octets
        if not 0 <= low < high <= room:
            raise InvalidAttributeError(
                f"marks in bytes {low}, {high}, {room}: 0 <= low_bytes < high_bytes <= room_bytes is right"
            )

    @property
    def frames(self) -> tuple[int, int, int]:
        """(low, high, room) in frames."""
        return self.low, self.high, self.room

    @property
    def octets(self) -> tuple[int, int, int]:
        """(low, high, room) in bytes; what was left open follows from what was given."""
        if self.high_bytes is None:
            room = NO_LIMIT if self.room_bytes is None else self.room_bytes
            low, high = (NO_LIMIT - 2, NO_LIMIT - 1) if self.room_bytes is None else (room // 2, room)
            return (low if self.low_bytes is None else self.low_bytes), high, room
        low = self.high_bytes // 2 if self.low_bytes is None else self.low_bytes
        return low, self.high_bytes, NO_LIMIT if self.room_bytes is None else self.room_bytes


@dataclass(frozen=True, slots=True)
class PortConfig:
    """A port.

    macs: addresses that are behind it, 6 bytes each (a virtual machine's).  priority: class of its untagged frames.
    input, output: marks of its queues; by_class: other ones for some classes, (input, output).  may_pause: are pause
    frames from this port obeyed?  pvid, vlans, tagged: IEEE 802.1Q, where the switch has VLANs.  mark_bytes: an output
    queue longer than this marks frames (explicit congestion notification); 0: never.
    """

    name: str
    macs: tuple[bytes, ...] = ()
    priority: int = 0
    input: Marks = Marks()
    output: Marks = Marks()
    by_class: Mapping[int, tuple[Marks, Marks]] = field(default_factory=dict)
    may_pause: bool = False
    pvid: int = 1
    vlans: frozenset[int] = frozenset({1})
    tagged: bool = False
    mark_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidAttributeError("a port needs a name")
        for mac in self.macs:
            if len(mac) != 6 or mac[0] & 1:
                raise InvalidAttributeError(
                    f"{mac.hex(':')} is no address of one station: 6 bytes, I/G bit 0"
                )
        if not 0 <= self.priority < CLASSES or any(not 0 <= c < CLASSES for c in self.by_class):
            raise InvalidAttributeError(f"priority classes are 0 to {CLASSES - 1}")
        if not 1 <= self.pvid <= 4094 or any(not 1 <= v <= 4094 for v in self.vlans):
            raise InvalidAttributeError("VLANs are 1 to 4094")
        if self.mark_bytes < 0:
            raise InvalidAttributeError("mark_bytes is 0 or more")

    def marks(self, priority: int, outgoing: bool) -> Marks:
        """The marks of one class's queue."""
        pair = self.by_class.get(priority, (self.input, self.output))
        return pair[1 if outgoing else 0]


@dataclass(frozen=True, slots=True)
class SwitchConfig:
    """A switch.

    max_frame: bytes of the longest frame it takes.  lossless: classes that are never dropped for want of room.  voq:
    virtual output queues.  vlans: do VLANs separate?  learning: are addresses learned from frames?  most_learned: at
    most so many.  aging_ns: learned addresses are forgotten so long after their last frame (IEEE 802.1Q: 300 s).
    bypass: may a frame skip the input queue when its output has room and nobody waits for it?  ports: at most so many.
    """

    max_frame: int = 1522
    lossless: frozenset[int] = DEFAULT_LOSSLESS
    voq: bool = True
    vlans: bool = False
    learning: bool = False
    most_learned: int = 4096
    aging_ns: int = 300 * 10**9
    bypass: bool = False
    ports: int = 16

    def __post_init__(self) -> None:
        if any(not 0 <= c < CLASSES for c in self.lossless):
            raise InvalidAttributeError(f"lossless classes are 0 to {CLASSES - 1}")
        if self.most_learned < 0 or self.aging_ns <= 0:
            raise InvalidAttributeError("most_learned is 0 or more, aging_ns more than 0")
