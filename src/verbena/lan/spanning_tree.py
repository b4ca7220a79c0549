"""The spanning tree of bridges (IEEE 802.1D-1998, clauses 8 and 9): which ports forward, so that there is no loop.

The tables of the standard's clause 8 in short: the bridge with the lowest identifier is the root; every other bridge
has one root port, by which the root is nearest; every LAN has one designated port, by which it is nearest to the root;
all other ports are blocked.  A port that begins to forward listens and learns first, each for the forward delay.

Times here are shorter than the standard's defaults (2, 20 and 15 s), within the relations that it asks for (8.10.2:
2 * (forward delay - 1 s) >= maximum age >= 2 * (hello + 1 s)).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from verbena.clock import Clock, Timer
from verbena.wire.ethernet import STP_GROUP

SECOND = 1_000_000_000
LLC = b"\x42\x42\x03"
BPDU = struct.Struct(">HBBBQIQHHHHH")
CONFIGURATION, TOPOLOGY_CHANGE = 0x00, 0x80
CHANGE_FLAG, ACKNOWLEDGE_FLAG = 0x01, 0x80
DEFAULT_PRIORITY = 0x8000
DEFAULT_COST = 19
"""Of a port (802.1D-1998, table 8-5: 100 Mb/s; all ports alike here)."""


class PortState(Enum):
    """Of a bridge's port (802.1D-1998, 8.4)."""

    DISABLED = "disabled"
    BLOCKING = "blocking"
    LISTENING = "listening"
    LEARNING = "learning"
    FORWARDING = "forwarding"


@dataclass(frozen=True, slots=True)
class TreeTimes:
    """In nanoseconds."""

    hello_ns: int = SECOND
    max_age_ns: int = 6 * SECOND
    forward_delay_ns: int = 4 * SECOND


@dataclass(frozen=True, slots=True, order=True)
class Vector:
    """What a configuration message claims; the lower, the better (8.6.2.2)."""

    root: int
    cost: int
    bridge: int
    port: int


class _Port:
    def __init__(self, number: int, own: Vector) -> None:
        self.number = number
        self.state = PortState.DISABLED
        self.best = own
        self.designated = True
        self.heard_ns = 0
        self.age_ns = 0
        self.timer: Timer | None = None


class SpanningTree:
    """The tree as one bridge sees it.

    bridge_id: priority (16 bits) and address (48 bits).  send: puts a frame on a port.  changed: is told that addresses
    may have moved.  Ports are numbered from 0.
    """

    def __init__(
        self,
        bridge_id: int,
        clock: Clock,
        send: Callable[[int, bytes], None],
        changed: Callable[[], None],
        times: TreeTimes | None = None,
    ) -> None:
        self.bridge_id = bridge_id
        self.times = times or TreeTimes()
        self.root = Vector(bridge_id, 0, bridge_id, 0)
        self.root_port: int | None = None
        self._clock = clock
        self._send = send
        self._changed = changed
        self._ports: dict[int, _Port] = {}
        self._hello: Timer | None = None
        self._change_until_ns = 0
        self._open = True

    def state(self, port: int) -> PortState:
        """The state of a port."""
        found = self._ports.get(port)
        return PortState.DISABLED if found is None else found.state

    def identify(self, bridge_id: int) -> None:
        """The bridge's identifier, before any port is enabled."""
        self.bridge_id = bridge_id
        self.root = Vector(bridge_id, 0, bridge_id, 0)

    # --- ports ----------------------------------------------------------------------------------------------------

    def enable(self, number: int) -> None:
        """A port's link is up: it listens first."""
        port = self._ports[number] = _Port(number, self._offer(number))
        port.state = PortState.BLOCKING
        self._decide()
        if self._hello is None:
            self._say_hello()

    def disable(self, number: int) -> None:
        """A port's link is down."""
        port = self._ports.pop(number, None)
        if port is None:
            return
        self._stop(port)
        if port.state in (PortState.FORWARDING, PortState.LEARNING):
            self._topology_changed()
        self._decide()

    def _offer(self, number: int) -> Vector:
        """What this bridge would tell by a port."""
        return Vector(self.root.root, self.root.cost, self.bridge_id, 0x8000 | number + 1)

    # --- configuration messages -----------------------------------------------------------------------------------

    def received(self, number: int, frame: bytes) -> bool:
        """A frame to the bridges' group; False if it is no message of this protocol."""
        if len(frame) < 17 + 4 or frame[14:17] != LLC:
            return False
        port = self._ports.get(number)
        body = frame[17:]
        if port is None:
            return True
        protocol, kind = int.from_bytes(body[:2], "big"), body[3]
        if protocol == 0 and kind == TOPOLOGY_CHANGE:
            if port.designated:
                self._topology_changed()
            return True
        if protocol or kind != CONFIGURATION or len(body) < BPDU.size:
            return False
        _, _, _, flags, root, cost, bridge, sender, age, max_age, _, _ = BPDU.unpack_from(body)
        if age >= max_age or bridge == self.bridge_id:
            return True  # too old, or our own: two of our ports are on one LAN
        told = Vector(root, cost, bridge, sender)
        same = (port.best.bridge, port.best.port) == (bridge, sender)
        if told <= port.best or same:
            port.best = told
            port.heard_ns = self._clock.now()
            port.age_ns = age * SECOND // 256
            self._decide()
            if self.root_port == number:
                if flags & CHANGE_FLAG:
                    self._changed()
                self._tell_all(bool(flags & CHANGE_FLAG))
        elif port.designated:
            self._tell(port, self._clock.now() < self._change_until_ns)  # it does not know better
        return True

    def own_loop(self, number: int, frame: bytes) -> bool:
        """Is a frame this bridge's own message, heard at another of its ports with a lower number?"""
        if len(frame) < 17 + BPDU.size or frame[14:17] != LLC or frame[20]:
            return False
        fields = BPDU.unpack_from(frame, 17)
        return bool(fields[6] == self.bridge_id and (fields[7] & 0xFF) - 1 < number)

    def _say_hello(self) -> None:
        if not self._open:
            return
        self._hello = self._clock.call_at(self._clock.now() + self.times.hello_ns, self._say_hello)
        self._expire()
        if self.root_port is None:
            self._tell_all(self._clock.now() < self._change_until_ns)

    def _expire(self) -> None:
        """Forget what was told too long ago: whoever told it is gone (8.6.10)."""
        now, old = self._clock.now(), False
        for port in self._ports.values():
            if not port.designated and port.age_ns + now - port.heard_ns > self.times.max_age_ns:
                port.best = Vector(self.bridge_id, 0, self.bridge_id, 0x8000 | port.number + 1)
                old = True
        if old:
            self._decide()

    def _tell_all(self, change: bool) -> None:
        for port in self._ports.values():
            if port.designated:
                self._tell(port, change)

    def _tell(self, port: _Port, change: bool) -> None:
        times = self.times
        age = 0
        if self.root_port is not None:
            near = self._ports[self.root_port]
            age = near.age_ns + self._clock.now() - near.heard_ns + SECOND // 256
        offer = self._offer(port.number)
        units = (age, times.max_age_ns, times.hello_ns, times.forward_delay_ns)
        body = BPDU.pack(
            0,
            0,
            CONFIGURATION,
            CHANGE_FLAG if change else 0,
            offer.root,
            offer.cost,
            offer.bridge,
            offer.port,
            *(min(0xFFFF, unit * 256 // SECOND) for unit in units),
        )
        self._put(port, body)

    def _put(self, port: _Port, body: bytes) -> None:
        payload = LLC + body
        source = (self.bridge_id & (1 << 48) - 1).to_bytes(6, "big")
        self._send(port.number, STP_GROUP + source + len(payload).to_bytes(2, "big") + payload)

    # --- the tree -------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Root, root port, designated ports, states (8.6.7 to 8.6.11)."""
        before = self.root
        best, root_port = Vector(self.bridge_id, 0, self.bridge_id, 0), None
        for port in self._ports.values():
            if port.best.bridge == self.bridge_id:
                continue
            told = port.best
            through = Vector(told.root, told.cost + DEFAULT_COST, told.bridge, told.port)
            if told.root < self.bridge_id and (root_port is None or through < best):
                best, root_port = through, port.number
        self.root, self.root_port = best, root_port
        for port in self._ports.values():
            offer = self._offer(port.number)
            ours = port.best.bridge == self.bridge_id
            port.designated = port.number != root_port and (ours or offer < port.best)
            if port.designated:
                port.best = offer
            wanted = port.designated or port.number == root_port
            if wanted and port.state is PortState.BLOCKING:
                self._advance(port, PortState.LISTENING)
            elif not wanted and port.state is not PortState.BLOCKING:
                self._block(port)
        if before.root != self.root.root and self.root_port is None:
            self._tell_all(False)

    def _block(self, port: _Port) -> None:
        if port.state in (PortState.FORWARDING, PortState.LEARNING):
            self._topology_changed()
        self._stop(port)
        port.state = PortState.BLOCKING

    def _stop(self, port: _Port) -> None:
        if port.timer is not None:
            port.timer.cancel()
            port.timer = None

    def block(self, number: int) -> None:
        """This port is on one LAN with another of this bridge."""
        port = self._ports.get(number)
        if port is not None and port.state is not PortState.BLOCKING:
            self._block(port)

    def _advance(self, port: _Port, state: PortState) -> None:
        """The next state; there for the forward delay."""
        port.state = state
        if state is PortState.FORWARDING:
            port.timer = None
            self._topology_changed()
            return
        following = PortState.LEARNING if state is PortState.LISTENING else PortState.FORWARDING
        when = self._clock.now() + self.times.forward_delay_ns
        port.timer = self._clock.call_at(when, lambda: self._advance(port, following))

    def _topology_changed(self) -> None:
        """Addresses may have moved: tell the root, and age them here (8.6.14)."""
        self._changed()
        self._change_until_ns = self._clock.now() + self.times.max_age_ns + self.times.forward_delay_ns
        if self.root_port is not None and self.root_port in self._ports:
            self._put(self._ports[self.root_port], struct.pack(">HBB", 0, 0, TOPOLOGY_CHANGE))

    def close(self) -> None:
        self._open = False
        if self._hello is not None:
            self._hello.cancel()
        for port in self._ports.values():
            self._stop(port)
        self._ports.clear()
