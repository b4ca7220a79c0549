"""Virtual time: one process, a queue of events, nothing happens by chance.

`VirtualNetwork` joins adapters by one ideal network; asyncio programs run in its time: `VirtualNetwork.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from verbena.adapter.attributes import DeviceAttributes
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.adapter.gid import Gid
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.processors import Processors
from verbena.runtime.virtual_time import Event, VirtualClock, VirtualTime, VirtualWaiting
from verbena.runtime.wires import Burst, Wire
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context

BUFFER = 65_536
HEADERS = 14 + 20 + 8 + 4 + 20  # Ethernet, IPv4, UDP, frame check sequence, preamble and gap


class VirtualWire(Wire):
    """An adapter's link into a `VirtualNetwork`."""

    def __init__(self, network: VirtualNetwork, gid: bytes, rate_bps: float, delay_ns: int) -> None:
        super().__init__()
        self.network = network
        self.gid = gid
        self.rate_bps = rate_bps
        self.delay_ns = delay_ns
        self.free_at = 0
        self.sent = 0
        self.delivered = 0
        self.unreachable = 0
        self.up = True
        self.on_change: Callable[[bool], None] = lambda up: None

    def send(self, burst: Burst) -> None:
        clock = self.network.clock
        bits = 8 * (len(burst.data) + HEADERS * len(burst))
        duration = round(bits * 1e9 / self.rate_bps) if self.rate_bps else 0
        self.free_at = max(self.free_at, clock.now()) + duration
        self.sent += len(burst)
        peer = self.network.wires.get(burst.destination)
        if peer is None or not self.up:
            self.unreachable += len(burst)
            return
        clock.call_at(self.free_at + self.delay_ns, lambda: peer.arrive(burst, self.up))

    def arrive(self, burst: Burst, up: bool = True) -> None:
        """A burst comes in, unless a cable was pulled meanwhile, at this end or (not `up`) at the other."""
        if not (up and self.up):
            self.unreachable += len(burst)
            return
        self.delivered += len(burst)
        self.receiver(burst)

    def close(self) -> None:
        self.network.wires.pop(self.gid, None)


class EngineDriver(VirtualWaiting):
    """Runs one adapter's engine on a `VirtualClock`.  Implements `verbs.driver.Driver`, but for sending."""

    def __init__(
        self, adapter: ChannelAdapter, clock: VirtualClock, processors: Processors | None = None
    ) -> None:
        super().__init__(clock, adapter.engine.has_entries)
        self.dispatcher = processors or Processors(clock)
        self._adapter = adapter
        self._engine = adapter.engine
        self._buffer = bytearray(BUFFER)
        self._alarm: Event | None = None
        self._alarm_at = 0
        self._open = True
        adapter.on_work = self.kick

    def _send(self) -> None:
        """Send what there is room for."""
        raise NotImplementedError

    def kick(self) -> None:
        """Send what the link has room for now, and come back for the rest."""
        if not self._open:
            return
        self._send()
        self._adapter.dispatch()
        self._set_alarm(self._engine.tick(self.clock.now()))

    def _set_alarm(self, when: int) -> None:
        if not when or (self._alarm is not None and self._alarm_at <= when):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self.clock.call_at(when, self._rang)

    def _rang(self) -> None:
        self._alarm = None
        self._engine.tick(self.clock.now())
        self.kick()

    def close(self) -> None:
        self._open = False
        if self._alarm is not None:
            self._alarm.cancel()

    def abandon(self) -> None:
        self.close()


class VirtualDriver(EngineDriver):
    """Runs an adapter on its wires: each with the link that it leads to, the first GID's first."""

    def __init__(
        self,
        adapter: ChannelAdapter,
        links: list[tuple[Wire, VirtualWire]],
        clock: VirtualClock,
        processors: Processors | None = None,
    ) -> None:
        super().__init__(adapter, clock, processors)
        self._links = {port.gid: (wire, port) for wire, port in links}
        self._ports = [port for _, port in links]
        self._first = self._ports[0]
        self._several = len(links) > 1
        self._pump: Event | None = None
        for wire, port in links:
            port.on_change = partial(self._link_changed, port.gid)
            wire.set_receiver(partial(self._arrived, own=port.gid) if self._several else self._arrived)

    def _arrived(self, burst: Burst, own: bytes | None = None) -> None:
        if self._open:
            self._engine.receive(
                bytearray(burst.data),
                burst.segment,
                burst.source,
                burst.source_port,
                self.clock.now(),
                burst.first_ident,
                own,
            )
            self.kick()

    def _link_changed(self, gid: bytes, up: bool) -> None:
        with self._engine:
            self._engine.set_source_usable(gid, up)
        self.kick()

    def _free_at(self) -> int:
        """When the first of the links takes something."""
        return min([port.free_at for port in self._ports]) if self._several else self._first.free_at

    def _send(self) -> None:
        if self._pump is not None:
            return
        now = self.clock.now()
        while self._free_at() <= now:
            made = self._engine.transmit(self._buffer, now)
            if made is None:
                return
            size, segment, path = made
            gid, traffic_class, hop_limit, loopback = self._engine.path_destination(path)
            source = self._engine.path_source(path) if self._several else self._first.gid
            burst = Burst(
                data=bytes(self._buffer[:size]),
                segment=segment,
                source=source,
                destination=gid,
                port=self._adapter.udp_port,
                source_port=self._adapter.udp_port,
                traffic_class=traffic_class,
                hop_limit=hop_limit,
            )
            if loopback:
                self.clock.call_at(now, partial(self._arrived, burst, source if self._several else None))
            else:
                self._links[source][0].send(burst)
        self._pump = self.clock.call_at(self._free_at(), self._pumped)

    def _pumped(self) -> None:
        self._pump = None
        self.kick()

    def close(self) -> None:
        super().close()
        if self._pump is not None:
            self._pump.cancel()
        for wire, _ in self._links.values():
            wire.close()


class VirtualNetwork(VirtualTime):
    """Adapters joined by one ideal network, in virtual time.

    seed: of everything random.  delay_ns: from one adapter to another.  rate_bps: of each adapter's link, 0 =
    infinitely fast.  wrap: called with each adapter's wire, the clock and a random stream of its own; returns the
    wire to use instead (a tap, a fault injector).
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        delay_ns: int = 1_000,
        rate_bps: float = 100e9,
        wrap: Callable[[Wire, VirtualClock, Random], Wire] | None = None,
    ) -> None:
        if delay_ns < 0 or rate_bps < 0:
            raise InvalidAttributeError("delay_ns and rate_bps are 0 or more")
        super().__init__()
        self.seed = seed
        self.delay_ns = delay_ns
        self.rate_bps = rate_bps
        self.wires: dict[bytes, VirtualWire] = {}
        self._wrap = wrap

    def open_device(
        self,
        address: str,
        *,
        mtu: int = 4096,
        limits: DeviceAttributes | None = None,
        window_bytes: int = 1 << 20,
        ack_policy: AckPolicy = AckPolicy.COALESCED,
        further_addresses: Sequence[str] = (),
        processors: Processors | None = None,
    ) -> Context:
        """An adapter at an IP address (any; it exists only here).  mtu: its active MTU in bytes.

        further_addresses: each gives it one more link, with a rate and a wire of its own; the entries of the GID table
        are in the same order.  processors: the host's, for several adapters; by default its own, where nothing costs
        time.
        """
        addresses = (address, *further_addresses)
        gids = [Gid.from_ip(a) for a in addresses]
        for a, gid in zip(addresses, gids, strict=True):
            if gid.raw in self.wires or gids.count(gid) > 1:
                raise SystemLimitError(f"address in use: {a} is another adapter of this network")
            if gid.is_ip4 != gids[0].is_ip4:
                raise InvalidAttributeError("further_addresses: all IPv4, or all IPv6, as the first one")
        if mtu not in (256, 512, 1024, 2048, 4096):
            raise InvalidAttributeError(f"mtu = {mtu}: one of 256, 512, 1024, 2048, 4096")
        random = Random(f"{self.seed} {address}")
        name = f"verbena{len(self.wires)}"
        links: list[tuple[Wire, VirtualWire]] = []
        for a, gid in zip(addresses, gids, strict=True):
            port = self.wires[gid.raw] = VirtualWire(self, gid.raw, self.rate_bps, self.delay_ns)
            wire: Wire = (
                port if self._wrap is None else self._wrap(port, self.clock, Random(f"{self.seed} w {a}"))
            )
            links.append((wire, port))
        adapter = ChannelAdapter(
            gids[0],
            limits or DeviceAttributes(name=name, max_qp=4096, max_cq=4096),
            further_gids=tuple(gids[1:]),
            clock=self.clock,
            random=random,
            active_mtu=mtu,
            window_bytes=window_bytes,
            ack_policy=ack_policy,
        )
        return Context(adapter, VirtualDriver(adapter, links, self.clock, processors))

    def set_link(self, address: str, up: bool) -> None:
        """Pull an adapter's cable, or plug it in again: what is on its way is lost, and the adapter's port is down.

        The adapter at the other end of a path is not told: it finds out as it would in a real network, by silence.
        """
        wire = self.wires.get(Gid.from_ip(address).raw)
        if wire is None:
            raise InvalidAttributeError(f"{address} is no adapter of this network")
        wire.up = up
        wire.on_change(up)
