"""Stations behind a team: virtual machines at a switch above it, each with an address of its own (document 002:92).

Where the network knows nothing of the team, an address may be seen at one place only: so each station has its *home*
on one member, sends and receives there, and its frames keep their source.  The load is spread by stations; those of a
member that fails are spread over the others, and go back to it when it returns.  Whoever moves is announced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from verbena.team.member import Member

MOST = 4_096
REFLECTION_NS = 100_000_000
"""So long after a station has sent, a frame from its address on a member is its own one, come back by the network;
later it is the station itself, which has moved to another host."""

Key = tuple[int, bytes]
"""VLAN (0: untagged) and Ethernet address."""


class Station:
    """home: the member that it sends and receives by; before: the last one, until `moved_ns`."""

    __slots__ = ("before", "home", "moved_ns", "sent_ns")

    def __init__(self, home: Member, now: int) -> None:
        self.home = home
        self.before: Member | None = None
        self.moved_ns = 0
        self.sent_ns = now


class Stations:
    """The stations of a team.

    table: by VLAN and address, the one that was learned first comes first.  moved: those that have another home and
    are to be announced there.  counters: ``stations.evicted``, ``stations.moved``, ``stations.left``.
    """

    def __init__(self, counters: Counter[str], most: int = MOST) -> None:
        self.table: dict[Key, Station] = {}
        self.moved: dict[Key, Station] = {}
        self._counters = counters
        self._most = most
        self._counts: Counter[Member] = Counter()

    def sends(self, key: Key, members: Sequence[Member], now: int) -> Member:
        """A station sends: by which member?  members: those that carry frames, at least one."""
        found = self.table.get(key)
        if found is None:
            if len(self.table) >= self._most:
                self._forget(next(iter(self.table)))
                self._counters["stations.evicted"] += 1
            found = self.table[key] = Station(self._idlest(members), now)
            self._counts[found.home] += 1
        found.sent_ns = now
        return found.home

    def came_back(self, key: Key, now: int) -> bool:
        """A frame comes from the network with this source: has one of these stations sent it just now?

        If it is one that was silent, then it is elsewhere now, and no longer a station of this team.
        """
        found = self.table.get(key)
        if found is None:
            return False
        if now - found.sent_ns <= REFLECTION_NS:
            return True
        self._forget(key)
        self._counters["stations.left"] += 1
        return False

    def arrange(self, members: Sequence[Member], now: int) -> None:
        """Other members carry frames now: give a home to whoever has none, and even the numbers out."""
        if not members:
            return
        by_home: dict[Member, list[Key]] = {member: [] for member in members}
        homeless: list[Key] = []
        for key, station in self.table.items():
            by_home.get(station.home, homeless).append(key)
        for key in homeless:
            home = min(members, key=lambda member: len(by_home[member]))
            by_home[home].append(key)
        for _ in range(len(self.table)):
            most, least = (f(members, key=lambda member: len(by_home[member])) for f in (max, min))
            if len(by_home[most]) - len(by_home[least]) <= 1:
                break
            by_home[least].append(by_home[most].pop())
        self._counts = Counter({member: len(keys) for member, keys in by_home.items()})
        for member, keys in by_home.items():
            for key in keys:
                self._move(key, member, now)

    def _move(self, key: Key, member: Member, now: int) -> None:
        station = self.table[key]
        if station.home is not member:
            station.before, station.moved_ns, station.home = station.home, now, member
            self.moved[key] = station
            self._counters["stations.moved"] += 1

    def _idlest(self, members: Sequence[Member]) -> Member:
        return min(members, key=lambda member: self._counts[member])

    def _forget(self, key: Key) -> None:
        self._counts[self.table.pop(key).home] -= 1
        self.moved.pop(key, None)
