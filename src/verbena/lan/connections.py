"""The connection manager of the transport services library (document 000:102, figure 4, 52).

It finds a remote node's datagram queue pair by service id resolution (IBA vol. 1, 12.11), and makes and unmakes
channels with the connection manager's messages (chapter 12), both on queue pair 1 of the card's own port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from verbena.adapter.attributes import AddressVector
from verbena.clock import Clock, Timer
from verbena.errors import VerbError
from verbena.lan.config import SECOND, LanConfig
from verbena.lan.datagrams import QKEY
from verbena.lan.message import NodeInfo
from verbena.lan.peers import Peer
from verbena.lan.transport_services import Channel, TransportServices
from verbena.lan.ways import Way
from verbena.management.communication import Communication, Event
from verbena.management.connection_manager import ConnectionManager
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.negotiation import Agreement, Offer
from verbena.management.service_resolution import DatagramService, ServiceResolver
from verbena.memory.access import Access
from verbena.transport.kinds import QPState
from verbena.verbs.cm import connect_as_agreed
from verbena.wire import REQ, DecodeError, Mad, RejectReason, TransportService, cm_message

BACKLOG = 256
PATIENCE_NS = 2 * SECOND
"""How long a channel may take to be made."""
AGAIN_NS = SECOND
"""How long datagrams are used after an attempt that failed."""
MOST_ADDRESSES = 16_384
REMOTE_COMM_ID = slice(28, 32)
SERVICES = {"UC": TransportService.UC, "RC": TransportService.RC}


class ChannelManager:
    """Datagram queue pairs found, and channels made, for one card.

    describe: what this node says of itself.  asked_by: is told the LID of who asks for the datagram queue pair.
    peer_of: who has a LID, made known if need be; None refuses.  claims: is a GID not the one of who has this LID?
    admit: may there be one more channel, asked for by this peer?  ready: a channel can be used now, or (None) will not
    be made.
    """

    def __init__(
        self,
        services: TransportServices,
        port_number: int,
        gid: bytes,
        base_lid: int,
        config: LanConfig,
        clock: Clock,
        counters: Counter[str],
        *,
        describe: Callable[[], NodeInfo],
        asked_by: Callable[[int], None],
        peer_of: Callable[[int, bytes], Peer | None],
        claims: Callable[[int, bytes], bool],
        admit: Callable[[Peer], bool],
        ready: Callable[[Peer, Channel | None], None],
    ) -> None:
        adapter = services.context.adapter
        self.config = config
        self.counters = counters
        self._services = services
        self._port = port_number
        self._gid = gid
        self._lid = base_lid
        self._clock = clock
        self._describe = describe
        self._asked_by = asked_by
        self._peer_of = peer_of
        self._claims = claims
        self._admit = admit
        self._ready = ready
        self._adapter: Any = adapter
        self._gsi = services.context.general_services
        self._addresses: dict[bytes, MadAddress] = {}
        self._gids: dict[int, bytes] = {}
        self._comms: dict[Channel, Communication] = {}
        self._timers: dict[Channel, Timer] = {}
        self._service = SERVICES[config.service]
        self.resolver = ServiceResolver(
            self._gsi.send, clock, adapter.random, self._offer_datagrams, timeout_ns=config.sidr_timeout_ns
        )
        self.manager = ConnectionManager(
            gid,
            adapter.limits.node_guid,
            services.context.query_port(port_number).active_mtu,
            clock=clock,
            random=adapter.random,
            send=self._send,
            lock=adapter.engine,
            pkey=adapter.pkey_table(port_number)[0],
        )
        self._listening = self.manager.listen(config.service_id, BACKLOG, self._requested)
        self._gsi.claim(self._claim)

    # --- datagrams of the management ------------------------------------------------------------------------------

    def _send(self, gid: bytes, mad: bytes, transaction: int = 0) -> None:
        address = self._addresses.get(gid)
        if address is None:
            self.counters["drop.tx.cm_unknown"] += 1
            return
        self._gsi.send(address, mad)

    def _claim(self, source: MadAddress, mad: bytes) -> bool:
        """Messages of the connection manager that are this card's."""
        if source.port != self._port:
            return False
        with self._adapter.engine:
            if self.resolver.receive(source, mad):
                return True
            try:
                message = cm_message(Mad.unpack(mad))
            except DecodeError:
                return False
            if isinstance(message, REQ):
                if message.service_id != self.config.service_id:
                    return False
                if message.primary_local_lid != source.lid:  # it claims another's LID
                    self.counters["drop.rx.claimed_lid"] += 1
                    return True
                gid = message.primary_local_gid
                if self._claims(source.lid, gid):  # or another's port: its connections would be ended for it
                    self.counters["drop.rx.claimed_port"] += 1
                    return True
                self._note(gid, source)
            else:
                if not self.manager.knows(int.from_bytes(mad[REMOTE_COMM_ID], "big")):
                    return False
                gid = self._gids.get(source.lid, b"")
            self.manager.receive(gid, mad)
        return True

    def _note(self, gid: bytes, address: MadAddress) -> None:
        if len(self._addresses) >= MOST_ADDRESSES and gid not in self._addresses:
            self._addresses.clear()
            self._gids.clear()
        self._addresses[gid] = MadAddress(
            address.lid, sl=address.sl, path_bits=address.path_bits, port=self._port
        )
        self._gids[address.lid] = gid

    # --- datagram queue pairs -------------------------------------------------------------------------------------

    def find_datagrams(self, way: Way) -> Pending[DatagramService]:
        """The datagram queue pair at the end of a way; fails with `NotFound` where no driver of this LAN is."""
        return self.resolver.resolve(way.mad_address, self.config.service_id, self._describe().pack())

    def _offer_datagrams(self, service_id: int, source: MadAddress, private: bytes) -> DatagramService | None:
        if service_id != self.config.service_id or not self._services.open:
            return None
        self._asked_by(source.lid)
        return DatagramService(self._services.datagram_qp.qp_num, QKEY, self._describe().pack())

    # --- channels, active side ------------------------------------------------------------------------------------

    def connect(self, peer: Peer) -> None:
        """Begin to make a channel to a peer whose path and GID are known; `ready` tells what becomes of it."""
        way = peer.ways[peer.active]
        try:
            channel = self._services.make_channel(peer)
        except VerbError:
            self.counters["channels.no_resources"] += 1
            self._ready(peer, None)
            return
        peer.channel, peer.connecting = channel, True
        self._note(peer.gid, way.mad_address)
        offer = self._offer(channel, way.vector, way.mtu)
        self.counters["channels.asked"] += 1

        def told(comm: Communication, event: Event) -> None:
            if event is Event.REPLIED:
                self._replied(channel, comm, way)
            else:
                self._told(channel, comm, event)

        self._timers[channel] = self._clock.call_at(
            self._clock.now() + PATIENCE_NS, lambda: self._give_up(channel)
        )
        self._comms[channel] = self.manager.connect(peer.gid, self.config.service_id, offer, told, b"")

    def _offer(self, channel: Channel, vector: AddressVector, mtu: int) -> Offer:
        return Offer(
            qpn=channel.qp.qp_num,
            psn=channel.qp.endpoint_at(self._port).psn,
            service=self._service,
            mtu=min(mtu, self._adapter.mtu_of(self._port)),
            responder_resources=0,
            initiator_depth=0,
            srq=True,
            local_lid=self._lid + vector.src_path_bits,
            remote_lid=vector.dlid,
            sl=vector.sl,
            subnet_local=True,
        )

    def _replied(self, channel: Channel, comm: Communication, way: Way) -> None:
        with self._adapter.engine:
            if channel.closed:
                self.manager.reject(comm)
                return
            try:
                self._bring_up(channel, self.manager.agreement(comm), way.vector)
            except VerbError:
                self.manager.reject(comm)
                self._failed(channel)
                return
            if self.manager.ready(comm):
                self._established(channel)

    def _bring_up(self, channel: Channel, agreed: Agreement, vector: AddressVector) -> None:
        qp = channel.qp
        qp.modify(QPState.INIT, port_num=self._port, pkey_index=0, access_flags=Access.LOCAL_WRITE)
        connect_as_agreed(qp, replace(agreed, max_rd_atomic=0, max_dest_rd_atomic=0), vector)

    # --- channels, passive side -----------------------------------------------------------------------------------

    def _requested(self, comm: Communication) -> None:
        with self._adapter.engine:
            assert comm.req is not None
            peer = self._peer_of(comm.req.primary_local_lid, comm.remote)
            reason = self._refusal(peer, comm.req)
            if reason is not None or peer is None:
                self.counters["channels.refused"] += 1
                self.manager.reject(comm, reason or RejectReason.CONSUMER_REJECT)
                return
            try:
                channel = self._services.make_channel(peer)
            except VerbError:
                self.counters["channels.no_resources"] += 1
                self.manager.reject(comm, RejectReason.NO_RESOURCES)
                return
            self._accept(comm, peer, channel)

    def _refusal(self, peer: Peer | None, request: REQ) -> RejectReason | None:
        """Why a channel is not wanted; where both sides ask at once, the lower LID's request stands."""
        if peer is None:
            return RejectReason.CONSUMER_REJECT
        if request.transport_service != self._service:
            return RejectReason.INVALID_TRANSPORT_SERVICE_TYPE
        if peer.connecting and self._lid < peer.lid:
            return RejectReason.CONSUMER_REJECT
        if peer.channel is None and not self._admit(peer):
            return RejectReason.NO_RESOURCES
        if peer.channel is not None:
            self.close(peer.channel)
        return None

    def _accept(self, comm: Communication, peer: Peer, channel: Channel) -> None:
        request = comm.req
        assert request is not None
        vector = AddressVector(
            dlid=request.primary_local_lid,
            sl=request.primary_sl,
            src_path_bits=max(0, request.primary_remote_lid - self._lid),
            port_num=self._port,
        )
        offer = self._offer(channel, vector, self._adapter.mtu_of(self._port))
        peer.channel, peer.connecting = channel, True
        self._comms[channel] = comm
        try:
            self._bring_up(channel, self.manager.agreement(comm, offer), vector)
        except VerbError:
            self.manager.reject(comm)
            self._failed(channel)
            return
        self.counters["channels.accepted"] += 1
        self.manager.accept(comm, offer, lambda c, event: self._told(channel, c, event), b"")

    # --- both -----------------------------------------------------------------------------------------------------

    def _told(self, channel: Channel, comm: Communication, event: Event) -> None:
        with self._adapter.engine:
            if event is Event.ESTABLISHED:
                self._established(channel)
            elif event in (Event.REFUSED, Event.TIMED_OUT):
                self._failed(channel)
            elif event is Event.DISCONNECTED:
                self._failed(channel, asked=True)
                self.manager.release(comm)
            elif event is Event.ENDED:
                self._comms.pop(channel, None)

    def _established(self, channel: Channel) -> None:
        self._stop_timer(channel)
        if channel.closed or channel.ready:
            return
        channel.ready = True
        peer: Peer = channel.owner
        peer.connecting = False
        self.counters["channels.made"] += 1
        self._ready(peer, channel)

    def used(self, channel: Channel) -> None:
        """A frame has come by a channel: the peer's end is up, whatever became of its last message."""
        if not channel.ready:
            self._established(channel)

    def _give_up(self, channel: Channel) -> None:
        self._timers.pop(channel, None)
        if not channel.ready:
            self._failed(channel)

    def failed(self, channel: Channel) -> None:
        """The queue pair of a channel has failed."""
        self._failed(channel)

    def _failed(self, channel: Channel, asked: bool = False) -> None:
        """A channel was not made, or has ended."""
        peer: Peer = channel.owner
        current = peer.channel is channel
        self.close(channel)
        if current:
            if not asked:
                self.counters["channels.failed"] += 1
                peer.refused_ns = self._clock.now() + AGAIN_NS
            self._ready(peer, None)

    def _stop_timer(self, channel: Channel) -> None:
        timer = self._timers.pop(channel, None)
        if timer is not None:
            timer.cancel()

    def close(self, channel: Channel) -> None:
        """End a channel, and tell the peer."""
        self._stop_timer(channel)
        peer: Peer = channel.owner
        if peer.channel is channel:
            peer.channel, peer.connecting = None, False
        if not channel.closed:
            self.counters["channels.closed"] += 1
            self._services.close_channel(channel)
        comm = self._comms.pop(channel, None)
        if comm is not None:
            self.manager.abort(comm)

    def shut(self) -> None:
        """The driver is unloaded: end all channels and questions."""
        for channel in list(self._comms):
            self.close(channel)
        self.resolver.close()
        self.manager.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._gsi.disclaim(self._claim)
