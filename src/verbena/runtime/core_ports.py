"""Between an adapter's engine and a fabric's core: packets of the one become packets on the links of the other.

A lane of a link that takes no more closes its service levels for the engine, which goes on with other queue pairs;
what the engine had already made for it waits here, and leaves first when there is room again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.fabric.core import FabricCore
from verbena.runtime.coupling import Couplings
from verbena.wire.crc import VCRC_SIZE

BUFFER = 65_536
ALL_LEVELS = 0xFFFF


class CorePorts:
    """The ports of one adapter.  ports: the core's port for each of the adapter's port numbers.

    tap: is shown each packet that the core took, LRH to ICRC, with the number of its port.  couplings: carry the
    packets past Python, as long as `watched` is false; then the tap is shown nothing.
    """

    def __init__(
        self,
        adapter: ChannelAdapter,
        core: FabricCore,
        ports: dict[int, int],
        tap: Callable[[int, bytes], None] = lambda number, packet: None,
        couplings: Couplings | None = None,
        watched: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine: Any = adapter.engine
        self._core = core
        self._tap = tap
        self._ports = ports
        self._numbers = {made: number for number, made in ports.items()}
        self._couplings = couplings
        self._watched = watched
        self._buffer = bytearray(BUFFER)
        self._waiting: dict[int, list[deque[bytes]]] = {
            number: [deque() for _ in range(16)] for number in ports
        }

    def core_port(self, number: int) -> int:
        """The core's port behind one of the adapter's."""
        return self._ports[number]

    def send(self, now: int) -> None:
        """Hand the core whatever the engine wants to send and the links take."""
        if self._couplings is not None and not self._watched():
            while (left := self._couplings.send(self._engine, self._ports, now)) is not None:
                self._leave(*left)
            return
        while (made := self._engine.transmit(self._buffer, now)) is not None:
            size, segment, path = made
            number = self._engine.path_port(path)
            for at in range(0, size, segment):
                self._put(number, bytes(self._buffer[at : min(at + segment, size)]))

    def _leave(self, burst: bytes, segment: int, number: int) -> None:
        """Packets for which there is no room now."""
        for at in range(0, len(burst), segment):
            self._put(number, burst[at : at + segment])

    def _put(self, number: int, packet: bytes) -> None:
        level = packet[1] >> 4
        waiting = self._waiting[number][level]
        if not waiting and self._core.inject(self._ports[number], packet):
            self._tap(number, packet)
            return
        waiting.append(packet)
        if len(waiting) == 1:
            self._set_open(number)

    def _set_open(self, number: int) -> None:
        mask = ALL_LEVELS
        for level, waiting in enumerate(self._waiting[number]):
            if waiting:
                mask &= ~(1 << level)
        self._engine.set_open(number, mask)

    def join(self, tell: Callable[[], None]) -> None:
        """Let the couplings hand the engine what comes for it.  tell: is called when it has reports."""
        if self._couplings is not None:
            for number, port in self._ports.items():
                self._couplings.join(port, self._engine, number, tell)
            self._couplings.add(self._engine, self._ports, self._leave, tell)

    def part(self) -> None:
        """No longer."""
        if self._couplings is not None:
            self._couplings.remove(self._engine)
            for port in self._ports.values():
                self._couplings.part(port)

    def room(self, port: int) -> None:
        """The core has room at one of its ports again."""
        number = self._numbers[port]
        for waiting in self._waiting[number]:
            while waiting and self._core.inject(port, waiting[0]):
                self._tap(number, waiting.popleft())
        self._set_open(number)

    def deliver(self, port: int, packet: bytes, now: int) -> None:
        """A packet, LRH to VCRC, came out of the fabric at a core's port."""
        self._engine.receive_native(bytearray(packet[:-VCRC_SIZE]), self._numbers[port], now)
