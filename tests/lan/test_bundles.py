"""Several cards as one: the intermediate driver shares load, stands in for lost ports, and stays in one subnet."""

from __future__ import annotations

from typing import Any

import pytest

from lan.lan_lab import MS, SMALL, Lan, host, two_ports
from verbena.errors import InvalidAttributeError
from verbena.fabric.topology import NodeKind, Topology
from verbena.lan import LanConfig, LanNode
from verbena.lan.intermediate import IntermediateDriver, conversation


def bundle(lan: Lan, name: str) -> IntermediateDriver:
    return IntermediateDriver(lan.clock, *lan.lan_nodes[name].cards)


def bundled(**changes: Any) -> tuple[Lan, dict[str, IntermediateDriver], dict[str, Any]]:
    """d1 and d2 with both ports bundled, h3 with one; a built-in host on each."""
    lan = Lan(two_ports(), **changes)
    nodes = {}
    for name in ("d1", "d2", "h3"):
        nodes[name] = lan.lan_nodes[name] = LanNode(lan.device(name, limits=SMALL), config=lan.lan)
    lan.settle(20 * MS)
    bundles = {name: bundle(lan, name) for name in ("d1", "d2")}
    lan.settle(20 * MS)
    hosts = {name: host(lan, bundles[name], n + 1) for n, name in enumerate(bundles)}
    hosts["h3"] = host(lan, nodes["h3"].card, 3)
    lan.settle(20 * MS)
    return lan, bundles, hosts


@pytest.mark.requirement("LAN-23")
@pytest.mark.parametrize("fabric_multicast", ["auto", "off"])
def test_two_ports_are_one_card_share_load_and_stand_in_for_each_other(fabric_multicast: str) -> None:
    lan, bundles, hosts = bundled(lan=LanConfig(fabric_multicast=fabric_multicast))
    d1 = bundles["d1"]
    assert len(d1.active) == 2
    assert d1.mac == lan.lan_nodes["d1"].cards[0].mac == lan.lan_nodes["d1"].cards[1].mac
    got: list[tuple[int, bytes]] = []
    hosts["d2"].listen(9, lambda ip, port, data: got.append((port, data)))
    pings = [hosts["d1"].ping("10.0.0.2"), hosts["h3"].ping("10.0.0.1"), hosts["d2"].ping("10.0.0.3")]
    lan.settle(10 * MS)
    assert all(ping.result() > 0 for ping in pings)

    def talk() -> None:
        for number in range(64):
            hosts["d1"].send_udp("10.0.0.2", 9, b"%d" % number, 5000 + number % 16)
            lan.settle(100_000)

    before = [d1.counters["tx.1"], d1.counters["tx.2"]]
    talk()
    shares = [d1.counters[f"tx.{n}"] - before[n - 1] for n in (1, 2)]
    assert sum(shares) == 64
    assert min(shares) >= 12
    assert len(got) == 64
    for flow in range(16):  # each conversation in order
        numbers = [int(data) for port, data in got if port == 5000 + flow]
        assert numbers == sorted(numbers)
    got.clear()
    hosts["h3"].send_udp("10.0.0.255", 9, b"to all")
    lan.settle(5 * MS)
    assert got == [(49152, b"to all")]  # once, though it has two ports
    # One of d1's cables is pulled: flows go on, under the same address; then one of d2's.
    mac = d1.mac
    for victim in ("d1[1]", "d2[2]"):
        lan.pull(victim)
        for _ in range(12):  # who still sends to the port that is gone notices it by itself, within this time
            for name, number in (("h3", 1), ("h3", 2), ("d2", 1), ("d1", 2)):
                hosts[name].ping(f"10.0.0.{number}")
            lan.settle(10 * MS)
        got.clear()
        talk()
        assert len(got) == 64
        answers = [hosts["h3"].ping("10.0.0.1"), hosts["h3"].ping("10.0.0.2"), hosts["d2"].ping("10.0.0.1")]
        lan.settle(20 * MS)
        assert all(answer.result() > 0 for answer in answers)
    assert d1.mac == mac
    assert d1.counters["failovers"] == 1
    assert d1.link


@pytest.mark.requirement("LAN-23")
def test_cards_of_two_subnets_are_no_bundle() -> None:
    """Refused at once where the subnets' prefixes differ; where they are alike, when the other card is not found."""
    lan = Lan(two_ports(subnets=2), managers=("h3", "m2"))
    node = lan.lan_nodes["d1"] = LanNode(lan.device("d1", limits=SMALL))
    lan.settle(50 * MS)
    assert all(card.link for card in node.cards)
    made = IntermediateDriver(lan.clock, *node.cards)
    lan.settle(50 * MS)
    assert made.active == (node.cards[0],)
    assert made.refused == {node.cards[1]: "it is in another subnet than the other cards of the bundle"}
    assert node.cards[1].shared_lid == 0
    made.close()
    second = node.cards[1].driver
    second.station.gid = bytes.fromhex("fec0000000000001") + second.station.gid[8:]
    with pytest.raises(InvalidAttributeError, match="one subnet"):
        IntermediateDriver(lan.clock, *node.cards)
    assert all(card.shared_lid == 0 for card in node.cards)
    with pytest.raises(InvalidAttributeError, match="two or more"):
        IntermediateDriver(lan.clock, node.cards[0])


@pytest.mark.requirement("LAN-23")
def test_a_bundle_over_two_adapters_outlives_one_of_them() -> None:
    topology = Topology()
    topology.add_switch("s", 8)
    for name in ("left", "right"):  # two adapters of one host
        topology.add(name, NodeKind.CA, 1, host="server", system_guid=0x0276_6200_00FF_0000)
        topology.connect(name, "s")
    for name in ("h2", "sm"):
        topology.add_host(name)
        topology.connect(name, "s")
    lan = Lan(topology, managers=("sm",))
    node = LanNode(lan.device("left", limits=SMALL), lan.device("right", limits=SMALL))
    other = LanNode(lan.device("h2", limits=SMALL))
    lan.settle(20 * MS)
    made = IntermediateDriver(lan.clock, *node.cards)
    lan.settle(20 * MS)
    assert len(made.active) == 2
    hosts = host(lan, made, 1), host(lan, other.card, 2)
    lan.settle(20 * MS)
    mac = made.mac
    assert other.card.counters["drop.rx.claimed_lid"] == 0
    for victim in (None, "left"):
        if victim is not None:
            lan.power_off(victim)
            for _ in range(12):
                hosts[1].ping("10.0.0.1")
                lan.settle(10 * MS)
        answers = hosts[0].ping("10.0.0.2"), hosts[1].ping("10.0.0.1")
        lan.settle(20 * MS)
        assert all(answer.result() > 0 for answer in answers)
    assert made.mac == mac
    assert made.active == (node.cards[1],)


def test_conversations() -> None:
    def udp(sport: int, dport: int = 9, fragment: int = 0) -> bytes:
        head = (
            bytes(12)
            + b"\x08\x00"
            + bytes((0x45, 0, 0, 40, 0, 0))
            + fragment.to_bytes(2, "big")
            + b"\x40\x11"
        )
        return (
            head
            + bytes(2)
            + b"\x0a\0\0\x01\x0a\0\0\x02"
            + sport.to_bytes(2, "big")
            + dport.to_bytes(2, "big")
        )

    assert conversation(udp(1)) == conversation(udp(1) + b"more")
    assert len({conversation(udp(n)) for n in range(50)}) > 40
    assert conversation(udp(1, fragment=0x2000)) == conversation(udp(2, fragment=0x0010))
    assert len({conversation(b"\xff" * 6 + bytes(5) + bytes([n]) + b"\x88\xb5") for n in range(50)}) > 40
