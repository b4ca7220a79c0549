"""The two virtual miniports that the intermediate driver shows to the protocol stack (document 004, 8, 27, 28, 32).

`TeamMiniport` (T-virtual) has a virtual card for each VLAN group; their frames may use every member.  `RdmaMiniport`
(R-virtual) has one, for what the offload system manages but has not offloaded; it is not shared with the team.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from verbena.errors import InvalidAttributeError
from verbena.team.announce import Snoop
from verbena.team.card import Upper
from verbena.team.config import check_vlan
from verbena.team.frames import OffloadFrame, is_large
from verbena.team.trace import Layer, PathTrace
from verbena.wire.offload import PLAIN

if TYPE_CHECKING:
    from verbena.team.driver import IntermediateDriver

SMALLEST = 14


class VirtualCard(Upper):
    """A virtual card: an `EthernetPort` that a protocol stack (or a TAP device's relay) binds to.

    Frames have no tag here: the VLAN is the card's.  known: the network addresses that were seen to be used above it,
    which announcements name.  counters: ``tx``, ``rx`` (frames), ``.bytes``, and drops by reason.
    """

    def __init__(
        self,
        name: str,
        vlan: int,
        mac: bytes,
        mtu: int,
        layer: Layer,
        trace: PathTrace,
        send: Callable[[VirtualCard, bytes], bool],
    ) -> None:
        super().__init__()
        self.name = name
        self.vlan = vlan
        self.mac = mac
        self.mtu = mtu
        self.rate_bps = 0.0
        self.is_up = False
        self.is_open = True
        self.known = Snoop()
        self.counters: Counter[str] = Counter()
        self._layer = layer
        self._trace = trace
        self._send = send
        self.passages: dict[Any, Any] = {}
        self.take_view: Callable[[memoryview, bytes], None] | None = None
        """Whoever is bound and needs no copy gets frames here, in their reader's buffer, with their virtio_net_hdr."""

    def transmit(self, frame: bytes) -> bool:
        """A frame of the stack's; False if it was dropped (and counted)."""
        counters = self.counters
        if not self.is_up or not self.is_open:
            counters["drop.tx.down"] += 1
            return False
        if not SMALLEST <= len(frame) <= SMALLEST + self.mtu and not is_large(frame):
            counters["drop.tx.length"] += 1
            return False
        if frame[12:14] == b"\x81\x00":
            # A tag of the stack's own would reach a VLAN that this card is not in.
            counters["drop.tx.tagged"] += 1
            return False
        counters["tx"] += 1
        counters["tx.bytes"] += len(frame)
        self._trace.hop(self._layer)
        if frame[6:12] == self.mac:  # the addresses of others are not to be announced as its own
            self.known.look(frame)
        return self._send(self, frame)

    def hand_up(self, frame: bytes) -> None:
        """A frame for the stack, without its tag."""
        if not self.is_open:
            return
        self._trace.hop(self._layer)
        self.counters["rx"] += 1
        self.counters["rx.bytes"] += len(frame)
        if not self.deliver(frame):
            self.counters["drop.rx.unbound"] += 1

    def hand_up_view(self, frame: memoryview, header: bytes) -> None:
        """The same for a frame in its reader's buffer, which is not traced."""
        if self.take_view is None:
            self.hand_up(bytes(frame) if header == PLAIN else OffloadFrame(frame, header))
            return
        self.counters["rx"] += 1
        self.counters["rx.bytes"] += len(frame)
        self.take_view(frame, header)

    def set_link(self, up: bool) -> None:
        """Its link follows the members'; the stack is told of changes."""
        if up != self.is_up:
            self.is_up = up
            self.tell(up)


class TeamMiniport:
    """T-virtual: one virtual card for each VLAN group."""

    def __init__(self, driver: IntermediateDriver, mac: bytes, mtu: int, trace: PathTrace) -> None:
        self.cards: dict[int, VirtualCard] = {}
        self.mac = mac
        self.mtu = mtu
        self._driver = driver
        self._trace = trace
        self._up = False

    def add(self, vlan: int) -> VirtualCard:
        """A further VLAN group; raises `InvalidAttributeError` for one that is taken."""
        check_vlan(vlan)
        if vlan in self.cards:
            raise InvalidAttributeError(f"VLAN {vlan} is in the team already: each group has one of its own")
        rdma = self._driver.rdma_miniport
        if rdma is not None and vlan == rdma.vlan:
            raise InvalidAttributeError(f"VLAN {vlan} is dedicated to the RDMA miniport: choose another one")
        name = f"T-virtual.{vlan}" if vlan else "T-virtual"
        card = VirtualCard(name, vlan, self.mac, self.mtu, Layer.T_VIRTUAL, self._trace, self._driver.send)
        card.set_link(self._up)
        self.cards[vlan] = card
        return card

    def remove(self, vlan: int) -> None:
        """Take a VLAN group away; its frames are dropped and counted from now on."""
        card = self.cards.pop(vlan, None)
        if card is None:
            raise InvalidAttributeError(f"VLAN {vlan} is no group of this team")
        card.set_link(False)
        card.is_open = False

    def set_link(self, up: bool) -> None:
        self._up = up
        for card in list(self.cards.values()):
            card.set_link(up)


class RdmaMiniport(VirtualCard):
    """R-virtual: the stack's card for connections that the offload system manages, in a VLAN of their own."""

    def __init__(self, driver: IntermediateDriver, vlan: int, mac: bytes, mtu: int, trace: PathTrace) -> None:
        super().__init__("R-virtual", vlan, mac, mtu, Layer.R_VIRTUAL, trace, driver.send)
