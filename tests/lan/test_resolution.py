"""Address resolution by ordinary ARP and neighbour discovery; addresses with LIDs; what follows when they change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lan.lan_lab import BROADCAST, MS, SECOND, SMALL, Lan, host
from verbena.errors import InvalidAttributeError, NotFound
from verbena.lan import LanAddress, LanConfig, LanNode
from verbena.lan.addresses import FIRST_LID, LAST_LID, VENDOR_ID, Destination, classify, lan_prefix, lid_of
from verbena.lan.host import Host
from verbena.wire.arp import ArpOperation, ArpPacket
from verbena.wire.ethernet import is_group


class Hosts:
    """Built-in hosts on a star."""

    def __init__(self, count: int, **changes: object) -> None:
        self.lan = Lan(f"star hosts={count}", **changes)  # type: ignore[arg-type]
        self.nodes: dict[int, LanNode] = {}
        self.hosts: dict[int, Host] = {}
        for number in range(1, count + 1):
            self.join(number)
        self.lan.settle(20 * MS)

    def join(self, number: int) -> Host:
        context = self.lan.device(f"h{number - 1}", limits=SMALL)
        node = self.nodes[number] = LanNode(context, config=self.lan.lan)
        made = self.hosts[number] = host(self.lan, node.card, number)
        return made

    def frames(self) -> Iterator[bytes]:
        yield from self.recorded

    def record(self, number: int) -> None:
        """Note what a host hears from now on."""
        self.recorded: list[bytes] = []
        heard = self.hosts[number]._received
        card = self.nodes[number].card
        card.detach()

        def listen(frames: list[bytes]) -> None:
            self.recorded.extend(frames)
            heard(frames)

        card.attach(listen, self.hosts[number]._changed)


@pytest.mark.requirement("LAN-03")
@given(
    lid=st.integers(FIRST_LID, LAST_LID),
    reserved=st.integers(0, 255),
    vendor=st.integers(0, 0xFFFFFF).filter(lambda v: not v >> 16 & 1),
)
def test_the_address_holds_lid_reserved_octet_and_vendor(lid: int, reserved: int, vendor: int) -> None:
    mac = LanAddress(lid, reserved, vendor).pack()
    assert LanAddress.unpack(mac) == (lid, reserved, vendor)
    assert not is_group(mac)  # also of LIDs from 0x8000 on: no unicast LID makes a group address
    assert classify(mac) is Destination.UNICAST
    assert lid_of(mac, lan_prefix(reserved, vendor)) == lid
    assert not lid_of(mac, lan_prefix(reserved ^ 1, vendor))


@pytest.mark.parametrize("fields", [(0,), (0xC000,), (1, 256), (1, 0, 0x010000), (1, 0, 1 << 24)])
def test_what_makes_no_address(fields: tuple[int, ...]) -> None:
    with pytest.raises(InvalidAttributeError):
        LanAddress(*fields).pack()


def test_the_three_kinds_of_destinations() -> None:
    assert classify(BROADCAST) is Destination.BROADCAST
    assert classify(bytes.fromhex("01005e000001")) is Destination.MULTICAST
    assert classify(bytes.fromhex("fe0000000001")) is Destination.UNICAST  # the top bit alone means nothing


@pytest.mark.requirement("LAN-03")
def test_each_card_has_its_ports_lid() -> None:
    hosts = Hosts(3)
    for number, node in hosts.nodes.items():
        lid = hosts.lan.lid(f"h{number - 1}")
        assert LanAddress.unpack(node.card.mac) == (lid, 0, VENDOR_ID)


@pytest.mark.requirement("LAN-05", "LAN-06", "LAN-24")
def test_plain_arp_the_owner_alone_answers() -> None:
    hosts = Hosts(5)
    one, two = hosts.hosts[1], hosts.hosts[2]
    assert not one.neighbours.entries()
    hosts.record(2)
    before = {n: h.counters["tx.arp_replies"] for n, h in hosts.hosts.items()}
    found = one.resolve("10.0.0.2")
    hosts.lan.settle(MS)
    assert found.result() == two.port.mac
    (request,) = hosts.frames()
    assert request[:6] == BROADCAST
    assert request[6:12] == one.port.mac
    arp = ArpPacket.parse(request[14:])
    assert (arp.operation, arp.target_ip, arp.target_mac) == (ArpOperation.REQUEST, two.ip, bytes(6))
    assert {n: h.counters["tx.arp_replies"] - before[n] for n, h in hosts.hosts.items()} == {
        1: 0,
        2: 1,
        3: 0,
        4: 0,
        5: 0,
    }
    assert one.neighbours.entries() == {two.ip: two.port.mac}
    assert two.neighbours.entries() == {one.ip: one.port.mac}  # it was asked, and will answer
    assert not hosts.hosts[3].neighbours.entries()  # it only heard it
    hosts.lan.check_laws()


@pytest.mark.requirement("LAN-05")
def test_an_address_nobody_has_is_unreachable() -> None:
    hosts = Hosts(3)
    ping, resolve = hosts.hosts[1].ping("10.0.0.77"), hosts.hosts[1].resolve("10.0.0.77")
    hosts.lan.settle(2 * SECOND)
    assert not ping.done
    hosts.lan.settle(3 * SECOND)
    for answer in (ping, resolve):
        with pytest.raises(NotFound):
            answer.result()
    assert hosts.hosts[1].counters["neighbours.asked"] == 3
    assert hosts.hosts[1].counters["drop.unreachable"] == 1


def test_echo_udp_and_neighbour_discovery() -> None:
    hosts = Hosts(3)
    one, two, three = hosts.hosts[1], hosts.hosts[2], hosts.hosts[3]
    assert one.v6 is not None
    assert three.v6 is not None
    got: list[tuple[bytes, int, bytes]] = []
    two.listen(7, lambda ip, port, data: got.append((ip, port, data)))
    pings = [one.ping("10.0.0.2"), one.v6.ping("fd00::3"), one.v6.ping("fe80::2"), one.ping("10.0.0.3", 1400)]
    one.send_udp("10.0.0.2", 7, b"to seven", 1234)
    one.send_udp("10.0.0.2", 8, b"to nobody")
    one.send_udp("10.0.0.255", 7, b"to all")
    one.send_udp("10.0.0.2", 7, bytes(1500))  # longer than the MTU
    one.send_udp("192.0.2.1", 7, b"elsewhere")
    hosts.lan.settle(10 * MS)
    assert all(0 < ping.result() < MS for ping in pings)
    assert got == [(one.ip, 49152, b"to all"), (one.ip, 1234, b"to seven")]
    assert three.v6.neighbours.entries()[one.v6.ip] == one.port.mac
    assert two.counters["drop.udp_port"] == 1
    assert one.counters["rx.icmp_3"] == 1
    assert one.counters["drop.too_long"] == one.counters["drop.no_route"] == 1


@pytest.mark.requirement("LAN-06")
def test_the_table_follows_who_leaves_and_comes_back() -> None:
    hosts = Hosts(3)
    one = hosts.hosts[1]
    one.ping("10.0.0.3")
    hosts.lan.settle(MS)
    assert one.neighbours.entries()
    hosts.nodes[3].close()
    hosts.lan.settle(5 * MS)
    assert not one.neighbours.entries()
    hosts.hosts[3].port.detach()
    again = hosts.join(3)
    hosts.lan.settle(20 * MS)
    answer = one.ping("10.0.0.3")
    hosts.lan.settle(MS)
    assert answer.result() > 0
    assert one.neighbours.entries() == {again.ip: again.port.mac}


@pytest.mark.requirement("LAN-03", "LAN-06")
def test_another_lid_is_another_address_and_is_announced() -> None:
    """Management gives a port another LID: its card has another address, and says so; everybody goes on."""
    hosts = Hosts(4)
    lan, one, three = hosts.lan, hosts.hosts[1], hosts.hosts[3]
    for number in (1, 2):
        hosts.hosts[number].ping("10.0.0.3")
    lan.settle(MS)
    old = three.port.mac
    assert one.neighbours.entries()[three.ip] == old
    announced = three.counters["tx.announcements"]
    change_lid(lan, "h2", 77)
    lan.settle(2 * SECOND)
    assert LanAddress.unpack(three.port.mac).lid == 77
    assert three.counters["tx.announcements"] > announced
    assert three.port.counters["initializations.failed"] == 0
    pings = [hosts.hosts[n].ping("10.0.0.3") for n in (1, 2, 4)] + [three.ping("10.0.0.1")]
    lan.settle(10 * MS)
    assert all(ping.result() for ping in pings)
    assert one.neighbours.entries()[three.ip] == three.port.mac != old
    drops = dict(hosts.nodes[1].card.counters)
    one.transmit(old + one.port.mac + b"\x08\x00" + bytes(46))
    assert hosts.nodes[1].card.counters["drop.tx.no_such_lid"] == drops.get("drop.tx.no_such_lid", 0) + 1


def change_lid(lan: Lan, name: str, lid: int) -> None:
    """What an operator does: the subnet manager is told another LID for a port, and programs it."""
    manager = lan.manager_of(name).subnet_manager
    manager.lids.reserve(lan.topology.nodes[name].port_guid(1), lid, lan.config.lmc)
    manager.sweep()


@pytest.mark.requirement("LAN-24")
def test_no_node_is_needed_by_the_others() -> None:
    """Any one of four, also the one with the subnet manager, is switched off: the rest resolve and talk."""
    for victim in (1, 2, 4):
        hosts = Hosts(4, lan=LanConfig(fabric_multicast="auto"))
        lan = hosts.lan
        hosts.hosts[2].ping("10.0.0.3")
        lan.settle(50 * MS)
        lan.power_off(f"h{victim - 1}")
        lan.settle(500 * MS)
        rest = [number for number in hosts.hosts if number != victim]
        pings = [hosts.hosts[a].ping(f"10.0.0.{b}") for a in rest for b in rest if a != b]
        lan.settle(50 * MS)
        assert all(ping.result() > 0 for ping in pings)
        for number in rest:
            asked = hosts.hosts[number].resolve(f"10.0.0.{victim}")
            lan.settle(5 * SECOND)
            assert asked.error is not None


def test_entries_age_and_tables_are_bounded() -> None:
    hosts = Hosts(2)
    lan = hosts.lan
    hosts.hosts[1].port.detach()
    one = Host(hosts.nodes[1].card, lan.clock, "10.0.0.1/8", neighbours={"most": 8, "age_ns": SECOND})
    one.ping("10.0.0.2")
    lan.settle(MS)
    asked = one.counters["neighbours.asked"]
    one.ping("10.0.0.2")
    assert one.counters["neighbours.asked"] == asked
    lan.settle(2 * SECOND)
    one.ping("10.0.0.2")
    assert one.counters["neighbours.asked"] == asked + 1
    for number in range(100):
        one.ping(f"10.1.0.{number}")
    assert len(one.neighbours) == 8
    one.neighbours.learn(b"\x0a\x02\x02\x02", bytes(6), create=True)
    assert len(one.neighbours) == 8


def test_few_questions_at_a_time_and_none_for_what_is_known() -> None:
    """Of twenty hosts that all want each other, each asks about once: the others' questions tell the rest."""
    lan = Lan("star hosts=20", lan=LanConfig(discovery="lazy"))
    hosts = []
    for number, node in enumerate(lan.topology.hosts, 1):
        card = LanNode(lan.device(node.name, limits=SMALL), config=lan.lan).card
        hosts.append(host(lan, card, number, most_asking=1, gap_ns=MS))
    lan.settle(50 * MS)
    for place, each in enumerate(hosts):
        for other in hosts[place + 1 :] + hosts[:place]:
            each.neighbours.want(other.ip)
    lan.settle(50 * MS)
    assert not any(each.neighbours.unresolved for each in hosts)
    for each in hosts:
        assert each.neighbours.entries() == {o.ip: o.port.mac for o in hosts if o is not each}
    assert sum(each.counters["neighbours.asked"] for each in hosts) < 3 * len(hosts)
