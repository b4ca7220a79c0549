"""The numbers of the switch's core, as names: outcomes, events, steps of the two flow charts.

The values are those of ``tables.pxd``.  The steps stand in the order in which the document tells them (002:84 for the
input side, 002:86 for the output side, 002:100 for Algorithm 1).
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from verbena._declarations import declarations

_C = declarations(str(Path(__file__).with_name("tables.py")))

CLASSES: int = _C["CLASSES"]
MOST_PORTS: int = _C["MOST_PORTS"]
NOBODY: int = _C["NOBODY"]


class Outcome(IntEnum):
    """What became of a frame that a producer offered."""

    FULL = _C["FULL"]
    QUEUED = _C["QUEUED"]
    CONTROL = _C["CONTROL"]
    DROPPED = _C["DROPPED"]


class EventKind(IntEnum):
    """What the core tells whoever drives it."""

    STOP = _C["STOP"]
    START = _C["START"]
    WAKE_PRODUCER = _C["WAKE_PRODUCER"]
    WAKE_CONSUMER = _C["WAKE_CONSUMER"]
    DROP = _C["DROP"]


class Step(IntEnum):
    """Steps of the flow charts."""

    IN_SIGNAL = _C["IN_SIGNAL"]
    IN_ARRIVED = _C["IN_ARRIVED"]
    IN_FROM_PRODUCER = _C["IN_FROM_PRODUCER"]
    IN_FOR_FORWARDING = _C["IN_FOR_FORWARDING"]
    IN_QUEUED = _C["IN_QUEUED"]
    IN_BELOW_STOP = _C["IN_BELOW_STOP"]
    IN_ABOVE_STOP = _C["IN_ABOVE_STOP"]
    IN_OUTPUT_FULL = _C["IN_OUTPUT_FULL"]
    IN_OUTPUT_ROOM = _C["IN_OUTPUT_ROOM"]
    IN_MOVED = _C["IN_MOVED"]
    IN_ABOVE_RESTART = _C["IN_ABOVE_RESTART"]
    IN_BELOW_RESTART = _C["IN_BELOW_RESTART"]
    OUT_DEQUEUED = _C["OUT_DEQUEUED"]
    OUT_BELOW_RESTART = _C["OUT_BELOW_RESTART"]
    OUT_ABOVE_RESTART = _C["OUT_ABOVE_RESTART"]
    OUT_FORWARDER_WOKEN = _C["OUT_FORWARDER_WOKEN"]
    OUT_CONSUMED = _C["OUT_CONSUMED"]
    OUT_PULL = _C["OUT_PULL"]
    OUT_SLEEP = _C["OUT_SLEEP"]


STEP_TEXTS = {
    Step.IN_SIGNAL: "a flow-control signal came: start (step 201)",
    Step.IN_ARRIVED: "a packet came",
    Step.IN_FROM_PRODUCER: "it is incoming from a producer: for the input queue",
    Step.IN_FOR_FORWARDING: "it is for forwarding: straight to the check of the output queue",
    Step.IN_QUEUED: "it is in the input queue",
    Step.IN_BELOW_STOP: "input queue below its maximum",
    Step.IN_ABOVE_STOP: "input queue at its maximum: stop command to the producer",
    Step.IN_OUTPUT_FULL: "output queue at its maximum: the packet waits",
    Step.IN_OUTPUT_ROOM: "output queue below its maximum",
    Step.IN_MOVED: "out of the input queue, into the output queue",
    Step.IN_ABOVE_RESTART: "input queue above its restart mark: go on",
    Step.IN_BELOW_RESTART: "input queue at its restart mark: the producer may send again",
    Step.OUT_DEQUEUED: "a packet leaves the output queue",
    Step.OUT_BELOW_RESTART: "output queue at its restart mark",
    Step.OUT_ABOVE_RESTART: "output queue above its restart mark",
    Step.OUT_FORWARDER_WOKEN: "wake the forwarder: inputs send again",
    Step.OUT_CONSUMED: "the packet is consumed",
    Step.OUT_PULL: "output queue empty: the consumer starts the forwarder",
    Step.OUT_SLEEP: "still empty: the consumer sleeps",
}


class Traced(NamedTuple):
    """A step: which, at which port and class, which frame (numbered as they came; 0: none)."""

    step: Step
    port: int
    priority: int
    frame: int

    def __str__(self) -> str:
        return f"port {self.port} class {self.priority} frame {self.frame}: {STEP_TEXTS[self.step]}"
