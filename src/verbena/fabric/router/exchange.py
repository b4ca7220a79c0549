"""How routers learn of one another's prefixes: a distance-vector protocol, RIPng's rules (RFC 2080).

Each router sends all its routes every `period_ns` into every subnet that it joins, and at once when one changes; what
it learnt from a subnet, it calls unreachable there (split horizon with poisoned reverse, RFC 2080, 2.4.4).  A route
that is not repeated for `hold_ns` vanishes, so that the routes of a dead router do: packets then take the other one
(document 003:583, Fig. 6: two routers on each side).  Messages: `wire.route_announcement`, in raw packets of an
EtherType, to the group of all routers of the subnet, or to GIDs given.

Only a neighbour of the same subnet is believed, and nobody about multicast and link-local prefixes or prefixes of
subnets that the router itself joins.  There is no proof of identity: whoever can send raw packets in a subnet can
announce routes there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from verbena.errors import InvalidAttributeError
from verbena.fabric.router import packets
from verbena.fabric.router.element import Router
from verbena.fabric.router.ports import RouterPort
from verbena.fabric.router.routes import Origin, Route, masked
from verbena.wire.errors import DecodeError
from verbena.wire.route_announcement import INFINITY, RouteAnnouncement, RouteEntry

ALL_ROUTERS = bytes.fromhex("ff020000000000000000000000000002")
"""The group of a subnet's routers (RFC 4291, 2.7.1); its members join it as a multicast group of the subnet."""


_Way = tuple[bytes, int, int, bytes]  # prefix, length, port, the neighbour's GID


class RouteExchange:
    """Announces a router's routes, and keeps those that other routers announce.

    period_ns: between two announcements.  hold_ns: how long others may believe them unrepeated, 3.5 periods by
    default.  most_routes: learnt at most.  peers: for a port's number, whom to tell instead of `ALL_ROUTERS`.
    """

    def __init__(
        self,
        router: Router,
        guid: int,
        *,
        period_ns: int = 1_000_000_000,
        hold_ns: int = 0,
        most_routes: int = 4096,
        peers: dict[int, Iterable[bytes]] | None = None,
    ) -> None:
        if period_ns < 1_000_000:
            raise InvalidAttributeError(f"period_ns = {period_ns}: one millisecond or more")
        self.router = router
        self.guid = guid
        self.period_ns = period_ns
        self.hold_ns = hold_ns or 7 * period_ns // 2
        self.counters = router.counters
        self._most_routes = most_routes
        self._peers = {port: tuple(gids) for port, gids in (peers or {}).items()}
        self._learnt: dict[_Way, tuple[Route, int]] = {}  # and until when each is believed
        self._clock = router.clock
        self._timer: Any = None
        self._expiry: Any = None
        self._changed: Any = None
        router.on_ethertype = self.receive
        router.on_port = self._port_changed

    def start(self) -> None:
        """Announce now, and from now on."""
        if self._timer is not None:
            self._timer.cancel()
        self.announce()
        self._timer = self._clock.call_at(self._clock.now() + self.period_ns, self.start)

    def stop(self) -> None:
        """Be silent."""
        for timer in (self._timer, self._expiry, self._changed):
            if timer is not None:
                timer.cancel()
        self._timer = self._expiry = self._changed = None

    # --- telling ------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell every subnet what can be reached through this router."""
        for port in self.router.ports.values():
            if not isinstance(port, RouterPort) or not port.active:
                continue
            entries = self.entries(port)
            step = max(1, RouteAnnouncement.capacity(port.mtu))
            for first in range(0, max(1, len(entries)), step):
                message = RouteAnnouncement(
                    self.guid,
                    port.gid,
                    min(self.hold_ns // 1_000_000, 0xFFFFFFFF),
                    tuple(entries[first : first + step]),
                )
                for gid in self._peers.get(port.number, (ALL_ROUTERS,)):
                    self.router.originate_raw(port.number, gid, message.encode())

    def entries(self, port: RouterPort) -> list[RouteEntry]:
        """What is told to the subnet of a port."""
        found = []
        for route in self.router.table.best(self.router.usable):
            if route.port != port.number:
                found.append(RouteEntry(route.prefix, 0, route.length, route.metric))
            elif route.origin is Origin.LEARNT:
                found.append(RouteEntry(route.prefix, 0, route.length, INFINITY))
        return found

    def _tell_soon(self) -> None:
        """Something changed: tell once, when all that happens now has happened."""
        if self._changed is None and self._timer is not None:
            self._changed = self._clock.call_at(self._clock.now() + self.period_ns // 20, self._tell)

    def _tell(self) -> None:
        self._changed = None
        self.announce()

    # --- hearing ------------------------------------------------------------------------------------------

    def receive(self, number: int, payload: bytes) -> bool:
        """A raw packet of an EtherType came in (RWH first); False when it is no announcement.  Never raises."""
        try:
            message = RouteAnnouncement.decode(payload)
        except DecodeError:
            return False
        port = self.router.ports.get(number)
        if not isinstance(port, RouterPort) or message.guid == self.guid or message.gid[:8] != port.prefix:
            self.counters["announcements.refused"] += 1
            return True
        self.counters["announcements"] += 1
        for entry in message.entries:
            self._learn(port, message, entry)
        self._watch()
        return True

    def _learn(self, port: RouterPort, message: RouteAnnouncement, entry: RouteEntry) -> None:
        if not self._believable(entry):
            self.counters["announcements.entries_refused"] += 1
            return
        metric = min(entry.metric + 1, INFINITY)
        way = (entry.prefix, entry.length, port.number, message.gid)
        known = self._learnt.get(way)
        if metric == INFINITY or message.hold_ms == 0:
            if known is not None:
                self._forget(way)
            return
        if known is None and len(self._learnt) >= self._most_routes:
            self.counters["announcements.entries_refused"] += 1
            return
        route = Route(entry.prefix, entry.length, port.number, message.gid, Origin.LEARNT, metric)
        if known is None or known[0] != route:
            self.router.table.add(route)
            self._tell_soon()
        self._learnt[way] = (route, self._clock.now() + message.hold_ms * 1_000_000)

    def _believable(self, entry: RouteEntry) -> bool:
        if masked(entry.prefix, entry.length) != entry.prefix or entry.prefix[0] == 0xFF:
            return False
        if entry.length and packets.scope(entry.prefix) < 3:
            return False
        return not any(
            isinstance(port, RouterPort)
            and entry.length >= 64
            and entry.prefix[:8] == port.prefix
            and port.active
            for port in self.router.ports.values()
        )

    def _forget(self, way: _Way) -> None:
        route, _ = self._learnt.pop(way)
        self.router.table.remove(route)
        self._tell_soon()

    # --- time and ports -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Come back when the first route may have to go."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = None
        if self._learnt:
            first = min(deadline for _, deadline in self._learnt.values())
            self._expiry = self._clock.call_at(first, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._clock.now()
        for way in [way for way, (_, deadline) in self._learnt.items() if deadline <= now]:
            self.counters["routes.expired"] += 1
            self._forget(way)
        self._watch()

    def _port_changed(self, number: int) -> None:
        """What was learnt through a port that is down is not true any more."""
        if not self.router.ports[number].active:
            for way in [way for way in self._learnt if way[2] == number]:
                self._forget(way)
        self._tell_soon()
