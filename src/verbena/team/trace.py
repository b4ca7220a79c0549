"""Which layers a frame, a message or a call passed: the paths of document 004, Fig. 3, as they were gone.

Each layer notes itself when it handles something; nothing here decides a path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from verbena.clock import Clock


class Layer(Enum):
    """The boxes of document 004, Fig. 3."""

    STACK = "stack"
    T_VIRTUAL = "T-virtual miniport"
    R_VIRTUAL = "R-virtual miniport"
    INTERMEDIATE_DRIVER = "intermediate driver"
    PHYSICAL_MINIPORT = "physical miniport"
    NDIS_MINIPORT = "NDIS miniport"
    BUS_DRIVER = "virtual bus driver"
    CARD = "NIC"
    RDMA_CARD = "RNIC"
    SWITCH_LAYER = "switch layer"
    USER_DRIVER = "user-mode driver"
    PROXY = "kernel-mode proxy"


@dataclass(slots=True)
class Journey:
    """One way through the layers.  direction: ``out``, ``in``, or what a call was for.  when_ns: its beginning."""

    direction: str
    when_ns: int
    size: int = 0
    hops: list[tuple[Layer, str]] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        """The layers, without the names of the objects."""
        return [layer for layer, _ in self.hops]

    def __str__(self) -> str:
        way = " - ".join(f"{layer.value} {name}".strip() for layer, name in self.hops)
        return f"{self.when_ns / 1e9:.9f} {self.direction}: {way}"


class PathTrace:
    """Collects journeys while it is on; the last `keep` of them stay."""

    def __init__(self, clock: Clock, keep: int = 10_000) -> None:
        self.on = False
        self.journeys: deque[Journey] = deque(maxlen=keep)
        self._clock = clock
        self._open: list[Journey] = []

    @contextmanager
    def journey(self, direction: str, size: int = 0) -> Iterator[None]:
        """What is noted within belongs to one journey; what it sets off in turn to journeys of its own."""
        if not self.on:
            yield
            return
        made = Journey(direction, self._clock.now(), size)
        self._open.append(made)
        try:
            yield
        finally:
            self._open.pop()
            if made.hops:
                self.journeys.append(made)

    def hop(self, layer: Layer, name: str = "") -> None:
        """A layer handles what is under way."""
        if self.on and self._open:
            self._open[-1].hops.append((layer, name))

    def take(self) -> list[Journey]:
        """The journeys so far, which are forgotten."""
        taken = list(self.journeys)
        self.journeys.clear()
        return taken
