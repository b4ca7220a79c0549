"""The list of nodes that subnet administration has, and what follows from it (document 000:104).

It is looked at when a card comes up, when an event tells of a port that comes, when a stranger asks for this node, and
every `query_interval_ns`.  An event of a port that goes needs no look.
"""

from __future__ import annotations

from itertools import islice

from verbena.errors import ManagementError
from verbena.lan.config import SECOND
from verbena.lan.discovery import Directory, Found
from verbena.lan.neighbourhood import Neighbourhood
from verbena.lan.station import Alarm, Station
from verbena.lan.steps import Procedure, Steps

KNOWN_PER_LOOK = 8
"""Platforms that are known, of which the ports are asked for again at each look, in turn."""
STRANGERS_NS = SECOND
"""Between looks because of nodes that ask: when many come up at the same time, one look finds many."""


class NodeList:
    """Keeps the neighbourhood of one card as the list says."""

    def __init__(self, station: Station, directory: Directory, neighbourhood: Neighbourhood) -> None:
        self._station = station
        self._directory = directory
        self._hood = neighbourhood
        self._turn = 0
        self._strangers_ns = 0
        self._looking: Procedure | None = None
        self._again = False
        self._refresh = Alarm(station, self._look_in_turn)
        self._soon = Alarm(station, self.look)

    def begin(self) -> None:
        """The card is up: watch for events, look again in case others came up at the same time."""
        config = self._station.config
        self._directory.watch(self._came, self._gone)
        if config.query_interval_ns:
            self._refresh.set(config.query_interval_ns)
        if config.discovery == "eager":
            self._soon.set(config.settle_ns)

    def _came(self, gid: bytes) -> None:
        """A port has come into service: its driver needs a while; who comes back may have another LID."""
        if self._station.config.discovery == "eager":
            self._soon.set(self._station.config.settle_ns)

    def _gone(self, gid: bytes) -> None:
        peer = self._hood.by_guid.get(int.from_bytes(gid[8:], "big"))
        if peer is not None and peer.gid == gid:
            self._station.counters["peers.gone"] += 1
            self._hood.drop(peer)

    def asked_by(self, lid: int) -> None:
        """Somebody wants this node's queue pair: who is not known has come up since the last look."""
        station = self._station
        if station.config.discovery != "eager" or station.peers.at(lid) is not None:
            return
        now = station.clock.now()
        wait = station.config.settle_ns if now >= self._strangers_ns else STRANGERS_NS
        self._strangers_ns = now + STRANGERS_NS
        self._soon.set(wait)

    def _look_in_turn(self) -> None:
        self._refresh.set(self._station.config.query_interval_ns)
        self._directory.register()
        Procedure(self._station.group.join(self._station.gid))
        if self._station.config.discovery == "eager":
            self.look()

    def look(self) -> None:
        """Ask for the list of nodes, and follow it; once more afterwards if asked meanwhile."""
        if self._looking is not None and not self._looking.done:
            self._again = True
            return
        self._again = False
        self._looking = Procedure(self._follow_list())

    def _follow_list(self) -> Steps:
        """Errors of subnet administration leave the list as it is: without it the LAN goes on (no single point)."""
        found: list[Found] = []
        try:
            yield from self._directory.look(self._station.lids, found, self._wanted)
        except ManagementError:
            self._station.counters["looks.failed"] += 1
            return
        self._station.counters["looks"] += 1
        self._drop_unlisted()
        for each in found:
            known = self._hood.by_guid.get(each.port_guid)
            if known is not None and (known.lid, known.lids) != (each.lid, each.lids):
                self._hood.drop(known)  # it has other LIDs now
                known = None
            if known is None or not known.ways:
                self._hood.meet(each)
        if self._again:
            self._soon.set(self._station.config.settle_ns)

    def _drop_unlisted(self) -> None:
        """Forget who is not listed for a whole interval: a new subnet manager has to be told of everybody first."""
        now, patience = self._station.clock.now(), self._station.config.query_interval_ns
        for peer in list(self._hood.by_guid.values()):
            if not peer.platform or peer.platform in self._directory.platforms:
                peer.unlisted_ns = 0
            elif not peer.unlisted_ns:
                peer.unlisted_ns = now
            elif now - peer.unlisted_ns >= patience:
                self._station.counters["peers.unlisted"] += 1
                self._hood.drop(peer)

    def _wanted(self, platforms: list[int]) -> list[int]:
        """The platforms to be asked for their ports: those that are new, and some of the others, in turn."""
        known = {peer.platform for peer in self._hood.by_guid.values()}
        old = [platform for platform in platforms if platform in known]
        start = self._turn % len(old) if old else 0
        self._turn = start + KNOWN_PER_LOOK
        again = set(islice(old[start:] + old[:start], KNOWN_PER_LOOK))
        return [platform for platform in platforms if platform not in known or platform in again]

    def close(self) -> None:
        """Look no more."""
        self._refresh.cancel()
        self._soon.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._directory.close()
