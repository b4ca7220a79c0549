"""What joins virtual switches, teams and LAN emulation, which know nothing of each other (document 000:94; 002:92).

From a virtual machine to the fabric::

    stack - SwitchCard - virtual switch - TeamUplink - T-virtual - intermediate driver - LanMember - LAN card

`SwitchCard` is a card whose cable leads to a port of a virtual switch: a protocol stack binds to it, and it can be the
member of a team inside the machine.  Below a switch, the team is one of stations: `TeamConfig.bridged`.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import partial
from typing import Any

from verbena.clock import Clock
from verbena.lan.message import Role
from verbena.lan.port import LanPort
from verbena.team.card import BurstMember, EthernetPort, Upper
from verbena.vswitch.link import Link
from verbena.vswitch.queue import Item
from verbena.vswitch.switch import SwitchPort


class SwitchCard(Upper):
    """A card on a port of a virtual switch.  Implements `team.card.EthernetPort`.

    mac: its address, which the port should have among `PortConfig.macs`.  delay_ns: from a frame in the switch to the
    call of whoever is attached, as an interrupt has it.  queue: frames that wait in the card while the switch takes
    none; what comes beyond is dropped.  counters: ``tx`` (frames that the switch took), ``rx``, ``drop.tx.down``,
    ``drop.tx.length``, ``drop.tx.full``, ``drop.rx.down``, ``drop.rx.unbound``.
    """

    def __init__(
        self,
        clock: Clock,
        port: SwitchPort,
        mac: bytes,
        *,
        mtu: int = 1500,
        rate_bps: float = 0.0,
        delay_ns: int = 1_000,
        queue: int = 1024,
    ) -> None:
        super().__init__()
        self.name = port.name
        self.port = port
        self.mac = mac
        self.mtu = mtu
        self.rate_bps = rate_bps
        self.counters: Counter[str] = Counter()
        self._queue = queue
        self._waiting: deque[bytes] = deque()
        self._plugged = True
        self._flushing = self._again = False
        port.on_room = lambda _: self._flush()
        self._clock = clock
        self._delay_ns = delay_ns
        port.on_frames = self._interrupt
        self._take()

    @property
    def is_up(self) -> bool:
        return self._plugged and self.port.open

    @property
    def waiting(self) -> int:
        """Frames that wait for the switch."""
        return len(self._waiting)

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it; what waits is lost, and what the switch delivers is dropped."""
        if up == self._plugged:
            return
        self._plugged = up
        if not up:
            self.counters["drop.tx.down"] += len(self._waiting)
            self._waiting.clear()
        self.tell(self.is_up)

    def transmit(self, frame: bytes) -> bool:
        """Implements `EthernetPort.transmit`."""
        counters = self.counters
        if not self.is_up:
            counters["drop.tx.down"] += 1
            return False
        if not 14 <= len(frame) <= 18 + self.mtu:
            counters["drop.tx.length"] += 1
            return False
        if len(self._waiting) >= self._queue:
            counters["drop.tx.full"] += 1
            return False
        self._waiting.append(frame)
        self._flush()
        return True

    def _flush(self) -> None:
        # The switch may say that it has room while it is given a frame: that is looked at afterwards, in order.
        self._again = True
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._again:
                self._again = False
                while self._waiting and self.is_up and self.port.send(self._waiting[0]):
                    self._waiting.popleft()
                    self.counters["tx"] += 1
        finally:
            self._flushing = False

    def _interrupt(self) -> None:
        self._clock.call_at(self._clock.now() + self._delay_ns, self._take)

    def _take(self) -> None:
        while self.port.open and (found := self.port.receive()) is not None:
            if not self._plugged:
                self.counters["drop.rx.down"] += 1
                continue
            self.counters["rx"] += 1
            if not self.deliver(found.data):
                self.counters["drop.rx.unbound"] += 1


class TeamUplink:
    """A virtual switch's physical port leads to a team.

    port: the physical port; card: one of the virtual cards of a team with `TeamConfig.bridged`.  rate_bps: at which
    frames leave the switch, such as the sum of the members' rates: what is faster waits in the switch, and stops the
    machines that send.  While the team has no link, frames are dropped at its virtual card (``drop.tx.down``), as
    they are at any card: machines of the same switch go on talking to each other.  counters: ``tx`` and ``rx``, frames
    to and from the team; ``drop.tx.team``: those of ``tx`` that it did not take.
    """

    def __init__(self, clock: Clock, port: SwitchPort, card: EthernetPort, *, rate_bps: float) -> None:
        self.port = port
        self.card = card
        self.counters: Counter[str] = Counter()
        self.link = Link(clock, port, self._send, rate_bps=rate_bps)
        card.attach(self._received, lambda up: None)

    def _send(self, item: Item) -> None:
        self.counters["tx"] += 1
        if not self.card.transmit(item.data):
            self.counters["drop.tx.team"] += 1

    def _received(self, frame: bytes) -> None:
        self.counters["rx"] += 1
        if self.port.open:
            self.port.arrive(frame)


class LanMember(BurstMember):
    """A LAN-emulation card as a team's member.

    A team has addresses of its own, which are none of the LAN: to the LAN the card is a bridge.  Link events are passed
    on in a call of the clock's, not under the lock of the adapter.  queue: frames that wait while the card has no
    message free.
    """

    def __init__(
        self, clock: Clock, name: str, card: LanPort, *, rate_bps: float = 0.0, queue: int = 256
    ) -> None:
        super().__init__(name, card, rate_bps, queue=queue)
        self.card = card
        self._clock = clock
        card.become(Role.BRIDGE)

    def _happened(self, event: Any, detail: bytes) -> None:
        self._clock.call_at(self._clock.now(), partial(super()._happened, event, detail))

    def close(self) -> None:
        """Give the card back; the team has let it go before."""
        self.detach()
        self.card.detach()
        self.card.become(Role.NONE)
