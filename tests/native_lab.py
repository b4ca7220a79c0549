"""Adapters with InfiniBand ports, joined by nothing but addresses: packets go from engine to engine in virtual time.

No switch, no lanes, no credits: what is tested here is what adapters do by themselves.  Every packet is decoded by the
wire codec on its way, and its CRC checked.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import Any

from lab import check_received
from verbena import Context, QPType
from verbena.adapter.attributes import HOST_ADAPTER, DeviceAttributes
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.adapter.native import KeyViolation
from verbena.adapter.port import AdapterPort
from verbena.runtime.pairs import Side, make_side
from verbena.runtime.virtual import EngineDriver
from verbena.runtime.virtual_time import VirtualClock
from verbena.wire import GRH, NativePacket
from verbena.wire.crc import vcrc
from verbena.wire.packet import decode_infiniband

RC, UC, UD = QPType.RC, QPType.UC, QPType.UD
BUFFER = 65_536
DELAY_NS = 1_000


class Sent:
    """One packet that left an adapter."""

    def __init__(self, when: int, driver: NativeDriver, port: int, data: bytes) -> None:
        self.when, self.driver, self.port, self.data = when, driver, port, data
        decoded = decode_infiniband(data + vcrc(data).to_bytes(2, "big"))
        assert decoded.encode()[:-2] == data
        self.packet: Any = decoded
        if isinstance(decoded, NativePacket):  # else a raw packet: it has no transport header, and no ICRC
            assert decoded.icrc_ok
            self.bth = decoded.transport.bth

    @property
    def is_answer(self) -> bool:
        return 13 <= self.bth.opcode & 0x1F <= 18

    def __repr__(self) -> str:
        return (
            f"<{self.when} {self.packet.transport.info.name} {self.packet.lrh.slid}->{self.packet.lrh.dlid}>"
        )


class NativeDriver(EngineDriver):
    """Runs one adapter of a `NativeLab`."""

    def __init__(self, lab: NativeLab, adapter: ChannelAdapter) -> None:
        super().__init__(adapter, lab.clock)
        self.lab = lab
        self.adapter = adapter

    def arrived(self, data: bytes, port: int) -> None:
        if self._open:
            self.lab.delivered += 1
            packet = bytearray(data)
            self._engine.receive_native(packet, port, self.clock.now())
            self.kick()

    def _send(self) -> None:
        while (made := self._engine.transmit(self._buffer, self.clock.now())) is not None:
            size, segment, path = made
            port = self._engine.path_port(path)
            for at in range(0, size, segment):
                data = bytes(self._buffer[at : min(at + segment, size)])
                self.lab.carry(Sent(self.clock.now(), self, port, data))


class NativeLab:
    """Adapters on one subnet, or several: `subnet` of a port's `Cable` says where its LIDs mean something.

    `gate`, if set, is asked of each packet what goes on instead of it: a list of packets' bytes.  A `cut` port carries
    nothing, but keeps its state.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.clock = VirtualClock()
        self.random = Random(seed)
        self.drivers: list[NativeDriver] = []
        self.subnets: dict[tuple[NativeDriver, int], str] = {}
        self.cut: set[tuple[NativeDriver, int]] = set()
        self.log: list[Sent] = []
        self.gate: Callable[[Sent], list[bytes]] | None = None
        self.lost = self.delivered = 0
        self.digest = sha256()
        self.net = self  # what runs traffic asks this of a lab's network
        self.violations: list[KeyViolation] = []
        self._lid = 16

    def adapter(
        self,
        ports: int = 1,
        *,
        lmc: int = 0,
        up: bool = True,
        subnets: tuple[str, ...] = (),
        limits: DeviceAttributes = HOST_ADAPTER,
        prefix: int = 0xFE80 << 48,
        mtu: int = 4096,
        **options: Any,
    ) -> Context:
        """An adapter with that many ports; `up`: each ACTIVE, with 2^lmc LIDs of its own."""
        number = len(self.drivers) + 1
        guid = 0x02_76_62_00 << 32 | number << 8
        made = [AdapterPort(n, guid + n, gid_prefix=prefix, mtu=mtu) for n in range(1, ports + 1)]
        random = Random(f"{self.seed} {number}")
        channel = ChannelAdapter(None, limits, clock=self.clock, random=random, ports=made, **options)
        driver = NativeDriver(self, channel)
        channel.on_violation = self.violations.append
        self.drivers.append(driver)
        for port in made:
            self.subnets[driver, port.number] = subnets[port.number - 1] if subnets else "A"
            if up:
                port.bring_up(self._lid, lmc)
                self._lid += 1 << max(lmc, 3)
        context = Context(channel, driver)
        for port in made:
            channel.port_changed(port.number)
        while up and context.get_async_event(0):
            pass
        return context

    def disturb(self, random: Random, rate: float) -> None:
        """Lose, double, delay and damage packets from now on, each with this probability."""

        def gate(sent: Sent) -> list[bytes]:
            fate = random.random()
            if fate < rate:
                self.lost += 1
                return []
            if fate < 2 * rate:
                return [sent.data, sent.data]
            if fate < 3 * rate:
                later = self.clock.now() + random.randrange(20_000)
                self.clock.call_at(later, lambda: self.deliver(sent, sent.data))
                return []
            if fate < 4 * rate:
                damaged = bytearray(sent.data)
                damaged[random.randrange(8, len(damaged))] ^= 1 << random.randrange(8)
                return [bytes(damaged)]
            return [sent.data]

        self.gate = gate

    def carry(self, sent: Sent) -> None:
        self.digest.update(b"%d %d " % (sent.when, sent.port) + sent.data)
        self.log.append(sent)
        if (sent.driver, sent.port) in self.cut:
            self.lost += 1
            return
        for data in [sent.data] if self.gate is None else self.gate(sent):
            self.deliver(sent, data)

    def deliver(self, sent: Sent, data: bytes) -> None:
        """To whoever has the destination LID in the sender's subnet; multicast to everybody else there."""
        subnet = self.subnets[sent.driver, sent.port]
        dlid = int.from_bytes(data[2:4], "big")
        found = False
        for (driver, number), name in self.subnets.items():
            if name != subnet or (driver, number) == (sent.driver, sent.port):
                continue
            if dlid in driver.adapter.ports[number - 1].lids or dlid >= 0xC000:
                if (driver, number) in self.cut:
                    continue
                found = True
                self.clock.call_at(
                    self.clock.now() + DELAY_NS, lambda d=driver, n=number, p=data: d.arrived(p, n)
                )
        self.lost += not found

    def pair(
        self, service: QPType = RC, *, memory: int = 1 << 16, sizes: Any = None, **attributes: Any
    ) -> Any:
        """A connected queue pair on each of two adapters with one port (made, if there are none)."""
        contexts = [context_of(driver) for driver in self.drivers[:2]] or [self.adapter(), self.adapter()]
        a, b = (make_side(ctx, service, memory, **(sizes or {})) for ctx in contexts)
        join(a, b, **attributes)
        return a, b

    def settle(self) -> None:
        """Let everything happen that is going to."""
        self.run(20_000_000_000)
        assert self.clock.next_time() is None

    def check_laws(self) -> None:
        """Every packet that arrived, or stayed inside, was counted once, under one name."""
        counters = [driver.adapter.engine.read_counters() for driver in self.drivers]
        for c in counters:
            check_received(c)
        arrived = sum(c["rx.packets"] - c["looped.packets"] for c in counters)
        assert arrived == self.delivered
        sent = sum(c["tx.packets"] - c["looped.packets"] - c["drop.tx_port_down"] for c in counters)
        assert sent == len(self.log)

    def run_for(self, duration_ns: int) -> None:
        self.run(duration_ns)

    def run(self, duration_ns: int = 10_000_000) -> None:
        """Let that much time pass."""
        end = self.clock.now() + duration_ns
        while (following := self.clock.next_time()) is not None and following <= end:
            self.clock.step()
        self.clock.advance(end)


def context_of(driver: NativeDriver) -> Context:
    """A second program's context on an adapter."""
    return Context(driver.adapter, driver)


def join(a: Side, b: Side, **attributes: Any) -> None:
    """Connect two ends, or bring datagram queue pairs to RTS."""
    if a.qp.type is UD:
        a.qp.activate(**attributes)
        b.qp.activate(**attributes)
    else:
        there, here = b.qp.endpoint, a.qp.endpoint
        a.qp.connect(there, **attributes)
        b.qp.connect(here, **attributes)


def global_header(data: bytes) -> GRH | None:
    """The GRH of a packet, if it has one."""
    return GRH.unpack(memoryview(data)[8:]) if data[1] & 3 == 3 else None
