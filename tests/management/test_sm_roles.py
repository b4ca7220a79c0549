"""Several subnet managers on one subnet: who is master, and what happens when it dies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from management.sm_net import Net, assert_all_reachable, lids_of, manager_on, redundant_topology, settle
from verbena.fabric.topology import PortId
from verbena.management.subnet_manager import SubnetManager, SubnetManagerConfig
from verbena.management.subnet_manager.election import CONTROLS, TRANSITIONS, SmInput, is_above
from verbena.wire.mad import MadStatus, Method
from verbena.wire.smp import AttributeId, Smp, directed_smp, parse_smp_packet
from verbena.wire.smp_attributes import SmControl, SMInfo, SmState

SECOND = 1_000_000_000


def states(*managers: SubnetManager) -> list[SmState]:
    return [manager.state for manager in managers]


def wait(net: Net, done: object, *managers: SubnetManager) -> None:
    net.run_until(lambda: states(*managers) == done and all(m.is_settled for m in managers))


def lids(net: Net) -> dict[object, range]:
    return {end: lids_of(net, end) for end in net.end_ports()} | {
        s.name: range(net.agents[s.name].lid(0), 0) for s in net.topology.switches
    }


@pytest.mark.requirement("SUB-15")
def test_a_standby_takes_over_with_the_same_lids() -> None:
    net = Net(redundant_topology())
    first = manager_on(net, "h1", SubnetManagerConfig(priority=5))
    second = manager_on(net, "h2", SubnetManagerConfig(priority=4))
    wait(net, [SmState.MASTER, SmState.STANDBY], first, second)
    assert_all_reachable(net)
    before = lids(net)
    assert net.agents["h3"].port_info(1).master_sm_lid == net.agents["h1"].lid(1)
    net.run(30 * SECOND)
    assert states(first, second) == [SmState.MASTER, SmState.STANDBY]

    first.stop()
    writes = {name: dict(hardware.lft) for name, hardware in net.hardware.items()}
    moment = net.clock.now()
    targets = [net.agents[name].lid(1) for name in ("h1", "h2", "h3")]
    while second.state is not SmState.MASTER or not second.is_settled:
        net.clock.step()
        # Data in flight goes on: at every moment of the hand-over every path is there.
        if net.clock.now() != moment:
            moment = net.clock.now()
            for lid in targets:
                assert net.data_path(PortId("h4", 2), lid) is not None
    assert lids(net) == before
    assert {name: dict(hardware.lft) for name, hardware in net.hardware.items()} == writes
    assert net.agents["h3"].port_info(1).master_sm_lid == net.agents["h2"].lid(1)
    assert_all_reachable(net)

    net.kill("s3")  # and the new master does its work
    net.run(SECOND)
    assert second.subnet is not None
    assert "s3" not in {node.name for node in second.subnet.nodes.values()}


def test_a_new_master_clears_the_multicast_tables_of_the_old_one() -> None:
    net = Net(redundant_topology())
    first = manager_on(net, "h1", SubnetManagerConfig(priority=5))
    second = manager_on(net, "h2", SubnetManagerConfig(priority=4))
    wait(net, [SmState.MASTER, SmState.STANDBY], first, second)
    everybody = frozenset(net.topology.nodes[name].port_guid(1) for name in ("h1", "h2", "h3"))
    first.set_groups({0xC001: everybody, 0xC055: everybody})
    net.run(SECOND)
    used = {name: hardware.mft for name, hardware in net.hardware.items() if hardware.mft}
    assert {place for tables in used.values() for place in tables} >= {(0, 0), (2, 0)}
    first.stop()
    wait(net, [SmState.NOT_ACTIVE, SmState.MASTER], first, second)
    net.run(SECOND)
    assert not any(any(masks) for tables in used.values() for masks in tables.values())
    second.set_groups({0xC055: everybody})
    net.run(SECOND)
    masks = [tables.get((2, 0)) for tables in used.values()]
    assert any(masks)
    assert all(not any(found[:21] + found[22:]) for found in masks if found)


def test_a_standby_takes_over_when_the_masters_node_dies() -> None:
    net = Net(redundant_topology())
    first = manager_on(net, "h1", SubnetManagerConfig(priority=5))
    second = manager_on(net, "h2")
    third = manager_on(net, "s3")  # on a switch
    wait(net, [SmState.MASTER, SmState.STANDBY, SmState.STANDBY], first, second, third)
    before = lids(net)
    first.stop()
    net.kill("h1")
    net.run(60 * SECOND)
    # Equal priorities: the lowest GUID.
    assert states(second, third) == [SmState.MASTER, SmState.STANDBY]
    after = lids(net)
    assert after == {end: before[end] for end in after}
    assert_all_reachable(net)


def test_a_master_hands_over_to_a_higher_priority() -> None:
    net = Net(redundant_topology())
    low = manager_on(net, "h1", SubnetManagerConfig(priority=1))
    settle(net, low)
    before = lids(net)
    high = manager_on(net, "h3", SubnetManagerConfig(priority=9))
    net.run(60 * SECOND)
    assert states(low, high) == [SmState.STANDBY, SmState.MASTER]
    assert lids(net) == before
    assert net.agents["h2"].port_info(1).master_sm_lid == net.agents["h3"].lid(1)
    assert_all_reachable(net)
    # A third one below stays below.
    low2 = manager_on(net, "h2", SubnetManagerConfig(priority=3))
    net.run(60 * SECOND)
    assert states(low, high, low2) == [SmState.STANDBY, SmState.MASTER, SmState.STANDBY]


def test_two_parts_that_are_joined_end_with_one_master() -> None:
    topology = redundant_topology()
    trunks = [x for x in topology.links if {x.a.node, x.b.node} in ({"s1", "s3"}, {"s2", "s3"})]
    for link in trunks:
        topology.disconnect(link.a)
    net = Net(topology)
    first = manager_on(net, "h1", SubnetManagerConfig(priority=2))
    second = manager_on(net, "h3", SubnetManagerConfig(priority=1))
    wait(net, [SmState.MASTER, SmState.MASTER], first, second)
    shared = {lid for end in net.end_ports() for lid in lids_of(net, end)}
    assert len(shared) < len(net.end_ports())  # both began at LID 1
    for link in trunks:
        topology.connect(link.a, link.b)
    net.join()
    net.run(60 * SECOND)
    assert states(first, second) == [SmState.MASTER, SmState.STANDBY]
    given = [lid for end in net.end_ports() for lid in lids_of(net, end)]
    given += [net.agents[s.name].lid(0) for s in topology.switches]
    assert len(given) == len(set(given))
    assert_all_reachable(net)


@pytest.mark.parametrize("interval_ns", [0, SECOND])
def test_a_hand_over_from_a_manager_not_yet_known_is_accepted(interval_ns: int) -> None:
    """Two parts are joined, and the lower master is the first to look: the higher one has not met it yet."""
    topology = redundant_topology()
    trunks = [x for x in topology.links if {x.a.node, x.b.node} in ({"s1", "s3"}, {"s2", "s3"})]
    for link in trunks:
        topology.disconnect(link.a)
    net = Net(topology)
    slow = SubnetManagerConfig(priority=2, sweep_interval_ns=interval_ns, settle_ns=SECOND)
    first = manager_on(net, "h1", slow)
    second = manager_on(net, "h3", replace(slow, priority=1))
    wait(net, [SmState.MASTER, SmState.MASTER], first, second)
    for link in trunks:
        topology.connect(link.a, link.b)
    net.join()
    second.sweep()
    net.run(SECOND // 2)  # before anything else makes either of them look
    assert states(first, second) == [SmState.MASTER, SmState.STANDBY]
    net.run(60 * SECOND)
    assert states(first, second) == [SmState.MASTER, SmState.STANDBY]
    assert_all_reachable(net)


def test_a_hand_over_that_got_lost_is_repeated() -> None:
    net = Net(redundant_topology())
    low = manager_on(net, "h1", SubnetManagerConfig(priority=1))
    settle(net, low)
    high = manager_on(net, "h3", SubnetManagerConfig(priority=9))
    lost: list[bytes] = []
    deliver = net.interfaces["h3"].receive

    def lossy(packet: bytes, port: int) -> None:
        mad = parse_smp_packet(packet).mad
        if (mad[3], mad[16:18]) == (Method.SET, AttributeId.SM_INFO.to_bytes(2, "big")) and len(lost) < 20:
            lost.append(mad)
        else:
            deliver(packet, port)

    net.interfaces["h3"].receive = lossy  # type: ignore[method-assign]
    net.run(300 * SECOND)
    assert len(lost) == 20
    assert states(low, high) == [SmState.STANDBY, SmState.MASTER]


def test_all_at_once() -> None:
    net = Net(redundant_topology())
    managers = [
        manager_on(net, name, SubnetManagerConfig(priority=p))
        for name, p in (("h1", 3), ("h2", 7), ("h3", 7))
    ]
    net.run(120 * SECOND)
    assert states(*managers) == [SmState.STANDBY, SmState.MASTER, SmState.STANDBY]
    assert_all_reachable(net)


def test_a_manager_that_was_stopped_can_start_again() -> None:
    net = Net(redundant_topology())
    first = manager_on(net, "h1", SubnetManagerConfig(priority=5))
    second = manager_on(net, "h2")
    wait(net, [SmState.MASTER, SmState.STANDBY], first, second)
    before = lids(net)
    first.stop()
    assert first.state is SmState.NOT_ACTIVE
    net.run(60 * SECOND)
    assert second.state is SmState.MASTER
    first.start()
    net.run(60 * SECOND)
    assert states(first, second) == [SmState.MASTER, SmState.STANDBY]
    assert lids(net) == before


def ask(net: Net, manager: str, asker: str, control: int | None, key: int = 0) -> Smp:
    """SubnGet or SubnSet(SMInfo) from one adapter's queue pair 0 to another's manager."""
    got: list[Smp] = []
    interface = net.interfaces[asker]
    interface.set_receiver(lambda mad, slid: got.append(Smp.unpack(mad)))
    # Both are at switches that one cable joins.
    near = net.topology.peer(next(e for e in net.end_ports() if e.node == asker))
    far = net.topology.peer(next(e for e in net.end_ports() if e.node == manager))
    assert near is not None
    assert far is not None
    trunk = next(x for x in net.topology.links if {x.a.node, x.b.node} == {near.node, far.node})
    out = trunk.a.port if trunk.a.node == near.node else trunk.b.port
    method = Method.GET if control is None else Method.SET
    data = SMInfo(guid=1, sm_key=key).pack()
    mad = directed_smp(method, AttributeId.SM_INFO, control or 0, (1, out, far.port), data=data)
    interface.send(mad, path=(1, out, far.port), dlid=None)
    net.run(1_000_000)
    return got[-1]


def test_commands_follow_the_table_and_need_the_key() -> None:
    net = Net(redundant_topology())
    net.interfaces["h3"].attach(1)
    master = manager_on(net, "h1", SubnetManagerConfig(priority=5, sm_key=77))
    standby = manager_on(net, "h2", SubnetManagerConfig(priority=4, sm_key=77))
    wait(net, [SmState.MASTER, SmState.STANDBY], master, standby)
    assert SMInfo.unpack(ask(net, "h1", "h3", None).data).state == SmState.MASTER
    for control in SmControl:
        answer = ask(net, "h2", "h3", control, key=78)
        assert answer.status == MadStatus.INVALID_VALUE
        assert standby.state is SmState.STANDBY
    for control in (0, SmControl.DISABLE, SmControl.STANDBY, SmControl.DISCOVER, 6):
        assert ask(net, "h1", "h3", control, key=77).status == MadStatus.INVALID_VALUE
    assert master.state is SmState.MASTER
    assert ask(net, "h2", "h3", SmControl.DISABLE, key=77).status == 0
    assert standby.state is SmState.NOT_ACTIVE
    net.run(30 * SECOND)
    assert standby.state is SmState.NOT_ACTIVE
    assert ask(net, "h2", "h3", SmControl.STANDBY, key=77).status == 0
    assert standby.state is SmState.STANDBY


@settings(max_examples=50)
@given(
    st.tuples(st.integers(0, 15), st.integers(1, 2**64 - 1)),
    st.tuples(st.integers(0, 15), st.integers(1, 2**64 - 1)),
)
def test_one_of_two_is_above(a: tuple[int, int], b: tuple[int, int]) -> None:
    info = SMInfo(priority=a[0], guid=a[1])
    other = replace(info, priority=b[0], guid=b[1])
    assert is_above(info, *b) + is_above(other, *a) == (a != b)


def test_the_table() -> None:
    """Only the hand-over and being alone make a master; only a standby can be disabled."""
    to_master = {
        key for key, after in TRANSITIONS.items() if after is SmState.MASTER and key[0] is not SmState.MASTER
    }
    assert to_master == {(SmState.DISCOVERING, SmInput.NOBODY_ABOVE), (SmState.STANDBY, SmInput.HANDOVER)}
    assert {before for (before, what) in TRANSITIONS if what is SmInput.DISABLE} == {SmState.STANDBY}
    assert set(CONTROLS) == set(SmControl)
