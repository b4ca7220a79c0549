"""Ethernet in virtual time: cards, cables and switches that forward real frames.

A card serializes frames at its rate, and drops what its queue does not hold.  A switch learns addresses by VLAN
(IEEE 802.1Q, 8.8), floods what it does not know, and can take several of its ports for one link: by configuration, or
because the other end says so by LACP.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial

from verbena.clock import Clock
from verbena.team.card import Upper
from verbena.team.frames import flow_of, take_tag
from verbena.team.lacp import Aggregator, LacpPort, LacpTimes
from verbena.wire.lacp import ETHERTYPE_SLOW, SLOW_PROTOCOLS_GROUP, Lacpdu

OVERHEAD = 24
"""Preamble, frame check sequence and gap, bytes."""
SMALLEST = 60
AGING_NS = 300_000_000_000
"""IEEE 802.1Q, table 8-6."""


class VirtualCard(Upper):
    """A card with one end of a cable.  Implements `team.card.EthernetPort`.

    queue_ns: how much may wait to be sent, in time; more is dropped.  `set_link`
    pulls the cable at this end, `silent` breaks the card without telling anybody.  counters: ``tx``, ``rx``,
    ``tx.bytes``, ``rx.bytes``, drops by reason.  watch: called with (direction, frame) for each frame that passes.
    """

    def __init__(
        self,
        clock: Clock,
        name: str,
        mac: bytes,
        *,
        mtu: int = 1500,
        rate_bps: float = 10e9,
        delay_ns: int = 1_000,
        queue_ns: int = 2_000_000,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.rate_bps = rate_bps
        self.delay_ns = delay_ns
        self.queue_ns = queue_ns
        self.silent = False
        self.counters: Counter[str] = Counter()
        self.watch: Callable[[str, bytes], None] | None = None
        self.side: Callable[[bytes], bool] | None = None
        """Takes frames before those above do: the RDMA part of a card."""
        self.side_changed: Callable[[bool], None] | None = None
        self.free_at = 0
        self.peer: VirtualCard | None = None
        self._pulled = False
        self._was_up = False

    @property
    def is_up(self) -> bool:
        return self.peer is not None and not self._pulled and not self.peer._pulled

    def plug(self, peer: VirtualCard) -> None:
        """Join two cards by a cable."""
        self.peer, peer.peer = peer, self
        self._check()

    def set_link(self, up: bool) -> None:
        """Pull the cable, or plug it in again; both ends notice at once, and what is on its way is lost."""
        self._pulled = not up
        self._check()

    def _check(self) -> None:
        for card in (self, self.peer):
            if card is not None and card._was_up != card.is_up:
                card._was_up = card.is_up
                if card.side_changed is not None:
                    card.side_changed(card.is_up)
                card.tell(card.is_up)

    def transmit(self, frame: bytes) -> bool:
        """Implements `EthernetPort.transmit`."""
        counters = self.counters
        if not self.is_up or self.silent:
            counters["drop.tx.down"] += 1
            return self.silent
        if len(frame) > 18 + self.mtu:
            counters["drop.tx.length"] += 1
            return False
        now = self.clock.now()
        start = max(now, self.free_at)
        if start - now > self.queue_ns:
            counters["drop.tx.full"] += 1
            return False
        size = max(len(frame), SMALLEST)
        self.free_at = start + round((size + OVERHEAD) * 8e9 / self.rate_bps)
        counters["tx"] += 1
        counters["tx.bytes"] += len(frame)
        if self.watch is not None:
            self.watch("out", frame)
        assert self.peer is not None
        self.clock.call_at(self.free_at + self.delay_ns, partial(self.peer._arrive, frame))
        return True

    def _arrive(self, frame: bytes) -> None:
        if not self.is_up or self.silent:
            self.counters["drop.rx.down"] += 1
            return
        self.counters["rx"] += 1
        self.counters["rx.bytes"] += len(frame)
        if self.watch is not None:
            self.watch("in", frame)
        if self.side is not None and self.side(frame):
            return
        if not self.deliver(frame):
            self.counters["drop.rx.unbound"] += 1


class VirtualSwitch:
    """A learning switch.

    lag: ports that are one link, by configuration.  With `lacp`, ports are aggregated as the partner at their other end
    wants it.  counters: ``forwarded``, ``flooded``, drops by reason.
    """

    def __init__(
        self,
        clock: Clock,
        name: str = "switch",
        *,
        rate_bps: float = 10e9,
        delay_ns: int = 1_000,
        mtu: int = 9_000,
        queue_ns: int = 2_000_000,
        lacp: bool = False,
        lacp_times: LacpTimes | None = None,
    ) -> None:
        self.clock = clock
        self.name = name
        self.ports: list[VirtualCard] = []
        self.counters: Counter[str] = Counter()
        self.table: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._settings = {"rate_bps": rate_bps, "delay_ns": delay_ns, "mtu": mtu, "queue_ns": queue_ns}
        self._lacp = lacp
        self._times = lacp_times
        self._lag_of: dict[int, int] = {}
        self._lags: dict[int, list[int]] = {}
        self._control: dict[int, LacpPort] = {}
        self._aggregators: dict[bytes, Aggregator] = {}
        self.mac = b"\x02\x5a" + zlib.crc32(name.encode()).to_bytes(4, "big")

    def plug(self, card: VirtualCard) -> VirtualCard:
        """Join a card to a new port, which is returned."""
        number = len(self.ports)
        mac = self.mac[:4] + (number + 1).to_bytes(2, "big")
        port = VirtualCard(self.clock, f"{self.name}[{number}]", mac, **self._settings)  # type: ignore[arg-type]
        port.rate_bps = card.rate_bps
        self.ports.append(port)
        port.attach(partial(self._received, number), partial(self._changed, number))
        if self._lacp:
            self._control[number] = self._control_port(number)
        port.plug(card)
        return port

    def lag(self, *ports: VirtualCard) -> None:
        """Take these ports for one link."""
        numbers = [self.ports.index(port) for port in ports]
        for number in numbers:
            self._lag_of[number] = numbers[0]
        self._lags[numbers[0]] = numbers

    # --- LACP ---------------------------------------------------------------------------------------------

    def _control_port(self, number: int) -> LacpPort:
        def send(pdu: Lacpdu) -> None:
            self.ports[number].transmit(pdu.frame(self.ports[number].mac))

        return LacpPort(
            self.clock,
            self.mac,
            number + 1,
            1,
            send,
            lambda _: self._select(),
            self.counters,
            times=self._times,
        )

    def _select(self) -> None:
        """One aggregator for each partner, as a switch has it."""
        by_partner: dict[bytes, list[int]] = {}
        for number, port in self._control.items():
            if port.is_individual:
                port.select(False)
            else:
                by_partner.setdefault(port.partner.system, []).append(number)
        self._lags.clear()
        self._lag_of.clear()
        for numbers in by_partner.values():
            for number in numbers:
                self._control[number].select(True)
            passing = [number for number in numbers if self._control[number].distributing]
            for number in passing:
                self._lag_of[number] = passing[0]
            if passing:
                self._lags[passing[0]] = passing

    def _may_pass(self, number: int) -> bool:
        port = self._control.get(number)
        return port is None or port.is_individual or port.distributing

    def _changed(self, number: int, up: bool) -> None:
        if not up:
            home = self._lag_of.get(number, number)
            others = [n for n in self._lags.get(home, ()) if n != number and self.ports[n].is_up]
            if not others:
                self.table = {key: entry for key, entry in self.table.items() if entry[0] != home}
        if number in self._control:
            self._control[number].link(up)

    # --- forwarding ---------------------------------------------------------------------------------------

    def _received(self, number: int, frame: bytes) -> None:
        if len(frame) < 14:
            self.counters["drop.short"] += 1
            return
        if (
            frame[:5] == SLOW_PROTOCOLS_GROUP[:5] and frame[5] < 16
        ):  # never forwarded (IEEE 802.1Q, table 8-1)
            if number in self._control and frame[12] << 8 | frame[13] == ETHERTYPE_SLOW:
                self._control[number].receive(frame[14:])
            else:
                self.counters["drop.reserved"] += 1
            return
        if not self._may_pass(number):
            self.counters["drop.not_collecting"] += 1
            return
        vlan, plain = take_tag(frame)
        home = self._lag_of.get(number, number)
        now = self.clock.now()
        if not plain[6] & 1:
            self.table[vlan, plain[6:12]] = (home, now)
        found = None if plain[0] & 1 else self.table.get((vlan, plain[:6]))
        if found is not None and now - found[1] < AGING_NS:
            if found[0] == home:
                self.counters["drop.same_port"] += 1
                return
            self.counters["forwarded"] += 1
            self._send(found[0], frame, plain, vlan)
            return
        self.counters["flooded"] += 1
        homes = {self._lag_of.get(n, n) for n in range(len(self.ports))}
        for each in sorted(homes - {home}):
            self._send(each, frame, plain, vlan)

    def _send(self, home: int, frame: bytes, plain: bytes, vlan: int) -> None:
        numbers = [n for n in self._lags.get(home, (home,)) if self.ports[n].is_up and self._may_pass(n)]
        if not numbers:
            self.counters["drop.down"] += 1
            return
        number = numbers[0]
        if len(numbers) > 1:
            flow = flow_of(plain, vlan)
            number = numbers[zlib.crc32(flow.layer4 or flow.destination + flow.source) % len(numbers)]
        self.ports[number].transmit(frame)
