"""The way out: frames of the card become messages (document 000:90, 100).

Unicast goes to the node whose LID stands in the destination, on its channel or by datagrams; where a destination holds
no LID of this LAN, to the bridge that it was last heard from, or to all bridges.  Broadcast and multicast go to every
node: as one datagram to the LAN's group on the fabric where there is one, else from one buffer to each node in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from verbena.lan.addresses import classify, lid_of
from verbena.lan.liveness import Liveness
from verbena.lan.message import Flags, Role
from verbena.lan.neighbourhood import Neighbourhood
from verbena.lan.peers import Peer
from verbena.lan.policy import resolves
from verbena.lan.port import OffloadFrame
from verbena.lan.station import Station
from verbena.lan.ways import Way
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import GROUP_BIT, HEADER_SIZE, payload_offset
from verbena.wire.offload import finish

OFFLOAD = int(Role.OFFLOAD)  # a plain number: this is asked for each frame


class Sender:
    """Sends the frames of one card; every frame that is not sent is counted as ``drop.tx.<reason>``."""

    neighbourhood: Neighbourhood
    liveness: Liveness

    def __init__(self, station: Station) -> None:
        self._station = station

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Send a burst; returns how many were taken, fewer when the message pool is empty."""
        station = self._station
        with station.engine:
            if not station.open:
                station.counters["drop.tx.link_down"] += len(frames)
                return len(frames)
            for place, frame in enumerate(frames):
                if not self._send(frame):
                    station.counters["tx.stopped"] += 1
                    return place
        return len(frames)

    def _send(self, frame: bytes) -> bool:
        station = self._station
        fault = self._fault(frame)
        if fault:
            station.counters["drop.tx." + fault] += 1
            return True
        flags = 0
        if frame[6:12] != station.card.mac:
            if not station.card.role & Role.BRIDGE:
                station.counters["drop.tx.forged_source"] += 1
                return True
            flags = Flags.BRIDGED
            if lid_of(
                frame[6:12], station.prefix
            ):  # a card of this LAN, heard on the other side of the bridge
                station.counters["drop.tx.loop"] += 1
                return True
        if frame[0] & GROUP_BIT:
            return self._flood(frame, flags)
        lid = lid_of(frame[:6], station.prefix)
        if not lid:
            return self._send_behind(frame, flags)
        peer = station.peers.reach(lid, station.lid)
        if peer is None:
            peer = self.neighbourhood.find(lid)
            if peer is None:
                station.counters["drop.tx.no_such_lid"] += 1
                return True
        return self.send_to(peer, frame, flags)

    def _fault(self, frame: bytes) -> str:
        """Why a frame cannot be sent; nothing if it can."""
        size = len(frame)
        if size < HEADER_SIZE:
            return "runt"
        if frame[6] & GROUP_BIT:
            return "group_source"
        config = self._station.config
        if size - HEADER_SIZE > config.mtu or isinstance(frame, OffloadFrame):
            try:
                payload = size - payload_offset(frame)
            except DecodeError:
                return "runt"
            if isinstance(frame, OffloadFrame):
                if not config.offload:
                    return "offload"
                return "too_long" if size > config.largest_frame else ""
            if payload > config.mtu:
                return "too_long"
        return ""

    # --- one card -------------------------------------------------------------------------------------------------

    def send_to(self, peer: Peer, frame: bytes, flags: int) -> bool:
        """Send a frame to one peer; False when there is no message for it."""
        station = self._station
        if peer.down:
            station.counters["drop.tx.peer_down"] += 1
            return True
        header = b""
        if isinstance(frame, OffloadFrame):
            if peer.info is None or not peer.info.role & OFFLOAD:
                return self._finished(frame, lambda piece: self.send_to(peer, piece, flags))
            header = frame.header
        channel, way = peer.channel, peer.way
        ready = channel is not None and channel.ready
        if way is None and not ready:
            return self._wait(peer, frame, flags)
        message = station.services.make(station.lid, frame, flags, header)
        if message is None:
            return False
        now = station.clock.now()
        counters = station.counters
        counters["tx.frames"] += 1
        counters["tx.bytes"] += len(frame)
        station.policy.sent(peer)
        peer.sent_ns = now
        if resolves(frame):
            peer.resolved_ns = now
        if ready:
            assert channel is not None
            channel.used_ns = now
            station.services.send_frame(channel, message)
        else:
            assert way is not None
            counters["tx.unicast_datagrams"] += 1
            station.services.send_datagrams(message, (way,))
            if channel is None:
                self._want_channel(peer, frame, now)
        self.liveness.used(peer)
        return True

    def _finished(self, frame: OffloadFrame, send: Callable[[bytes], bool]) -> bool:
        """Somebody takes no unfinished frames: do here what a network card would have done.

        False when not a piece of it has gone; what finds no message after the first piece is dropped and counted, as a
        frame cannot be taken in part.
        """
        counters = self._station.counters
        try:
            pieces = finish(frame, frame.header)
        except DecodeError:
            counters["drop.tx.offload"] += 1
            return True
        counters["tx.finished"] += 1
        for place, piece in enumerate(pieces):
            if not send(piece):
                if not place:
                    return False
                counters["drop.tx.no_message"] += 1
        return True

    def _wait(self, peer: Peer, frame: bytes, flags: int) -> bool:
        """Nobody knows yet how to reach a peer."""
        station = self._station
        if len(peer.waiting) >= station.config.most_waiting:
            station.counters["drop.tx.unresolved"] += 1
        else:
            peer.waiting.append((frame, flags))
            self.neighbourhood.ask(peer)
        return True

    def _want_channel(self, peer: Peer, frame: bytes, now: int) -> None:
        """Make a channel for what comes after this frame, if the policy says so."""
        station = self._station
        policy = station.policy
        if now < peer.refused_ns or not policy.wants(peer, frame):
            return
        if not peer.from_list:
            self.neighbourhood.ask(peer)  # a channel needs a path; datagrams go back the way that others came
            return
        victim = policy.victim(peer) if len(policy.holders) >= station.config.max_channels else None
        if victim is not None and victim.channel is not None:
            station.counters["channels.recycled"] += 1
            station.channels.close(victim.channel)
            policy.holders.discard(victim)
        policy.holders.add(peer)
        station.channels.connect(peer)

    # --- several --------------------------------------------------------------------------------------------------

    def _flood(self, frame: bytes, flags: int) -> bool:
        """Broadcast or multicast: once for each card, from one buffer."""
        station = self._station
        everybody = station.peers.flood(station.card_lid)
        group = station.group.way
        ways: list[Way] = [] if group is None else [group]
        for peer in everybody:
            if group is not None and (peer.info is None or peer.has_role(Role.GROUP)):
                continue
            if (way := peer.way) is not None:
                ways.append(way)
        name = "tx." + classify(frame[:6]).value
        return self._post_to_all(frame, flags, ways, name, everybody)

    def _send_behind(self, frame: bytes, flags: int) -> bool:
        """To an address without a LID: to the bridge that it stands behind, or, as Ethernet does, to all bridges."""
        station = self._station
        lid = station.foreign.find(frame[:6], station.clock.now())
        peer = station.peers.reach(lid) if lid else None
        if peer is not None and not peer.down:
            return self.send_to(peer, frame, flags)
        everybody = station.peers.flood(station.card_lid)
        bridges = [peer for peer in everybody if peer.has_role(Role.BRIDGE) and peer.way is not None]
        ways = [way for peer in bridges if (way := peer.way) is not None]
        if not ways:
            station.counters["drop.tx.no_destination"] += 1
            return True
        return self._post_to_all(frame, flags, ways, "tx.unknown_unicast", bridges)

    def _post_to_all(
        self, frame: bytes, flags: int, ways: list[Way], name: str, peers: Iterable[Peer]
    ) -> bool:
        """Post a frame to several, unfinished only if all of them take that."""
        if isinstance(frame, OffloadFrame) and not all(peer.has_role(Role.OFFLOAD) for peer in peers):
            return self._finished(frame, lambda piece: self._post(piece, flags, ways, name))
        return self._post(frame, flags, ways, name)

    def _post(self, frame: bytes, flags: int, ways: list[Way], name: str) -> bool:
        station = self._station
        counters = station.counters
        if not ways:
            counters["drop.tx.alone"] += 1
            return True
        message = station.services.make(station.lid, frame, flags, getattr(frame, "header", b""))
        if message is None:
            return False
        counters[name] += 1
        counters["tx.frames"] += 1
        counters["tx.bytes"] += len(frame)
        counters["tx.copies_posted"] += len(ways)
        station.services.send_datagrams(message, ways)
        return True
