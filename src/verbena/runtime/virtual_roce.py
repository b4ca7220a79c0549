"""RDMA cards on simulated Ethernet: RoCEv2 packets share a card's cable with its other frames, bit for bit.

`EthernetNetwork` is a virtual network whose adapters have no links of their own: what they send goes as Ethernet, IPv4
and UDP out of a `VirtualCard`, through whatever switches there are, and can be captured like everything else.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from verbena.adapter.attributes import DeviceAttributes
from verbena.adapter.gid import Gid
from verbena.errors import InvalidAttributeError
from verbena.runtime.virtual import VirtualNetwork, VirtualWire
from verbena.runtime.virtual_ethernet import VirtualCard
from verbena.runtime.virtual_time import VirtualClock
from verbena.runtime.wires import MAPPED, Burst, Wire, ip_packet
from verbena.verbs.context import Context
from verbena.wire.ip import ETHERTYPE_IPV4, PROTOCOL_UDP, ROCE_PORT, UDP, IPv4, internet_checksum

_TYPE = ETHERTYPE_IPV4.to_bytes(2, "big")
_PORT = ROCE_PORT.to_bytes(2, "big")


class RoceWire(Wire):
    """An adapter's wire, which is a card.  neighbours: IPv4 address -> Ethernet address."""

    def __init__(self, inner: VirtualWire, card: VirtualCard, neighbours: dict[bytes, bytes]) -> None:
        super().__init__()
        self.card = card
        self.inner = inner
        self.address = inner.gid[12:]
        self.counters: Counter[str] = Counter()
        self._neighbours = neighbours
        neighbours[self.address] = card.mac
        card.side = self._arrived
        card.side_changed = lambda up: inner.on_change(up)

    def send(self, burst: Burst) -> None:
        mac = self._neighbours.get(burst.destination[12:])
        for packet in burst.packets():
            if mac is None:
                self.counters["drop.tx.unresolved"] += 1
                continue
            data = ip_packet(packet)
            summed = internet_checksum(data[:20]).to_bytes(2, "big")
            self.card.transmit(mac + self.card.mac + _TYPE + data[:10] + summed + data[12:])
        self.inner.free_at = self.card.free_at

    def _arrived(self, frame: bytes) -> bool:
        """Is it the adapter's?"""
        if frame[12:14] != _TYPE or frame[23:24] != bytes((PROTOCOL_UDP,)) or frame[36:38] != _PORT:
            return False
        if frame[:6] != self.card.mac or frame[30:34] != self.address or frame[14] != 0x45:
            return False
        if internet_checksum(frame[14:34]):
            self.counters["drop.rx.checksum"] += 1
            return True
        ip, udp = IPv4.unpack(frame, 14), UDP.unpack(frame, 34)
        data = frame[42 : 34 + udp.length]
        burst = Burst(
            data,
            len(data),
            MAPPED + ip.src,
            MAPPED + ip.dst,
            udp.dst_port,
            udp.src_port,
            ip.tos,
            ip.ttl,
            ip.identification,
        )
        self.receiver(burst)
        return True

    def close(self) -> None:
        self.card.side = self.card.side_changed = None
        self._neighbours.pop(self.address, None)
        self.inner.close()


class EthernetNetwork(VirtualNetwork):
    """Virtual time with RDMA cards on Ethernet."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, delay_ns=0, wrap=self._on_card)
        self.neighbours: dict[bytes, bytes] = {}
        self._card: VirtualCard | None = None

    def _on_card(self, wire: Wire, clock: VirtualClock, random: Random) -> Wire:
        assert isinstance(wire, VirtualWire)
        assert self._card is not None
        return RoceWire(wire, self._card, self.neighbours)

    def open_rdma(
        self, card: VirtualCard, address: str, *, limits: DeviceAttributes | None = None
    ) -> Context:
        """An adapter at an IPv4 address of its own, on a card.  Its path MTU is the largest that the card's holds."""
        if not Gid.from_ip(address).is_ip4:
            raise InvalidAttributeError(f"{address}: adapters on simulated Ethernet have IPv4 addresses")
        mtu = max(size for size in (256, 512, 1024, 2048, 4096) if size + 80 <= max(card.mtu, 336))
        self._card = card
        base = limits or DeviceAttributes(name=card.name, max_qp=4096, max_cq=4096)
        try:
            return self.open_device(address, mtu=mtu, limits=replace(base, name=card.name))
        finally:
            self._card = None
