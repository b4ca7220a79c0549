"""The way in: messages become frames for the card (document 000:90).

What is taken: frames for all (all ones), for a group, and for this card's own address; a bridge takes those for others,
too.  Everything is checked here, once: whether a message's header agrees with the LIDs that its packets came from, and
whether a frame's source is an address of the node that sent it.  What fails is counted as ``drop.rx.<reason>``.
"""

from __future__ import annotations

from typing import Any

from verbena.lan.addresses import lid_of
from verbena.lan.config import LARGEST_SEGMENT
from verbena.lan.liveness import Liveness
from verbena.lan.message import HEADER, HEADER_SIZE, OFFLOAD_SIZE, VERSION, Flags, Kind, Role, parse_header
from verbena.lan.neighbourhood import Neighbourhood
from verbena.lan.peers import Peer, TokenBucket
from verbena.lan.port import OffloadFrame
from verbena.lan.reassembly import Reassembly
from verbena.lan.station import Alarm, Station
from verbena.lan.transport_services import Channel
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import GROUP_BIT, payload_offset
from verbena.wire.ethernet import HEADER_SIZE as ETHERNET_HEADER

FRAME = VERSION << 4 | int(Kind.FRAME)
OFFLOAD, BRIDGED = int(Flags.OFFLOAD), int(Flags.BRIDGED)  # plain numbers: these are asked for each frame


class Receiver:
    """Takes what the library of one card has received."""

    neighbourhood: Neighbourhood
    liveness: Liveness

    def __init__(self, station: Station) -> None:
        self._station = station
        self.inbox: list[bytes] = []
        self._buckets: dict[int, TokenBucket] = {}
        config = station.config
        self.reassembly = Reassembly(
            most_bytes=config.reassembly_bytes,
            per_sender=config.reassembly_per_sender,
            timeout_ns=config.reassembly_timeout_ns,
            largest=config.largest_message,
            counters=station.counters,
        )
        self._expiry = Alarm(station, self._expire)

    # --- messages -------------------------------------------------------------------------------------------------

    def datagram(self, slid: int, qpn: int, sl: int, view: Any) -> None:
        """A packet on the datagram queue pair, from its header on."""
        station = self._station
        if len(view) >= HEADER_SIZE and view[0] == FRAME:
            first, flags, lid, number, length, offset = HEADER.unpack_from(view)
            if offset + len(view) - HEADER_SIZE > length:
                station.counters["drop.rx.malformed.length"] += 1
                return
        else:
            try:
                first, flags, lid, number, length, offset = parse_header(view)
            except DecodeError as error:
                station.counters[f"drop.rx.malformed.{error.reason}"] += 1
                return
        if lid == station.lid and slid in station.lids:
            station.counters["rx.own_multicast"] += 1
            return
        peer = station.peers.at(slid)
        if lid != (
            slid & ~station.info.lid_mask if peer is None else peer.lid
        ):  # all ports have as many LIDs
            station.counters["drop.rx.claimed_lid"] += 1
            return
        if first != FRAME:
            self._control(Kind(first & 0x0F), lid, qpn, sl, bytes(view[HEADER_SIZE:]))
            return
        if not self._expected(peer, lid, qpn):
            return
        body = bytes(view[HEADER_SIZE:])
        if length != len(body):
            self._fragment(lid, number, length, offset, flags, body)
        else:
            self._frame(body, flags, lid, peer)

    def _expected(self, peer: Peer | None, lid: int, qpn: int) -> bool:
        """Is this the queue pair that the sender is known by?"""
        station = self._station
        if peer is None:
            if len(station.heard) < station.config.most_peers or lid in station.heard:
                station.heard[lid] = qpn
            return True
        if peer.qpn == qpn:
            return True
        if peer.qpn:
            station.counters["drop.rx.other_queue_pair"] += 1
            now = station.clock.now()
            if now >= peer.suspect_ns:  # perhaps another driver is loaded there now
                peer.suspect_ns = now + station.config.down_interval_ns
                self.neighbourhood.ask(peer)
            return False
        return True

    def _fragment(self, lid: int, number: int, length: int, offset: int, flags: int, body: bytes) -> None:
        station = self._station
        whole = self.reassembly.add(lid, number, length, offset, flags, body, station.clock.now())
        if whole is not None:
            self._frame(whole, flags, lid, station.peers.at(lid))
        elif len(self.reassembly) == 1:
            self._expiry.set(station.config.reassembly_timeout_ns)

    def _expire(self) -> None:
        now = self._station.clock.now()
        following = self.reassembly.expire(now)
        if following is not None:
            self._expiry.set(following - now)

    def _control(self, kind: Kind, lid: int, qpn: int, sl: int, body: bytes) -> None:
        if kind in (Kind.HELLO, Kind.BYE):
            self.neighbourhood.said(kind, lid, qpn, sl, body)
        elif kind is Kind.PROBE:
            self.liveness.probed(lid, qpn, body)
        else:
            self.liveness.answered(lid, qpn, body)

    def channel_frame(self, channel: Channel, view: Any) -> None:
        """A message on a channel."""
        station = self._station
        peer: Peer = channel.owner
        try:
            if len(view) < HEADER_SIZE or view[0] != FRAME:
                parse_header(view)  # tells what is wrong with it
            first, flags, lid, _, length, offset = HEADER.unpack_from(view)
        except DecodeError as error:
            station.counters[f"drop.rx.malformed.{error.reason}"] += 1
            return
        if first != FRAME or offset or length != len(view) - HEADER_SIZE:
            station.counters["drop.rx.malformed.channel"] += 1
            return
        if lid != peer.lid:
            station.counters["drop.rx.claimed_lid"] += 1
            return
        station.channels.used(channel)
        channel.used_ns = station.clock.now()
        if flags & OFFLOAD and length > OFFLOAD_SIZE:
            self._unfinished(view[HEADER_SIZE:], flags, lid, peer)
        else:
            self._frame(bytes(view[HEADER_SIZE:]), flags, lid, peer)

    # --- frames ---------------------------------------------------------------------------------------------------

    def _frame(self, body: bytes, flags: int, lid: int, peer: Peer | None) -> None:
        """A whole frame from the node with a LID."""
        header = b""
        if flags & OFFLOAD:
            header, body = body[:OFFLOAD_SIZE], body[OFFLOAD_SIZE:]
        self._take(OffloadFrame(body, header) if header else body, header, flags, lid, peer)

    def _unfinished(self, view: Any, flags: int, lid: int, peer: Peer) -> None:
        """A frame with a header, which may be large: copied once, from where it was received."""
        header = bytes(view[:OFFLOAD_SIZE])
        self._take(OffloadFrame(view[OFFLOAD_SIZE:], header), header, flags, lid, peer)

    def _take(self, body: bytes, header: bytes, flags: int, lid: int, peer: Peer | None) -> None:
        station = self._station
        fault = self._fault(body, header) or self._misdirected(body) or self._forged(body, flags, lid, peer)
        if not fault and body[0] & GROUP_BIT and not self._may_flood(lid):
            fault = "storm"
        if fault:
            station.counters["drop.rx." + fault] += 1
            return
        if flags & BRIDGED:
            station.foreign.learn(body[6:12], lid, station.clock.now())
        station.counters["rx.frames"] += 1
        station.counters["rx.bytes"] += len(body)
        self.inbox.append(body)

    def _fault(self, frame: bytes, header: bytes) -> str:
        size = len(frame)
        if size < ETHERNET_HEADER:
            return "runt"
        mtu = self._station.config.mtu
        if size - ETHERNET_HEADER > mtu:
            try:
                payload = size - payload_offset(frame)
            except DecodeError:
                return "runt"
            if payload > (max(mtu, LARGEST_SEGMENT) if header else mtu):
                return "too_long"
        if frame[6] & GROUP_BIT:
            return "group_source"
        return "offload" if header and not self._station.config.offload else ""

    def _misdirected(self, frame: bytes) -> str:
        """The filter: all ones, a group, or this card; all else only where a bridge stands for others."""
        if frame[0] & GROUP_BIT or frame[:6] == self._station.card.mac:
            return ""
        return "" if self._station.card.role & Role.BRIDGE else "not_mine"

    def _forged(self, frame: bytes, flags: int, lid: int, peer: Peer | None) -> str:
        """Is the source an address of whoever sent it?"""
        station = self._station
        source = lid_of(frame[6:12], station.prefix)
        if not flags & BRIDGED:
            return "" if source == (lid if peer is None else peer.card) else "forged_source"
        if source:
            return "forged_source"  # this LAN's own addresses are never behind a bridge
        if peer is not None and peer.has_role(Role.BRIDGE):
            return ""
        known = peer if peer is not None else self.neighbourhood.find(lid)
        if known is not None and known.info is None:
            self.neighbourhood.ask(known)
        return "no_bridge"

    def _may_flood(self, lid: int) -> bool:
        """Broadcasts and multicasts of one node within the limit?"""
        config = self._station.config
        if not config.storm_rate:
            return True
        bucket = self._buckets.get(lid)
        if bucket is None:
            if len(self._buckets) >= config.most_peers:
                self._buckets.clear()
            bucket = self._buckets[lid] = TokenBucket(config.storm_rate, config.storm_burst)
        return bucket.take(self._station.clock.now())

    # --- up -------------------------------------------------------------------------------------------------------

    def finished(self) -> None:
        """Everything that had come was looked at: hand the frames up, with no lock held."""
        if not self.inbox:
            return
        with self._station.engine:
            frames, self.inbox = self.inbox, []
        if frames and not self._station.card.deliver(frames):
            self._station.counters["drop.rx.nobody"] += len(frames)

    def close(self) -> None:
        self._expiry.cancel()
        self.reassembly.clear()
