"""A bridge between the emulated LAN and an ordinary Ethernet, or another LAN (document 000:82, 124, figure 6).

A transparent bridge (IEEE 802.1D): it learns behind which of its ports an address is, forwards there, floods what it
does not know, and keeps out of loops by the spanning tree.  Neither side knows of it.  Towards the LAN, the bridge's
card stands for all addresses behind it, which have no LID inside: it takes frames for any address, and says in each
message that the frame's source is behind a bridge, so that the nodes learn where answers have to go.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import partial

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.lan.message import Role
from verbena.lan.port import EthernetPort, LanPort, PortEvent
from verbena.lan.spanning_tree import DEFAULT_PRIORITY, PortState, SpanningTree, TreeTimes
from verbena.wire.ethernet import GROUP_BIT, HEADER_SIZE, STP_GROUP

RESERVED = STP_GROUP[:5]
"""01-80-C2-00-00-00 to -0F are not forwarded by bridges (802.1D-1998, 7.12.6)."""
AGE_NS = 300_000_000_000
MOST_ADDRESSES = 8192
MOST_WAITING = 256


class Bridge:
    """Joins two or more ports.

    priority: for the spanning tree; the lower, the more likely it is the root.  age_ns, most_addresses: of what it has
    learnt.  spanning_tree: False where there can be no loop; ports then forward at once.

    `counters`: ``forwarded``, ``flooded``, ``drop.<reason>``.
    """

    def __init__(
        self,
        clock: Clock,
        *ports: EthernetPort,
        priority: int = DEFAULT_PRIORITY,
        age_ns: int = AGE_NS,
        most_addresses: int = MOST_ADDRESSES,
        spanning_tree: bool = True,
        times: TreeTimes | None = None,
    ) -> None:
        if len(ports) < 2 or len(set(map(id, ports))) != len(ports):
            raise InvalidAttributeError("a bridge joins two or more different ports")
        if not 0 <= priority <= 0xFFFF:
            raise InvalidAttributeError(f"priority = {priority!r}: 0 to 65535")
        self.counters: Counter[str] = Counter()
        self.ports = ports
        self._clock = clock
        self._age_ns = age_ns
        self._most = most_addresses
        self._known: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._waiting: list[list[bytes]] = [[] for _ in ports]
        self.tree: SpanningTree | None = None
        if spanning_tree:
            self.tree = SpanningTree(priority << 48, clock, self._put, self._moved, times)
        for number, port in enumerate(ports):
            if isinstance(port, LanPort):
                port.become(Role.BRIDGE)
            port.attach(partial(self._received, number), partial(self._changed, number))
        for number, port in enumerate(ports):
            if port.link:
                self._enable(number)

    # --- the ports ------------------------------------------------------------------------------------------------

    def _changed(self, number: int, event: PortEvent, detail: bytes) -> None:
        if event is PortEvent.ROOM:
            self._room(number)
        elif event in (PortEvent.LINK_UP, PortEvent.LINK_DOWN):
            self._forget(number)
            self._waiting[number].clear()
            if event is PortEvent.LINK_UP:
                self._enable(number)
            elif self.tree is not None:
                self.tree.disable(number)

    def _enable(self, number: int) -> None:
        """A port is up.  The bridge is known by the address of the first of its ports that has one, from then on."""
        if self.tree is None:
            return
        if not self.tree.bridge_id & (1 << 48) - 1:
            mac = next((port.mac for port in self.ports if any(port.mac)), bytes(6))
            self.tree.identify(self.tree.bridge_id | int.from_bytes(mac, "big"))
        self.tree.enable(number)

    def state(self, number: int) -> PortState:
        """What a port does now."""
        if self.tree is not None:
            return self.tree.state(number)
        return PortState.FORWARDING if self.ports[number].link else PortState.DISABLED

    def _put(self, number: int, frame: bytes) -> None:
        """Send by a port; a few frames wait where it takes no more."""
        waiting = self._waiting[number]
        if not waiting and self.ports[number].send_frames((frame,)):
            return
        if len(waiting) >= MOST_WAITING:
            self.counters["drop.no_room"] += 1
        else:
            waiting.append(frame)

    def _room(self, number: int) -> None:
        waiting = self._waiting[number]
        while waiting and self.ports[number].send_frames(waiting[:1]):
            waiting.pop(0)

    # --- addresses ------------------------------------------------------------------------------------------------

    def addresses(self) -> dict[bytes, int]:
        """Behind which port each known address is."""
        now = self._clock.now()
        return {mac: port for mac, (port, until) in self._known.items() if until >= now}

    def _learn(self, mac: bytes, number: int) -> None:
        known = self._known.get(mac)
        if known is None and len(self._known) >= self._most:
            self._known.popitem(last=False)
            self.counters["addresses.evicted"] += 1
        elif known is not None and known[0] != number:
            self.counters["addresses.moved"] += 1
        self._known[mac] = number, self._clock.now() + self._age_ns
        self._known.move_to_end(mac)

    def _find(self, mac: bytes) -> int | None:
        known = self._known.get(mac)
        if known is None:
            return None
        if known[1] < self._clock.now():
            del self._known[mac]
            return None
        return known[0]

    def _forget(self, number: int) -> None:
        for mac in [mac for mac, (at, _) in self._known.items() if at == number]:
            del self._known[mac]

    def _moved(self) -> None:
        """The tree has changed: learn anew."""
        self.counters["topology_changes"] += 1
        self._known.clear()

    # --- forwarding -----------------------------------------------------------------------------------------------

    def _received(self, number: int, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self._frame(number, frame)

    def _frame(self, number: int, frame: bytes) -> None:
        if len(frame) < HEADER_SIZE or frame[6] & GROUP_BIT:
            self.counters["drop.malformed"] += 1
            return
        if frame[:5] == RESERVED and frame[5] < 0x10:
            self._control(number, frame)
            return
        state = self.state(number)
        if state not in (PortState.LEARNING, PortState.FORWARDING):
            self.counters["drop.blocked"] += 1
            return
        self._learn(frame[6:12], number)
        if state is not PortState.FORWARDING:
            self.counters["drop.learning"] += 1
            return
        to = None if frame[0] & GROUP_BIT else self._find(frame[:6])
        if to == number:
            self.counters["filtered"] += 1
        elif to is not None and self.state(to) is PortState.FORWARDING:
            self.counters["forwarded"] += 1
            self._put(to, frame)
        else:
            self.counters["flooded"] += 1
            for other in range(len(self.ports)):
                if other != number and self.state(other) is PortState.FORWARDING:
                    self._put(other, frame)

    def _control(self, number: int, frame: bytes) -> None:
        if self.tree is None or frame[:6] != STP_GROUP:
            self.counters["drop.reserved"] += 1
        elif self.tree.own_loop(number, frame):
            self.counters["own_loops"] += 1
            self.tree.block(number)
        elif not self.tree.received(number, frame):
            self.counters["drop.reserved"] += 1

    def close(self) -> None:
        """Take the ports apart again."""
        if self.tree is not None:
            self.tree.close()
        for port in self.ports:
            port.detach()
            if isinstance(port, LanPort):
                port.become(Role.NONE)
