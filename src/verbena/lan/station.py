"""What the parts of one driver share: its card, its addresses, its peers, its library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from verbena.clock import Clock, Timer
from verbena.lan.addresses import LanAddress
from verbena.lan.config import LanConfig
from verbena.lan.connections import ChannelManager
from verbena.lan.group import FabricGroup
from verbena.lan.message import NodeInfo, Role
from verbena.lan.peers import ForeignTable, Peer, PeerTable
from verbena.lan.policy import ChannelPolicy
from verbena.lan.port import LanPort, PortEvent
from verbena.lan.transport_services import TransportServices
from verbena.management.bus_driver import LocalEndPointInfo
from verbena.verbs.context import Context


class Alarm:
    """One call that is asked for at most once at a time; happens under the adapter's lock."""

    def __init__(self, station: Station, function: Callable[[], None]) -> None:
        self._station = station
        self._function = function
        self._timer: Timer | None = None

    def set(self, delay_ns: int) -> None:
        """Ring after this time, unless it is to ring already."""
        if self._timer is None and self._station.open:
            clock = self._station.clock
            self._timer = clock.call_at(clock.now() + delay_ns, self._rang)

    def _rang(self) -> None:
        with self._station.engine:
            self._timer = None
            if self._station.open:
                self._function()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Station:
    """One card's place in its LAN.  Parts of the driver set `services`, `channels` and `group` as they are made.

    info: of the local port, as the bus driver told it.  heard: the datagram queue pairs of those who are no peers yet,
    by their LIDs, from what came from them.
    """

    services: TransportServices
    channels: ChannelManager
    group: FabricGroup

    def __init__(
        self,
        card: LanPort,
        context: Context,
        config: LanConfig,
        clock: Clock,
        info: LocalEndPointInfo,
        platform: int,
        instance: int,
    ) -> None:
        self.card = card
        self.context = context
        self.config = config
        self.clock = clock
        self.info = info
        self.platform = platform
        self.instance = instance
        self.engine: Any = context.adapter.engine
        self.counters: Counter[str] = card.counters
        self.open = True
        self.lid = info.lid
        self.lids = range(info.lid, info.lid + info.lid_mask + 1)
        self.mac = LanAddress(info.lid, config.number).pack()
        self.prefix = self.mac[:4]
        self.gid = context.query_gid(info.port_number).raw
        self.peers = PeerTable(config.most_peers)
        self.foreign = ForeignTable(config.most_foreign, config.foreign_age_ns, self.counters)
        self.policy = ChannelPolicy(config)
        self.heard: dict[int, int] = {}

    @property
    def packet(self) -> int:
        """The largest packet that every node of the LAN takes, as far as is known, in bytes."""
        group = self.group.way
        return self.services.packet if group is None else min(self.services.packet, group.mtu)

    @property
    def card_lid(self) -> int:
        """The LID in the address that frames of this card come from."""
        return self.card.shared_lid or self.lid

    @property
    def role(self) -> Role:
        """What this node says that it is."""
        role = self.card.role
        if self.card.shared_lid:
            role |= Role.BUNDLE
        if self.group.way is not None:
            role |= Role.GROUP
        if self.config.offload:
            role |= Role.OFFLOAD
        return role

    def describe(self) -> NodeInfo:
        """What this node tells of itself."""
        return NodeInfo(
            instance=self.instance,
            role=self.role,
            card=self.card_lid,
            mtu=self.config.mtu,
            platform=self.platform.to_bytes(8, "big"),
            port_guid=self.info.port_guid.to_bytes(8, "big"),
        )

    def mac_of(self, peer: Peer) -> bytes:
        """The address of a peer's card."""
        return LanAddress(peer.card, self.config.number).pack()

    def forget_address(self, peer: Peer) -> None:
        """Whoever is above shall resolve a peer's address anew."""
        self.card.tell(PortEvent.AGED, self.mac_of(peer))
