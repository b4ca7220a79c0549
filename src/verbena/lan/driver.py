"""The driver of one port (document 000:96-122, figures 4 and 5): loaded by the bus driver, unloaded with its port.

Initialization asks in the order of figure 5: the bus driver for the local port, the name service for the other nodes,
the subnet driver for the primary and secondary paths to them; then the transport services library is opened, and its
connection manager finds the others' datagram queue pairs.  Only then the card is up.  Where a step fails, everything
that was made is closed again, and it is tried anew after a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from verbena.clock import Clock
from verbena.errors import ClosedError, VerbenaError
from verbena.lan.config import SECOND, LanConfig
from verbena.lan.connections import ChannelManager
from verbena.lan.discovery import Directory, Found, Paths
from verbena.lan.express import Express
from verbena.lan.group import FabricGroup
from verbena.lan.listing import NodeList
from verbena.lan.liveness import Liveness
from verbena.lan.neighbourhood import Neighbourhood
from verbena.lan.peers import Peer
from verbena.lan.port import LanPort
from verbena.lan.receiver import Receiver
from verbena.lan.sender import Sender
from verbena.lan.station import Alarm, Station
from verbena.lan.steps import Procedure, Steps
from verbena.lan.transport_services import Channel, TransportServices
from verbena.management.bus_driver import BusDriver, PlugAndPlayObject
from verbena.verbs.context import Context

if TYPE_CHECKING:
    from random import Random

AGAIN_NS = SECOND
"""After an initialization that failed."""
REPAIR_NS = SECOND // 100


class Driver:
    """One instance, for one port while it is active with one LID.

    `calls`: the names of the documents' calls with their arguments, oldest first.  `express`: the short way of frames;
    None while the library is not open.
    """

    def __init__(
        self,
        card: LanPort,
        context: Context,
        config: LanConfig,
        clock: Clock,
        random: Random,
        bus: BusDriver,
        found: PlugAndPlayObject,
    ) -> None:
        self.card = card
        self.config = config
        self._context = context
        self._bus = bus
        self._object = found
        self._engine = context.adapter.engine
        self.up = False
        self._mac, self._mac_lid = b"", -1
        info = bus.IbaBdGetLocalEndPointInfoByPdo(found)
        self.station = Station(card, context, config, clock, info, bus.host_guid, random.getrandbits(32))
        self.directory = Directory(context.subnet_at(info.port_number), config, self.station.gid)
        self.calls = self.directory.calls
        self.calls.append(("IbaBdGetLocalEndPointInfoByPdo", (found.guid,)))
        self.sender = Sender(self.station)
        self.receiver = Receiver(self.station)
        self._ageing = Alarm(self.station, self._age)
        self._retry = Alarm(self.station, self._begin)
        self._repair = Alarm(self.station, self._open_again)
        self._opened = False
        self.express: Express | None = None
        self._procedure: Procedure | None = None
        if any(card.own_mac):  # loaded again: what leads to a new LID may not be programmed everywhere yet
            self._retry.set(config.settle_ns)
        else:
            self._begin()

    @property
    def mac(self) -> bytes:
        """The address of the card: its own, or the one that it shares with others."""
        station = self.station
        if station.card_lid != self._mac_lid:
            self._mac_lid = station.card_lid
            self._mac = station.mac[:4] + self._mac_lid.to_bytes(2, "big")
        return self._mac

    @property
    def own_mac(self) -> bytes:
        """The address that the port's LID makes."""
        return self.station.mac

    # --- initialization -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._procedure = Procedure(self._initialize())

    def _initialize(self) -> Steps:
        station = self.station
        try:
            known: list[tuple[Found, Paths]] = []
            if self.config.discovery == "eager":
                yield from self._find_others(known)
            self._open_library()
            yield from station.group.join(station.gid)
            yield self.directory.register()
        except VerbenaError as error:
            self._failed(error)
            return
        for found, paths in known:
            peer = Peer(
                found.lid, found.lids, station.gid[:8] + found.port_guid.to_bytes(8, "big"), found.platform
            )
            if self.neighbourhood.add(peer) is not None:
                self.neighbourhood.take_paths(peer, paths)
                self.neighbourhood.ask_queue_pair(peer)
        self.up = True
        self.card.came_up(self)
        self.neighbourhood.begin()
        self.list.begin()
        if self.config.policy == "age":
            self._ageing.set(max(1, self.config.channel_age_ns // 4))

    def _find_others(self, known: list[tuple[Found, Paths]]) -> Steps:
        """The list of nodes, and the primary and secondary path to each that is still there."""
        found: list[Found] = []
        yield from self.directory.look(self.station.lids, found)
        for each in found:
            answers: list[Paths] = []
            yield from self.directory.paths_if_there(self.station.lid, each.lid, answers.append)
            if answers:
                known.append((each, answers[0]))

    def _open_library(self) -> None:
        """The transport services library, and what stands on it; raises a `VerbError`, then nothing is left open."""
        station, config = self.station, self.config
        number = station.info.port_number
        station.services = TransportServices(
            self._context,
            number,
            config,
            station.counters,
            arrived_datagram=self.receiver.datagram,
            arrived_frame=self.receiver.channel_frame,
            finished=self.receiver.finished,
            room=self.card.has_room,
            channel_failed=self._channel_failed,
            broken=lambda: self._repair.set(0),
        )
        self._opened = True
        station.group = FabricGroup(self.directory.subnet, station.services, config, number)
        self.neighbourhood = Neighbourhood(station, self.directory, self.sender.send_to)
        self.list = NodeList(station, self.directory, self.neighbourhood)
        self.liveness = Liveness(station, self.neighbourhood)
        self.sender.neighbourhood = self.receiver.neighbourhood = self.neighbourhood
        self.sender.liveness = self.receiver.liveness = self.liveness
        self.express = Express(station, station.services, self.receiver, self.liveness)
        station.services.express = self.express
        station.channels = ChannelManager(
            station.services,
            number,
            station.gid,
            station.lid,
            config,
            station.clock,
            station.counters,
            describe=station.describe,
            asked_by=self.list.asked_by,
            peer_of=self.neighbourhood.peer_of,
            claims=self.neighbourhood.claims,
            admit=station.policy.may_accept,
            ready=self._channel_ready,
        )

    def _failed(self, error: VerbenaError) -> None:
        self.card.counters["initializations.failed"] += 1
        self.card.last_error = str(error)
        self._close_library()
        self._retry.set(AGAIN_NS)

    def _open_again(self) -> None:
        """The library is of no use any more, though the port is up: close it, and begin anew."""
        if self.up:
            self.up = False
            self.card.went_down()
            self._close_library()
            self._retry.set(REPAIR_NS)

    def _close_library(self) -> None:
        if not self._opened:
            return
        self._opened = False
        self.express = None
        self.receiver.close()
        self.liveness.close()
        self.list.close()
        self.neighbourhood.close()
        station = self.station
        station.channels.shut()
        station.group.leave()
        station.services.close()
        station.peers.clear()
        station.heard.clear()

    # --- channels -------------------------------------------------------------------------------------------------

    def _channel_ready(self, peer: Peer, channel: Channel | None) -> None:
        """A channel can be used, or will not be."""
        policy = self.station.policy
        if channel is not None:
            policy.holders.add(peer)
            channel.used_ns = self.station.clock.now()
        else:
            policy.holders.discard(peer)
            if self.config.policy == "age":
                self.station.forget_address(peer)

    def _channel_failed(self, channel: Channel) -> None:
        self.station.channels.failed(channel)

    def _age(self) -> None:
        """Close the channels that nobody has used, and have their addresses resolved anew."""
        station = self.station
        self._ageing.set(max(1, self.config.channel_age_ns // 4))
        now = station.clock.now()
        for peer in list(station.policy.holders):
            if station.policy.is_old(peer, now) and peer.channel is not None:
                station.counters["channels.aged"] += 1
                station.channels.close(peer.channel)
                station.policy.holders.discard(peer)
                station.forget_address(peer)

    # --- the card's side ------------------------------------------------------------------------------------------

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Send a burst of frames; returns how many were taken."""
        return self.sender.send_frames(frames)

    def register(self) -> None:
        """Another subnet manager is the master: it has to be told of this node."""
        with self._engine:
            if self.up:
                self.directory.subnet.master_changed()
                self.directory.register()

    def announce(self) -> None:
        """Tell the peers what this node is now."""
        with self._engine:
            if self.up:
                self.station.peers.changed()
                self.neighbourhood.say_hello()

    def _may_still_speak(self) -> bool:
        """Is the port as it was when the driver was loaded?"""
        try:
            port = self._context.query_port(self.station.info.port_number)
        except ClosedError:
            return False  # the whole adapter is being closed
        return port.state == "ACTIVE" and port.lid == self.station.lid

    def unload(self) -> None:
        """The port has gone down, or has another LID; or the node leaves."""
        with self._engine:
            if not self.station.open:
                return
            if self._procedure is not None:
                self._procedure.cancel()
            if self.up and self._may_still_speak():
                self.neighbourhood.say_bye()
                self.directory.unregister()
            self.station.open = False
            self.up = False
            self._ageing.cancel()
            self._retry.cancel()
            self._repair.cancel()
            self._close_library()
            self.card.went_down()
