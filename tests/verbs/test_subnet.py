"""`Context.subnet`: programs ask the subnet's administration, over real datagrams on queue pair 1."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

import verbena
from lab import Lab
from management.sa_net import PREFIX, subnet_of
from native_lab import NativeLab
from verbena.errors import ClosedError, InvalidAttributeError, ManagementError, ManagementTimeout, NotFound
from verbena.fabric.topology import Topology
from verbena.management.datagrams import MadAddress
from verbena.management.name_service import DeviceType, PathKind
from verbena.management.performance import PerformanceAgent, PerformanceClient
from verbena.management.subnet_administration import SubnetAdministration
from verbena.wire import ManagementClass
from verbena.wire.sa_records import ServiceRecord
from verbena.wire.smp_attributes import Trap


class Site:
    """Three adapters at a switch; the first one's host has the subnet's administration."""

    def __init__(self, seed: int = 0) -> None:
        self.lab = NativeLab(seed)
        self.topology = Topology()
        self.topology.add_switch("s", 8)
        self.contexts: dict[str, verbena.Context] = {}
        for name in ("h1", "h2", "h3"):
            context = self.contexts[name] = self.lab.adapter(up=False, prefix=PREFIX)
            self.topology.add_host(name, guid=context.adapter.native.ports[0].guid - 1)
            self.topology.connect(name, "s")
        self.subnet = subnet_of(self.topology)
        for name, context in self.contexts.items():
            port = context.adapter.native.ports[0]
            port.bring_up(self.lid(name), 0)
            port.sm_lid = self.subnet.sm_lid
            context.adapter.port_changed(1)
        self.host = self.contexts["h1"]
        self.gsi = self.host._cm().gsi
        self.sa = SubnetAdministration(
            lambda: self.subnet, self.gsi.send, self.lab.clock, Random(seed), sm_key=5
        )
        self.gsi.serve(ManagementClass.SUBN_ADM, self.sa.receive)

    def lid(self, name: str) -> int:
        return self.subnet.nodes[self.topology.nodes[name].guid].ports[1].lid

    def gid(self, name: str) -> bytes:
        return self.subnet.gid(self.subnet.nodes[self.topology.nodes[name].guid].ports[1])

    def change(self, **more: Any) -> None:
        self.subnet = subnet_of(self.topology, **more)
        self.sa.changed()


def test_a_program_asks_for_nodes_paths_and_services() -> None:
    site = Site()
    two, three = site.contexts["h2"].subnet, site.contexts["h3"].subnet
    nodes = two.nodes().get(1)
    assert {str(node.description) for node in nodes} == {"s", "h1", "h2", "h3"}
    path = two.path(sgid=site.gid("h2"), dgid=site.gid("h3")).get(1)
    assert (path.slid, path.dlid) == (site.lid("h2"), site.lid("h3"))
    three.register(ServiceRecord(9, pkey=0xFFFF, name=b"IBLAN")).get(1)
    assert [record.gid for record in two.services("IBLAN").get(1)] == [site.gid("h3")]
    assert two.IbaNsGetPlatformGuidListByDeviceType("IBLAN").get(1) == [site.topology.nodes["h3"].guid]
    assert len(two.platform_guids(DeviceType.HOST).get(1)) == 3
    port = site.gid("h3")[8:]
    assert two.IbaNsGetLidListByPortGuid(int.from_bytes(port, "big")).get(1) == [site.lid("h3")]
    assert two.path_by_port_lids(site.lid("h2"), site.lid("h3"), PathKind.SECONDARY).get(1) is None
    with pytest.raises(NotFound):
        two.nodes_of_host("nobody").get(1)
    assert site.contexts["h2"].subnet is two


def test_the_administrations_own_host_asks_it_too() -> None:
    """Requests and answers of one class at one queue pair are told apart."""
    site = Site()
    assert len(site.contexts["h1"].subnet.nodes().get(1)) == 4
    site.lab.run()
    counters = site.sa.counters
    assert counters["answered"] == 1
    assert counters["accepted"] == 2  # the acknowledgements of the first segment and of the last


def test_a_program_hears_of_who_comes_and_goes() -> None:
    site = Site()
    subnet = site.contexts["h2"].subnet
    with subnet.notices(Trap.GID_OUT_OF_SERVICE) as notices:
        notices.accepted.get(1)
        with pytest.raises(ManagementTimeout):
            notices.get(0.001)
        gone = site.gid("h3")
        site.change(absent={"h3"})
        assert notices.get(1).gid == gone
    with pytest.raises(ClosedError):
        notices.get(1)
    site.lab.run()
    assert len(site.sa.subscriptions) == 0


def test_notices_go_on_with_another_master() -> None:
    """The manager moves to h3: who has subscribed, and only waits, is told by the new one."""
    site = Site()
    notices = site.contexts["h2"].subnet.notices(Trap.GID_OUT_OF_SERVICE)
    notices.accepted.get(1)
    site.sa.active = False
    gsi = site.contexts["h3"]._cm().gsi
    site.sa = SubnetAdministration(lambda: site.subnet, gsi.send, site.lab.clock, Random(9))
    gsi.serve(ManagementClass.SUBN_ADM, site.sa.receive)
    port = site.contexts["h2"].adapter.native.ports[0]
    port.sm_lid = site.subnet.sm_lid = site.lid("h3")
    site.contexts["h2"].adapter.port_changed(1)
    site.lab.run()
    assert len(site.sa.subscriptions) == 1
    gone = site.gid("h1")
    site.change(absent={"h1"})
    assert notices.get(1).gid == gone


def test_coroutines_await_answers() -> None:
    site = Site()
    subnet = site.contexts["h2"].subnet

    gone = site.gid("h3")

    async def program() -> tuple[int, bytes]:
        found = len(await subnet.nodes())
        notices = subnet.notices(Trap.GID_OUT_OF_SERVICE)
        await notices.accepted
        site.change(absent={"h3"})
        async for notice in notices:
            notices.close()
            return found, notice.gid
        raise AssertionError("the notices ended")

    async def turn() -> tuple[int, bytes]:
        task = asyncio.create_task(program())
        while not task.done():
            await asyncio.sleep(0)
            if site.lab.clock.next_time() is not None:
                site.lab.clock.step()
        return await task

    assert asyncio.run(turn()) == (4, gone)


def test_nobody_answers_or_the_context_is_closed() -> None:
    site = Site()
    site.sa.active = False
    subnet = site.contexts["h2"].subnet
    with pytest.raises(ManagementTimeout, match="in this time"):
        subnet.nodes().get(0.1)
    with pytest.raises(ManagementTimeout, match="did not answer"):
        subnet.nodes().get(10)
    waiting = subnet.nodes()
    site.contexts["h2"].close()
    with pytest.raises(ManagementError, match="closed"):
        waiting.get(1)
    with pytest.raises(ClosedError):
        subnet.nodes()
    site.contexts["h3"].adapter.native.ports[0].sm_lid = 0
    with pytest.raises(ManagementError, match="no subnet manager"):
        site.contexts["h3"].subnet.nodes().get(1)


def test_there_is_no_subnet_on_ethernet() -> None:
    lab = Lab()
    with pytest.raises(InvalidAttributeError, match="Ethernet"):
        _ = lab.adapter().subnet


def test_other_classes_have_their_own_servants() -> None:
    """Counters are read over the same queue pair; what nobody serves is counted."""
    site = Site()
    gsi = site.contexts["h2"]._cm().gsi
    agent = PerformanceAgent(site.gsi.send, (1,), lambda port: {"xmit_packets": 11})
    site.gsi.serve(ManagementClass.PERFORMANCE, agent.receive)
    client = PerformanceClient(gsi.send, site.lab.clock, Random(1))
    gsi.serve(ManagementClass.PERFORMANCE, client.receive, responses=True)
    pending = client.counters_of(MadAddress(site.lid("h1")), 1)
    site.lab.run()
    assert pending.result().xmit_pkts == 11
    # A local datagram of no class that is served, from a sender whose GID nobody knows.
    name = "cm.gsi.dropped.unknown_source"
    before = site.host.counters()[name]
    gsi.send(MadAddress(site.lid("h1")), bytes((1, ManagementClass.SNMP, 1, 1)) + bytes(252))
    site.lab.run()
    assert site.host.counters()[name] == before + 1
