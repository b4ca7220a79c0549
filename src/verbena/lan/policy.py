"""When a peer gets a channel, by the destination addresses of frames (document 000:96-98, 128).

`keep` makes channels when an address is resolved (the answer is the first frame that goes to one card) and keeps them
for ever.  `age` makes them when an address is resolved, and closes those that neither traffic nor resolution has used
for a while; then the entries of that address are forgotten, too, so that the next frame begins with a resolution, and
that with a channel.  `limited` gives its channels to those with most traffic.  Whoever has no channel is reached by
datagrams.
"""

from __future__ import annotations

from verbena.lan.config import LanConfig
from verbena.lan.peers import Peer
from verbena.wire.ip import ETHERTYPE_ARP, ETHERTYPE_IPV6

ICMP6_SOLICITATION, ICMP6_ADVERTISEMENT = 135, 136
PROTOCOL_ICMP6 = 58
LIMITED_FRAMES = 4
"""Frames to a peer before it is given one of few channels."""
DECAY_FRAMES = 1024
"""Frames sent after which everybody's traffic counts half: what was long ago counts less."""


def resolves(frame: bytes) -> bool:
    """Is a frame part of address resolution: ARP, or IPv6 neighbour solicitation and advertisement?"""
    kind = frame[12] << 8 | frame[13]
    if kind == ETHERTYPE_ARP:
        return True
    return (
        kind == ETHERTYPE_IPV6
        and len(frame) > 54
        and frame[20] == PROTOCOL_ICMP6
        and frame[54] in (ICMP6_SOLICITATION, ICMP6_ADVERTISEMENT)
    )


class ChannelPolicy:
    """Decides for one card.  Channels that are being made count as made."""

    def __init__(self, config: LanConfig) -> None:
        self._config = config
        self._frames = 0
        self.holders: set[Peer] = set()

    def sent(self, peer: Peer, peers: object = None) -> None:
        """A frame goes to a peer."""
        peer.traffic += 1
        self._frames += 1
        if self._frames >= DECAY_FRAMES:
            self._frames = 0
            for holder in self.holders:
                holder.traffic >>= 1
            if peer not in self.holders:
                peer.traffic >>= 1

    def wants(self, peer: Peer, frame: bytes) -> bool:
        """Shall a channel be made for this frame?"""
        policy = self._config.policy
        if policy == "datagram" or not self._config.max_channels:
            return False
        if policy == "age" and not resolves(frame):
            return False
        if policy == "limited" and peer.traffic < LIMITED_FRAMES:
            return False
        return len(self.holders) < self._config.max_channels or self.victim(peer) is not None

    def victim(self, peer: Peer) -> Peer | None:
        """Who gives up a channel for this peer: the one with least traffic, if that is less than half of this one's."""
        if self._config.policy != "limited" or not self.holders:
            return None
        least = min(self.holders, key=lambda p: (p.traffic, p.lid))
        return least if 2 * least.traffic < peer.traffic and not least.connecting else None

    def may_accept(self, peer: Peer) -> bool:
        """May a peer that asks have a channel?"""
        if self._config.policy == "datagram":
            return False
        return len(self.holders) < self._config.max_channels

    def is_old(self, peer: Peer, now: int) -> bool:
        """Has a channel aged?"""
        if self._config.policy != "age" or peer.channel is None or not peer.channel.ready:
            return False
        used = max(peer.channel.used_ns, peer.resolved_ns)
        return now - used >= self._config.channel_age_ns
