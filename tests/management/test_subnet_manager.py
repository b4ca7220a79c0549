"""The subnet manager on whole subnets: what it finds, gives out, routes and repairs."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from verbena.errors import InvalidAttributeError
from verbena.fabric.topology import NodeKind, PortId, Topology
from verbena.management.agent import AgentEvent
from verbena.management.subnet_manager import (
    Partition,
    SubnetManagerConfig,
)
from verbena.wire.smp import parse_smp_packet
from verbena.wire.smp_attributes import PortState, SmState

SECOND = 1_000_000_000


def guids(topology: Topology) -> set[int]:
    return {node.guid for node in topology.nodes.values()}


# --- discovery ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SUB-01")
def test_the_discovered_graph_is_the_built_one() -> None:
    topology = redundant_topology()
    topology.add_router("r1")
    topology.connect("r1", "s3")
    topology.add_host("lonely")  # no cable leads there
    topology.add_switch("island", 4)
    topology.add_host("robinson")
    topology.connect("robinson", "island")
    net = Net(topology)
    net.log = []
    manager = manager_on(net, "h1")
    settle(net, manager)
    assert manager.state is SmState.MASTER
    assert manager.subnet is not None
    absent = {topology.nodes[name].guid for name in ("lonely", "island", "robinson")}
    assert set(manager.subnet.nodes) == guids(topology) - absent
    island = frozenset((topology.nodes[n].guid, 1) for n in ("robinson", "island"))
    assert found_cables(manager) == cables(topology) - {island}
    for node in manager.subnet.nodes.values():
        built = next(n for n in topology.nodes.values() if n.guid == node.guid)
        assert (node.name, node.kind, node.info.num_ports) == (built.name, built.kind, built.ports)
    # Management frames are datagrams on lane 15: each of them is taken apart and checked.
    assert net.log
    for _, _, packet in net.log:
        parse_smp_packet(packet)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8), st.sampled_from((0.0, 0.0, 0.02)))
@pytest.mark.requirement("SUB-01", "SUB-05")
def test_random_subnets_are_found_and_routed(seed: int, switches: int, hosts: int, loss: float) -> None:
    random = Random(seed)
    topology = random_topology(random, switches, hosts)
    net = Net(topology, loss=loss, seed=seed)
    start = random.choice([n for n in topology.nodes.values() if topology.links_of(n.name)] or [None])
    if start is None:
        return
    port = 0 if start.kind is NodeKind.SWITCH else random.choice(topology.links_of(start.name)).a.port
    if start.kind is not NodeKind.SWITCH:
        ends = [
            end
            for link in topology.links_of(start.name)
            for end in (link.a, link.b)
            if end.node == start.name
        ]
        port = random.choice(ends).port
    manager = manager_on(net, start.name, port=port)
    settle(net, manager)
    assert manager.subnet is not None
    connected = {n.guid for n in topology.nodes.values() if topology.links_of(n.name)}
    assert set(manager.subnet.nodes) == connected
    assert found_cables(manager) == cables(topology)
    assert_all_reachable(net)
    given_out = [lid for port in manager.subnet.end_ports() for lid in port.lids]
    assert len(given_out) == len(set(given_out))


def test_back_to_back_and_alone() -> None:
    topology = Topology()
    topology.add_host("h1")
    topology.add_host("h2")
    topology.connect("h1", "h2")
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    assert found_cables(manager) == cables(topology)
    assert [net.agents[n].port_info(1).port_state for n in ("h1", "h2")] == [PortState.ACTIVE] * 2
    assert manager.subnet is not None
    path = manager.subnet.path(net.agents["h1"].lid(1), net.agents["h2"].lid(1))
    assert path is not None
    assert [str(hop) for hop in path.hops] == ["h1[1]"]
    net.kill("h2")
    net.run(15 * SECOND)  # no switch tells of it: the light sweep looks at the manager's own port
    assert manager.subnet is not None
    assert len(manager.subnet.nodes) == 1
    net.revive("h2")
    net.run(15 * SECOND)
    assert found_cables(manager) == cables(topology)
    assert_all_reachable(net)


def test_a_cable_from_a_switch_to_itself_and_several_between_two() -> None:
    topology = Topology()
    topology.add_host("h1")
    topology.add_switch("s1", 8)
    topology.add_switch("s2", 8)
    topology.connect("h1", "s1")
    topology.connect(PortId("s1", 7), PortId("s1", 8))
    for _ in range(3):
        topology.connect("s1", "s2")
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    assert found_cables(manager) == cables(topology)
    assert_all_reachable(net)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_nodes_that_come_and_go_during_a_sweep(seed: int) -> None:
    random = Random(seed)
    topology = random_topology(random, 6, 6)
    start = next((h.name for h in topology.hosts if topology.links_of(h.name)), None)
    if start is None:
        return
    port = min(e.port for link in topology.links_of(start) for e in (link.a, link.b) if e.node == start)
    net = Net(topology, seed=seed)
    victims = [n for n in topology.nodes if n != start]
    moments = {random.randrange(300): random.choice(victims) for _ in range(4)}
    count = 0

    def interfere() -> None:
        nonlocal count
        count += 1
        name = moments.pop(count, None)
        if name is not None:
            (net.revive if name in net.dead else net.kill)(name)

    net.before_send = interfere
    manager = manager_on(net, start, port=port)
    net.run(60 * SECOND)
    net.before_send = lambda: None
    net.run(30 * SECOND)
    assert manager.subnet is not None
    reached = _reachable(net, start, port)
    assert {node.name for node in manager.subnet.nodes.values()} == reached
    for source in [
        e for e in net.end_ports() if e.node in reached and manager.subnet.ports_by_guid.get(_guid(net, e))
    ]:
        for target in net.end_ports():
            if manager.subnet.ports_by_guid.get(_guid(net, target)) and source != target:
                assert net.data_path(source, net.agents[target.node].lid(target.port)) is not None


def _guid(net: Net, end: PortId) -> int:
    return net.agents[end.node].profile.port_guid(end.port)


def _reachable(net: Net, start: str, port: int) -> set[str]:
    """What a walk over the cables finds, adapters being ends."""
    seen, edge = {start}, [PortId(start, port)]
    while edge:
        end = edge.pop()
        if not net.link_up(end):
            continue
        there = net.topology.peer(end)
        assert there is not None
        if there.node not in seen:
            seen.add(there.node)
            node = net.topology.nodes[there.node]
            if node.kind is NodeKind.SWITCH:
                edge += [PortId(node.name, n) for n in range(1, node.ports + 1)]
    return seen


# --- LIDs and activation ------------------------------------------------------------------------------------------


@pytest.mark.requirement("SUB-02")
def test_ports_go_from_down_to_active_and_each_has_its_lid() -> None:
    topology = redundant_topology()
    cable = topology.disconnect(PortId("h2", 1))
    net = Net(topology)
    assert net.agents["h2"].port_info(1).port_state == PortState.DOWN
    topology.connect(cable.a, cable.b)
    net.join()
    states = [net.agents["h2"].port_info(1).port_state]
    assert states == [PortState.INIT]
    manager = manager_on(net, "h1")
    assert net.data_path(PortId("h2", 1), 1) is None  # not active: nothing leaves
    while not manager.is_settled or not manager.statistics.heavy_sweeps:
        net.clock.step()
        state = net.agents["h2"].port_info(1).port_state
        if state != states[-1]:
            states.append(state)
            if state >= PortState.ARMED:
                assert net.agents["h2"].lid(1), "armed before it has a LID"
    assert states == [PortState.INIT, PortState.ARMED, PortState.ACTIVE]
    both = [net.agents["h4"].lid(port) for port in (1, 2)]
    assert both[0] != both[1]
    assert all(both)
    assert ("h2", AgentEvent.PORT_ACTIVE, 1) in net.events
    assert ("h2", AgentEvent.LID_CHANGE, 1) in net.events
    assert ("h2", AgentEvent.CLIENT_REREGISTER, 1) in net.events
    assert net.hardware["h2"].applied[1].port_state == PortState.ACTIVE
    assert_all_reachable(net)


def test_limits_are_the_smaller_of_both_ends() -> None:
    from dataclasses import replace

    topology = redundant_topology()
    weak = topology.nodes["h2"].guid
    net = Net(topology, change=lambda p: replace(p, mtu_cap=3, vl_cap=2) if p.guid == weak else p)
    manager = manager_on(net, "h1", SubnetManagerConfig(mtu_code=4, hoq_life=7, packet_life=9))
    settle(net, manager)
    peer = topology.peer(PortId("h2", 1))
    assert peer is not None
    for end in (PortId("h2", 1), peer):
        info = net.agents[end.node].port_info(end.port)
        assert (info.neighbor_mtu, info.operational_vls) == (3, 2)
    other = net.agents["h1"].port_info(1)
    assert (other.neighbor_mtu, other.operational_vls) == (4, 4)
    assert net.agents["s1"].port_info(peer.port).hoq_life == 7
    assert net.hardware["s1"].life_ns == 4096 << 9
    assert manager.subnet is not None
    path = manager.subnet.path(net.agents["h1"].lid(1), net.agents["h2"].lid(1))
    assert path is not None
    assert path.mtu_code == 3
    assert net.hardware["h2"].lanes[1] == bytes([0, 1] * 8)


def test_several_lids_per_port() -> None:
    net = Net(redundant_topology())
    manager = manager_on(net, "h1", SubnetManagerConfig(lmc=2))
    settle(net, manager)
    assert manager.subnet is not None
    for end in net.end_ports():
        lids = lids_of(net, end)
        assert len(lids) == 4
        assert lids[0] % 4 == 0
        assert all(
            manager.subnet.port_of_lid(lid) is manager.subnet.ports_by_guid[_guid(net, end)] for lid in lids
        )
    assert_all_reachable(net)


def test_partitions_go_to_their_members() -> None:
    topology = redundant_topology()
    net = Net(topology)
    h2, h3 = (topology.nodes[n].port_guid(1) for n in ("h2", "h3"))
    config = SubnetManagerConfig(
        partitions=(
            Partition("Default", 0x7FFF, everybody="limited"),
            Partition("blue", 0x12, full=frozenset((h2,)), limited=frozenset((h3,))),
        ),
        enforce_partitions=True,
    )
    manager = manager_on(net, "h1", config)
    settle(net, manager)

    def keys(name: str, port: int = 1) -> list[int]:
        return [key for key in net.agents[name].tables.pkeys(port) if key]

    assert (keys("h1"), keys("h2"), keys("h3")) == ([0xFFFF], [0x7FFF, 0x8012], [0x7FFF, 0x12])
    peer = topology.peer(PortId("h3", 1))
    assert peer is not None
    assert keys(peer.node, peer.port) == [0x7FFF, 0x12]
    assert net.agents[peer.node].port_info(peer.port).partition_enforcement_inbound
    trunk = topology.links[0]
    assert not net.agents[trunk.a.node].port_info(trunk.a.port).partition_enforcement_inbound


def test_arbitration_goes_to_both_ends() -> None:
    net = Net(redundant_topology())
    config = SubnetManagerConfig(arbitration_high=((1, 10),), arbitration_low=((0, 5), (9, 5)), high_limit=3)
    settle(net, manager_on(net, "h1", config))
    for end in (PortId("h2", 1), net.topology.peer(PortId("h2", 1))):
        assert end is not None
        assert net.hardware[end.node].arbitration[end.port] == ([(1, 10)], [(0, 5)], 3)  # lane 9 is not there


def test_multicast_reaches_members_and_nobody_else() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    members = {"h1": 1, "h2": 1, "h3": 1}
    manager.set_groups({0xC001: frozenset(topology.nodes[n].port_guid(p) for n, p in members.items())})
    net.run(SECOND)
    assert net.flood(PortId("h1", 1), 0xC001) == {PortId("h2", 1), PortId("h3", 1)}
    assert net.flood(PortId("h3", 1), 0xC001) == {PortId("h1", 1), PortId("h2", 1)}
    assert net.flood(PortId("h1", 1), 0xC002) == set()
    net.pull(
        next(e for link in topology.links_of("s1") for e in (link.a, link.b) if link.other(e).node == "s3")
    )
    net.run(SECOND)
    assert net.flood(PortId("h1", 1), 0xC001) == {PortId("h2", 1), PortId("h3", 1)}
    manager.set_groups({})
    net.run(SECOND)
    assert net.flood(PortId("h1", 1), 0xC001) == set()


def test_a_multicast_lid_is_one() -> None:
    net = Net(redundant_topology())
    manager = manager_on(net, "h1")
    settle(net, manager)
    for lid in (0xBFFF, 0xFFFF):
        with pytest.raises(InvalidAttributeError):
            manager.set_groups({lid: frozenset()})


def test_a_subnet_as_a_topology() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1", SubnetManagerConfig(lmc=1))
    settle(net, manager)
    assert manager.subnet is not None
    copy, addresses = manager.subnet.topology()
    assert cables(copy) == cables(topology)
    assert {node.description for node in copy.nodes.values()} == set(topology.nodes)
    names = {f"{node.guid:016x}": node.name for node in topology.nodes.values()}
    assert {PortId(names[at.node], at.port): given for at, given in addresses.items()} == {
        **{end: (net.agents[end.node].lid(end.port), 1) for end in net.end_ports()},
        **{PortId(s.name, 0): (net.agents[s.name].lid(0), 0) for s in topology.switches},
    }
