"""What the switch's tests share: frames with numbers in them, small switches, a plain reference model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from verbena.vswitch.config import Marks, PortConfig, SwitchConfig
from verbena.vswitch.kinds import Step
from verbena.vswitch.switch import SwitchPort, VirtualSwitch

EVERYBODY = b"\xff" * 6


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def frame(
    source: int, destination: int | bytes, number: int = 0, size: int = 64, priority: int | None = None
) -> bytes:
    """A frame of `size` bytes; priority: in a priority tag."""
    to = mac(destination) if isinstance(destination, int) else destination
    tag = b"" if priority is None else bytes((0x81, 0, priority << 5, 0))
    head = to + mac(source) + tag + b"\x08\x00" + number.to_bytes(4, "big")
    return head.ljust(size, b"\0")


def number_of(data: bytes) -> int:
    at = 18 if data[12:14] == b"\x81\x00" else 14
    return int.from_bytes(data[at : at + 4], "big")


def make(
    ports: int,
    *,
    input: Marks | None = None,
    output: Marks | None = None,
    trace: bool = False,
    physical: bool = False,
    clock: Any = None,
    may_pause: bool = False,
    mark_bytes: int = 0,
    **config: Any,
) -> tuple[VirtualSwitch, list[SwitchPort]]:
    """A switch with ports p0, p1, ...; station i is behind port i."""
    switch = VirtualSwitch(SwitchConfig(**config), clock, trace=trace)
    made = [
        switch.add_port(
            PortConfig(
                f"p{i}",
                (mac(i),),
                input=input or Marks(),
                output=output or Marks(),
                may_pause=may_pause,
                mark_bytes=mark_bytes,
            )
        )
        for i in range(ports)
    ]
    if physical:
        made.append(switch.add_port(PortConfig("physical"), physical=True))
    return switch, made


def steps(switch: VirtualSwitch) -> list[Step]:
    """The steps traced so far, which are forgotten."""
    found = [traced.step for traced in switch.trace]
    switch.trace.clear()
    return found


def fill(port: SwitchPort, data: bytes, most: int = 100_000) -> int:
    """Send until the port says no; returns how many frames it took."""
    for sent in range(most):
        if not port.send(data):
            return sent
    raise AssertionError(f"{most} frames, and it still takes more")


def take_all(port: SwitchPort) -> list[int]:
    found = []
    while (got := port.receive()) is not None:
        found.append(number_of(got.data))
    return found


# --- the reference model --------------------------------------------------------------------------------------------


@dataclass
class PlainQueue:
    marks: Marks
    frames: deque[tuple[Any, ...]] = field(default_factory=deque)
    stopped: bool = False
    stops: int = 0
    starts: int = 0

    def full(self) -> bool:
        return len(self.frames) >= self.marks.high

    def added(self) -> None:
        if not self.stopped and self.full():
            self.stopped, self.stops = True, self.stops + 1

    def removed(self) -> bool:
        if self.stopped and len(self.frames) <= self.marks.low:
            self.stopped, self.starts = False, self.starts + 1
            return True
        return False


class PlainSwitch:
    """One lossless class, one station at each port, unicast: as short as it can be said.

    A frame is (number, output, length).  Deficit round robin with a quantum of one longest frame.
    """

    def __init__(self, ports: int, input: Marks, output: Marks, voq: bool, quantum: int) -> None:
        self.ports, self.voq, self.quantum = ports, voq, quantum
        self.inputs = [PlainQueue(input) for _ in range(ports)]
        self.outputs = [PlainQueue(output) for _ in range(ports)]
        self.turn = [0] * ports
        self.in_turn = [False] * ports
        self.deficit = [[0] * ports for _ in range(ports)]

    def head(self, i: int, out: int) -> tuple[Any, ...] | None:
        """The frame that input i has for this output now."""
        for frame in self.inputs[i].frames:
            if frame[1] == out:
                return frame
            if not self.voq:
                return None
        return None

    def send(self, i: int, number: int, out: int, length: int) -> bool:
        queue = self.inputs[i]
        if queue.stopped or len(queue.frames) >= queue.marks.room:
            return False
        if out == i:
            return True
        queue.frames.append((number, out, length))
        queue.added()
        self.forward()
        return True

    def forward(self) -> None:
        moved = True
        while moved:
            moved = sum(self.serve(out) for out in range(self.ports)) > 0

    def serve(self, out: int) -> bool:
        moved = False
        queue = self.outputs[out]
        while not queue.stopped and any(self.head(i, out) for i in range(self.ports)):
            i = self.turn[out]
            found = self.head(i, out)
            if found is not None and not self.in_turn[out]:
                self.deficit[out][i] += self.quantum
                self.in_turn[out] = True
            if found is None or found[2] > self.deficit[out][i]:
                self.next_turn(out)
                continue
            self.deficit[out][i] -= found[2]
            self.inputs[i].frames.remove(found)
            queue.frames.append(found)
            queue.added()
            self.inputs[i].removed()
            moved = True
            if self.head(i, out) is None:
                self.deficit[out][i] = 0
                self.next_turn(out)
        return moved

    def next_turn(self, out: int) -> None:
        self.turn[out], self.in_turn[out] = (self.turn[out] + 1) % self.ports, False

    def receive(self, out: int) -> int | None:
        queue = self.outputs[out]
        if not queue.frames:
            return None
        number = queue.frames.popleft()[0]
        queue.removed()
        self.forward()
        return int(number)
