"""The bridge of figure 6: nodes 12 and 14 on the fabric, 16 the bridge, 82, 84 and 86 on an ordinary Ethernet."""

from __future__ import annotations

from typing import Any

import pytest

from lan.lan_lab import BROADCAST, MS, SECOND, SMALL, TYPE, Ear, Lan, ethernet, host, two_ports
from verbena.errors import InvalidAttributeError
from verbena.lan import LanConfig, LanNode
from verbena.lan.bridge import Bridge
from verbena.lan.host import Host
from verbena.lan.segment import Segment
from verbena.lan.spanning_tree import PortState, SpanningTree, TreeTimes

FOREIGN = [bytes.fromhex(f"0050560000{n:02x}") for n in (82, 84, 86)]
QUICK = TreeTimes(hello_ns=SECOND // 5, max_age_ns=SECOND, forward_delay_ns=SECOND // 2)


class Data(Ear):
    """An ear that the bridges' own messages do not reach."""

    def take(self) -> list[bytes]:
        return [frame for frame in super().take() if frame[12:14] == TYPE.to_bytes(2, "big")]


class Figure6:
    """The LAN's nodes h0, h1 (12, 14), bridge h2 (16), and three hosts on a segment."""

    def __init__(self, bridges: int = 1, **changes: Any) -> None:
        config = LanConfig(**changes)
        self.lan = Lan(f"star hosts={2 + bridges}", lan=config)
        self.segment = Segment(self.lan.clock)
        self.hosts: dict[int, Host] = {}
        for number, name in ((12, "h0"), (14, "h1")):
            self.lan.lan_nodes[name] = LanNode(self.lan.device(name, limits=SMALL), config=config)
            self.hosts[number] = host(self.lan, self.lan.lan_nodes[name].card, number)
        for number, mac in zip((82, 84, 86), FOREIGN, strict=True):
            self.hosts[number] = host(self.lan, self.segment.port(mac), number)
        self.bridges = []
        for place in range(bridges):
            name = f"h{2 + place}"
            node = self.lan.lan_nodes[name] = LanNode(self.lan.device(name, limits=SMALL), config=config)
            outside = self.segment.port(bytes.fromhex(f"00505600ff{place:02x}"), filtering=False)
            self.bridges.append(Bridge(self.lan.clock, node.card, outside, times=QUICK))
        self.lan.settle(4 * SECOND)

    def ping(self, source: int, to: int, size: int = 56) -> bool:
        answer = self.hosts[source].ping(f"10.0.0.{to}", size)
        self.lan.settle(20 * MS)
        return answer.done and answer.error is None


@pytest.mark.requirement("LAN-26")
@pytest.mark.parametrize("fabric_multicast", ["auto", "off"])
def test_both_sides_reach_each_other_and_do_not_know(fabric_multicast: str) -> None:
    world = Figure6(fabric_multicast=fabric_multicast)
    for source, to in ((12, 82), (12, 84), (14, 86), (82, 12), (86, 14), (12, 14), (82, 84)):
        assert world.ping(source, to, 1400)
    for source, to in ((12, "fd00::52"), (84, "fd00::c")):
        v6 = world.hosts[source].v6
        assert v6 is not None
        answer = v6.ping(to)
        world.lan.settle(20 * MS)
        assert answer.result() > 0
    # The others' addresses are what they are: one host's table holds cards and foreign addresses alike.
    table = world.hosts[12].neighbours.entries()
    assert table[bytes((10, 0, 0, 82))] == FOREIGN[0]
    assert table[bytes((10, 0, 0, 14))] == world.lan.mac("h1")
    assert world.hosts[82].neighbours.entries()[bytes((10, 0, 0, 12))] == world.lan.mac("h0")
    # Broadcast and a protocol that is not IP: each hears it once.
    heard: dict[int, list[bytes]] = {number: [] for number in world.hosts}
    for number, each in world.hosts.items():
        each.other = heard[number].append
    for source in (12, 82):
        frame = ethernet(BROADCAST, world.hosts[source].port.mac, 300, kind=TYPE, seed=source)
        world.hosts[source].transmit(frame)
        world.lan.settle(5 * MS)
        assert {n for n, frames in heard.items() if frames == [frame]} == set(world.hosts) - {source}
        for frames in heard.values():
            frames.clear()
    frame = ethernet(FOREIGN[1], world.hosts[14].port.mac, 100, kind=TYPE)
    world.hosts[14].transmit(frame)
    world.lan.settle(5 * MS)
    assert heard[84] == [frame]
    assert not any(frames for n, frames in heard.items() if n != 84)
    world.lan.check_laws()


@pytest.mark.requirement("LAN-26")
def test_an_unknown_ethernet_host_is_flooded_for_as_on_ethernet() -> None:
    world = Figure6()
    silent = Data(world.segment.port(bytes.fromhex("005056000063")))
    frame = ethernet(silent.port.mac, world.hosts[12].port.mac, 80)
    world.hosts[12].transmit(frame)  # it has never said anything: nobody knows where it is
    world.lan.settle(5 * MS)
    assert silent.take() == [frame]
    assert world.bridges[0].counters["flooded"] >= 1
    assert world.lan.card("h0").counters["tx.unknown_unicast"] == 1
    nobody = ethernet(bytes.fromhex("005056000064"), world.hosts[12].port.mac)
    world.hosts[12].transmit(nobody)
    world.lan.settle(5 * MS)
    assert not silent.take()
    silent.send(world.hosts[12].port.mac)
    world.lan.settle(5 * MS)
    assert world.bridges[0].addresses()[silent.port.mac] == 1
    known = world.lan.card("h0").counters["tx.unknown_unicast"]
    world.hosts[12].transmit(frame)
    world.lan.settle(5 * MS)
    assert silent.take() == [frame]
    assert world.lan.card("h0").counters["tx.unknown_unicast"] == known  # the LAN has learnt it, too


@pytest.mark.requirement("LAN-26")
def test_two_bridges_make_no_loop_and_stand_in_for_each_other() -> None:
    world = Figure6(bridges=2)
    lan = world.lan
    states = [bridge.state(n) for bridge in world.bridges for n in (0, 1)]
    assert states.count(PortState.FORWARDING) == 3
    assert states.count(PortState.BLOCKING) == 1
    heard: list[bytes] = []

    def hear(frame: bytes) -> None:
        if frame[12:14] == TYPE.to_bytes(2, "big"):  # not the bridges' own messages
            heard.append(frame)

    for number in (12, 14, 82, 84, 86):
        world.hosts[number].other = hear
    before = lan.card("h0").counters["rx.frames"]
    for number in range(20):
        world.hosts[82].transmit(ethernet(BROADCAST, FOREIGN[0], 80, seed=number))
    lan.settle(500 * MS)
    assert len(heard) == 20 * 4
    assert lan.card("h0").counters["rx.frames"] - before < 20 + 10  # and the bridges' own few messages
    assert world.ping(12, 82)
    working = (
        0
        if world.bridges[0].state(1) is PortState.FORWARDING
        and world.bridges[0].state(0) is (PortState.FORWARDING)
        else 1
    )
    world.bridges[working].ports[1].set_link(False)  # type: ignore[attr-defined]
    lan.settle(6 * SECOND)
    assert [world.bridges[1 - working].state(n) for n in (0, 1)] == [PortState.FORWARDING] * 2
    assert world.ping(82, 12)
    assert world.ping(14, 84)


@pytest.mark.requirement("LAN-26")
def test_a_cable_from_the_bridge_to_itself() -> None:
    """Two ports of one bridge on the same segment: one of them is blocked."""
    lan = Lan("star hosts=1")
    segment = Segment(lan.clock)
    ports = [segment.port(bytes.fromhex(f"0050560000{n:02x}"), filtering=False) for n in (1, 2)]
    ear = Data(segment.port(bytes.fromhex("005056000003")))
    bridge = Bridge(lan.clock, *ports, times=QUICK)
    lan.settle(3 * SECOND)
    assert [bridge.state(n) for n in (0, 1)] == [PortState.FORWARDING, PortState.BLOCKING]
    ear.send(BROADCAST)
    lan.settle(SECOND)
    assert not ear.take()


def test_learning_ageing_moving_and_bounds() -> None:
    lan = Lan("star hosts=1")
    one, two = Segment(lan.clock), Segment(lan.clock)
    ears = [
        Ear(segment.port(mac)) for segment, mac in ((one, FOREIGN[0]), (one, FOREIGN[1]), (two, FOREIGN[2]))
    ]
    sides = [s.port(bytes(5) + bytes([n]), filtering=False) for n, s in enumerate((one, two), 1)]
    bridge = Bridge(lan.clock, *sides, spanning_tree=False, age_ns=SECOND, most_addresses=4)
    ears[0].send(FOREIGN[2])  # unknown: to both segments
    lan.settle(MS)
    assert len(ears[2].take()) == 1
    ears[1].send(FOREIGN[0])
    lan.settle(MS)
    assert bridge.counters["filtered"] == 1  # both are on one side
    ears[2].send(FOREIGN[0])
    lan.settle(MS)
    assert bridge.counters["forwarded"] == 1
    assert bridge.addresses() == {FOREIGN[0]: 0, FOREIGN[1]: 0, FOREIGN[2]: 1}
    two.carry(sides[0], ethernet(BROADCAST, FOREIGN[0]))  # it has moved to the other side
    lan.settle(MS)
    assert bridge.addresses()[FOREIGN[0]] == 1
    assert bridge.counters["addresses.moved"] == 1
    lan.settle(2 * SECOND)
    assert bridge.addresses() == {}
    for number in range(50):
        one.carry(ears[0].port, ethernet(BROADCAST, bytes.fromhex("0a0000000000")[:5] + bytes([number])))
    lan.settle(MS)
    assert len(bridge.addresses()) == 4
    one.carry(ears[0].port, ethernet(BROADCAST, b"\x01" + bytes(5)))
    one.carry(ears[0].port, ethernet(bytes.fromhex("0180c2000003"), FOREIGN[0]))
    lan.settle(MS)
    assert bridge.counters["drop.malformed"] == 1
    assert bridge.counters["drop.reserved"] == 1
    bridge.close()
    with pytest.raises(InvalidAttributeError):
        Bridge(lan.clock, sides[0])


@pytest.mark.requirement("LAN-27", "LAN-01")
def test_between_two_fabrics() -> None:
    """d1 has a port in each of two subnets, and bridges them; d2 stands for hosts with one port in each."""
    lan = Lan(two_ports(subnets=2), managers=("h3", "m2"))
    left, right = LanConfig(number=1), LanConfig(number=2)
    device = lan.device("d1", limits=SMALL)
    bridge_cards = [
        LanNode(device, config=left, ports=(1,)).card,
        LanNode(device, config=right, ports=(2,)).card,
    ]
    hosts = {}
    for number, (name, config) in enumerate((("h3", left), ("m2", right)), 1):
        node = lan.lan_nodes[name] = LanNode(lan.device(name, limits=SMALL), config=config)
        hosts[number] = host(lan, node.card, number)
    lan.settle(SECOND)
    assert all(card.link for card in bridge_cards)
    unbridged = hosts[1].ping("10.0.0.2")
    lan.settle(5 * SECOND)
    assert unbridged.error is not None  # another subnet is not reached without a bridge
    bridge = Bridge(lan.clock, *bridge_cards, times=QUICK)
    lan.settle(3 * SECOND)
    pings = [hosts[1].ping("10.0.0.2", 1400), hosts[2].ping("10.0.0.1")]
    lan.settle(50 * MS)
    assert all(ping.result() > 0 for ping in pings)
    assert hosts[1].neighbours.entries()[hosts[2].ip] == lan.mac("m2")
    assert bridge.counters["forwarded"] > 0


def test_a_tree_of_three_bridges_and_hostile_messages() -> None:
    """Three bridges in a ring: one port blocks, the root is the lowest; forged or stale messages change nothing."""
    lan = Lan("star hosts=1")
    clock = lan.clock
    segments = [Segment(clock) for _ in range(3)]
    bridges = []
    for n in range(3):
        ports = [segments[s].port(bytes((2, 0, 0, 0, n, s)), filtering=False) for s in (n, (n + 1) % 3)]
        bridges.append(Bridge(clock, *ports, times=QUICK, priority=0x8000 - n))
    lan.settle(4 * SECOND)
    states = [b.state(p) for b in bridges for p in (0, 1)]
    assert states.count(PortState.BLOCKING) == 1
    assert states.count(PortState.FORWARDING) == 5
    roots = {b.tree.root.root for b in bridges if b.tree is not None}
    assert len(roots) == 1
    assert roots.pop() >> 48 == 0x8000 - 2
    tree = bridges[0].tree
    assert isinstance(tree, SpanningTree)
    for bad in (b"", bytes(60), bytes(14) + b"\x42\x42\x03", bytes(14) + b"\x42\x42\x03" + bytes(10)):
        tree.received(0, bad)
    lan.settle(SECOND)
    assert [b.state(p) for b in bridges for p in (0, 1)] == states
