"""Whether peers are reached: paths are probed while they are used, and exchanged when they fail (000:104, 128).

Unreliable services tell nobody that nothing arrives.  So, as long as frames go to a peer, it is asked once in an
interval to answer along the same path; a path that was silent for `probe_tries` intervals is left for the other one,
through the same port and under the same addresses.  When all paths of a peer are silent, it is down, and tried again
from time to time.  A peer that nothing is sent to costs nothing.
"""

from __future__ import annotations

import struct

from verbena.lan.message import Kind
from verbena.lan.neighbourhood import Neighbourhood
from verbena.lan.peers import Peer
from verbena.lan.station import Alarm, Station
from verbena.lan.ways import Way

PROBE = struct.Struct(">QHHB")
"""When it was sent, the LIDs that it goes from and to, and which of the sender's ways that is."""


class Liveness:
    """Probes the peers of one card that are sent to."""

    def __init__(self, station: Station, neighbourhood: Neighbourhood) -> None:
        self._station = station
        self._neighbourhood = neighbourhood
        self._active: dict[int, Peer] = {}
        self._alarm = Alarm(station, self._look)

    def used(self, peer: Peer) -> None:
        """A frame was sent to a peer."""
        interval = self._station.config.probe_interval_ns
        if interval and peer.lid not in self._active:
            self._active[peer.lid] = peer
            peer.misses = peer.tried = 0
            self._alarm.set(interval)

    def _look(self) -> None:
        station = self._station
        for lid, peer in list(self._active.items()):
            if peer.gone or peer.down or peer.way is None or peer.proven_ns >= peer.sent_ns:
                del self._active[lid]
            elif peer.misses < station.config.probe_tries:
                peer.misses += 1
                self._probe(peer)
            else:
                self._fail_over(peer)
        if self._active:
            self._alarm.set(station.config.probe_interval_ns)

    def _probe(self, peer: Peer) -> None:
        way = peer.way
        if way is None:
            return
        station = self._station
        station.counters["probes"] += 1
        source = station.lid + way.vector.src_path_bits
        body = PROBE.pack(station.clock.now(), source, way.vector.dlid, peer.active)
        station.services.send_control(station.lid, Kind.PROBE, body, [way])

    def _fail_over(self, peer: Peer) -> None:
        """The path in use is silent: take the other one, or none is left."""
        station = self._station
        peer.tried += 1
        peer.misses = 0
        if peer.tried >= len(peer.ways):
            del self._active[peer.lid]
            self._neighbourhood.is_down(peer)
            return
        peer.active = (peer.active + 1) % len(peer.ways)
        station.counters["failovers"] += 1
        if peer.channel is not None:
            station.channels.close(peer.channel)
        self._probe(peer)

    def probed(self, lid: int, qpn: int, body: bytes) -> None:
        """A peer asks: answer by the same path, back."""
        station = self._station
        if len(body) != PROBE.size:
            station.counters["drop.rx.malformed.probe"] += 1
            return
        peer = self._neighbourhood.find(lid)
        if peer is None or (peer.qpn and peer.qpn != qpn):
            station.counters["drop.rx.unknown_prober"] += 1
            return
        _, source, destination, _ = PROBE.unpack(body)
        back = next((w for w in peer.ways if self._ends(w) == (destination, source)), peer.way)
        if back is not None and back.qpn:
            station.services.send_control(station.lid, Kind.PROBE_REPLY, body, [back])

    def _ends(self, way: Way) -> tuple[int, int]:
        return self._station.lid + way.vector.src_path_bits, way.vector.dlid

    def answered(self, lid: int, qpn: int, body: bytes) -> None:
        """A peer has answered."""
        station = self._station
        peer = station.peers.at(lid)
        if len(body) != PROBE.size or peer is None or peer.qpn != qpn:
            station.counters["drop.rx.malformed.probe"] += 1
            return
        sent, _, _, way = PROBE.unpack(body)
        if sent > station.clock.now() or way != peer.active:
            return  # of a path that is used no more
        peer.proven_ns = max(peer.proven_ns, sent)
        peer.misses = peer.tried = 0

    def close(self) -> None:
        self._alarm.cancel()
        self._active.clear()
