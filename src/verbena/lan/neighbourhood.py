"""Who else is in the LAN: peers that are met, asked for their queue pairs, believed or not, and forgotten.

A peer becomes known in one of four ways (document 000:76, 102-104): a look finds its port under the LAN's name; it asks
for this node's queue pair, or for a channel; it says HELLO; or, where nodes are found lazily, a frame comes from it or
goes to it.  Its paths come from the subnet driver, its datagram queue pair from the connection manager.  It is
forgotten when subnet administration says that its port has gone, when it is no longer listed, or when it says BYE.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from verbena.errors import ManagementError, ManagementTimeout, NotFound
from verbena.lan.discovery import Directory, Found, Paths
from verbena.lan.message import Kind, NodeInfo
from verbena.lan.peers import Peer
from verbena.lan.station import Alarm, Station
from verbena.lan.steps import Procedure, Steps
from verbena.lan.ways import Way
from verbena.management.datagrams import Pending
from verbena.management.service_resolution import DatagramService
from verbena.wire.errors import DecodeError

MOST_PROCEDURES = 1024


class Neighbourhood:
    """The peers of one card.  send_to: sends a frame (peer, frame, flags); False where there is no message for it."""

    def __init__(
        self, station: Station, directory: Directory, send_to: Callable[[Peer, bytes, int], bool]
    ) -> None:
        self._station = station
        self._send_to = send_to
        self._directory = directory
        self.by_guid: dict[int, Peer] = {}
        self._asking: set[Procedure] = set()
        self._retry = Alarm(station, self._retry_down)
        self._hello = Alarm(station, self._say_hello_in_turn)

    def begin(self) -> None:
        """The card is up: say so again from time to time, if that was chosen."""
        if self._station.config.hello_interval_ns:
            self._hello.set(self._station.config.hello_interval_ns)

    # --- peers ----------------------------------------------------------------------------------------------------

    def meet(self, found: Found) -> None:
        """A port of the list: ask for the paths to it, then for its queue pair."""
        gid = self._station.gid[:8] + found.port_guid.to_bytes(8, "big")
        peer = self.add(Peer(found.lid, found.lids, gid, found.platform))
        if peer is not None:
            self._run(self._resolve(peer))

    def add(self, peer: Peer) -> Peer | None:
        """Note a peer, instead of whoever had its LID; None when there are too many."""
        station = self._station
        known = station.peers.at(peer.lid)
        if known is not None:
            self.drop(known)
        if peer.lid in station.lids or not station.peers.add(peer):
            station.counters["peers.refused"] += 1
            return None
        station.heard.pop(peer.lid, None)
        if peer.gid:
            self.by_guid[int.from_bytes(peer.gid[8:], "big")] = peer
        station.counters["peers.met"] += 1
        return peer

    def drop(self, peer: Peer) -> None:
        """Forget a peer: nothing goes there any more."""
        station = self._station
        if peer.channel is not None:
            station.channels.close(peer.channel)
        guid = int.from_bytes(peer.gid[8:], "big") if peer.gid else 0
        if self.by_guid.get(guid) is peer:
            del self.by_guid[guid]
        self._drop_waiting(peer, "peer_gone")
        peer.down = peer.gone = True
        station.peers.remove(peer)
        station.policy.holders.discard(peer)
        station.foreign.forget_bridge(peer.lid)
        station.forget_address(peer)
        peer.close()

    def _run(self, steps: Steps) -> None:
        self._asking = {each for each in self._asking if not each.done}
        if len(self._asking) < MOST_PROCEDURES:
            self._asking.add(Procedure(steps))
        else:
            self._station.counters["peers.too_many_questions"] += 1

    def _resolve(self, peer: Peer, paths: bool = True) -> Steps:
        """Paths, then the queue pair, of a peer."""
        if peer.asking:
            return
        peer.asking = True
        try:
            if paths and peer.from_list and (yield from self._is_back(peer)):
                return
            if not peer.platform:
                peer.platform = yield from self._directory.platform_of(peer.lid)
            if paths:
                yield from self.find_paths(peer)
            if not peer.gone and peer.ways:
                yield from self._find_queue_pair(peer)
        except NotFound:
            self._station.counters["peers.without_lan"] += 1
            if not peer.gone:
                self.drop(peer)
        except ManagementError:
            self._station.counters["peers.silent"] += 1
            peer.refused_ns = self._station.clock.now() + self._station.config.down_interval_ns
            if not peer.qpn or peer.down:
                self.is_down(peer)
        finally:
            peer.asking = False

    def _is_back(self, peer: Peer) -> Generator[Pending[Any], Any, bool]:
        """Does a peer answer by the paths that are known?  Then nobody else need be asked, be there anybody or not."""
        try:
            yield from self._find_queue_pair(peer)
        except ManagementTimeout:
            return False
        return True

    def ask_queue_pair(self, peer: Peer) -> None:
        """Ask for the queue pair of a peer whose paths are known."""
        self._run(self._resolve(peer, paths=not peer.ways))

    def find_paths(self, peer: Peer) -> Steps:
        """Ask the subnet driver for the primary and the secondary path; raises `ManagementError`."""
        answers: list[Paths] = []
        yield from self._directory.paths(self._station.lid, peer.lid, answers.append)
        if not peer.gone and self._station.open:
            self.take_paths(peer, answers[0])

    def take_paths(self, peer: Peer, paths: Paths) -> None:
        station = self._station
        records = [path for path in paths if path is not None]
        if records and not peer.gid:
            peer.gid = records[0].dgid
            self.by_guid[int.from_bytes(peer.gid[8:], "big")] = peer
        domain, port = station.services.pd, station.info.port_number
        ways = [Way.along(domain, path, station.lid, port, peer.qpn) for path in records]
        if ways:
            peer.set_ways(ways)
            peer.from_list = True

    def _find_queue_pair(self, peer: Peer) -> Steps:
        answer: DatagramService | None = None
        for place, way in enumerate(list(peer.ways)):
            try:
                answer = yield self._station.channels.find_datagrams(way)
            except ManagementTimeout:
                continue
            peer.active = place if way in peer.ways else 0
            break
        if answer is None:
            raise ManagementTimeout(f"LID {peer.lid} answers on none of its paths")
        if not peer.gone:
            info = _info(answer.private_data)
            if info is None:
                raise NotFound(f"what LID {peer.lid} says of itself is no description of a node")
            self.learn(peer, answer.qpn, info)
            if (known := peer.way) is not None:
                self._say(Kind.HELLO, [known])  # it may not have been there, or not known us, at its own look

    def learn(self, peer: Peer, qpn: int, info: NodeInfo) -> None:
        """A peer has said what it is, and which queue pair it has."""
        station = self._station
        if info.mtu != station.config.mtu:
            station.counters["peers.other_mtu"] += 1
        if not station.peers.may_be(peer, info.card):
            if peer.platform:
                station.counters["drop.rx.claimed_lid"] += 1
                return
            info = replace(info, card=peer.lid)  # perhaps: its platform is not known yet
        if peer.info is not None and peer.info.instance != info.instance and peer.channel is not None:
            station.channels.close(peer.channel)  # another driver is loaded there now
        peer.info = info
        peer.learn_qpn(qpn)
        self.is_up(peer)
        station.peers.changed()
        self.flush(peer)

    def find(self, lid: int) -> Peer | None:
        """Who has a LID, made known if need be (found lazily only)."""
        station = self._station
        peer = station.peers.at(lid)
        if peer is not None or station.config.discovery == "eager" or lid in station.lids:
            return peer
        qpn = station.heard.get(lid)
        made = self.add(Peer(lid))
        if made is None:
            return None
        if qpn is not None:
            self._answer_way(made, qpn, 0)
        else:
            self.ask(made)
        return made

    def _answer_way(self, peer: Peer, qpn: int, sl: int) -> None:
        """Reach a peer by the reverse of the way that something came from it."""
        station = self._station
        way = Way.back(station.services.pd, peer.lid, sl, station.info.port_number, station.packet, qpn)
        peer.set_ways([way])
        peer.learn_qpn(qpn)

    def ask(self, peer: Peer) -> None:
        """Ask for the paths to a peer, and for its queue pair."""
        if not peer.asking:
            self._run(self._resolve(peer))

    def peer_of(self, lid: int, gid: bytes) -> Peer | None:
        """Who asks for a channel."""
        peer = self._station.peers.at(lid)
        if peer is None and lid not in self._station.lids:
            peer = self.add(Peer(lid, gid=gid))
            if peer is not None:
                self.ask(peer)
        elif peer is not None and not peer.gid:
            peer.gid = gid
            self.by_guid[int.from_bytes(gid[8:], "big")] = peer
        return peer

    def claims(self, lid: int, gid: bytes) -> bool:
        """Is a GID not that of the port with this LID, as far as one knows?

        A port that has moved says HELLO before it asks for channels, and subnet administration is asked then.
        """
        peer = self._station.peers.at(lid)
        if peer is not None and peer.gid:
            return peer.gid != gid
        return gid[:8] != self._station.gid[:8] or int.from_bytes(gid[8:], "big") in self.by_guid

    # --- what nodes say -------------------------------------------------------------------------------------------

    def say_hello(self) -> None:
        """Tell all peers what this node is."""
        self._to_all(Kind.HELLO)

    def _say_hello_in_turn(self) -> None:
        self._hello.set(self._station.config.hello_interval_ns)
        self.say_hello()

    def say_bye(self) -> None:
        self._to_all(Kind.BYE)

    def _to_all(self, kind: Kind) -> None:
        ways = [way for peer in self._station.peers if (way := peer.way) is not None]
        if ways:
            self._say(kind, ways)

    def _say(self, kind: Kind, ways: list[Way]) -> None:
        station = self._station
        station.services.send_control(station.lid, kind, station.describe().pack(), ways)

    def said(self, kind: Kind, lid: int, qpn: int, sl: int, body: bytes) -> None:
        """A HELLO or a BYE."""
        station = self._station
        info = _info(body)
        if info is None:
            station.counters["drop.rx.malformed.hello"] += 1
            return
        peer = station.peers.at(lid)
        if kind is Kind.BYE:
            if peer is not None and peer.info is not None and peer.info.instance == info.instance:
                station.counters["peers.left"] += 1
                self.drop(peer)
            return
        guid = int.from_bytes(info.port_guid, "big")
        known = self.by_guid.get(guid)
        if known is not None and known.lid != lid:
            self._run(self._check_move(known, lid, qpn, sl, body))
            return
        if peer is None or (peer.gid and peer.gid[8:] != info.port_guid):
            peer = self.add(Peer(lid, gid=station.gid[:8] + info.port_guid))
            if peer is None:
                return
            self._answer_way(peer, qpn, sl)
            if station.config.discovery == "eager":
                self.ask(peer)
        self.learn(peer, qpn, info)

    def _check_move(self, known: Peer, lid: int, qpn: int, sl: int, body: bytes) -> Steps:
        """Somebody says that a port which is known elsewhere has its LID: only subnet administration is believed."""
        guid = int.from_bytes(known.gid[8:], "big")
        try:
            lids = yield self._directory.call("IbaNsGetLidListByPortGuid", guid)
        except ManagementError:
            lids = []
        if not lids or lids[0] != lid:
            self._station.counters["drop.rx.claimed_port"] += 1
        elif self.by_guid.get(guid) is known:
            self.drop(known)
            self.said(Kind.HELLO, lid, qpn, sl, body)

    # --- up and down ----------------------------------------------------------------------------------------------

    def is_down(self, peer: Peer) -> None:
        """A peer is not reached by any of its paths; it is tried again from time to time."""
        station = self._station
        if peer.gone or not station.open:
            return
        if not peer.down:
            peer.down = True
            station.counters["peers.down"] += 1
            station.peers.changed()
            station.forget_address(peer)
        if peer.channel is not None:
            station.channels.close(peer.channel)
        self._drop_waiting(peer, "peer_down")
        self._retry.set(station.config.down_interval_ns)

    def _drop_waiting(self, peer: Peer, reason: str) -> None:
        if peer.waiting:
            self._station.counters["drop.tx." + reason] += len(peer.waiting)
            peer.waiting.clear()

    def is_up(self, peer: Peer) -> None:
        peer.misses = 0
        peer.heard_ns = self._station.clock.now()
        if peer.down:
            peer.down = False
            self._station.counters["peers.up_again"] += 1
            self._station.peers.changed()

    def _retry_down(self) -> None:
        down = [peer for peer in self._station.peers if peer.down]
        for peer in down:
            self.ask(peer)
        if down:
            self._retry.set(self._station.config.down_interval_ns)

    def flush(self, peer: Peer) -> None:
        """Send what has waited for a peer's queue pair."""
        waiting = list(peer.waiting)
        peer.waiting.clear()
        for frame, flags in waiting:
            if not self._send_to(peer, frame, flags):
                self._station.counters["drop.tx.no_message"] += 1

    def close(self) -> None:
        for alarm in (self._retry, self._hello):
            alarm.cancel()
        for procedure in self._asking:
            procedure.cancel()
        for peer in self._station.peers:
            peer.gone = True
            peer.close()


def _info(body: bytes) -> NodeInfo | None:
    try:
        return NodeInfo.unpack(body)
    except DecodeError:
        return None
