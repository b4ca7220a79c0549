"""An ordinary Ethernet in a process: one segment, everybody hears everything after a while (document 000, figure 6).

It stands for the network behind a bridge where no real one is wanted, and joins hosts for comparison with a LAN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from verbena.clock import Clock
from verbena.lan.port import PortEvent, Upper
from verbena.wire.ethernet import HEADER_SIZE, MOST_TAGS, TAG_SIZE


class SegmentPort(Upper):
    """A card on a segment.  Implements `port.EthernetPort`; takes every frame that is not its own, like a hub's.

    filtering: take only what is for all, for a group, or for `mac`, as an ordinary card does; a bridge's card does not.
    """

    def __init__(self, segment: Segment, mac: bytes, filtering: bool) -> None:
        super().__init__()
        self.mac = mac
        self.mtu = segment.mtu
        self.filtering = filtering
        self.counters: Counter[str] = Counter()
        self._segment = segment
        self._link = True

    @property
    def link(self) -> bool:
        return self._link

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it."""
        if up != self._link:
            self._link = up
            self.tell(PortEvent.LINK_UP if up else PortEvent.LINK_DOWN)

    def send_frames(self, frames: Sequence[bytes]) -> int:
        for frame in frames:
            if not self._link:
                self.counters["drop.tx.link_down"] += 1
            elif not HEADER_SIZE <= len(frame) <= HEADER_SIZE + MOST_TAGS * TAG_SIZE + self.mtu:
                self.counters["drop.tx.length"] += 1
            else:
                self.counters["tx.frames"] += 1
                self._segment.carry(self, bytes(frame))
        return len(frames)

    def hear(self, frame: bytes) -> None:
        """A frame of somebody else."""
        if not self._link:
            self.counters["drop.rx.link_down"] += 1
        elif self.filtering and not frame[0] & 1 and frame[:6] != self.mac:
            self.counters["rx.not_mine"] += 1
        else:
            self.counters["rx.frames"] += 1
            if not self.deliver([frame]):
                self.counters["drop.rx.nobody"] += 1


class Segment:
    """delay_ns: from any card to all others.  mtu: the largest payload, bytes."""

    def __init__(self, clock: Clock, delay_ns: int = 1_000, mtu: int = 1500) -> None:
        self.mtu = mtu
        self.ports: list[SegmentPort] = []
        self._clock = clock
        self._delay_ns = delay_ns

    def port(self, mac: bytes, filtering: bool = True) -> SegmentPort:
        """A new card."""
        made = SegmentPort(self, mac, filtering)
        self.ports.append(made)
        return made

    def carry(self, source: SegmentPort, frame: bytes) -> None:
        def arrive() -> None:
            for port in list(self.ports):
                if port is not source:
                    port.hear(frame)

        self._clock.call_at(self._clock.now() + self._delay_ns, arrive)
