"""The short way through a team: what its layers have decided for a flow's first frame serves those that follow.

A frame that is still in its reader's buffer (a TAP device's, a packet socket's) is sent on from there: its addresses
and its tag are written anew, the rest is not copied.  Only TCP and UDP over IP between the team's own addresses and
others go this way, and nothing while a trace is on; for all else the answer is False, and the frame takes the long way,
`VirtualCard.transmit` or `IntermediateDriver`'s, which decides and counts the same.  Balancers are asked for each frame
on both.  Everything that is remembered here is forgotten when the driver rearranges its members.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from verbena.team.frames import Flow, flow_of, later, tag_of
from verbena.team.member import Member, MemberState
from verbena.wire.ip import ETHERTYPE_IPV4, ETHERTYPE_IPV6

if TYPE_CHECKING:
    from verbena.team.driver import IntermediateDriver
    from verbena.team.miniport import VirtualCard

MOST = 4096
"""Flows of a card, or of a member, that are remembered; with one more, all are learned anew."""
ADDRESSES = 12
LEAST4, LEAST6 = 38, 58
FLOW4 = struct.Struct("12s3s5x2sxs2x12s")
"""Addresses; type, version and header length; fragment; protocol; addresses and ports (RFC 791, 3.1)."""
FLOW6 = struct.Struct("12s3s5xsx36s")
"""Addresses; type and version; next header; addresses and ports (RFC 8200, 3)."""
ARRIVAL = struct.Struct("14s6xs")
"""Addresses and type; next header, where it is IPv6."""
WHOLE = (b"\0\0", b"\x40\0")
PORTS = (b"\x06", b"\x11")
IPV4_PLAIN = ETHERTYPE_IPV4.to_bytes(2, "big") + b"\x45"
IPV6 = ETHERTYPE_IPV6.to_bytes(2, "big")
IPV4 = ETHERTYPE_IPV4.to_bytes(2, "big")


class Passage:
    """A flow of a virtual card's.  fronts: what its frames begin with, by the member that they leave by."""

    __slots__ = ("flow", "fronts")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.fronts: dict[Member, bytes] = {}


class Passages:
    """The short way of one driver."""

    def __init__(self, driver: IntermediateDriver) -> None:
        self._driver = driver
        self._trace = driver.trace

    def forget(self) -> None:
        """The members have changed."""
        for card in self._driver.cards:
            card.passages.clear()
        for member in self._driver.members:
            member.passages.clear()

    # --- down ---------------------------------------------------------------------------------------------

    def down(self, card: VirtualCard, frame: memoryview, header: bytes) -> bool:
        """A frame of the stack's: was it dealt with (sent, or dropped and counted)?

        frame: from its first byte, untagged, in a buffer that stays until this returns.  header: its virtio_net_hdr.
        """
        size = len(frame)
        if self._trace.on or size < LEAST4 or not (card.is_up and card.is_open):
            return False
        if frame[12] != 0x86:
            key = FLOW4.unpack_from(frame)
        elif size >= LEAST6:
            key = FLOW6.unpack_from(frame)
        else:
            return False
        passage = card.passages.get(key) or self._learn(card, key, frame)
        if passage is None or (size > 14 + card.mtu and not header[1]):
            return False
        counters = card.counters
        counters["tx"] += 1
        counters["tx.bytes"] += size
        driver = self._driver
        driver.count_stack(card)
        while (member := driver.choose(card, passage.flow, size)) is not None:
            if self._leave(member, card, passage, frame, header):
                return True
            member.counters["drop.tx.card"] += 1
            if member.is_usable:  # else its link has just gone, and another one has its flows
                return True
            passage.fronts.clear()
        return True

    def _leave(
        self, member: Member, card: VirtualCard, passage: Passage, frame: memoryview, header: bytes
    ) -> bool:
        front = passage.fronts.get(member)
        if front is None:
            source = self._driver.source_for(member, card, bytes(frame[6:ADDRESSES]))
            front = passage.fronts[member] = bytes(frame[:6]) + source + tag_of(card.vlan)
        what = "tx.upload" if card is self._driver.rdma_miniport else "tx.team"
        member.count(what, len(frame), self._driver.clock.now())
        if card.vlan:
            header = later(header, 4)
        return member.branch.transmit_parts(front, frame[ADDRESSES:], header)

    def _learn(self, card: VirtualCard, key: tuple[bytes, ...], frame: memoryview) -> Passage | None:
        if key[1] == IPV4_PLAIN:
            right = key[2] in WHOLE and key[3] in PORTS
        else:
            right = key[1][:2] == IPV6 and key[2] in PORTS
        if not right or key[0][6:] != card.mac:
            return None
        if len(card.passages) >= MOST:
            card.passages.clear()
        made = card.passages[key] = Passage(flow_of(bytes(frame[:LEAST6]), card.vlan))
        return made

    # --- up -----------------------------------------------------------------------------------------------

    def up(self, member: Member, vlan: int, frame: memoryview, header: bytes) -> bool:
        """A frame that a member has received: was it handed to the stack?

        vlan: of its tag, which is not in the frame; 0: it had none.
        """
        if self._trace.on or len(frame) < LEAST4:
            return False
        key = (vlan, *ARRIVAL.unpack_from(frame))
        card = member.passages.get(key) or self._learn_arrival(member, key)
        if card is None or not card.is_open:
            return False
        driver = self._driver
        what = "rx.upload" if card is driver.rdma_miniport else "rx.team"
        member.count(what, len(frame), driver.clock.now())
        member.branch.trace_received()
        card.hand_up_view(frame, header)
        return True

    def _learn_arrival(self, member: Member, key: tuple[int, bytes, bytes]) -> VirtualCard | None:
        vlan, addresses, following = key
        kind = addresses[ADDRESSES:]
        if kind != IPV4 and not (kind == IPV6 and following in PORTS):
            return None
        driver = self._driver
        if member.state is not MemberState.ACTIVE or driver.is_own(addresses[6:ADDRESSES], vlan):
            return None
        card = driver.card_for(member, vlan, addresses[:6])
        if card is not None:
            if len(member.passages) >= MOST:
                member.passages.clear()
            member.passages[key] = card
        return card
