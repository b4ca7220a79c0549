"""The name service: platforms, ports, LIDs, paths, names; by asking and by being told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from management.sa_net import SaNet, chain, fill, redundant
from verbena.errors import NotFound
from verbena.fabric.topology import Topology
from verbena.management.datagrams import Pending
from verbena.management.name_service import DeviceType, NameService, PathKind, VendorDevice
from verbena.management.subnet import Subnet
from verbena.wire.sa_records import PathRecord, ServiceRecord
from verbena.wire.smp_attributes import PortState


def platform(net: SaNet, name: str) -> int:
    return net.port(name).node.system_guid


def service(net: SaNet, name: str = "h1") -> NameService:
    return NameService(net.client(name))


@pytest.mark.requirement("SUB-06")
def test_platforms_of_a_device_type() -> None:
    """Five nodes, four of them with IBLAN: exactly these four."""
    net = SaNet(redundant(5))
    for name in ("h1", "h2", "h4", "h5"):
        record = ServiceRecord(1, net.gid(name), 0xFFFF, name=b"IBLAN")
        net.wait(net.client(name).register(record))
    names = service(net, "h3")
    found = net.wait(names.IbaNsGetPlatformGuidListByDeviceType("IBLAN"))
    assert found == sorted(platform(net, name) for name in ("h1", "h2", "h4", "h5"))
    assert net.wait(names.platform_guids("no such type")) == []
    assert net.wait(names.platform_guids(VendorDevice(1, 2))) == []
    hosts = sorted(platform(net, f"h{n}") for n in range(1, 6))
    assert net.wait(names.platform_guids(DeviceType.HOST)) == hosts
    assert net.wait(names.platform_guids(VendorDevice(0x76_62_00, 0))) == sorted(
        [*hosts, *(platform(net, s) for s in ("leaf1", "leaf2", "spine1", "spine2"))]
    )
    assert net.wait(names.platform_guids(DeviceType.ROUTER)) == []


def two_ports() -> Topology:
    topology = chain()
    topology.add_host("big", 2)
    topology.add_host("big2", 1, host="big")
    topology.connect("big", "s1")
    topology.connect("big", "s2")
    topology.connect("big2", "s2")
    return topology


@pytest.mark.requirement("SUB-07")
def test_ports_of_a_platform() -> None:
    net = SaNet(two_ports())
    names = service(net)
    big = sorted([net.port("big", 1).guid, net.port("big", 2).guid, net.port("big2").guid])
    assert net.wait(names.IbaNsGetPortGuidListByPlatformGuid(platform(net, "big"))) == big
    assert net.wait(names.port_guids(platform(net, "h1"))) == [net.port("h1").guid]
    with pytest.raises(NotFound, match="no platform"):
        net.wait(names.port_guids(0x1234))


@pytest.mark.requirement("SUB-08")
def test_lids_of_a_port() -> None:
    """With a LID mask of 1 there are two LIDs; an inactive port has none."""
    net = SaNet(chain(), lmc=1)
    names = service(net)
    port = net.port("h2")
    assert net.wait(names.IbaNsGetLidListByPortGuid(port.guid)) == [port.lid, port.lid + 1]
    port.info = replace(port.info, port_state=PortState.INIT)
    assert net.wait(names.lids(port.guid)) == []
    switch = net.port("s1")
    assert net.wait(names.lids(switch.guid)) == [switch.lid]
    with pytest.raises(NotFound, match="no port"):
        net.wait(names.lids(0x1234))


def cables(subnet: Subnet, path: PathRecord, *, back: bool = False) -> set[frozenset[str]]:
    """The links between switches on a path, followed in the model."""
    found = subnet.path(path.dlid, path.slid) if back else subnet.path(path.slid, path.dlid)
    assert found is not None
    ends = [(hop, hop.peer) for hop in found.hops if hop.peer is not None]
    return {
        frozenset({str(a), str(b)})
        for a, b in ends
        if a.node.is_switch and b is not None and b.node.is_switch
    }


@pytest.mark.requirement("SUB-09")
def test_a_secondary_path_shares_no_link_between_switches() -> None:
    net = SaNet(redundant(), lmc=1)
    names = service(net)
    a, b = net.lid("h1"), net.lid("h2")
    primary = net.wait(names.IbaSnGetPathByPortLids(a, b))
    secondary = net.wait(names.IbaSnGetPathByPortLids(a, b, PathKind.SECONDARY))
    assert primary is not None
    assert secondary is not None
    assert (primary.slid, primary.dlid) == (a, b)
    there, other = cables(net.subnet, primary), cables(net.subnet, secondary)
    assert len(there) == len(other) == 2
    assert not there & other
    assert not cables(net.subnet, primary, back=True) & cables(net.subnet, secondary, back=True)
    for wrong in (0, 0x999, 0xC001, 0x10000):
        with pytest.raises(NotFound):
            net.wait(names.path_by_port_lids(a, wrong))
        with pytest.raises(NotFound):
            net.wait(names.path_by_port_lids(wrong, b))


@pytest.mark.requirement("SUB-09")
@pytest.mark.parametrize("shape", ["one link", "one LID", "same way", "one switch"])
def test_where_there_is_a_single_path_there_is_no_secondary(shape: str) -> None:
    topology = chain() if shape == "one link" else redundant()
    net = SaNet(topology, lmc=0 if shape == "one LID" else 1, spread=shape != "same way")
    other = "h3" if shape == "one switch" else "h2"
    names = service(net)
    a, b = net.lid("h1"), net.lid(other)
    assert net.wait(names.path_by_port_lids(a, b)) is not None
    assert net.wait(names.path_by_port_lids(a, b, PathKind.SECONDARY)) is None


def test_the_secondary_path_follows_a_new_routing() -> None:
    net = SaNet(redundant(), lmc=1)
    names = service(net)
    a, b = net.lid("h1"), net.lid("h2")
    assert net.wait(names.path_by_port_lids(a, b, PathKind.SECONDARY)) is not None
    net.replace_subnet(spread=False)
    assert net.wait(names.path_by_port_lids(a, b, PathKind.SECONDARY)) is None
    port = net.port("h2")
    fill(net.subnet, port, b + 1, 1)
    found = net.wait(names.path_by_port_lids(a, b, PathKind.SECONDARY))
    assert found is not None
    assert found.dlid == b + 1


@pytest.mark.requirement("SUB-11")
def test_coming_and_going_is_told_and_seen_by_those_who_poll() -> None:
    """The subscriber hears within two milliseconds; who polls sees the same the next time."""
    net = SaNet(redundant(5))
    told, poll = service(net, "h1"), service(net, "h2")
    events: list[tuple[str, bytes, int]] = []
    net.wait(
        told.watch(
            lambda gid: events.append(("come", gid, net.clock.now())),
            lambda gid: events.append(("gone", gid, net.clock.now())),
        )
    )
    everybody = net.wait(poll.platform_guids(DeviceType.HOST))
    gid, guid = net.gid("h5"), platform(net, "h5")
    start = net.clock.now()
    net.replace_subnet(absent={"h5"})
    net.run(2_000_000)
    assert [(kind, who) for kind, who, _ in events] == [("gone", gid)]
    assert events[0][2] - start <= 2_000_000
    assert net.wait(poll.platform_guids(DeviceType.HOST)) == [p for p in everybody if p != guid]
    net.replace_subnet()
    net.run(2_000_000)
    assert [(kind, who) for kind, who, _ in events] == [("gone", gid), ("come", gid)]
    assert net.wait(poll.platform_guids(DeviceType.HOST)) == everybody


@pytest.mark.requirement("NOD-07")
def test_a_name_stands_for_all_of_a_host() -> None:
    """A host with two adapters, a package of two switches, and a second host that would like the name."""
    topology = two_ports()
    topology.add_switch("left", 4, host="twin")
    topology.add_switch("right", 4, host="twin")
    topology.connect("left", "s1")
    topology.connect("right", "s1")
    topology.add_host("thief")
    topology.connect("thief", "s2")
    net = SaNet(topology)
    names = service(net)
    both = sorted(topology.nodes[n].guid for n in ("big", "big2"))
    assert net.wait(names.nodes_of_host("big")) == both == net.sa.names.resolve("big")
    twin = sorted(topology.nodes[n].guid for n in ("left", "right"))
    assert net.wait(names.nodes_of_host("twin")) == twin == net.sa.names.resolve("twin")
    with pytest.raises(NotFound, match="no host"):
        net.wait(names.nodes_of_host("nobody"))
    for _ in range(2):  # whoever is seen first in the second sweep
        net.port("thief").node.name = "big"
        net.sa.changed()
        assert net.wait(names.nodes_of_host("big")) == both
        assert net.sa.names.resolve("big") == both


def test_answers_that_come_later() -> None:
    pending: Pending[int] = Pending()
    with pytest.raises(Exception, match="not there yet"):
        pending.result()
    seen: list[int] = []
    pending.when_done(lambda done: seen.append(done.result()))
    pending.resolve(3)
    pending.resolve(4)
    pending.fail(ValueError())
    pending.when_done(lambda done: seen.append(done.result()))
    assert seen == [3, 3]
