"""The short way through a team does what the long way does: the same frames on the same members, the same counters."""

from __future__ import annotations

import struct
from collections import Counter
from random import Random

import pytest

from verbena.runtime.virtual_time import VirtualTime
from verbena.team.balance import Mode
from verbena.team.card import BusDriver, Upper
from verbena.team.config import TeamConfig
from verbena.team.driver import IntermediateDriver
from verbena.team.frames import OffloadFrame, add_tag
from verbena.team.trace import PathTrace
from verbena.wire.offload import PLAIN, OffloadHeader

PEERS = [bytes((2, 9, 9, 9, 9, number)) for number in range(3)]
LARGE = OffloadHeader(1, 1, 54, 1448, 34, 16).pack()


class Port(Upper):
    """Keeps what it is given.  in_parts: it takes frames in two parts, as packet sockets do."""

    mtu, rate_bps, is_up = 1500, 0.0, True

    def __init__(self, name: str, mac: bytes, in_parts: bool) -> None:
        super().__init__()
        self.name, self.mac = name, mac
        self.sent: list[tuple[bytes, bytes]] = []
        self.takes = True
        self.breaks = False
        if in_parts:
            self.transmit_parts = self._parts

    def transmit(self, frame: bytes) -> bool:
        self.sent.append((bytes(frame), getattr(frame, "header", PLAIN)))
        return self.takes

    def _parts(self, front: bytes, rest: memoryview, header: bytes) -> bool:
        if self.breaks:
            self.tell(False)
            return False
        self.sent.append((front + rest, header))
        return self.takes


class Host:
    """A team, and everything that can be seen of it.  short: frames are offered to the short way first."""

    def __init__(self, config: TeamConfig, short: bool, in_parts: bool) -> None:
        self.net = VirtualTime()
        self.short = short
        self.up: list[tuple[str, bytes, bytes]] = []
        trace = PathTrace(self.net.clock)
        self.driver = IntermediateDriver(self.net.clock, config, trace, bytes.fromhex("020000000100"))
        self.ports = [Port(f"nic{i}", bytes((2, 0, 0, 0, 1, i + 1)), in_parts) for i in range(4)]
        for port in self.ports[:3]:
            self.add(port)
        for card in self.driver.cards:
            card.attach(lambda frame, card=card: self.come(card, frame), lambda up: None)  # type: ignore[misc]
        self.shortened = 0

    def add(self, port: Port) -> None:
        bus = BusDriver(port, self.driver.trace) if port.name in ("nic1", "nic2") else None  # type: ignore[arg-type]
        self.driver.add(port, bus=bus)

    def come(self, card: object, frame: bytes) -> None:
        self.up.append((card.name, bytes(frame), getattr(frame, "header", PLAIN)))  # type: ignore[attr-defined]

    def send(self, number: int, frame: bytes, header: bytes) -> None:
        card = self.driver.cards[number]
        if self.short and self.driver.passages.down(card, memoryview(bytearray(frame)), header):
            self.shortened += 1
            return
        card.transmit(OffloadFrame(frame, header) if header != PLAIN else frame)

    def receive(self, number: int, vlan: int, frame: bytes, header: bytes) -> None:
        """As `PacketPort` has it: the tag is beside the frame."""
        port = self.ports[number]
        if (
            self.short
            and port.on_view is not None
            and port.on_view(vlan, memoryview(bytearray(frame)), header)
        ):
            self.shortened += 1
            return
        port.deliver(add_tag(OffloadFrame(frame, header) if header != PLAIN else frame, vlan))

    def seen(self) -> tuple[object, ...]:
        driver = self.driver
        counters = [m.counters for m in driver.members] + [c.counters for c in driver.cards]
        buses = [m.branch.bus.counters for m in driver.members if m.branch.bus is not None]
        loads = [m.meter.rate(self.net.clock.now()) for m in driver.members]
        return [p.sent for p in self.ports], self.up, [*counters, *buses, Counter(driver.counters)], loads


def packet(random: Random) -> bytes:
    """What follows the addresses: TCP, UDP and ICMP over IPv4 and IPv6, fragments, options, ARP, rubbish."""
    what = random.randrange(9)
    ports = struct.pack(">HH", random.randrange(3), 9000)
    body = ports + random.randbytes(random.choice((16, 40, 1400)))
    if what == 0:
        return b"\x08\x06" + random.randbytes(28)
    if what == 1:
        return random.randbytes(random.choice((2, 20, 60)))
    protocol = random.choice((6, 6, 17, 1, 58))
    if what < 4:
        addresses = bytes(15) + bytes((random.randrange(2),)) + bytes(16)
        return b"\x86\xdd\x60\0\0\0" + struct.pack(">HBB", len(body), protocol, 64) + addresses + body
    first = random.choice((0x45, 0x45, 0x45, 0x46))
    fragment = random.choice((0, 0x4000, 0x4000, 0x2000, 0x0010))
    head = struct.pack(">BBHHHBBH", first, 0, 20 + len(body), random.randrange(9), fragment, 64, protocol, 0)
    return b"\x08\0" + head + bytes((10, 0, 0, random.randrange(2), 10, 0, 0, 9)) + body


CONFIGS = [
    TeamConfig(mode=mode, vlans=(0, 10), rdma_vlan=20, **more)  # type: ignore[arg-type]
    for mode in Mode
    for more in ({}, {"aggregated": True}, {"aggregated": True, "upload_over_team": True}, {"bridged": True})
]


@pytest.mark.requirement("TEM-02", "TEM-05")
@pytest.mark.parametrize("in_parts", (False, True))
def test_both_ways_do_the_same(seed: int, in_parts: bool) -> None:
    random, shortened = Random(seed), 0
    for config in CONFIGS:
        hosts = [Host(config, short, in_parts) for short in (False, True)]
        driver = hosts[0].driver
        own = [driver.mac, driver.cards[-1].mac, *(port.mac for port in hosts[0].ports)]
        for _ in range(300):
            number, header = random.randrange(3), random.choice((PLAIN, PLAIN, LARGE))
            step = random.random()
            if step < 0.45:
                source = random.choice((driver.cards[number].mac,) * 6 + (PEERS[2],))
                frame = random.choice(PEERS) + source + packet(random)
                for host in hosts:
                    host.send(number, frame, header)
            elif step < 0.9:
                vlan = random.choice((0, 10, 20, 30))
                source = random.choice((*PEERS, *PEERS, random.choice(own)))
                frame = random.choice((*own, PEERS[0], b"\xff" * 6)) + source + packet(random)
                for host in hosts:
                    host.receive(number, vlan, frame, header)
            elif step < 0.95:
                change = random.randrange(5)
                for host in hosts:
                    self_driver, port = host.driver, host.ports[number]
                    names = [member.name for member in self_driver.members]
                    if change == 0 and port.name in names:
                        self_driver.fail(port.name)
                    elif change == 1 and port.name in names:
                        self_driver.recover(port.name)
                    elif change == 2 and port.name in names:
                        self_driver.remove(port.name)
                    elif change == 3 and port.name not in names:
                        host.add(port)
                    elif change == 4:
                        port.takes = not port.takes
            else:
                wait = random.choice((10_000, 1_000_000, 30_000_000))
                for host in hosts:
                    host.net.run_for(wait)
            for one, other in zip(hosts[0].seen(), hosts[1].seen(), strict=True):
                assert one == other
        shortened += hosts[1].shortened
    assert shortened > 20 * len(CONFIGS)


@pytest.mark.requirement("TEM-03")
def test_a_link_that_goes_while_a_frame_is_sent_costs_no_frame() -> None:
    host = Host(TeamConfig(mode=Mode.ACTIVE_BACKUP), True, True)
    first, second, third = host.ports[:3]
    frame = PEERS[0] + host.driver.mac + b"\x08\0\x45\0\0\x28" + bytes(4) + b"\x40\x06\0\0" + bytes(28)
    second.breaks = first.breaks = True
    before = len(third.sent)
    for _ in range(3):
        host.send(0, frame, PLAIN)
    carried = [sent for sent, _ in third.sent[before:] if sent[12:14] == b"\x08\0"]
    assert len(carried) == 3
    assert [m.name for m in host.driver.usable] == ["nic2"]
    third.breaks = True
    host.send(0, frame, PLAIN)
    assert host.driver.counters["drop.tx.no_member"] == 1
    assert host.shortened == 4
