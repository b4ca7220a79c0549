"""GUIDs, LIDs and names: unique where they must be, kept where they can be, refused where they clash."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from management.sm_net import Net, assert_all_reachable, lids_of, manager_on, redundant_topology, settle
from verbena.errors import InvalidAttributeError
from verbena.fabric.topology import Topology
from verbena.management.names import UnknownNameError
from verbena.management.profile import NodeProfile
from verbena.management.subnet_manager import (
    LidTable,
    NoLidError,
    SubnetEvent,
    SubnetEventKind,
    SubnetManagerConfig,
)
from verbena.wire.smp_attributes import PortState

SECOND = 1_000_000_000
Kind = SubnetEventKind


# --- the table ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3), st.integers(0, 60), st.booleans()), max_size=60)
)
def test_the_table_of_lids_against_a_plain_model(steps: list[tuple[int, int, int, bool]]) -> None:
    table = LidTable(1, 40)
    model: dict[int, tuple[int, int]] = {}
    for guid, lmc, wanted, release in steps:
        if release:
            table.release(guid)
            model.pop(guid, None)
            continue
        size = 1 << lmc
        taken = {
            lid for g, (base, bits) in model.items() if g != guid for lid in range(base, base + (1 << bits))
        }
        free = [lid for lid in range(1, 41) if lid % size == 0 and lid + size <= 41]
        free = [lid for lid in free if not taken & set(range(lid, lid + size))]
        if (guid in model and model[guid][1] == lmc) or (guid in model and model[guid][0] in free):
            expected = model[guid][0]
        elif wanted in free:
            expected = wanted
        else:
            own = (
                set(range(model[guid][0], model[guid][0] + (1 << model[guid][1]))) if guid in model else set()
            )
            rest = [lid for lid in free if not own & set(range(lid, lid + size))]
            if not rest:
                with pytest.raises(NoLidError):
                    table.assign(guid, lmc, wanted)
                continue
            expected = rest[0]
        assert table.assign(guid, lmc, wanted) == expected
        model[guid] = (expected, lmc)
        assert table.all() == model
        assert all(table.owner(lid) == guid for lid in range(expected, expected + size))


@pytest.mark.requirement("NOD-09")
def test_lids_out_of_range_or_taken_are_refused() -> None:
    table = LidTable()
    table.reserve(1, 5)
    for guid, lid, lmc in (
        (2, 5, 0),
        (2, 4, 1),
        (2, 0, 0),
        (2, 0xC000, 0),
        (2, 0x10000, 0),
        (2, 6, 2),
        (2, 8, 8),
    ):
        with pytest.raises(InvalidAttributeError):
            table.reserve(guid, lid, lmc)
    assert table.all() == {1: (5, 0)}
    assert table.load({3: (7, 0), 4: (7, 0), 5: (70_000, 0)}) != []
    assert table.all() == {1: (5, 0), 3: (7, 0)}
    net = Net(redundant_topology())
    ports = [net.topology.nodes[name].port_guid(1) for name in ("h2", "h3")]
    for bad in ({ports[0]: (5, 0), ports[1]: (5, 0)}, {ports[0]: (0x10000, 0)}):
        with pytest.raises(InvalidAttributeError):
            manager_on(net, "h1", SubnetManagerConfig(lids=bad))
    for name, value in (("first_lid", 0), ("last_lid", 0xC000), ("lmc", 8), ("priority", 16), ("window", 0)):
        with pytest.raises(InvalidAttributeError, match=name):
            SubnetManagerConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.requirement("NOD-09")
def test_two_subnets_use_the_same_lids() -> None:
    nets = [Net(redundant_topology()) for _ in range(2)]
    for net in nets:
        guid = net.topology.nodes["h2"].port_guid(1)
        settle(net, manager_on(net, "h1", SubnetManagerConfig(lids={guid: (5, 0)})))
        assert net.agents["h2"].lid(1) == 5
        assert_all_reachable(net)


@pytest.mark.requirement("NOD-10")
def test_the_lid_space_ends_with_an_error_and_no_lid_twice() -> None:
    table = LidTable()
    given = [table.assign(guid) for guid in range(1, 0xC000)]
    assert sorted(given) == list(range(1, 0xC000))
    for guid in (0xC000, 0xC001):
        with pytest.raises(NoLidError, match="no LID left"):
            table.assign(guid, present=range(1, 0xC000))
    assert table.all() == {guid: (lid, 0) for guid, lid in enumerate(given, 1)}
    table.release(777)
    assert table.assign(0xC000) == given[776]
    # One that has departed gives its LID up only now that nothing else is left.
    assert table.assign(0xC001, present=[guid for guid in range(1, 0xC001) if guid != 5]) == given[4]


@pytest.mark.requirement("NOD-10")
def test_a_node_for_which_no_lid_is_left_stays_outside() -> None:
    topology = redundant_topology()
    net = Net(topology)
    events: list[SubnetEvent] = []
    manager = manager_on(net, "h1", SubnetManagerConfig(last_lid=8), on_event=events.append)
    settle(net, manager)
    assert manager.subnet is not None
    assert sorted(p.lid for p in manager.subnet.end_ports()) == list(range(1, 9))
    assert not [e for e in events if e.kind is Kind.NO_LID]
    topology.add_host("late")
    topology.connect("late", "s3")
    net.join()
    net.run(SECOND)
    errors = [e for e in events if e.kind is Kind.NO_LID]
    assert [e.guid for e in errors] == [topology.nodes["late"].port_guid(1)]
    assert "no LID left" in errors[0].text
    assert net.agents["late"].lid(1) == 0
    assert net.agents["late"].port_info(1).port_state == PortState.INIT
    net.kill("h2")
    net.run(SECOND)
    manager.sweep()
    net.run(SECOND)
    assert net.agents["late"].lid(1) != 0


# --- GUIDs --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-08")
def test_guids_differ_and_outlive_lids() -> None:
    topology = redundant_topology()
    net = Net(topology)
    manager = manager_on(net, "h1")
    settle(net, manager)
    assert manager.subnet is not None
    assert len(manager.subnet.nodes) == len(topology.nodes)
    assert len({*manager.subnet.nodes, *manager.subnet.ports_by_guid}) == 4 + 5 + 3
    guid, lid = topology.nodes["h2"].port_guid(1), net.agents["h2"].lid(1)
    manager.stop()
    net.reset("h2")
    other = manager_on(net, "h1", SubnetManagerConfig(lids={guid: (lid + 100, 0)}))
    settle(net, other)
    assert net.agents["h2"].lid(1) == lid + 100
    assert other.subnet is not None
    assert other.subnet.ports_by_guid[guid].lid == lid + 100


@pytest.mark.parametrize("kind", ["adapter", "adapter of another make", "switch"])
@pytest.mark.requirement("NOD-08")
def test_a_duplicate_guid_is_refused_when_it_joins(kind: str) -> None:
    topology = redundant_topology()
    original = topology.nodes["s2" if kind == "switch" else "h2"]
    events: list[SubnetEvent] = []

    def change(profile: NodeProfile) -> NodeProfile:
        if profile.description != "clone":
            return profile
        more = {"device_id": 99} if kind == "adapter of another make" else {}
        return replace(profile, guid=original.guid, system_guid=original.guid, **more)

    net = Net(topology, change=change)
    manager = manager_on(net, "h1", on_event=events.append)
    settle(net, manager)
    before = {end: lids_of(net, end) for end in net.end_ports()}
    if kind == "switch":
        topology.add_switch("clone", 8)
        topology.connect("clone", "s3")
    else:
        topology.add_host("clone")
        topology.connect("clone", "s3")
    net.join()
    net.run(SECOND)
    duplicates = [e for e in events if e.kind is Kind.DUPLICATE_GUID]
    assert duplicates
    assert {e.guid for e in duplicates} == {original.guid}
    assert all(f"{original.guid:#018x}" in e.text for e in duplicates)
    assert net.agents["clone"].lid(0 if kind == "switch" else 1) == 0
    assert {end: lids_of(net, end) for end in before} == before
    assert manager.subnet is not None
    assert len(manager.subnet.nodes) == 7
    for source in before:
        for target in before:
            if source != target:
                assert net.data_path(source, before[target][0]) is not None
    count = len(events)
    net.run(60 * SECOND)  # it is told once, not at every sweep
    assert not [e for e in events[count:] if e.kind is Kind.DUPLICATE_GUID]


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("NOD-07")
def test_a_name_stands_for_all_adapters_of_a_host() -> None:
    topology = Topology()
    for name in ("left", "right"):
        topology.add_host(name, host="big")
    topology.add_host("small")
    for name in ("u1", "u2"):
        topology.add_switch(name, 8, host="chassis")
    topology.connect("u1", "u2")
    for name in ("left", "small"):
        topology.connect(name, "u1")
    topology.connect("right", "u2")
    net = Net(topology)
    events: list[SubnetEvent] = []
    manager = manager_on(net, "small", on_event=events.append)
    settle(net, manager)
    guid = {name: node.guid for name, node in topology.nodes.items()}
    assert manager.names.resolve("big") == [guid["left"], guid["right"]]
    assert manager.names.resolve("small") == [guid["small"]]
    assert manager.names.resolve("chassis") == [guid["u1"], guid["u2"]]  # one name, two elements
    with pytest.raises(UnknownNameError, match="nobody"):
        manager.names.resolve("nobody")

    # A second host of that name, with a GUID below all others, is refused; the name goes on meaning the first.
    impostor = topology.add_host("impostor", guid=0x10, host="imp")
    impostor.host, impostor.description = "impostor", "big HCA-1"
    topology.connect("impostor", "u2")
    net.join()
    net.run(SECOND)
    refused = [e for e in events if e.kind is Kind.DUPLICATE_NAME]
    assert [e.guid for e in refused] == [0x10]
    assert "big" in refused[0].text
    assert manager.names.resolve("big") == [guid["left"], guid["right"]]
    assert manager.subnet is not None
    assert 0x10 in manager.subnet.nodes  # the node itself is part of the subnet
