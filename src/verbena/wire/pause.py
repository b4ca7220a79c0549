"""Pause frames: IEEE 802.3 annex 31B (802.3x, all of a link) and 802.1Qbb priority flow control (annex 31D).

Both are MAC control frames (EtherType 0x8808) to 01-80-C2-00-00-01, which no bridge forwards, padded to 60 bytes.
Times are in quanta of 512 bit times of the link; 0 ends a pause.
"""

from __future__ import annotations

from dataclasses import dataclass

from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.ethernet import HEADER_SIZE, SMALLEST_FRAME
from verbena.wire.layout import Buffer

PAUSE_GROUP = bytes.fromhex("0180c2000001")
ETHERTYPE_MAC_CONTROL = 0x8808
OPCODE_PAUSE = 0x0001
OPCODE_PFC = 0x0101
QUANTUM_BITS = 512
LONGEST_QUANTA = 0xFFFF
CLASSES = 8

NS_PER_METRE = 5
"""Light in a cable, and electricity too, takes about 5 ns for a metre."""
RESPONSE_QUANTA = 60
"""A receiver obeys a PFC frame within 60 quanta (IEEE 802.3, 31D: up to 40 Gb/s), counted from its last bit."""


def quanta_ns(quanta: int, rate_bps: float) -> int:
    """How long so many quanta last on a link, in nanoseconds, rounded up."""
    return -int(-quanta * QUANTUM_BITS * 1_000_000_000 // rate_bps)


def ns_quanta(duration_ns: int, rate_bps: float) -> int:
    """The quanta that last at least `duration_ns`, at most `LONGEST_QUANTA`."""
    return min(LONGEST_QUANTA, -int(-duration_ns * rate_bps // (QUANTUM_BITS * 1_000_000_000)))


def headroom_bytes(
    rate_bps: float, cable_m: float, max_frame: int, response_ns: int | None = None, pause_frame: int = 64
) -> int:
    """Bytes that still come after a receiver decides to stop its sender: the room it needs above its high mark.

    There and back along the cable, and the time that the sender takes to obey (`response_ns`; by default 60 quanta), at
    the full rate; a longest frame that the receiver had just begun to send before the pause frame, the pause frame
    itself (with preamble and gap), and a longest frame that the sender had just begun (802.1Qbb, annex O).
    max_frame: bytes with the check sequence.
    """
    if response_ns is None:
        response_ns = quanta_ns(RESPONSE_QUANTA, rate_bps)
    on_the_way = rate_bps * (2 * cable_m * NS_PER_METRE + response_ns) / 8e9
    return -int(-on_the_way // 1) + 2 * (max_frame + 20) + pause_frame + 20


@dataclass(frozen=True, slots=True)
class PauseFrame:
    """802.3x: the link partner sends nothing for so many quanta; 0: it may go on."""

    quanta: int
    source: bytes = bytes(6)

    def pack(self) -> bytes:
        if not 0 <= self.quanta <= LONGEST_QUANTA:
            raise EncodeError(f"a pause of {self.quanta} quanta; 0 to {LONGEST_QUANTA} can be said")
        return _frame(self.source, OPCODE_PAUSE, self.quanta.to_bytes(2, "big"))


@dataclass(frozen=True, slots=True)
class PfcFrame:
    """802.1Qbb: for each class a time in quanta, or None where the frame says nothing about it."""

    quanta: tuple[int | None, ...]
    source: bytes = bytes(6)

    def pack(self) -> bytes:
        if len(self.quanta) != CLASSES:
            raise EncodeError(f"a PFC frame has {CLASSES} times, not {len(self.quanta)}")
        if any(q is not None and not 0 <= q <= LONGEST_QUANTA for q in self.quanta):
            raise EncodeError(f"pauses of {self.quanta} quanta; 0 to {LONGEST_QUANTA} can be said")
        enabled = sum(1 << i for i, q in enumerate(self.quanta) if q is not None)
        times = b"".join((q or 0).to_bytes(2, "big") for q in self.quanta)
        return _frame(self.source, OPCODE_PFC, enabled.to_bytes(2, "big") + times)

    @classmethod
    def of(cls, priority: int, quanta: int, source: bytes = bytes(6)) -> PfcFrame:
        """A frame about one class."""
        if not 0 <= priority < CLASSES:
            raise EncodeError(f"priority {priority}; 0 to {CLASSES - 1} exist")
        return cls(tuple(quanta if i == priority else None for i in range(CLASSES)), source)


def _frame(source: bytes, opcode: int, body: bytes) -> bytes:
    if len(source) != 6:
        raise EncodeError("an Ethernet address has 6 bytes")
    head = PAUSE_GROUP + bytes(source) + ETHERTYPE_MAC_CONTROL.to_bytes(2, "big") + opcode.to_bytes(2, "big")
    return (head + body).ljust(SMALLEST_FRAME, b"\0")


def is_mac_control(frame: Buffer) -> bool:
    """Is it a MAC control frame, whatever it says?"""
    return len(frame) >= HEADER_SIZE and frame[12] == 0x88 and frame[13] == 0x08


def unpack_pause(frame: Buffer) -> PauseFrame | PfcFrame:
    """What a MAC control frame says; raises `DecodeError` for any other frame, a short one, or another opcode."""
    if not is_mac_control(frame):
        raise DecodeError("header", "this is no MAC control frame: its EtherType is not 0x8808")
    if bytes(frame[:6]) != PAUSE_GROUP:
        raise DecodeError("header", "a pause frame to another address than 01:80:c2:00:00:01")
    if len(frame) < SMALLEST_FRAME:
        raise DecodeError(
            "short", f"a MAC control frame of {len(frame)} bytes; {SMALLEST_FRAME} is the least"
        )
    source = bytes(frame[6:12])
    opcode = int.from_bytes(frame[14:16], "big")
    if opcode == OPCODE_PAUSE:
        return PauseFrame(int.from_bytes(frame[16:18], "big"), source)
    if opcode != OPCODE_PFC:
        raise DecodeError("opcode", f"MAC control opcode {opcode:#06x} is neither pause nor PFC")
    enabled = int.from_bytes(frame[16:18], "big")
    if enabled >> CLASSES:
        raise DecodeError("header", f"class-enable vector {enabled:#06x}: its upper eight bits are 0")
    times = [int.from_bytes(frame[18 + 2 * i : 20 + 2 * i], "big") for i in range(CLASSES)]
    return PfcFrame(tuple(t if enabled >> i & 1 else None for i, t in enumerate(times)), source)
