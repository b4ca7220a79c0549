"""What waits in a router: for room at an output, or for a destination to be found.

A packet that came from a subnet keeps the input buffer it came in, so that its sender's credits bound these queues;
what came from a LAN, or was made here, is bounded by number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verbena.clock import Clock


@dataclass(eq=False, slots=True)
class InputBuffer:
    """An input buffer that is held: of which port, its handle, and how many copies still need it.

    counted: it is in nobody's credits, and is counted instead.
    """

    port: int
    handle: object = None
    users: int = 1
    counted: bool = False


Held = tuple[bytes, InputBuffer]


class OutputQueues:
    """A queue for each output and lane.  send(port, packet) -> bool; sent(buffer) is called for each that left."""

    def __init__(self, send: Callable[[int, bytes], bool], sent: Callable[[InputBuffer], None]) -> None:
        self._send = send
        self._sent = sent
        self._queues: dict[tuple[int, int], deque[Held]] = {}
        self._blocked: set[tuple[int, int]] = set()
        self._sending: set[tuple[int, int]] = set()

    def put(self, port: int, lane: int, packet: bytes, buffer: InputBuffer) -> None:
        self._queues.setdefault((port, lane), deque()).append((packet, buffer))
        self._pump((port, lane))

    def room(self, port: int, lane: int | None = None) -> None:
        """An output has room again, on one lane or on all."""
        for key in [k for k in self._blocked if k[0] == port and lane in (None, k[1])]:
            self._blocked.discard(key)
            self._pump(key)

    def _pump(self, key: tuple[int, int]) -> None:
        """Send what waits for an output lane, until it takes no more; also when `room` is called meanwhile."""
        if key in self._blocked or key in self._sending:
            return
        queue = self._queues[key]
        self._sending.add(key)
        try:
            while queue:
                packet, buffer = queue[0]
                if not self._send(key[0], packet):
                    self._blocked.add(key)
                    return
                queue.popleft()
                self._sent(buffer)
        finally:
            self._sending.discard(key)

    def flush(self, port: int) -> list[InputBuffer]:
        """Forget all that waits for a port; its buffers."""
        lost: list[InputBuffer] = []
        for key in [k for k in self._queues if k[0] == port]:
            lost += [buffer for _, buffer in self._queues[key]]
            self._queues[key].clear()
            self._blocked.discard(key)
        return lost

    def depths(self) -> dict[tuple[int, int], int]:
        """Packets that wait, by (port, lane)."""
        return {key: len(queue) for key, queue in self._queues.items() if queue}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())


class Searches:
    """Packets whose destinations are being asked for, by (port, GID), in their order.

    A search has at most `most_packets` packets and ends after `time_ns`: then `expired(packet, buffer)` gets each.
    At most `most_searches` run at once, so that packets to addresses that do not exist cannot fill the memory.
    """

    def __init__(
        self,
        clock: Clock,
        expired: Callable[[bytes, InputBuffer], None],
        most_packets: int,
        most_searches: int,
        time_ns: int,
    ) -> None:
        self._clock = clock
        self._expired = expired
        self._most_packets = most_packets
        self._most_searches = most_searches
        self._time_ns = time_ns
        self._waiting: dict[tuple[int, bytes], tuple[deque[Held], Any]] = {}

    def __contains__(self, key: tuple[int, bytes]) -> bool:
        return key in self._waiting

    def add(self, key: tuple[int, bytes], packet: bytes, buffer: InputBuffer) -> bool:
        """Let a packet wait; False when there is no room for it."""
        if key not in self._waiting:
            if len(self._waiting) >= self._most_searches:
                return False
            timer = self._clock.call_at(self._clock.now() + self._time_ns, lambda: self._end(key))
            self._waiting[key] = (deque(), timer)
        held = self._waiting[key][0]
        if len(held) >= self._most_packets:
            return False
        held.append((packet, buffer))
        return True

    def take(self, key: tuple[int, bytes]) -> list[Held]:
        """End a search: the packets that waited."""
        held, timer = self._waiting.pop(key, (deque(), None))
        if timer is not None:
            timer.cancel()
        return list(held)

    def _end(self, key: tuple[int, bytes]) -> None:
        for packet, buffer in self.take(key):
            self._expired(packet, buffer)

    def of_port(self, port: int) -> list[tuple[int, bytes]]:
        return [key for key in self._waiting if key[0] == port]

    def __len__(self) -> int:
        return sum(len(held) for held, _ in self._waiting.values())
