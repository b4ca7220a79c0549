"""The other nodes of a LAN as one card knows them: where they are, what they are, how they are reached."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from verbena.lan.message import NodeInfo, Role
from verbena.lan.ways import Way

if TYPE_CHECKING:
    from verbena.lan.transport_services import Channel


class TokenBucket:
    """At most `rate` a second, and `burst` at once; no limit at rate 0."""

    __slots__ = ("_burst", "_full_ns", "_interval_ns")

    def __init__(self, rate: int, burst: int) -> None:
        self._interval_ns = 1_000_000_000 // rate if rate else 0
        self._burst = burst
        self._full_ns = 0

    def take(self, now: int) -> bool:
        """One more, if there is still one."""
        if not self._interval_ns:
            return True
        full = max(self._full_ns, now)
        if full - now > (self._burst - 1) * self._interval_ns:
            return False
        self._full_ns = full + self._interval_ns
        return True


class Peer:
    """Another card's port.

    lid: its base LID.  lids: how many it has.  gid: 16 bytes, or none while only its LID is known.  info: what it says
    of itself; None until it has said something.  ways: the primary path and, if there is one, the secondary.
    """

    def __init__(self, lid: int, lids: int = 1, gid: bytes = b"", platform: int = 0) -> None:
        self.lid = lid
        self.lids = lids
        self.gid = gid
        self.platform = platform
        self.info: NodeInfo | None = None
        self.qpn = 0
        self.ways: list[Way] = []
        self.active = 0
        self.channel: Channel | None = None
        self.connecting = False
        self.refused_ns = 0  # no new attempt before that
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.down = False
        self.asking = False
        self.gone = False
        self.from_list = False  # are its ways those of path records?
        self.proven_ns = 0  # when a probe was last answered
        self.unlisted_ns = 0  # since when subnet administration does not list it
        self.suspect_ns = 0  # no question before that whether its queue pair is another now
        self.tried = 0  # paths that were found silent, one after the other
        self.traffic = 0
        self.resolved_ns = 0
        self.heard_ns = 0
        self.sent_ns = 0
        self.misses = 0
        self.bucket: TokenBucket | None = None

    @property
    def way(self) -> Way | None:
        """The path in use, once it is known whose queue pair is at its end."""
        return self.ways[self.active] if self.ways and self.qpn else None

    @property
    def card(self) -> int:
        """The LID in the address of its card."""
        return self.info.card if self.info is not None else self.lid

    def has_role(self, role: Role) -> bool:
        return self.info is not None and bool(self.info.role & role)

    def learn_qpn(self, qpn: int) -> None:
        self.qpn = qpn
        for way in self.ways:
            way.qpn = qpn

    def set_ways(self, ways: list[Way]) -> None:
        """Other paths, the primary first."""
        old, self.ways, self.active = self.ways, ways, 0
        for way in old:
            if way not in ways:
                way.close()
        for way in ways:
            way.qpn = self.qpn

    def close(self) -> None:
        self.set_ways([])

    def __repr__(self) -> str:
        return f"<Peer lid {self.lid} qpn {self.qpn:#x}>"


class PeerTable:
    """All peers of one card, by each of their LIDs; at most `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_lid: dict[int, Peer] = {}
        self._peers: dict[int, Peer] = {}
        self._of_card: dict[int, list[Peer]] | None = None
        self._flood: dict[int, list[Peer]] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def at(self, lid: int) -> Peer | None:
        """Whoever has a LID, be it not the first of his."""
        return self._by_lid.get(lid)

    def add(self, peer: Peer) -> bool:
        """False when the table is full."""
        if len(self._peers) >= self._most and peer.lid not in self._peers:
            return False
        self._peers[peer.lid] = peer
        for lid in range(peer.lid, peer.lid + peer.lids):
            self._by_lid[lid] = peer
        self.changed()
        return True

    def remove(self, peer: Peer) -> None:
        if self._peers.get(peer.lid) is peer:
            del self._peers[peer.lid]
        for lid in range(peer.lid, peer.lid + peer.lids):
            if self._by_lid.get(lid) is peer:
                del self._by_lid[lid]
        self.changed()

    def clear(self) -> None:
        """Forget all."""
        self._peers.clear()
        self._by_lid.clear()
        self.changed()

    def changed(self) -> None:
        """Something that decides who is reached by whom is different."""
        self._flood.clear()
        self._of_card = None

    def _ports_of(self, card: int) -> list[Peer]:
        """The ports that are one card, in the order of their LIDs; only where there are several."""
        if self._of_card is None:
            self._of_card = {}
            for peer in self._peers.values():
                if peer.card != peer.lid:
                    self._of_card.setdefault(peer.card, []).append(peer)
            for card_lid, ports in self._of_card.items():
                if (first := self._by_lid.get(card_lid)) is not None:
                    ports.append(first)
                ports.sort(key=lambda p: p.lid)
        return self._of_card.get(card, [])

    def reach(self, lid: int, spread: int = 0) -> Peer | None:
        """Who takes frames for the card with a LID: its port; where several are one card, one that is up.

        spread: chooses among these, so that different senders use different ports.
        """
        peer = self._by_lid.get(lid)
        if (self._of_card is None or self._of_card) and (ports := self._ports_of(lid)):
            alive = [port for port in ports if not port.down]
            if alive:
                return alive[spread % len(alive)]
        return peer

    def may_be(self, peer: Peer, lid: int) -> bool:
        """May a peer say that its card has this LID: its own, or one of the same platform, or nobody's?"""
        if peer.lid <= lid < peer.lid + peer.lids:
            return True
        owner = self._by_lid.get(lid)
        return owner is None or (bool(peer.platform) and owner.platform == peer.platform)

    def flood(self, own_card: int) -> list[Peer]:
        """One port of each card but this one: whoever gets broadcasts."""
        found = self._flood.get(own_card)
        if found is None:
            chosen: dict[int, Peer] = {}
            for peer in self._peers.values():
                if peer.down or peer.card == own_card:
                    continue
                known = chosen.get(peer.card)
                if known is None or (peer.lid == peer.card and known.lid != known.card):
                    chosen[peer.card] = peer
            found = self._flood[own_card] = list(chosen.values())
        return found


class ForeignTable:
    """Addresses behind bridges: which bridge's LID each was last heard from.  Bounded; entries age."""

    def __init__(self, most: int, age_ns: int, counters: Counter[str]) -> None:
        self._most = most
        self._age_ns = age_ns
        self._counters = counters
        self._known: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, mac: bytes, lid: int, now: int) -> None:
        if not self._most:
            return
        if mac in self._known:
            self._known.move_to_end(mac)
        elif len(self._known) >= self._most:
            self._known.popitem(last=False)
            self._counters["foreign.evicted"] += 1
        self._known[mac] = (lid, now + self._age_ns)

    def find(self, mac: bytes, now: int) -> int:
        """The LID of the bridge that an address stands behind; 0 if that is not known."""
        found = self._known.get(mac)
        if found is None:
            return 0
        if found[1] < now:
            del self._known[mac]
            return 0
        return found[0]

    def forget_bridge(self, lid: int) -> None:
        """A bridge has left."""
        for mac in [mac for mac, (at, _) in self._known.items() if at == lid]:
            del self._known[mac]

    def clear(self) -> None:
        self._known.clear()

    def entries(self) -> dict[bytes, int]:
        return {mac: lid for mac, (lid, _) in self._known.items()}
