"""Credits: nothing is sent without room for it at the receiver.

**InfiniBand** (IBA vol. 1, 7.9.4): room in blocks of 64 bytes for each lane (here: class).  The receiver says up to
which block the sender may go (FCCL = received + free, modulo 4,096), and again 65,536 symbol times later, so that a
lost message heals; the sender sends if (FCCL - FCTBS - size) modulo 4,096 is at most 2,048.

**PCI-Express** (base specification, 2.6.1): header credits (one for a frame) and data credits (16 bytes) for posted,
non-posted and completion traffic; class 0 is posted, 1 non-posted, 2 completions, the others posted.  Limits and
consumption count up modulo 256 and 4,096.  Lost updates heal the same way (they repeat within 30 us).
"""

from __future__ import annotations

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.vswitch.config import Marks
from verbena.vswitch.kinds import CLASSES
from verbena.vswitch.signals import Emit, Granter, Throttle
from verbena.wire.credits import (
    IB_BLOCK,
    IB_MODULUS,
    PCIE_DATA_CREDIT,
    PCIE_DATA_MODULUS,
    PCIE_HEADER_MODULUS,
    IbFlowControl,
    PcieFlowControl,
    PcieKind,
)
from verbena.wire.errors import DecodeError

IB_REPEAT_SYMBOLS = 65_536
PCIE_REPEAT_NS = 30_000
MOST_BLOCKS = IB_MODULUS // 2
IB_MOST_BYTES = MOST_BLOCKS * IB_BLOCK
PCIE_MOST_HEADERS = PCIE_HEADER_MODULUS // 2 - 1
PCIE_MOST_BYTES = (PCIE_DATA_MODULUS // 2 - 1) * PCIE_DATA_CREDIT
"""Half of what the counters can tell apart, less one: so that an old message is known as such."""
TYPES = 3


def credit_marks(capacity_bytes: int) -> Marks:
    """Marks of a queue whose sender has credits for so many bytes: credits stop it, not crossings."""
    frames = capacity_bytes // 16 + 2
    return Marks(frames, frames + 1, frames + 1, capacity_bytes, capacity_bytes + 1, capacity_bytes + 1)


def _blocks(length: int) -> int:
    return -(-length // IB_BLOCK)


class _Repeating(Granter):
    """Repeats its messages while something was said that may be lost.  clock None: never."""

    levels = True

    def __init__(self, emit: Emit, clock: Clock | None, every_ns: int) -> None:
        super().__init__(emit)
        self._clock, self._every_ns = clock, every_ns
        self._waiting = False

    def repeat(self) -> None:
        """Say it again, later, until the sender can know all."""
        if self._clock is not None and not self._waiting:
            self._waiting = True
            self._clock.call_at(self._clock.now() + self._every_ns, self._again)

    def _again(self) -> None:
        self._waiting = False
        self.again()

    def again(self) -> None:
        """The messages as they are now."""


class IbGranter(_Repeating):
    """capacity_bytes: of each class, at most 128 KiB.  symbol_ns: length of a symbol time on the link."""

    def __init__(
        self, emit: Emit, capacity_bytes: int, clock: Clock | None = None, symbol_ns: float = 0.4
    ) -> None:
        super().__init__(emit, clock, int(IB_REPEAT_SYMBOLS * symbol_ns))
        self._capacity = capacity_bytes // IB_BLOCK
        if not 1 <= self._capacity <= MOST_BLOCKS:
            raise InvalidAttributeError(
                f"capacity_bytes = {capacity_bytes}: {IB_BLOCK} to {MOST_BLOCKS * IB_BLOCK}"
            )
        self._received = [0] * CLASSES
        self._limit = [0] * CLASSES

    def begin(self) -> None:
        for lane in range(CLASSES):
            self._limit[lane] = self._received[lane] + self._capacity
            self._tell(lane, 1)

    def _tell(self, lane: int, op: int = 0) -> None:
        self.say(IbFlowControl(op, 0, lane, self._limit[lane] % IB_MODULUS).sealed())

    def arrived(self, priority: int, length: int) -> None:
        self._received[priority] += _blocks(length)

    def level(self, priority: int, frames: int, octets: int) -> None:
        # Each frame may waste the rest of its last block.
        limit = self._received[priority] + self._capacity - octets // IB_BLOCK - frames
        if limit > self._limit[priority]:
            self._limit[priority] = limit
            self._tell(priority)
            self.repeat()

    def again(self) -> None:
        for lane in range(CLASSES):
            if self._received[lane]:
                self._tell(lane)


class IbThrottle(Throttle):
    """Counts blocks sent on each lane against the limit it was told."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = [0] * CLASSES
        self._sent = [0] * CLASSES

    def _obey(self, message: bytes) -> None:
        packet = IbFlowControl.opened(message)
        if packet.lane >= CLASSES:
            raise DecodeError("header", f"credits for lane {packet.lane}; 0 to {CLASSES - 1} are used")
        if (packet.fccl - self._limit[packet.lane]) % IB_MODULUS > MOST_BLOCKS:
            return  # an older one that was overtaken
        self._limit[packet.lane] = packet.fccl
        self.on_open()

    def may_send(self, priority: int, length: int) -> bool:
        return (self._limit[priority] - self._sent[priority] - _blocks(length)) % IB_MODULUS <= MOST_BLOCKS

    def sent(self, priority: int, length: int) -> None:
        self._sent[priority] = (self._sent[priority] + _blocks(length)) % IB_MODULUS


def _type(priority: int) -> int:
    return priority if priority < TYPES else 0


def _data(length: int) -> int:
    return -(-length // PCIE_DATA_CREDIT)


class PcieGranter(_Repeating):
    """headers, data_bytes: room of each type, at most 127 headers and 2,047 data credits."""

    def __init__(self, emit: Emit, headers: int, data_bytes: int, clock: Clock | None = None) -> None:
        super().__init__(emit, clock, PCIE_REPEAT_NS)
        self._headers, self._data = headers, data_bytes // PCIE_DATA_CREDIT
        if not 1 <= headers < PCIE_HEADER_MODULUS // 2 or not 1 <= self._data < PCIE_DATA_MODULUS // 2:
            raise InvalidAttributeError(f"{headers} headers, {data_bytes} bytes: 1 to 127, and 16 to 32752")
        self._received = [[0, 0] for _ in range(TYPES)]
        self._limit = [[0, 0] for _ in range(TYPES)]
        self._levels = [(0, 0)] * CLASSES

    def begin(self) -> None:
        for kind in range(TYPES):
            self._limit[kind] = [self._headers, self._data]
            self._tell(kind, PcieKind.INIT1_POSTED)

    def _tell(self, kind: int, first: PcieKind = PcieKind.UPDATE_POSTED) -> None:
        headers, data = self._limit[kind]
        self.say(
            PcieFlowControl(
                first + kind, headers=headers % PCIE_HEADER_MODULUS, data=data % PCIE_DATA_MODULUS
            ).sealed()
        )

    def arrived(self, priority: int, length: int) -> None:
        received = self._received[_type(priority)]
        received[0] += 1
        received[1] += _data(length)

    def level(self, priority: int, frames: int, octets: int) -> None:
        self._levels[priority] = (frames, octets)
        kind = _type(priority)
        held = [self._levels[c] for c in range(CLASSES) if _type(c) == kind]
        headers = sum(each for each, _ in held)
        data = sum(octets // PCIE_DATA_CREDIT + each for each, octets in held)
        received = self._received[kind]
        limit = [received[0] + self._headers - headers, received[1] + self._data - data]
        new = [max(a, b) for a, b in zip(limit, self._limit[kind], strict=True)]
        if new != self._limit[kind]:
            self._limit[kind] = new
            self._tell(kind)
            self.repeat()

    def again(self) -> None:
        for kind in range(TYPES):
            if self._received[kind][0]:
                self._tell(kind)


class PcieThrottle(Throttle):
    """Counts headers and data sent, of each type, against the limits it was told."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = [[0, 0] for _ in range(TYPES)]
        self._sent = [[0, 0] for _ in range(TYPES)]

    def _obey(self, message: bytes) -> None:
        packet = PcieFlowControl.opened(message)
        kind = (packet.kind & 3) % TYPES
        new = packet.headers, packet.data
        for at, modulus in enumerate((PCIE_HEADER_MODULUS, PCIE_DATA_MODULUS)):
            if (new[at] - self._limit[kind][at]) % modulus <= modulus // 2:
                self._limit[kind][at] = new[at]
        self.on_open()

    def may_send(self, priority: int, length: int) -> bool:
        kind = _type(priority)
        need = (1, _data(length))
        return all(
            (self._limit[kind][at] - self._sent[kind][at] - need[at]) % modulus < modulus // 2
            for at, modulus in enumerate((PCIE_HEADER_MODULUS, PCIE_DATA_MODULUS))
        )

    def sent(self, priority: int, length: int) -> None:
        sent = self._sent[_type(priority)]
        sent[0] = (sent[0] + 1) % PCIE_HEADER_MODULUS
        sent[1] = (sent[1] + _data(length)) % PCIE_DATA_MODULUS
