"""The intermediate driver: several cards of one subnet as one (document 000:94-96, 110-112, 128; figure 4, 32).

The network layer sees one card, with the address of one of its members.  Frames of one conversation leave by one
member, so that they stay in order; conversations are shared out over those that are up.  The other nodes know from
HELLO which ports are one card, send it to any of them that is up, each node always to the same; so both directions
survive the loss of a port, or of an adapter, under the same address.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from zlib import crc32

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, NotFound
from verbena.lan.addresses import LanAddress
from verbena.lan.message import Role
from verbena.lan.port import LanPort, PortEvent, Upper
from verbena.wire.ethernet import GROUP_BIT
from verbena.wire.ip import ETHERTYPE_IPV4, ETHERTYPE_IPV6

if TYPE_CHECKING:
    from verbena.lan.driver import Driver
    from verbena.management.datagrams import Pending

TWICE_NS = 50_000_000
"""A broadcast that comes by two members comes within this time."""
MOST_REMEMBERED = 1024


def conversation(frame: bytes) -> int:
    """A number that is equal for all frames of a conversation: addresses, and of IP also its addresses and ports."""
    kind = frame[12] << 8 | frame[13]
    if kind == ETHERTYPE_IPV4 and len(frame) >= 38:
        whole = not frame[20] & 0x3F and not frame[21]  # fragments but the first have no ports
        ports = frame[34:38] if frame[14] == 0x45 and whole and frame[23] in (6, 17) else b""
        return crc32(frame[:12] + frame[26:34] + ports)
    if kind == ETHERTYPE_IPV6 and len(frame) >= 58:
        return crc32(frame[:12] + frame[22:54] + (frame[54:58] if frame[20] in (6, 17) else b""))
    return crc32(frame[:12])


class IntermediateDriver(Upper):
    """Several cards as one.  Implements `port.EthernetPort`.

    cards: of one host, all in the same subnet.  Raises `InvalidAttributeError` for less than two, for cards with
    different MTUs or LANs, and for cards whose subnets are known to differ; a card that turns out later to be in
    another subnet is not used (`refused`).

    `counters`: ``tx.<number of the member>``, ``failovers``, ``rx.twice``, ``rx.own``, ``drop.tx.link_down``.
    """

    def __init__(self, clock: Clock, *cards: LanPort) -> None:
        super().__init__()
        if len(cards) < 2 or len(set(map(id, cards))) != len(cards):
            raise InvalidAttributeError("the intermediate driver bundles two or more different cards")
        if len({card.mtu for card in cards}) > 1:
            raise InvalidAttributeError("all cards of a bundle need the same MTU")
        self.cards = cards
        self.counters: Counter[str] = Counter()
        self.refused: dict[LanPort, str] = {}
        self._clock = clock
        self._active: list[LanPort] = []
        self._lid = 0
        self._mac = bytes(6)
        self._seen: OrderedDict[bytes, tuple[LanPort, int]] = OrderedDict()
        up = [driver.station.gid[:8] for card in cards if (driver := _driver(card)) is not None]
        if len(set(up)) > 1:
            raise InvalidAttributeError("the intermediate driver bundles only cards of one subnet")
        for card in cards:
            card.attach(partial(self._received, card), partial(self._happened, card))
        for card in cards:
            if card.link:
                self._came(card)

    # --- the one card ---------------------------------------------------------------------------------------------

    @property
    def mac(self) -> bytes:
        return self._mac

    @property
    def mtu(self) -> int:
        return self.cards[0].mtu

    @property
    def link(self) -> bool:
        return bool(self._active)

    @property
    def active(self) -> tuple[LanPort, ...]:
        """The members that carry frames now."""
        return tuple(self._active)

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Each frame by the member of its conversation; stops at the first that is not taken."""
        for place, frame in enumerate(frames):
            if not self._active:
                self.counters["drop.tx.link_down"] += len(frames) - place
                return len(frames)
            card = (
                self._active[conversation(frame) % len(self._active)] if len(frame) >= 14 else self._active[0]
            )
            if not card.send_frames((frame,)):
                return place
            self.counters[f"tx.{card.number}"] += 1
        return len(frames)

    # --- members --------------------------------------------------------------------------------------------------

    def _happened(self, card: LanPort, event: PortEvent, detail: bytes) -> None:
        if event is PortEvent.LINK_UP:
            self._came(card)
        elif event is PortEvent.LINK_DOWN:
            self._went(card)
        elif event is PortEvent.ADDRESS:
            self._readdress()
        else:
            self.tell(event, detail)

    def _came(self, card: LanPort) -> None:
        """A member is up: it must see the others in its subnet."""
        driver = _driver(card)
        if driver is None or card in self._active:
            return
        other = next((found for each in self._active if (found := _driver(each)) is not None), None)
        if other is None:
            self._use(card)
        elif driver.station.gid[:8] != other.station.gid[:8]:
            self._refuse(card)
        else:
            asked = driver.directory.call("IbaNsGetLidListByPortGuid", other.station.info.port_guid)
            asked.when_done(partial(self._verified, card))

    def _verified(self, card: LanPort, answer: Pending[list[int]]) -> None:
        if not card.link or card in self._active:
            return
        if isinstance(answer.error, NotFound):
            self._refuse(card)
        else:
            self._use(card)  # also where the administration does not answer: it was in this subnet before

    def _refuse(self, card: LanPort) -> None:
        self.counters["refused.other_subnet"] += 1
        self.refused[card] = "it is in another subnet than the other cards of the bundle"

    def _use(self, card: LanPort) -> None:
        was_up = bool(self._active)
        self.refused.pop(card, None)
        self._active.append(card)
        self._active.sort(key=self.cards.index)
        self._readdress()
        if not was_up:
            self.tell(PortEvent.LINK_UP)
        else:
            self.tell(PortEvent.ROOM)

    def _went(self, card: LanPort) -> None:
        if card not in self._active:
            return
        self._active.remove(card)
        if not self._active:
            self.tell(PortEvent.LINK_DOWN)
            return
        self.counters["failovers"] += 1
        self.tell(PortEvent.ROOM)

    def _readdress(self) -> None:
        """Keep the address as long as the port that it is of has that LID, or is only down; else take another's."""
        owner = next((c for c in self.cards if int.from_bytes(c.own_mac[4:], "big") == self._lid), None)
        if not self._lid or owner is None:
            driver = _driver(self._active[0]) if self._active else None
            if driver is None:
                return
            self._lid = driver.station.lid
            moved = any(self._mac)
            self._mac = LanAddress(self._lid, driver.config.number).pack()
            if moved:
                self.tell(PortEvent.ADDRESS, self._mac)
        for card in self._active:
            if card.shared_lid != self._lid:
                card.become(Role.NONE, self._lid)

    # --- what comes -----------------------------------------------------------------------------------------------

    def _received(self, card: LanPort, frames: list[bytes]) -> None:
        kept = [frame for frame in frames if not self._is_double(card, frame)]
        if kept and not self.deliver(kept):
            self.counters["drop.rx.nobody"] += len(kept)

    def _is_double(self, card: LanPort, frame: bytes) -> bool:
        """One's own broadcast, heard by another member, or one that has come by another member before."""
        if frame[6:12] == self._mac:
            self.counters["rx.own"] += 1
            return True
        if not frame[0] & GROUP_BIT or len(self._active) < 2:
            return False
        now = self._clock.now()
        known = self._seen.get(frame)
        if known is not None and known[0] is not card and now - known[1] <= TWICE_NS:
            self.counters["rx.twice"] += 1
            del self._seen[frame]
            return True
        self._seen[frame] = card, now
        while len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def close(self) -> None:
        """The cards are cards of their own again."""
        self._active.clear()
        for card in self.cards:
            card.detach()
            card.become(Role.NONE)


def _driver(card: LanPort) -> Driver | None:
    """The driver behind a card, while it is up."""
    found: Driver | None = card.driver  # type: ignore[assignment]
    return found
