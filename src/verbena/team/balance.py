"""How a team chooses the member that a frame leaves by (document 004, paragraphs 18, 24, 26; IEEE 802.1AX, 6.7).

A balancer is asked once for each frame.  The hashes and `ACTIVE_BACKUP` keep a flow on one member as long as the set of
usable members stays; `LEAST_LOAD` and `MONITORED_FLOW` remember where a flow is, and move it only after it has paused,
so that no frame overtakes an earlier one of its flow.  `ROUND_ROBIN` gives up order for an even spread.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from verbena.team.frames import Flow
from verbena.team.member import Member

FLOWS = 65_536
"""Flows that are remembered; the ones that were silent longest are forgotten first."""


class Mode(Enum):
    """How the load is spread."""

    LAYER2 = "layer2"
    LAYER34 = "layer3+4"
    ROUND_ROBIN = "round-robin"
    LEAST_LOAD = "least-load"
    MONITORED_FLOW = "monitored-flow"
    ACTIVE_BACKUP = "active-backup"


class Balancer(Protocol):
    """Chooses a member.  members: those that are usable, at least one, always in the same order.

    remembers: has it to see every frame?  If not, it need not be asked where there is one member only.
    """

    remembers: bool

    def choose(self, flow: Flow, size: int, members: Sequence[Member], now: int) -> Member: ...


class HashBalancer:
    """A hash over addresses decides (Linux bonding: layer2, layer3+4); CRC-32, which spreads well and never changes."""

    remembers = False

    def __init__(self, with_layer4: bool) -> None:
        self.with_layer4 = with_layer4

    def choose(self, flow: Flow, size: int, members: Sequence[Member], now: int) -> Member:
        key = flow.layer4 if self.with_layer4 and flow.layer4 else flow.destination + flow.source
        return members[zlib.crc32(key, flow.vlan) % len(members)]


class RoundRobin:
    """One frame after the other."""

    remembers = False

    def __init__(self) -> None:
        self._next = 0

    def choose(self, flow: Flow, size: int, members: Sequence[Member], now: int) -> Member:
        self._next += 1
        return members[self._next % len(members)]


class ActiveBackup:
    """One member carries everything (the driver puts it first)."""

    remembers = False

    def choose(self, flow: Flow, size: int, members: Sequence[Member], now: int) -> Member:
        return members[0]


class _Known:
    """Where a flow is, and what it did.  rate: bytes a second, smoothed."""

    __slots__ = ("counted", "last_ns", "member", "rate", "since_ns")

    def __init__(self, member: Member, now: int) -> None:
        self.member = member
        self.last_ns = now
        self.since_ns = now
        self.counted = 0
        self.rate = 0.0


class LeastLoad:
    """A new flow, or one that has paused for `pause_ns`, goes to the member with the least load.

    A member's load is what its meter saw in the last interval, whoever sent it: team, stack or upload path; beside it
    counts what new flows have been given since, so that a burst of new ones spreads.
    """

    remembers = True

    def __init__(self, pause_ns: int, interval_ns: int) -> None:
        self.pause_ns = pause_ns
        self.interval_ns = interval_ns
        self.flows: dict[Flow, _Known] = {}
        self._given: dict[Member, int] = {}
        self._given_until = 0

    def choose(self, flow: Flow, size: int, members: Sequence[Member], now: int) -> Member:
        known = self.flows.get(flow)
        if known is None:
            known = self._remember(flow, self._lightest(members, now), now)
        elif known.member not in members or now - known.last_ns > self.pause_ns:
            self._move(known, self._lightest(members, now), now)
        known.last_ns = now
        known.counted += size
        return known.member

    def _remember(self, flow: Flow, member: Member, now: int) -> _Known:
        if len(self.flows) >= FLOWS:
            oldest = sorted(self.flows, key=lambda each: self.flows[each].last_ns)
            for each in oldest[: FLOWS // 8]:
                del self.flows[each]
        made = self.flows[flow] = _Known(member, now)
        return made

    def _move(self, known: _Known, member: Member, now: int) -> None:
        known.member = member
        known.since_ns = now

    def _lightest(self, members: Sequence[Member], now: int) -> Member:
        if now >= self._given_until:
            self._given.clear()
            self._given_until = now + self.interval_ns
        given = self._given
        best = min(
            members, key=lambda m: ((m.meter.rate(now) + 1.0) * (1 + given.get(m, 0)), given.get(m, 0))
        )
        given[best] = given.get(best, 0) + 1
        return best


class MonitoredFlow(LeastLoad):
    """As `LeastLoad`, and every interval flows move from the busiest to the idlest member, by their measured rates.

    A flow is moved if that lowers the larger of the two loads, at its next pause of at least `gap_ns`.
    """

    def __init__(self, pause_ns: int, interval_ns: int, gap_ns: int) -> None:
        super().__init__(pause_ns, interval_ns)
        self.gap_ns = gap_ns
        self.moves = 0
        self._wanted: dict[Flow, Member] = {}
        self._looked_ns = 0

    def choose(self, flow: Flow, size: int, members: Sequence[Member], now: int) -> Member:
        if now - self._looked_ns >= self.interval_ns:
            self._look(members, now)
        wanted = self._wanted.get(flow)
        if wanted is not None and wanted in members:
            known = self.flows[flow]
            if now - known.last_ns >= self.gap_ns:
                del self._wanted[flow]
                self._move(known, wanted, now)
                self.moves += 1
        return super().choose(flow, size, members, now)

    def _look(self, members: Sequence[Member], now: int) -> None:
        """Measure all flows, and decide which shall move."""
        passed = max(1, now - self._looked_ns)
        self._looked_ns = now
        self._wanted.clear()
        loads = {member: member.meter.rate(now) for member in members}
        by_member: dict[Member, list[tuple[float, Flow]]] = {member: [] for member in members}
        silent = []
        for flow, known in self.flows.items():
            known.rate = (known.rate + known.counted * 1e9 / passed) / 2
            if not known.counted and now - known.last_ns > 8 * self.pause_ns:
                silent.append(flow)
            elif known.member in by_member:
                by_member[known.member].append((known.rate, flow))
            known.counted = 0
        for flow in silent:
            del self.flows[flow]
        for _ in range(len(members) - 1):
            busiest, idlest = max(members, key=loads.__getitem__), min(members, key=loads.__getitem__)
            spare = (loads[busiest] - loads[idlest]) / 2
            for rate, flow in sorted(by_member[busiest], key=lambda each: -each[0]):
                if 0 < rate <= spare:
                    self._wanted[flow] = idlest
                    loads[busiest] -= rate
                    loads[idlest] += rate
                    spare -= rate


def balancer_for(mode: Mode, interval_ns: int) -> Balancer:
    """The balancer of a mode.  interval_ns: how often loads are looked at."""
    if mode is Mode.ROUND_ROBIN:
        return RoundRobin()
    if mode is Mode.LEAST_LOAD:
        return LeastLoad(interval_ns, interval_ns)
    if mode is Mode.MONITORED_FLOW:
        return MonitoredFlow(interval_ns, interval_ns, interval_ns // 20)
    if mode is Mode.ACTIVE_BACKUP:
        return ActiveBackup()
    return HashBalancer(mode is Mode.LAYER34)
