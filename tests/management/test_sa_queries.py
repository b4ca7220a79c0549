"""Queries of subnet administration: all tables, what is shown to whom, big answers on bad networks."""

from __future__ import annotations

from random import Random

import pytest

from management.sa_net import SM_KEY, SaNet, chain, redundant
from verbena.errors import ManagementError, ManagementTimeout, NotFound
from verbena.fabric.topology import NodeKind, Topology
from verbena.management.datagrams import MadAddress
from verbena.wire.notice import ClassPortInfo
from verbena.wire.sa import SaCapability, SaHeader, SaMethod, SaStatus, component_mask, sa_mad, sa_message
from verbena.wire.sa_nodes import (
    RECORDS,
    LidIdentifier,
    NodeRecord,
    PortIdentifier,
    PortInfoRecord,
    SMInfoRecord,
    SwitchInfoRecord,
)
from verbena.wire.sa_records import (
    GUIDInfoRecord,
    LinearForwardingTableRecord,
    LinkRecord,
    PathRecord,
    PKeyTableRecord,
)
from verbena.wire.smp_attributes import NodeInfo, PKeyTable


@pytest.mark.requirement("SUB-03")
def test_any_node_reads_the_subnet() -> None:
    """Each node's query returns the whole topology."""
    topology = redundant(6)
    net = SaNet(topology)
    for name in ("h1", "h4", "h6"):
        client = net.client(name)
        nodes = net.wait(client.nodes())
        assert {n.info.node_guid for n in nodes} == {n.guid for n in topology.nodes.values()}
        assert {n.info.node_guid: str(n.description) for n in nodes} == {
            n.guid: n.name for n in topology.nodes.values()
        }
        by_lid = {n.lid: n.info.node_guid for n in nodes}
        links = {
            frozenset({(by_lid[r.from_lid], r.from_port), (by_lid[r.to_lid], r.to_port)})
            for r in net.wait(client.links())
        }
        assert links == {
            frozenset((topology.nodes[end.node].guid, end.port) for end in (link.a, link.b))
            for link in topology.links
        }
    assert net.balanced()


def test_switches_and_their_tables() -> None:
    net = SaNet(redundant())
    client = net.client("h1")
    switches = net.wait(client.get_table(SwitchInfoRecord))
    assert len(switches) == 4
    lid = net.lid("leaf1")
    tables = net.wait(
        client.get_table(LinearForwardingTableRecord, LinearForwardingTableRecord(lid=lid), ("lid",))
    )
    leaf = net.port("leaf1").node
    assert {t.block: t.ports for t in tables} == leaf.lft
    port = tables[0].ports[net.lid("h1")]
    assert leaf.ports[port].peer is net.port("h1")
    ports = net.wait(client.get_table(PortInfoRecord, PortInfoRecord(PortIdentifier(lid)), ("id.lid",)))
    assert [p.id.port for p in ports] == list(range(9))


def test_components_narrow_a_query() -> None:
    net = SaNet(redundant())
    client = net.client("h2")
    template = NodeRecord(info=NodeInfo(node_type=NodeKind.SWITCH))
    assert len(net.wait(client.get_table(NodeRecord, template, ("info.node_type",)))) == 4
    one = NodeRecord(LidIdentifier(net.lid("h3")))
    assert net.wait(client.get(NodeRecord, one, ("id.lid",))).info.node_guid == net.topology.nodes["h3"].guid
    with pytest.raises(NotFound):
        net.wait(client.get(NodeRecord, NodeRecord(LidIdentifier(999)), ("id.lid",)))
    with pytest.raises(ManagementError) as caught:
        net.wait(client.get(NodeRecord))
    assert caught.value.status == SaStatus.TOO_MANY_RECORDS
    assert net.wait(client.get_table(NodeRecord, NodeRecord(LidIdentifier(999)), ("id.lid",))) == []


def test_any_lid_of_a_port_stands_for_it() -> None:
    net = SaNet(redundant(), lmc=2)
    client = net.client("h2")
    for lid in net.port("h3").lids:
        found = net.wait(client.get(NodeRecord, NodeRecord(LidIdentifier(lid)), ("id.lid",)))
        assert found.lid == net.lid("h3")


def test_what_is_for_trusted_requests_only() -> None:
    net = SaNet(redundant())
    port = net.port("h2")
    port.info = type(port.info)(**{n: getattr(port.info, n) for n in port.info.__slots__} | {"mkey": 77})
    lid = ("id.lid",)
    template = PortInfoRecord(PortIdentifier(port.lid))
    plain, trusted = net.client("h1"), net.client("h3", trusted=True)
    assert net.wait(plain.get(PortInfoRecord, template, lid)).info.mkey == 0
    assert net.wait(trusted.get(PortInfoRecord, template, lid)).info.mkey == 77
    with pytest.raises(ManagementError) as caught:
        net.wait(plain.get_table(PKeyTableRecord))
    assert caught.value.status == SaStatus.DENIED
    keys = net.wait(trusted.get_table(PKeyTableRecord, PKeyTableRecord(lid=port.lid), ("lid",)))
    assert PKeyTable.unpack(keys[0].table).entries[0] == 0xFFFF


def test_a_wrong_key_is_not_answered() -> None:
    net = SaNet(redundant())
    client = net.client("h1")
    client.sm_key = SM_KEY + 1
    with pytest.raises(ManagementTimeout):
        net.wait(client.nodes())
    assert net.sa.counters["dropped.sm_key"] == 5
    assert net.balanced()


def test_partitions_do_not_see_each_other() -> None:
    """h1 and h2 share a partition, h3 and h4 another; limited members of one see its full members only."""
    net = SaNet(redundant())
    net.set_pkeys("h1", 0x8001)
    net.set_pkeys("h2", 0x0001)
    net.set_pkeys("h3", 0x0002)
    net.set_pkeys("h4", 0x0002)
    names = {net.topology.nodes[n].guid: n for n in ("h1", "h2", "h3", "h4")}

    def seen(name: str) -> set[str]:
        found = net.wait(net.client(name).nodes())
        return {names[record.info.node_guid] for record in found if record.info.node_guid in names}

    assert seen("h1") == {"h1", "h2"}
    assert seen("h2") == {"h1", "h2"}
    assert seen("h3") == {"h3"}
    trusted = net.client("h3", trusted=True)
    assert len(net.wait(trusted.nodes())) == len(net.topology.nodes)
    with pytest.raises(NotFound):
        net.wait(net.client("h1").path(sgid=net.gid("h1"), dgid=net.gid("h3")))
    assert net.wait(net.client("h1").path(sgid=net.gid("h1"), dgid=net.gid("h2"))).pkey == 0x8001


def test_guids_and_managers() -> None:
    net = SaNet(redundant())
    client = net.client("h1")
    template = GUIDInfoRecord(lid=net.lid("h2"))
    assert net.wait(client.get(GUIDInfoRecord, template, ("lid",))).guids[0] == net.port("h2").guid
    assert net.wait(client.get_table(SMInfoRecord)) == []
    info = net.wait(client.class_port_info())
    assert info.class_version == 2
    assert info.capability_mask & SaCapability.MULTICAST


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
def test_big_answers_on_a_bad_network(loss: float, seed: int) -> None:
    """A table of many segments, its segments and acknowledgements lost, doubled and overtaken."""
    topology = Topology()
    topology.add_switch("s", 200)
    for number in range(150):
        topology.add_host(f"h{number}")
        topology.connect(f"h{number}", "s")
    net = SaNet(topology)
    random = Random(seed)

    def fate(_: bytes) -> list[int]:
        if random.random() < loss:
            return []
        return [random.randrange(50_000) for _ in range(2 if random.random() < loss else 1)]

    net.fate = fate
    for _ in range(5):
        nodes = net.wait(net.client("h7").nodes())
        assert sorted(n.info.node_guid for n in nodes) == sorted(n.guid for n in topology.nodes.values())
    net.run()
    assert net.sa.transfers == 0
    assert net.balanced()


def test_what_is_refused_by_status() -> None:
    net = SaNet(chain())
    lid = net.lid("h1")
    answers: list[bytes] = []
    net.receivers[lid] = lambda source, data: answers.append(data)

    def ask(**fields: int) -> int:
        method, attribute = fields.pop("method", SaMethod.GET), fields.pop("attribute_id", 0x11)
        mask = fields.pop("mask", 0)
        mad = sa_message(sa_mad(method, attribute, transaction_id=5), SaHeader(component_mask=mask))
        for name, value in fields.items():
            mad = type(mad)(**{n: getattr(mad, n) for n in mad.__slots__} | {name: value})
        answers.clear()
        net.sa.receive(MadAddress(lid), mad.pack())
        net.run(1_000_000)
        assert len(answers) == 1
        return int.from_bytes(answers[0][4:6], "big")

    assert ask(class_version=1) == 0x0004
    assert ask(method=0x7E) == 0x0008
    assert ask(method=SaMethod.GET_MULTI) == 0x0008
    assert ask(attribute_id=0x7777) == 0x000C
    assert ask(method=SaMethod.SET) == 0x000C
    assert ask(method=SaMethod.DELETE, attribute_id=0x12) == 0x000C
    assert ask(method=SaMethod.GET_TABLE, attribute_id=ClassPortInfo.ATTRIBUTE_ID) == 0x000C
    assert ask(mask=1 << 40) == SaStatus.REQUEST_INVALID
    assert ask(mask=component_mask(NodeRecord, "id.lid")) == SaStatus.NO_RECORDS
    for wrong in ({"base_version": 2}, {"management_class": 4}, {"method": 0x81}, {"method": 6}):
        mad = sa_message(sa_mad(SaMethod.GET, 0x11), SaHeader())
        mad = type(mad)(**{n: getattr(mad, n) for n in mad.__slots__} | wrong)
        answers.clear()
        net.sa.receive(MadAddress(lid), mad.pack())
        net.sa.receive(MadAddress(0xBEEF), mad.pack())
        net.run(1_000_000)
        assert answers == []
    assert net.balanced()


def test_only_the_master_answers() -> None:
    net = SaNet(chain())
    net.sa.active = False
    with pytest.raises(ManagementTimeout):
        net.wait(net.client("h1").nodes())
    assert net.sa.counters["dropped.not_master"] == 5


def test_transfers_are_bounded() -> None:
    """A client that acknowledges nothing holds a few transfers, and no more; they end by themselves."""
    net = SaNet(chain())
    lid = net.lid("h1")
    for number in range(100):
        mad = sa_message(sa_mad(SaMethod.GET_TABLE, 0x11, transaction_id=number), SaHeader())
        net.sa.receive(MadAddress(lid), mad.pack())
    assert net.sa.transfers == 16
    net.sa.receive(MadAddress(lid), mad.pack())
    net.run()
    assert net.sa.transfers == 0
    assert net.sa.counters["transfers.failed"] == 16
    assert net.balanced()


def test_every_record_can_be_asked_for() -> None:
    net = SaNet(redundant())
    client = net.client("h1", trusted=True)
    counts = {kind: len(net.wait(client.get_table(kind))) for kind in RECORDS.values()}
    ends = len(list(net.subnet.end_ports()))
    assert counts[NodeRecord] == ends
    assert counts[LinkRecord] == 2 * len(net.topology.links)
    assert counts[PathRecord] == ends * ends
    assert counts[PortInfoRecord] == 4 + 4 * 9
