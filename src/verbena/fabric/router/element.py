"""The router: joins subnets by the IPv6 destination in the global header (document 003:592, 612, 656-659, Fig. 6).

What it does to a packet is little (IBA vol. 1, chapter 19): a new local header for the next subnet, hop limit less
one.  Flow label, traffic class, transport header, payload and invariant CRC pass untouched.  It neither makes nor
consumes messages, and knows no transport.

Lossless: a packet stays in the input buffer in which it came (`receive` gets the buffer's handle) until its output has
taken it (`release` gives the handle back), so that a blocked output holds back the credits of those who send there.
Outputs have a queue for each lane; a blocked lane stops no other.  What is dropped is counted under its reason:

    received + originated + copied == sent + dropped + local + waiting

A packet whose destination is still being asked for waits, bounded in number and time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.fabric.router import packets
from verbena.fabric.router.errors import ErrorReports
from verbena.fabric.router.ports import PENDING, Hop, LanPort, Resolver, RouterPort
from verbena.fabric.router.queues import InputBuffer, OutputQueues, Searches
from verbena.fabric.router.routes import Origin, Route, RouteTable
from verbena.wire.headers import LinkNextHeader

MANAGEMENT_LANE = 15
MULTICAST = 0xFF
OWN_BACKLOG = 64  # packets that the router itself made and that may wait for room


class Router:
    """A router element.

    ports: into subnets, numbered as on the node.  clock: for time-outs.  resolve: finds destinations in a subnet, see
    `ports.Resolver`.  output(port, packet) -> bool: hands a packet LRH … ICRC to a subnet; False when that lane has no
    room now.  release(port, handle): the input buffer of a packet is free again.  local(port, packet) -> bool: takes
    what is for the router itself (management, and its own addresses).  pending_packets, pending_searches, pending_ns:
    how many packets wait for one destination to be found, for how many destinations, and how long.
    """

    def __init__(
        self,
        name: str,
        ports: Iterable[RouterPort],
        *,
        clock: Clock,
        resolve: Resolver,
        output: Callable[[int, bytes], bool],
        release: Callable[[int, object], None] = lambda port, handle: None,
        local: Callable[[int, bytes], bool] = lambda port, packet: False,
        pending_packets: int = 64,
        pending_searches: int = 1024,
        pending_ns: int = 1_000_000_000,
    ) -> None:
        self.name = name
        self.clock = clock
        self.ports: dict[int, RouterPort | LanPort] = {}
        self.table = RouteTable()
        self.counters: Counter[str] = Counter()
        self.on_ethertype: Callable[[int, bytes], bool] = lambda port, payload: False
        self.on_port: Callable[[int], None] = lambda port: None
        self._resolve = resolve
        self._output = output
        self._release = release
        self._local = local
        self._queues = OutputQueues(self._send, self._sent)
        self._searches = Searches(clock, self._not_found, pending_packets, pending_searches, pending_ns)
        self._groups: dict[bytes, set[int]] = {}
        self._uncredited: Counter[int] = (
            Counter()
        )  # waiting packets that hold nobody's credits, by input port
        self._reports = ErrorReports(clock)
        for port in ports:
            self._add(port)
            self.table.add(_attached(port))

    def _add(self, port: RouterPort | LanPort) -> None:
        if port.number in self.ports:
            raise InvalidAttributeError(f"router {self.name}: port {port.number} exists already")
        self.ports[port.number] = port

    # --- how it is set ------------------------------------------------------------------------------------

    def attach_lan(self, port: LanPort, prefix: str | None = "::/0") -> None:
        """Add a port onto an ordinary IPv6 network; `prefix` is routed there (by default, all; None: nothing)."""
        self._add(port)
        if prefix is not None:
            self.table.add(Route.to(prefix, port.number))

    def configure(self, number: int, *, prefix: bytes | None = None, **values: Any) -> None:
        """Set what a subnet manager sets of a port: lid, lmc, mtu, sl2vl, active, boundary, prefix.

        A port that goes down loses what waits there, and its routes are passed over.
        """
        port = self.ports[number]
        if prefix is not None and isinstance(port, RouterPort) and prefix != port.prefix:
            self.table.remove(_attached(port))
            port.addresses.clear()
            port.prefix = prefix
            port.addresses.add(port.gid)
            self.table.add(_attached(port))
        for name, value in values.items():
            if name not in ("lid", "lmc", "mtu", "sl2vl", "active", "boundary") or not hasattr(port, name):
                raise InvalidAttributeError(f"router {self.name}: port {number} has no attribute {name}")
            setattr(port, name, value)
        if not port.active:
            for buffer in self._queues.flush(number):
                self._left_queue(buffer)
                self._drop("port_down", buffer)
            for key in self._searches.of_port(number):
                for _, buffer in self._searches.take(key):
                    self._left_queue(buffer)
                    self._drop("port_down", buffer)
        self.on_port(number)

    def join(self, group: bytes, number: int) -> None:
        """Forward packets for a multicast GID (16 bytes) to a port, too.  Raises `InvalidAttributeError`."""
        if len(group) != 16 or group[0] != MULTICAST or number not in self.ports:
            raise InvalidAttributeError(
                f"router {self.name}: a multicast GID (ff00::/8) and one of ports {sorted(self.ports)} are needed"
            )
        self._groups.setdefault(bytes(group), set()).add(number)

    def leave(self, group: bytes, number: int) -> None:
        """No longer."""
        self._groups.get(group, set()).discard(number)

    def usable(self, route: Route) -> bool:
        """Is the port of a route up?"""
        port = self.ports.get(route.port)
        return port is not None and port.active

    # --- what comes in ------------------------------------------------------------------------------------

    def receive(self, port: int, packet: bytes, handle: object = None) -> None:
        """A packet LRH … ICRC came in by a subnet's port; its buffer is `release`d when the packet has left.

        Never raises: what cannot be forwarded is dropped and counted.
        """
        self.counters["received"] += 1
        buffer = InputBuffer(port, handle)
        packet = bytes(packet)
        at = self.ports.get(port)
        if not isinstance(at, RouterPort) or not at.active:
            return self._drop("port_down", buffer)
        if problem := packets.link_problem(packet):
            return self._drop(problem, buffer)
        if not at.takes(packet[2] << 8 | packet[3]):
            return self._drop("dlid", buffer)
        kind = packet[1] & 3
        if packet[0] >> 4 == MANAGEMENT_LANE or kind == LinkNextHeader.IBA_LOCAL:
            return self._own("no_grh", self._local, packet, buffer)
        if kind == LinkNextHeader.RAW:
            return self._own("ethertype", self.on_ethertype, packet[packets.LRH_SIZE :], buffer)
        if problem := packets.network_problem(packet):
            return self._drop(problem, buffer)
        if packets.destination(packet) == at.link_local:
            return self._own("own_address", self._local, packet, buffer)
        return self._route(packet, buffer, at.boundary)

    def receive_lan(self, port: int, datagram: bytes) -> None:
        """An IPv6 packet came in from an ordinary network (document 003:554: native frames are bridged in).

        Never raises.  In a subnet it is a raw packet.
        """
        self.counters["received"] += 1
        buffer = InputBuffer(port, counted=True)
        datagram = bytes(datagram)
        at = self.ports.get(port)
        if not isinstance(at, LanPort) or not at.active:
            return self._drop("port_down", buffer)
        if len(datagram) < packets.IP_SIZE:
            return self._drop("short", buffer)
        # Ethernet pads short frames: the header says where the datagram ends.
        size = packets.IP_SIZE + (datagram[4] << 8 | datagram[5])
        datagram = datagram[:size]
        if datagram[0] >> 4 == 6 and (len(datagram) < size or size > at.mtu):
            return self._drop("length", buffer)
        packet = packets.raw_packet(datagram)
        if problem := packets.network_problem(packet):
            return self._drop(problem, buffer)
        if self._uncredited[port] >= at.backlog:
            return self._drop("backlog", buffer)
        return self._route(packet, buffer, 2)

    def _own(
        self, otherwise: str, taker: Callable[[int, bytes], bool], packet: bytes, buffer: InputBuffer
    ) -> None:
        """Offer a packet to the router's own software; it is dropped if that does not want it."""
        if taker(buffer.port, packet):
            self.counters["local"] += 1
            self._done(buffer)
        else:
            self._drop(otherwise, buffer)

    # --- where it goes ------------------------------------------------------------------------------------

    def _route(self, packet: bytes, buffer: InputBuffer, boundary: int) -> None:
        target = packets.destination(packet)
        if any(target in port.addresses for port in self.ports.values()):
            return self._own("own_address", self._local, packet, buffer)
        if problem := packets.scope_problem(packets.source(packet), target, boundary):
            return self._drop(problem, buffer, packet)
        if packets.hop_limit(packet) < 2:  # 0 and 1 do not leave the subnet (IBA vol. 1, 8.3.6)
            return self._drop("hop_limit", buffer, packet)
        if target[0] == MULTICAST:
            return self._multicast(target, packet, buffer)
        route = self.table.lookup(target, self.usable)
        if route is None:
            return self._drop("no_route", buffer, packet)
        return self._toward(route.port, route.via or target, packets.hopped(packet), buffer)

    def _multicast(self, group: bytes, packet: bytes, buffer: InputBuffer) -> None:
        """A copy to each port with members, but the one it came by."""
        native = packet[1] & 3 == LinkNextHeader.IBA_GLOBAL
        outputs = []
        for number in sorted(self._groups.get(group, set()) - {buffer.port}):
            port = self.ports[number]
            here = not native if isinstance(port, LanPort) else packets.scope(group) > port.boundary
            if port.active and here:
                outputs.append(number)
        if not outputs:
            return self._drop("no_route", buffer)
        buffer.users = len(outputs)
        self.counters["copied"] += len(outputs) - 1
        for number in outputs:
            self._toward(number, group, packets.hopped(packet), buffer)
        return None

    def _toward(self, number: int, gid: bytes, packet: bytes, buffer: InputBuffer) -> None:
        """Send a packet to a GID in a port's subnet, as soon as it is known where that is."""
        port = self.ports[number]
        if isinstance(port, LanPort):
            return self._onto_lan(port, packet, buffer)
        key = (number, gid)
        found = PENDING if key in self._searches else self._resolve(number, gid)
        if found is PENDING:
            if not self._searches.add(key, packet, buffer):
                return self._drop("pending_full", buffer)
            self._uncredited[buffer.port] += buffer.counted
            return None
        return self._into_subnet(port, found, packet, buffer)

    def _onto_lan(self, port: LanPort, packet: bytes, buffer: InputBuffer) -> None:
        if packet[1] & 3 != LinkNextHeader.IPV6:  # the fabric's transport ends at the fabric
            return self._drop("lan_transport", buffer)
        datagram = packets.ip_packet(packet)
        if len(datagram) > port.mtu:
            return self._drop("mtu", buffer, packet, port.mtu)
        return self._queue(port.number, 0, datagram, buffer)

    def _into_subnet(self, port: RouterPort, hop: Hop | None, packet: bytes, buffer: InputBuffer) -> None:
        if hop is None or not 1 <= hop.dlid <= 0xFFFE or not 0 <= hop.sl <= 15:
            return self._drop("unreachable", buffer, packet)
        mtu = min(port.mtu, hop.mtu)
        native = packet[1] & 3 == LinkNextHeader.IBA_GLOBAL
        if len(packet) > mtu + (packets.LARGEST_HEADERS if native else packets.LRH_SIZE):
            return self._drop("mtu", buffer, packet, mtu)
        lane = port.sl2vl[hop.sl]
        if lane == MANAGEMENT_LANE:  # this service level may not be used here (IBA vol. 1, 7.6.6)
            return self._drop("lane", buffer)
        addressed = packets.readdressed(packet, lane, hop.sl, hop.dlid, port.lid)
        return self._queue(port.number, lane, addressed, buffer)

    def resolved(self, number: int, gid: bytes) -> None:
        """The resolver knows now what it was asked: send, or drop, what has waited for it."""
        key = (number, gid)
        port = self.ports.get(number)
        if key not in self._searches or not isinstance(port, RouterPort):
            return
        hop = self._resolve(number, gid)
        if hop is PENDING:
            return
        for packet, buffer in self._searches.take(key):
            self._left_queue(buffer)
            self._into_subnet(port, hop, packet, buffer)

    def _not_found(self, packet: bytes, buffer: InputBuffer) -> None:
        self._left_queue(buffer)
        self._drop("pending_timeout", buffer, packet)

    # --- what goes out ------------------------------------------------------------------------------------

    def room(self, port: int, lane: int | None = None) -> None:
        """An output that took nothing has room again, on one lane or on all."""
        self._queues.room(port, lane)

    def _queue(self, number: int, lane: int, packet: bytes, buffer: InputBuffer) -> None:
        self._uncredited[buffer.port] += buffer.counted
        self._queues.put(number, lane, packet, buffer)

    def _send(self, number: int, packet: bytes) -> bool:
        port = self.ports[number]
        return port.output(packet) if isinstance(port, LanPort) else self._output(number, packet)

    def _sent(self, buffer: InputBuffer) -> None:
        self.counters["sent"] += 1
        self._left_queue(buffer)
        self._done(buffer)

    def _left_queue(self, buffer: InputBuffer) -> None:
        self._uncredited[buffer.port] -= buffer.counted

    def _done(self, buffer: InputBuffer) -> None:
        buffer.users -= 1
        if buffer.users == 0 and not buffer.counted:
            self._release(buffer.port, buffer.handle)

    def _drop(self, reason: str, buffer: InputBuffer, packet: bytes = b"", parameter: int = 0) -> None:
        """Count a packet as dropped; the sender of a raw IPv6 packet is told, if `packet` is given."""
        self.counters["drop." + reason] += 1
        self._done(buffer)
        came_by = self.ports.get(buffer.port)
        if not packet or packet[1] & 3 != LinkNextHeader.IPV6 or came_by is None:
            return
        address = came_by.gid if isinstance(came_by, RouterPort) else came_by.address
        report = self._reports.about(reason, packets.ip_packet(packet), address, parameter)
        if report is not None:
            self.originate(report)

    # --- what the router itself sends ---------------------------------------------------------------------

    def originate(self, datagram: bytes) -> None:
        """Send an IPv6 packet of the router's own, as a raw packet or onto a LAN."""
        buffer = self._own_buffer()
        if buffer is None:
            return
        packet = packets.raw_packet(bytes(datagram))
        route = self.table.lookup(packets.destination(packet), self.usable)
        if route is None:
            self._drop("no_route", buffer)
        else:
            self._toward(route.port, route.via or packets.destination(packet), packet, buffer)

    def originate_raw(self, number: int, gid: bytes, payload: bytes) -> None:
        """Send a raw packet of an EtherType (RWH first, whole words) to a GID in a port's subnet."""
        buffer = self._own_buffer()
        if buffer is not None:
            self._toward(number, gid, packets.raw_packet(payload, LinkNextHeader.RAW), buffer)

    def _own_buffer(self) -> InputBuffer | None:
        self.counters["originated"] += 1
        buffer = InputBuffer(0, counted=True)
        if self._uncredited[0] >= OWN_BACKLOG:
            self._drop("backlog", buffer)
            return None
        return buffer

    # --- queries ------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Packets that wait for room, or for their destination to be found."""
        return len(self._queues) + len(self._searches)

    def depths(self) -> dict[tuple[int, int], int]:
        """Packets that wait for room, by (port, lane)."""
        return self._queues.depths()

    @property
    def dropped(self) -> int:
        """All drops; `counters` has them by reason, as ``drop.…``."""
        return sum(n for name, n in self.counters.items() if name.startswith("drop."))


def _attached(port: RouterPort) -> Route:
    return Route(port.prefix + bytes(8), 64, port.number, None, Origin.ATTACHED)
