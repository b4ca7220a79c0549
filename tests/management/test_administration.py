"""Subnet administration beside a real subnet manager: discovery, LIDs, tables, and what clients see of them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

import pytest

from management.sa_net import redundant
from management.sm_net import Net
from verbena.errors import NotFound
from verbena.fabric.topology import PortId, Topology
from verbena.management.administration import administer
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.name_service import DeviceType, NameService, PathKind
from verbena.management.sa_client import SaClient
from verbena.management.subnet_manager import SubnetManager, SubnetManagerConfig
from verbena.wire.notice import GmpNotice
from verbena.wire.sa import SaHeader, SaMethod, sa_mad, sa_message
from verbena.wire.sa_nodes import NoticeRecord, SMInfoRecord
from verbena.wire.sa_records import (
    LinearForwardingTableRecord,
    MulticastForwardingTableRecord,
    SLtoVLMappingTableRecord,
    VLArbitrationRecord,
)
from verbena.wire.smp_attributes import SLtoVLMappingTable, SmState, Trap

T = TypeVar("T")
MGID = bytes.fromhex("ff12401bffff00000000000000000001")


class Managed:
    """A subnet with its manager at h1; datagrams on queue pair 1 take a microsecond."""

    def __init__(self, topology: Topology, **settings: object) -> None:
        self.net = Net(topology)
        self.net.join()
        port = self.net.interfaces["h1"].attach(1)
        guid = topology.nodes["h1"].port_guid(1)
        self.manager = SubnetManager(port, guid, self.net.clock, SubnetManagerConfig(**settings))  # type: ignore[arg-type]
        self.receivers: dict[int, Callable[[MadAddress, bytes], None]] = {}
        self.sa = administer(self.manager, self._from_sa, self.net.clock, Random(1), sm_key=7)
        self.manager.start()
        self.net.run()

    def lid(self, name: str) -> int:
        subnet = self.manager.subnet
        assert subnet is not None
        return subnet.nodes[self.net.topology.nodes[name].guid].lid

    def gid(self, name: str) -> bytes:
        subnet = self.manager.subnet
        assert subnet is not None
        node = subnet.nodes[self.net.topology.nodes[name].guid]
        return subnet.gid(next(port for port in node.ports.values() if port.is_end))

    def _from_sa(self, to: MadAddress, data: bytes) -> None:
        source = self.lid("h1")
        self._later(
            lambda: self.receivers[to.lid](MadAddress(source), data) if to.lid in self.receivers else None
        )

    def _later(self, function: Callable[[], object]) -> None:
        self.net.clock.call_at(self.net.clock.now() + 1_000, lambda: function() and None)

    def client(self, name: str, *, trusted: bool = False) -> SaClient:
        lid = self.lid(name)

        def send(to: MadAddress, data: bytes) -> None:
            self._later(lambda: self.sa.receive(MadAddress(lid), data))

        made = SaClient(
            send, self.net.clock, Random(lid), MadAddress(self.lid("h1")), sm_key=7 if trusted else 0
        )
        self.receivers[lid] = made.receive
        return made

    def wait(self, pending: Pending[T]) -> T:
        while not pending.done:
            self.net.clock.step()
        return pending.result()


@pytest.mark.requirement("SUB-03", "SUB-11")
def test_clients_see_what_the_manager_has_made() -> None:
    site = Managed(redundant())
    client = site.client("h2", trusted=True)
    nodes = site.wait(client.nodes())
    assert {str(n.description) for n in nodes} == set(site.net.topology.nodes)
    leaf = site.net.hardware["leaf1"]
    tables = site.wait(
        client.get_table(
            LinearForwardingTableRecord, LinearForwardingTableRecord(site.lid("leaf1")), ("lid",)
        )
    )
    assert {t.block: t.ports for t in tables} == leaf.lft
    assert len(site.wait(client.links())) == 2 * len(site.net.topology.links)
    managers = site.wait(client.get_table(SMInfoRecord))
    assert [(m.id.lid, m.info.guid, m.info.state) for m in managers] == [
        (site.lid("h1"), site.manager.guid, 3)
    ]
    path = site.wait(client.path(sgid=site.gid("h2"), dgid=site.gid("h3")))
    assert (path.rate_gbps, path.mtu_bytes) == (100, 4096)
    told: list[GmpNotice] = []
    site.wait(client.subscribe(told.append, Trap.GID_OUT_OF_SERVICE).accepted)
    gone = site.gid("h3")
    site.net.kill("h3")
    site.net.run()
    assert [notice.gid for notice in told] == [gone]
    assert len(site.wait(client.nodes())) == len(nodes) - 1
    with pytest.raises(NotFound):
        site.wait(client.path(sgid=site.gid("h2"), dgid=gone))
    log = site.wait(client.get_table(NoticeRecord))
    assert [record.notice.trap for record in log if record.notice.trap < 128].count(65) == 1
    assert Trap.LINK_STATE in {record.notice.trap for record in log}  # what the manager heard from leaf1


def test_lanes_and_arbitration_as_they_were_written() -> None:
    site = Managed(redundant(), arbitration_high=((0, 4),), arbitration_low=((0, 1), (1, 2)))
    client = site.client("h2")
    lanes = site.wait(
        client.get(SLtoVLMappingTableRecord, SLtoVLMappingTableRecord(site.lid("h2")), ("lid",))
    )
    assert bytes(SLtoVLMappingTable.unpack(lanes.table).lanes) == site.net.hardware["h2"].lanes[1]
    tables = site.wait(client.get_table(VLArbitrationRecord, VLArbitrationRecord(site.lid("h2")), ("lid",)))
    high, low, _ = site.net.hardware["h2"].arbitration[1]
    assert {t.block: t.table[: 2 * len(e)] for t, e in zip(tables, (low, high), strict=True)} == {
        1: bytes(n for entry in low for n in entry),
        3: bytes(n for entry in high for n in entry),
    }


def test_groups_are_written_into_the_switches() -> None:
    site = Managed(redundant())
    new = {"pkey": 0xFFFF, "qkey": 1, "sl": 0, "flow_label": 0, "tclass": 0}
    mlid = site.wait(site.client("h2").join(MGID, site.gid("h2"), **new)).mlid
    site.wait(site.client("h3").join(MGID, site.gid("h3")))
    site.net.run()
    ports = site.net.agents["leaf1"].tables.multicast_ports(mlid)
    assert len(ports) >= 2  # h3 is here, h2 is at the other leaf
    records = site.wait(site.client("h4").get_table(MulticastForwardingTableRecord))
    written = {site.lid(n): site.net.hardware[n].mft for n in ("leaf1", "leaf2", "spine1", "spine2")}
    for record in records:
        masks = [int.from_bytes(record.masks[at : at + 2], "big") for at in range(0, 64, 2)]
        assert masks == list(written[record.lid][record.block, record.position])
    assert records
    site.wait(site.client("h2").leave(MGID, site.gid("h2")))
    site.wait(site.client("h3").leave(MGID, site.gid("h3")))
    site.net.run()
    assert site.net.agents["leaf1"].tables.multicast_ports(mlid) == []


@pytest.mark.requirement("SUB-09")
def test_secondary_paths_on_a_managed_fabric() -> None:
    """The routing engine sends the two LIDs of a port different ways; when a spine dies there is one way left."""
    site = Managed(redundant(), lmc=1)
    names = NameService(site.client("h1"))
    source, dest = site.lid("h1"), site.lid("h2")
    primary = site.wait(names.path_by_port_lids(source, dest))
    second = site.wait(names.path_by_port_lids(source, dest, PathKind.SECONDARY))
    subnet = site.manager.subnet
    assert subnet is not None
    assert primary is not None
    assert second is not None
    ways = []
    for path in (primary, second):
        truth = subnet.path(path.slid, path.dlid)
        assert truth is not None
        ways.append(
            {str(hop) for hop in truth.hops if hop.node.is_switch and hop.peer and hop.peer.node.is_switch}
        )
    assert ways[0]
    assert not ways[0] & ways[1]
    site.net.kill("spine1")
    site.net.run()
    assert site.wait(names.path_by_port_lids(source, dest)) is not None
    assert site.wait(names.path_by_port_lids(source, dest, PathKind.SECONDARY)) is None


def test_who_comes_later_is_found() -> None:
    topology = redundant(3)
    site = Managed(topology)
    names = NameService(site.client("h2"))
    assert len(site.wait(names.platform_guids(DeviceType.HOST))) == 3
    topology.add_host("late")
    topology.connect(PortId("late", 1), "leaf2")
    site.net.join()
    site.net.run()
    assert len(site.wait(names.platform_guids(DeviceType.HOST))) == 4
    assert site.wait(names.nodes_of_host("late")) == [topology.nodes["late"].guid]


def test_administration_goes_with_mastership() -> None:
    """A manager of higher priority joins: its administration answers from now on, and the first one's no more."""
    site = Managed(redundant())
    client = site.client("h2")
    assert site.sa.active
    port = site.net.interfaces["h4"].attach(1)
    guid = site.net.topology.nodes["h4"].port_guid(1)
    second = SubnetManager(port, guid, site.net.clock, SubnetManagerConfig(priority=5))
    answers: list[bytes] = []
    other = administer(second, lambda to, data: answers.append(data), site.net.clock, Random(2))
    second.start()
    site.manager.sweep()
    site.net.run()
    assert (second.state, site.manager.state) == (SmState.MASTER, SmState.STANDBY)
    pending = client.nodes()
    site.net.run(10_000)
    assert not pending.done
    assert not site.sa.active
    assert site.sa.counters["dropped.not_master"] == 1
    assert other.active
    asked = sa_message(sa_mad(SaMethod.GET_TABLE, 0x11, transaction_id=1), SaHeader())
    other.receive(MadAddress(site.lid("h2")), asked.pack())
    assert len(answers) == 1
    site.net.kill("h4")
    site.net.run(60_000_000_000)
    assert site.manager.state is SmState.MASTER
    assert site.sa.active
    assert len(site.wait(client.nodes())) == len(site.net.topology.nodes) - 1
