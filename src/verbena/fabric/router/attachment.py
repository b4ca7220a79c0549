"""A router's ports on the simulated fabric: the links' receive buffers are its input buffers.

A packet that the router holds keeps its place in the receive buffer of the port it came by (`FabricCore.hold`), so
that its credits stay with the router until the output has taken it; an output whose send queue is full tells by a ROOM
report when it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verbena.fabric.router.element import Router

ROOM = 3  # as in fabric/tables.pxd
VCRC_SIZE = 2


class RouterAttachment:
    """Joins a `Router` to a `FabricCore`.

    core: the fabric.  ports: for the number of each of the router's ports into a subnet, its index in the core; all
    are ports of endnodes.  Make it first, the router with its `output` and `release`, and then set `router`.  Whoever
    runs the core hands it deliveries and reports.
    """

    router: Router

    def __init__(self, core: Any, ports: Mapping[int, int]) -> None:
        self._core = core
        self._ports = dict(ports)
        self._numbers = {index: number for number, index in self._ports.items()}
        for index in self._numbers:
            core.hold(index, True)

    def output(self, number: int, packet: bytes) -> bool:
        """Send a packet LRH … ICRC; False when the send queue of its lane is full."""
        return bool(self._core.inject(self._ports[number], packet))

    def release(self, number: int, handle: object) -> None:
        """The router has no more need of an input buffer."""
        self._core.release(handle)

    def deliver(self, index: int, packet: bytes, handle: int) -> bool:
        """A packet LRH … VCRC was delivered at a port of the core; False when that is not the router's."""
        number = self._numbers.get(index)
        if number is None:
            return False
        self.router.receive(number, packet[:-VCRC_SIZE], handle)
        return True

    def report(self, kind: int, index: int, detail: int) -> bool:
        """A report of the core; False when it does not concern the router's outputs."""
        number = self._numbers.get(index)
        if kind != ROOM or number is None:
            return False
        for lane in range(16):
            if detail >> lane & 1:
                self.router.room(number, lane)
        return True
