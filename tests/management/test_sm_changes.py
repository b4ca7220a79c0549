"""What a subnet manager does when something changes: nodes and cables that come, go, fail and move."""

from __future__ import annotations

from random import Random

import pytest

from management.sm_net import (
    Net,
    assert_all_reachable,
    cables,
    found_cables,
    lids_of,
    manager_on,
    random_topology,
    redundant_topology,
    settle,
)
from verbena.fabric.topology import PortId, Topology
from verbena.management.agent import AgentEvent
from verbena.management.subnet_manager import (
    SubnetEvent,
    SubnetEventKind,
    SubnetManagerConfig,
)

SECOND = 1_000_000_000


def guids(topology: Topology) -> set[int]:
    return {node.guid for node in topology.nodes.values()}


# --- changes ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SUB-04")
def test_a_switch_with_two_hosts_joins_and_leaves() -> None:
    topology = redundant_topology()
    net = Net(topology)
    events: list[SubnetEvent] = []
    manager = manager_on(net, "h1", on_event=events.append)
    settle(net, manager)
    before = {end: lids_of(net, end) for end in net.end_ports()}
    topology.add_switch("s4", 4)
    for name in ("h5", "h6"):
        topology.add_host(name)
        topology.connect(name, "s4")
    topology.connect("s4", "s3")
    net.events.clear()
    net.join()
    net.run(SECOND)
    assert_all_reachable(net)
    assert {end: lids_of(net, end) for end in before} == before
    # Nobody else was touched: no port went down, no LID changed.
    others = [event for event in net.events if event[0] not in ("s4", "h5", "h6")]
    cable = topology.links[-1]
    assert others == [("s3", AgentEvent.PORT_ACTIVE, {e.node: e.port for e in (cable.a, cable.b)}["s3"])]
    new = {net.agents[n].lid(0 if n == "s4" else 1) for n in ("s4", "h5", "h6")}
    joined = [e for e in events if e.kind is SubnetEventKind.IN_SERVICE and e.lid in new]
    assert len(joined) == 3

    events.clear()
    net.kill("s4")
    net.run(SECOND)
    assert manager.subnet is not None
    assert {e.lid for e in events if e.kind is SubnetEventKind.OUT_OF_SERVICE} == new
    for switch in ("s1", "s2", "s3"):
        for lid in new:
            assert net.agents[switch].tables.output_port(lid) == 255
    assert all(manager.subnet.port_of_lid(lid) is None for lid in new)
    assert {end: lids_of(net, end) for end in before} == before
    net.revive("s4")
    net.run(SECOND)
    assert {net.agents[n].lid(0 if n == "s4" else 1) for n in ("s4", "h5", "h6")} == new
    assert_all_reachable(net)


@pytest.mark.requirement("SUB-05")
def test_a_link_of_a_redundant_fabric_fails_and_everybody_still_connects() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    assert_all_reachable(net)
    blocks = manager.statistics.lft_blocks
    for link in [x for x in topology.links if {x.a.node[0], x.b.node[0]} == {"s"}]:
        net.pull(link.a)
        net.run(SECOND)
        assert_all_reachable(net)
        topology.connect(link.a, link.b)
        net.join()
        net.run(SECOND)
        assert_all_reachable(net)
    assert manager.statistics.lft_blocks > blocks


@pytest.mark.requirement("SUB-05")
def test_without_a_second_way_there_is_no_path() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    lids = {n: net.agents[n].lid(1) for n in ("h1", "h2", "h3")}
    net.pull(PortId("h3", 1))
    net.run(SECOND)
    assert manager.subnet is not None
    assert manager.subnet.path(lids["h1"], lids["h3"]) is None
    assert manager.subnet.path(lids["h3"], lids["h1"]) is None
    assert manager.subnet.path(lids["h1"], lids["h2"]) is not None
    assert net.data_path(PortId("h1", 1), lids["h3"]) is None


def test_paths_are_those_of_the_tables_in_the_switches() -> None:
    net = Net(random_topology(Random(5), 6, 8))
    start = next(e for e in net.end_ports())
    manager = manager_on(net, start.node, port=start.port)
    settle(net, manager)
    assert manager.subnet is not None
    for source in net.end_ports():
        for target in net.end_ports():
            lids = [net.agents[e.node].lid(e.port) for e in (source, target)]
            path = manager.subnet.path(*lids)
            assert path is not None
            expected = net.data_path(source, lids[1]) if source != target else [source.node]
            assert expected is not None
            assert [hop.node.name for hop in path.hops] == expected[:-1]
    assert manager.subnet.path(0xBFFF, 1) is None


def test_what_has_not_changed_is_not_written_again() -> None:
    net = Net(redundant_topology())
    manager = manager_on(net, "h1")
    settle(net, manager)
    calls = sum(hardware.calls for hardware in net.hardware.values())
    blocks = manager.statistics.lft_blocks
    manager.sweep()
    settle(net, manager, sweeps=2)
    assert manager.statistics.lft_blocks == blocks
    assert sum(hardware.calls for hardware in net.hardware.values()) == calls


def test_light_sweeps_find_what_no_trap_told() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1", SubnetManagerConfig(sweep_interval_ns=SECOND))
    settle(net, manager)
    for agent in net.agents.values():
        agent.send = None  # traps get lost
    net.pull(PortId("h3", 1))
    net.run(SECOND // 2)
    assert manager.subnet is not None
    assert len(manager.subnet.nodes) == 7
    net.run(2 * SECOND)
    assert len(manager.subnet.nodes) == 6
    heavy = manager.statistics.heavy_sweeps
    net.run(10 * SECOND)
    assert manager.statistics.heavy_sweeps == heavy
    assert manager.statistics.light_sweeps >= 10


def test_a_moved_cable_keeps_the_lid() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    lid = net.agents["h2"].lid(1)
    net.pull(PortId("h2", 1))
    topology.connect(PortId("h2", 1), PortId("s3", 8))
    net.join()
    net.run(SECOND)
    assert net.agents["h2"].lid(1) == lid
    assert found_cables(manager) == cables(topology)
    assert_all_reachable(net)


def test_a_restarted_switch_is_programmed_again() -> None:
    net = Net(redundant_topology())
    manager = manager_on(net, "h1")
    settle(net, manager)
    lid = net.agents["s2"].lid(0)
    net.reset("s2")
    net.run(SECOND)
    assert net.agents["s2"].lid(0) == lid
    assert_all_reachable(net)


def test_losses_are_made_up_for() -> None:
    net = Net(redundant_topology(), loss=0.1, seed=3)
    manager = manager_on(net, "h1")
    settle(net, manager)
    assert manager.statistics.repeated > 0
    assert found_cables(manager) == cables(net.topology)
    net.loss = 0.0
    assert_all_reachable(net)


def test_statistics_add_up() -> None:
    net = Net(redundant_topology(), loss=0.05, seed=1)
    manager = manager_on(net, "h1")
    settle(net, manager)
    net.run(15 * SECOND)
    s = manager.statistics
    assert s.smps_sent == s.answers + s.repeated + s.timeouts
    assert 0 < s.discovery_ns <= s.lids_ns <= 60 * SECOND


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_groups_that_change_in_quick_succession(loss: float, seed: int) -> None:
    """Writes are lost and repeated; what is in the switches at last is what was wanted last."""
    topology = redundant_topology()
    net = Net(topology, seed=seed)
    manager = manager_on(net, "h1")
    settle(net, manager)
    random = Random(seed)
    ports = [topology.nodes[name].port_guid(1) for name in ("h1", "h2", "h3")]
    wanted = {}
    for _ in range(60):
        net.loss = loss
        for _ in range(random.randrange(1, 8)):
            members = (frozenset(random.sample(ports, random.randrange(4))) for _ in range(2))
            wanted = dict(zip((0xC001, 0xC041), members, strict=True))
            manager.set_groups(wanted)
            net.run(random.randrange(2 * manager.config.timeout_ns))
        net.loss = 0.0
        net.run(60 * SECOND)
        assert manager.is_settled
        for mlid, members in wanted.items():
            for name, guid in zip(("h1", "h2", "h3"), ports, strict=True):
                if guid in members:
                    reached = net.flood(PortId(name, 1), mlid)
                    assert {topology.nodes[end.node].port_guid(end.port) for end in reached} == members - {
                        guid
                    }
