"""Stations behind a team: one home for each, evenly spread; what comes back; who has left."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from team_lab import Lab
from verbena.runtime.ethernet_joints import SwitchCard
from verbena.runtime.virtual_ethernet import VirtualCard
from verbena.team.card import Branch
from verbena.team.member import Member
from verbena.team.stations import REFLECTION_NS, Stations
from verbena.team.trace import PathTrace
from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.switch import VirtualSwitch
from verbena.wire.arp import ArpPacket

MS = 1_000_000


def members(lab: Lab, count: int) -> list[Member]:
    made = []
    for number in range(count):
        card = VirtualCard(lab.clock, f"nic{number}", bytes((2, 0, 0, 0, 0, number)))
        made.append(Member(Branch(card, number, PathTrace(lab.clock)), 0, 1))
    return made


def key(number: int) -> tuple[int, bytes]:
    return 0, bytes((2, 0, 0, 0)) + number.to_bytes(2, "big")


@given(st.lists(st.one_of(st.integers(0, 40), st.sets(st.integers(0, 4))), max_size=60))
def test_homes_are_even_after_a_change_and_move_only_then(steps: list[Any]) -> None:
    """A step is a station that sends, or the set of members that carry frames from then on."""
    lab = Lab()
    everybody = members(lab, 5)
    stations = Stations(Counter(), most=32)
    usable, now = everybody, 0
    for step in steps:
        now += 1
        before = {k: station.home for k, station in stations.table.items()}
        if isinstance(step, int):
            if not usable:
                continue
            home = stations.sends(key(step), usable, now)
            assert home in usable
            assert home is before.get(key(step), home)
            assert len(stations.table) <= 32
        else:
            usable = [everybody[n] for n in sorted(step)]
            stations.moved.clear()
            stations.arrange(usable, now)
            counts = Counter(station.home for station in stations.table.values())
            if usable and stations.table:
                spread = [counts[member] for member in usable]
                assert sum(spread) == len(stations.table)
                assert max(spread) - min(spread) <= 1
            after = {k: station.home for k, station in stations.table.items()}
            assert set(stations.moved) == {k for k in after if after[k] is not before[k]}
            for station in stations.moved.values():
                assert station.moved_ns == now
                assert station.before is not None


def test_a_frame_comes_back_or_its_station_has_left() -> None:
    stations = Stations(counters := Counter())
    usable = members(Lab(), 2)
    assert not stations.came_back(key(1), 5)
    stations.sends(key(1), usable, 10)
    assert stations.came_back(key(1), 10 + REFLECTION_NS)
    assert not stations.came_back(key(1), 11 + REFLECTION_NS)
    assert stations.table == {}
    assert counters["stations.left"] == 1


class Bare:
    """A station on the network; `got`: what it heard."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.mac = bytes((2, 0, 0, 0, 9, number))
        self.card = VirtualCard(lab.clock, f"station {number}", self.mac)
        self.got: list[bytes] = []
        lab.switch.plug(self.card)
        self.card.attach(self.got.append, lambda up: None)


def frame(to: bytes, source: bytes, number: int = 0) -> bytes:
    return (to + source + b"\x88\xb6" + bytes((number,))).ljust(60, b"\0")


def test_stations_keep_their_addresses_at_a_switch_that_knows_of_no_team(seed: int) -> None:
    """Four stations behind a team of two: each is seen at one port of the switch, hears each frame once, and after a
    failure at the other port, before anybody has sent."""
    lab = Lab(seed)
    host = lab.host(nics=2, rnics=0, rdma_vlan=None, vlans=(0,), bridged=True)
    lab.run(500)
    card = host.driver.team.cards[0]
    up: list[bytes] = []
    card.detach()
    card.attach(up.append, lambda link: None)
    out = Bare(lab, 1)
    macs = [bytes((2, 0, 0, 0, 1, n)) for n in range(4)]
    for mac in macs:
        assert card.transmit(frame(b"\xff" * 6, mac))
    lab.run(1)
    assert sorted(each[6:12] for each in out.got) == macs
    assert up == [], "what comes back by the other member is not heard"
    counts = Counter(station.home.name for station in host.driver.stations.table.values())
    assert counts == {"nic0": 2, "nic1": 2}
    ports = {mac: lab.switch.table[0, mac][0] for mac in macs}
    assert len(set(ports.values())) == 2
    for to in (*macs, b"\xff" * 6, bytes((2, 0, 0, 0, 7, 7))):
        out.card.transmit(frame(to, out.mac))
    lab.run(1)
    assert [each[:6] for each in up] == [*macs, b"\xff" * 6, bytes((2, 0, 0, 0, 7, 7))]
    lab.cards[0]["nic0"].set_link(False)
    lab.run(1)
    assert {lab.switch.table[0, mac][0] for mac in macs} == {lab.switch.table[0, macs[1]][0]}
    up.clear()
    for to in macs:
        out.card.transmit(frame(to, out.mac))
    lab.run(1)
    assert [each[:6] for each in up] == macs


def test_a_stations_network_address_is_not_announced_as_the_teams(seed: int) -> None:
    """A station has asked for a neighbour; after a failure nobody hears of its network address at the team's."""
    lab = Lab(seed)
    host = lab.host(nics=2, rnics=0, rdma_vlan=None, vlans=(0,), bridged=True)
    out, mac, address = Bare(lab, 1), bytes((2, 0, 0, 0, 1, 1)), bytes((10, 0, 7, 7))
    asked = ArpPacket(sender_mac=mac, sender_ip=address, target_ip=bytes((10, 0, 0, 99)))
    host.driver.team.cards[0].transmit(asked.frame(b"\xff" * 6, mac))
    lab.run(1)
    assert any(address in each and each[6:12] == mac for each in out.got)
    out.got.clear()
    lab.cards[0]["nic0"].set_link(False)
    lab.run(500)
    assert out.got
    assert not any(address in each for each in out.got)
    assert any(each[6:12] == mac for each in out.got), "the station is announced all the same"


def test_a_station_that_moves_to_another_host_is_heard_from_there(seed: int) -> None:
    lab = Lab(seed)
    hosts = [lab.host(nics=2, rnics=0, rdma_vlan=None, vlans=(0,), bridged=True) for _ in range(2)]
    lab.run(500)
    cards = [host.driver.team.cards[0] for host in hosts]
    up: list[bytes] = []
    for card in cards:
        card.detach()
    cards[0].attach(up.append, lambda link: None)
    mac = bytes((2, 0, 0, 0, 1, 1))
    cards[0].transmit(frame(b"\xff" * 6, mac))
    lab.run(200)
    cards[1].transmit(frame(b"\xff" * 6, mac, 7))
    lab.run(1)
    assert [each[14] for each in up] == [7]
    assert hosts[0].driver.counters["stations.left"] == 1


def test_a_card_on_a_virtual_switch_waits_in_order_and_drops_what_it_cannot_hold() -> None:
    switch = VirtualSwitch()
    marks = Marks(1, 2, 3)
    macs = [bytes((2, 0, 0, 0, 0, n)) for n in (1, 2)]
    ports = [
        switch.add_port(PortConfig(f"p{n}", (mac,), input=marks, output=marks)) for n, mac in enumerate(macs)
    ]
    lab = Lab()
    card = SwitchCard(lab.clock, ports[0], macs[0], queue=4)
    card.attach(lambda data: None, (links := []).append)
    taken = [card.transmit(frame(macs[1], macs[0], n)) for n in range(12)]
    kept = sum(taken)
    assert taken == [True] * kept + [False] * (12 - kept)
    assert card.waiting == 4
    assert card.counters["drop.tx.full"] == 12 - kept
    got = []
    while (found := ports[1].receive()) is not None:
        got.append(found.data[14])
    assert got == list(range(kept))
    assert not card.transmit(bytes(13))
    assert not card.transmit(bytes(1519))
    assert card.counters["drop.tx.length"] == 2
    card.set_link(False)
    assert not card.transmit(frame(macs[1], macs[0]))
    assert ports[1].send(frame(macs[0], macs[1]))
    lab.run(1)
    assert (card.counters["drop.tx.down"], card.counters["drop.rx.down"]) == (1, 1)
    card.set_link(True)
    assert links == [False, True]
    switch.remove_port("p0")
    assert not card.is_up
    assert not card.transmit(frame(macs[1], macs[0]))


def test_cards_on_a_virtual_switch_are_members_of_a_machines_team(seed: int) -> None:
    """A machine with two cards at one switch teams them: its own stack is reached when either loses its cable."""
    lab = Lab(seed)
    switch = VirtualSwitch(clock=lab.clock)
    host = lab.host(nics=0, rnics=0, rdma_vlan=None, vlans=(0,))
    macs = [bytes((2, 0, 0, 0, 0, n)) for n in (1, 2, 3)]
    cards = [SwitchCard(lab.clock, switch.add_port(PortConfig(f"p{n}")), mac) for n, mac in enumerate(macs)]
    for card in cards[:2]:
        host.add(card)
    got: list[bytes] = []
    cards[2].attach(got.append, lambda up: None)
    for pulled in range(2):
        cards[pulled].set_link(False)
        got.clear()
        host.stack.send_udp(9, ("10.0.0.99", 9), b"x")
        lab.run(300)
        assert any(each[12:14] == b"\x08\x06" for each in got)
        cards[pulled].set_link(True)
    assert host.driver.usable
