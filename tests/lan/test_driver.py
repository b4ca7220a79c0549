"""Drivers: loading, initialization in its order, the list of nodes, paths, fail-over, channels by policy."""

from __future__ import annotations

from typing import Any

import pytest

from lan.lan_lab import BROADCAST, MS, SECOND, SMALL, Lan, host, star, two_ports, two_trunks
from system.world import FabricOptions, SubnetManagerConfig
from verbena import DeviceAttributes
from verbena.errors import InvalidAttributeError, ManagementTimeout
from verbena.lan import LanAddress, LanConfig, LanNode
from verbena.lan.port import PortEvent
from verbena.management.bus_driver import BusDriver
from verbena.management.datagrams import Pending
from verbena.transport.kinds import QPType
from verbena.wire.sa_records import ServiceRecord

CALLS = [
    "IbaBdGetLocalEndPointInfoByPdo",
    "IbaNsGetPlatformGuidListByDeviceType",
    "IbaNsGetPortGuidListByPlatformGuid",
    "IbaNsGetLidListByPortGuid",
    "IbaSnGetPathByPortLids",
    "IbaSnGetPathByPortLids",
]


def open_objects(lan: Lan, name: str) -> tuple[int, int]:
    """Queue pairs besides the one for management, and regions, that an adapter has open."""
    context = lan.device(name)
    return len(context.queue_pairs), context.adapter.regions.used if hasattr(
        context.adapter.regions, "used"
    ) else 0


@pytest.mark.requirement("LAN-19", "LAN-03")
def test_one_instance_for_each_active_port() -> None:
    lan = Lan(two_ports())
    lan.join("d1", "d2")
    cards = lan.lan_nodes["d1"].cards
    assert len(lan.lan_nodes["d1"].drivers) == 2
    lids = [lan.lid("d1", 1), lan.lid("d1", 2)]
    assert [LanAddress.unpack(card.mac).lid for card in cards] == lids
    assert [d.station.info.lid for d in lan.lan_nodes["d1"].drivers] == lids
    assert len(set(lids)) == 2
    lan.pull("d1[2]")
    lan.settle(5 * MS)
    assert [card.link for card in cards] == [True, False]
    assert len(lan.lan_nodes["d1"].drivers) == 1
    assert cards[1].transmit(b"") is not None
    assert cards[1].counters["drop.tx.link_down"] == 1
    assert lan.reaches("d1", "d2")  # the other card has noticed nothing


def test_a_port_that_comes_back_has_its_card_again() -> None:
    lan = star(3)
    cable = lan.pull("h1[1]")
    lan.settle(50 * MS)
    assert lan.ears["h1"].events[-1] is PortEvent.LINK_DOWN
    lan.plug(cable)
    lan.settle(3 * SECOND)
    assert lan.ears["h1"].events[-1] is PortEvent.LINK_UP
    assert lan.reaches("h0", "h1")
    assert lan.reaches("h1", "h2")


@pytest.mark.requirement("LAN-20")
def test_initialization_asks_in_the_order_of_figure_5() -> None:
    lan = Lan("star hosts=3", config=SubnetManagerConfig(lmc=1))
    lan.join("h0")
    lan.join("h1")
    calls = [name for name, _ in lan.driver("h1").calls]
    assert calls[: len(CALLS)] == CALLS
    arguments = [arguments for name, arguments in lan.driver("h1").calls][: len(CALLS)]
    assert [str(a[2].value) for a in arguments[4:]] == ["primary", "secondary"]
    assert {a[:2] for a in arguments[4:]} == {(lan.lid("h1"), lan.lid("h0"))}
    for name in set(CALLS[1:]):
        assert callable(getattr(lan.driver("h1").directory.subnet.names, name))
    assert callable(BusDriver.IbaBdGetLocalEndPointInfoByPdo)


@pytest.mark.requirement("LAN-20")
@pytest.mark.parametrize("failing", [*dict.fromkeys(CALLS[1:]), "library"])
def test_a_step_that_fails_leaves_no_half_made_card(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step fails in turn: the card stays down, nothing is left open; when it works again, the card comes up."""
    lan = Lan("star hosts=2")
    lan.join("h0")
    context = lan.device("h1", limits=SMALL)
    names = context.subnet.names
    before = len(context.queue_pairs), len(context._objects)

    def fails(*_: Any) -> Pending[Any]:
        made: Pending[Any] = Pending()
        made.fail(ManagementTimeout("nobody answers"))
        return made

    with monkeypatch.context() as patch:
        if failing == "library":
            patch.setattr("verbena.lan.driver.TransportServices", _no_room)
        else:
            patch.setattr(names, failing, fails)
        node = LanNode(context)
        lan.settle(30 * MS)
        assert not node.card.link
        assert node.card.counters["initializations.failed"] == 1
        assert node.card.last_error
        assert (len(context.queue_pairs), len(context._objects)) == before
        lan.send("h0", BROADCAST)
        lan.settle()
        assert node.card.counters["rx.frames"] == 0
    lan.settle(2 * SECOND)
    assert node.card.link


def _no_room(*_: Any, **__: Any) -> None:
    raise InvalidAttributeError("no memory for the pools")


@pytest.mark.requirement("LAN-15")
def test_datagram_queue_pairs_are_found_whatever_their_numbers() -> None:
    lan = Lan("star hosts=4")
    for place, name in enumerate(("h0", "h1", "h2")):
        context = lan.device(name, limits=SMALL)
        pd, cq = context.alloc_pd(), context.create_cq(4)
        for _ in range(5 * place):  # so that the LAN's queue pairs have different numbers
            pd.create_qp(QPType.UD, cq)
    lan.join("h0", "h1", "h2")
    lan.device("h3", limits=SMALL)
    numbers = {name: lan.driver(name).station.services.datagram_qp.qp_num for name in lan.lan_nodes}
    assert len(set(numbers.values())) == 3
    for name in lan.lan_nodes:
        known = {peer.lid: peer.qpn for peer in lan.driver(name).station.peers}
        assert known == {lan.lid(other): numbers[other] for other in lan.lan_nodes if other != name}
    # h3 has no driver, but says in the name service that it had: it is asked, and skipped.
    subnet = lan.device("h3").subnet
    subnet.register(ServiceRecord(lan.lan.service_id, pkey=0xFFFF, name=lan.lan.service_name.encode())).get(1)
    lan.settle(12 * SECOND)
    assert lan.lid("h3") not in {peer.lid for peer in lan.driver("h0").station.peers}
    assert lan.card("h0").counters["peers.without_lan"] >= 1
    assert lan.reaches("h0", "h1")


@pytest.mark.requirement("LAN-22", "LAN-08")
@pytest.mark.parametrize("by", ["event", "query"])
def test_the_list_follows_who_comes_and_goes(by: str) -> None:
    """A new node gets broadcasts, one that has gone gets none and costs none, within the time that was chosen."""
    config = LanConfig(query_interval_ns=2 * SECOND, fabric_multicast="off", probe_interval_ns=0)
    lan = Lan("star hosts=4", lan=config)
    lan.join("h0", "h1", "h2")
    if by == "query":  # no event comes
        for name in ("h0", "h1"):
            lan.driver(name).directory.close()
    lan.join("h3")
    frame = lan.send("h0", BROADCAST)
    assert {name for name, frames in lan.heard().items() if frames == [frame]} == {"h1", "h2", "h3"}
    lan.power_off("h2")
    lan.settle(MS)
    sent = lan.card("h0").counters["tx.copies_posted"]
    # Switched off: the subnet manager sees it at its next sweep, and tells.
    lan.settle(100 * MS if by == "event" else 5 * SECOND)
    lan.send("h0", BROADCAST)
    assert lan.card("h0").counters["tx.copies_posted"] - sent == 2
    gone = "peers.gone" if by == "event" else "peers.unlisted"
    assert lan.card("h0").counters[gone] == 1


@pytest.mark.requirement("LAN-21")
def test_fail_over_to_the_secondary_path_through_the_same_port() -> None:
    """The cable of the primary path is pulled: traffic goes on by the secondary in three intervals, same address."""
    lan = Lan(two_trunks(), config=SubnetManagerConfig(lmc=1, settle_ns=60 * SECOND))
    lan.join()
    mac = lan.mac("h1")
    for _ in range(2):
        assert lan.reaches("h1", "h3")
    peer = lan.driver("h1").station.peers.at(lan.lid("h3"))
    assert len(peer.ways) == 2
    assert peer.active == 0
    lids = [way.vector.dlid for way in peer.ways]
    assert len(set(lids)) == 2
    cut = trunk_to(lan, lids[0])
    cable = lan.pull(cut)
    lan.send("h1", "h3")
    began = lan.now
    while peer.active == 0:
        lan.send("h1", "h3")
        lan.settle(MS)
        assert lan.now - began < 200 * MS
    interval = lan.lan.probe_interval_ns
    assert lan.now - began <= (lan.lan.probe_tries + 2) * interval
    lan.heard()
    frame = lan.send("h1", "h3", 900)
    assert lan.heard(5 * MS)["h3"] == [frame]
    assert lan.mac("h1") == mac
    assert lan.card("h1").counters["failovers"] == 1
    # Both cut: the peer is down, and up again when there is a path again.
    other = lan.pull(trunk_to(lan, lids[1]))
    for _ in range(200):
        lan.send("h1", "h3")
        lan.settle(MS)
    assert peer.down
    assert lan.drops("h1")["drop.tx.peer_down"] > 0
    lan.plug(other)
    lan.plug(cable)
    lan.settle(90 * SECOND)
    assert lan.reaches("h1", "h3", 10 * MS)


def trunk_to(lan: Lan, lid: int) -> str:
    """The port of s1 by which a LID is reached."""
    node = lan.manager_of("h1").subnet_manager.subnet.nodes[lan.topology.nodes["s1"].guid]
    return f"s1[{node.lft[lid // 64][lid % 64]}]"


def test_one_way_paths_are_noticed_in_their_own_direction() -> None:
    """A peer that answers along the reverse of the way that it was asked proves that way, and no other."""
    lan = Lan(two_trunks(), config=SubnetManagerConfig(lmc=1))
    lan.join()
    lan.reaches("h1", "h3")
    lan.settle(60 * MS)
    peer = lan.driver("h1").station.peers.at(lan.lid("h3"))
    assert peer.proven_ns > 0
    assert lan.card("h1").counters["probes"] >= 1
    assert lan.card("h1").counters["failovers"] == 0
    probes = lan.card("h1").counters["probes"]
    lan.settle(SECOND)
    assert lan.card("h1").counters["probes"] == probes  # nothing is sent: nothing is asked


@pytest.mark.requirement("LAN-16")
@pytest.mark.parametrize("policy", ["keep", "age"])
def test_channels_are_kept_or_age(policy: str) -> None:
    config = LanConfig(policy=policy, channel_age_ns=SECOND)
    lan = Lan("star hosts=3", lan=config)
    hosts = [
        host(lan, LanNode(lan.device(f"h{n}", limits=SMALL), config=config).card, n + 1) for n in range(3)
    ]
    lan.settle(20 * MS)
    cards = [each.port for each in hosts]
    assert not any(card.counters["channels.made"] for card in cards)
    hosts[0].ping("10.0.0.2")
    lan.settle(5 * MS)
    assert cards[0].counters["channels.made"] == 1  # at the resolution of the address
    assert len(cards[0].driver.station.services.channels) == 1
    lan.settle(3 * SECOND)
    left = len(cards[0].driver.station.services.channels)
    assert left == (1 if policy == "keep" else 0)
    asked = hosts[0].counters["neighbours.asked"]
    posted = cards[0].counters["posts.channel"] + cards[0].counters["tx.unicast_datagrams"]
    again = hosts[0].ping("10.0.0.2")
    lan.settle(5 * MS)
    assert again.result() > 0
    assert len(cards[0].driver.station.services.channels) == 1
    assert hosts[0].counters["neighbours.asked"] - asked == (policy == "age")
    assert cards[0].counters["posts.channel"] + cards[0].counters["tx.unicast_datagrams"] > posted


@pytest.mark.requirement("LAN-17")
def test_ageing_is_in_step_with_address_resolution() -> None:
    """When a channel ages, both ends forget the address: the resolution comes first, and then the new channel."""
    config = LanConfig(policy="age", channel_age_ns=SECOND)
    lan = Lan("star hosts=2", lan=config)
    hosts = [
        host(lan, LanNode(lan.device(f"h{n}", limits=SMALL), config=config).card, n + 1) for n in range(2)
    ]
    lan.settle(20 * MS)
    hosts[0].ping("10.0.0.2")
    lan.settle(5 * MS)
    for each in hosts:
        assert len(each.neighbours.entries()) == 1
    lan.settle(3 * SECOND)
    for each in hosts:
        assert not each.neighbours.entries()
        assert each.port.driver.station.services.channels == {}
    order: list[str] = []
    card = hosts[0].port
    connect, send = card.driver.station.channels.connect, card.driver.sender._flood
    accept = card.driver.station.channels._accept
    card.driver.station.channels.connect = lambda peer: (order.append("channel"), connect(peer))
    card.driver.station.channels._accept = lambda *a: (order.append("channel"), accept(*a))
    card.driver.sender._flood = lambda *a: (order.append("request"), send(*a))[1]
    unicasts = card.counters["posts.channel"] + card.counters["tx.unicast_datagrams"]
    answer = hosts[0].ping("10.0.0.2")
    assert (
        card.counters["posts.channel"] + card.counters["tx.unicast_datagrams"] == unicasts
    )  # nothing into the void
    lan.settle(5 * MS)
    assert answer.result() > 0
    assert order[:2] == ["request", "channel"]


@pytest.mark.requirement("LAN-18")
def test_few_channels_for_many_peers() -> None:
    """Two channels and ten peers: all are reached; the channels go to those with most traffic."""
    lan = Lan("star hosts=11", lan=LanConfig(policy="limited", max_channels=2))
    limits = DeviceAttributes(max_qp=6, max_cq=8, max_ah=64, max_srq=2, max_mr=16)
    lan.join(limits=limits)
    peers = [f"h{n}" for n in range(1, 11)]
    for _ in range(3):
        for name in peers:
            frame = lan.send("h0", name)
            assert lan.heard()[name] == [frame]
    for name in ("h4", "h7"):
        for _ in range(40):
            lan.send("h0", name)
            lan.settle(100_000)
    lan.heard()
    services = lan.driver("h0").station.services
    assert {c.owner.lid for c in services.channels.values()} == {lan.lid("h4"), lan.lid("h7")}
    for _ in range(200):
        lan.send("h0", "h9")
        lan.settle(50_000)
    assert len(services.channels) == 2
    assert lan.lid("h9") in {c.owner.lid for c in services.channels.values()}
    assert lan.card("h0").counters["channels.recycled"] >= 1
    lan.heard()
    for name in peers:
        frame = lan.send("h0", name)
        assert lan.heard()[name] == [frame]
    lan.check_laws()


def test_without_any_channel() -> None:
    lan = Lan("star hosts=3", lan=LanConfig(policy="datagram"))
    lan.join()
    for _ in range(10):
        assert lan.reaches("h0", "h1")
    assert not lan.driver("h0").station.services.channels


@pytest.mark.requirement("LAN-11")
def test_the_least_common_denominator_is_enough() -> None:
    """256-byte packets, one lane, no fabric multicast, few queue pairs: everything works."""
    config = LanConfig(fabric_multicast="off", max_channels=4)
    lan = Lan("star hosts=4", lan=config, options=FabricOptions(mtu=256, lanes=1))
    hosts = {}
    limits = DeviceAttributes(max_qp=10, max_cq=4, max_ah=32, max_srq=1, max_mr=16, max_ee=1)
    for n in range(4):
        node = LanNode(lan.device(f"h{n}", limits=limits), config=config)
        hosts[n] = host(lan, node.card, n + 1)
    lan.settle(20 * MS)
    pings = [hosts[a].ping(f"10.0.0.{b + 1}", 1400) for a in range(4) for b in range(4) if a != b]
    got: list[bytes] = []
    for each in hosts.values():
        each.listen(9, lambda ip, port, data: got.append(data))
    hosts[0].send_udp("10.0.0.255", 9, bytes(range(256)) * 5)
    lan.settle(20 * MS)
    assert all(ping.result() > 0 for ping in pings)
    assert got == [bytes(range(256)) * 5] * 3
    lan.check_laws()


@pytest.mark.requirement("SYS-02")
def test_the_lan_lives_by_its_queue_pairs_regions_and_cables() -> None:
    """No side channel: without its queue pairs, its memory or its links no frame passes."""
    lan = star(3)
    assert lan.reaches("h0", "h1")
    region = lan.driver("h1").station.services._datagrams.region
    region.close()  # h1 cannot receive datagrams any more
    lan.send("h0", BROADCAST)
    heard = lan.heard()
    assert [len(heard[name]) for name in ("h1", "h2")] == [0, 1]
    lan = star(3)
    lan.driver("h0").station.services.datagram_qp.close()
    with_queue_pair = lan.card("h0").counters["rx.frames"]
    lan.send("h1", BROADCAST)
    lan.heard()
    assert lan.card("h0").counters["rx.frames"] == with_queue_pair
    lan = star(3)
    lan.reaches("h0", "h1")
    for name in ("h0", "h1", "h2"):
        lan.pull(f"{name}[1]")
    for to in (BROADCAST, lan.mac("h1"), lan.mac("h2")):
        lan.ears["h0"].send(to)
    assert not any(lan.heard(5 * SECOND).values())


def test_another_subnet_manager_does_not_empty_the_list() -> None:
    """The master dies, the standby knows of no services: the nodes tell it, and nobody is forgotten meanwhile."""
    config = SubnetManagerConfig(priority=5, poll_interval_ns=MS, poll_tries=2, timeout_ns=MS)
    lan = Lan("star hosts=5", managers=("h0", "h4"), config=config, lan=LanConfig(query_interval_ns=SECOND))
    lan.join("h1", "h2", "h3")
    lan.settle(SECOND)
    lan.power_off("h0")
    for _ in range(20):
        lan.settle(200 * MS)
        assert lan.reaches("h1", "h2")
        assert lan.reaches("h3", "h1")
    assert lan.manager_of("h1").node.name == "h4"
    assert lan.card("h1").counters["peers.unlisted"] == 0
    listed = lan.device("h1").subnet.IbaNsGetPlatformGuidListByDeviceType(lan.lan.service_name).get(1)
    assert len(listed) == 3


@pytest.mark.requirement("LAN-24")
def test_a_silent_peer_comes_back_without_subnet_administration() -> None:
    """The subnet manager is off; a peer answers nothing for a while, is down, and is found again when it does."""
    lan = star(4)
    assert lan.reaches("h1", "h2")
    lan.power_off("h0")
    services = lan.driver("h2").station.services
    arrived = services._arrived_datagram
    services._arrived_datagram = lambda *_: None
    resolver = lan.driver("h2").station.channels.resolver
    answer, resolver._answer = resolver._answer, lambda *_: None
    for _ in range(100):
        lan.send("h1", "h2")
        lan.settle(2 * MS)
    peer = lan.driver("h1").station.peers.at(lan.lid("h2"))
    assert peer is not None
    assert peer.down
    assert lan.reaches("h1", "h3")
    services._arrived_datagram, resolver._answer = arrived, answer
    lan.heard(3 * SECOND)
    assert lan.reaches("h1", "h2")
