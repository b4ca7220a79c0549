"""A node's agent: every attribute read and written."""

from __future__ import annotations

from typing import Any

import pytest

from management.agent_lab import KEY, SECOND, A, net, ok, request, settings_of, snapshot
from verbena.management.agent import AgentEvent
from verbena.management.port_states import TRANSITIONS, PortInput, next_state
from verbena.wire.mad import MadStatus, Method
from verbena.wire.smp import Smp, directed_smp
from verbena.wire.smp_attributes import (
    GUIDInfo,
    LedInfo,
    LinearForwardingTable,
    MulticastForwardingTable,
    NodeDescription,
    NodeInfo,
    PKeyTable,
    PortState,
    SLtoVLMappingTable,
    SwitchInfo,
    VLArbitrationTable,
)

# --- reading ------------------------------------------------------------------------------------------------------


def test_every_kind_of_node_tells_what_it_is() -> None:
    n = net()
    for name, kind, ports in (("h1", 1, 2), ("s1", 2, 20), ("r1", 3, 2)):
        agent = n.agents[name]
        info = ok(agent, A.NODE_INFO)
        assert isinstance(info, NodeInfo)
        node = n.topology.nodes[name]
        assert (info.node_type, info.num_ports, info.node_guid) == (kind, ports, node.guid)
        assert (info.local_port_num, info.port_guid) == (1, node.port_guid(1))
        description = ok(agent, A.NODE_DESCRIPTION)
        assert isinstance(description, NodeDescription)
        assert str(description) == name
    assert isinstance(ok(n.agents["s1"], A.SWITCH_INFO), SwitchInfo)


def test_ports_are_numbered_from_1_and_a_switch_has_port_0() -> None:
    n = net()
    assert ok(n.agents["h1"], A.PORT_INFO, 0).local_port_num == 1  # the one that was asked
    assert ok(n.agents["h1"], A.PORT_INFO, 0, port=2).local_port_num == 2
    assert ok(n.agents["h1"], A.PORT_INFO, 2).port_state == PortState.DOWN
    assert ok(n.agents["s1"], A.PORT_INFO, 0).port_state == PortState.ACTIVE
    assert ok(n.agents["s1"], A.PORT_INFO, 1 | 1 << 31).port_state == PortState.INIT
    info = ok(n.agents["s1"], A.PORT_INFO, 1)
    assert (info.link_width_active, info.link_speed_active, info.link_speed_ext_active) == (2, 4, 2)  # 4x EDR
    for name, port in (("h1", 3), ("s1", 21)):
        answer = request(n.agents[name], A.PORT_INFO, port)
        assert answer is not None
        assert answer.status == MadStatus.INVALID_VALUE


@pytest.mark.parametrize(
    "name, attribute, data",
    [
        ("h1", A.SWITCH_INFO, None),
        ("h1", A.LINEAR_FORWARDING, None),
        ("h1", A.MULTICAST_FORWARDING, None),
        ("s1", A.SL_TO_VL, None),
        ("s1", A.RANDOM_FORWARDING, None),
        ("s1", A.RANDOM_FORWARDING, bytes(64)),
        ("h1", A.SM_INFO, None),
        ("h1", A.NODE_INFO, bytes(64)),
        ("h1", A.NODE_DESCRIPTION, bytes(64)),
        ("h1", A.VENDOR_DIAG, bytes(64)),
        ("h1", A.NOTICE, None),
        ("h1", 0x0013, None),
        ("h1", 0xFF00, None),
    ],
)
def test_what_a_node_does_not_have_is_answered_by_a_status(
    name: str, attribute: int, data: bytes | None
) -> None:
    answer = request(net().agents[name], attribute, 0, data)
    assert answer is not None
    assert answer.status == MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE


def test_methods_and_versions() -> None:
    agent = net().agents["h1"]
    for method in (0x02 | 0x10, 0x12, 0x15):
        answer = request(agent, A.NODE_INFO, method=method)
        assert answer is not None
        assert answer.status == MadStatus.UNSUPPORTED_METHOD
    mad = bytearray(directed_smp(Method.GET, A.NODE_INFO, 0, (1,)))
    mad[2] = 2
    answer = agent.receive(bytes(mad), 1)
    assert answer is not None
    assert Smp.unpack(answer).status == MadStatus.BAD_VERSION
    for method in (0, Method.SEND, Method.TRAP, Method.REPORT, Method.GET_RESPONSE, 0x86, 0xFF):
        assert request(agent, A.NODE_INFO, method=method) is None
    assert agent.counters["drop.method"] == 7
    assert agent.receive(b"short", 1) is None
    assert agent.counters["drop.malformed"] == 1


# --- writing ------------------------------------------------------------------------------------------------------


def test_addresses_are_set_and_told() -> None:
    n = net()
    agent = n.agents["h1"]
    data = settings_of(
        agent.port_info(1), lid=64, lmc=3, master_sm_lid=9, gid_prefix=5 << 32, client_reregister=True
    )
    info = ok(agent, A.PORT_INFO, 1, data)
    assert (info.lid, info.lmc, info.master_sm_lid, info.client_reregister) == (64, 3, 9, False)
    assert n.hardware["h1"].applied[1].lid == 64
    assert [agent.owns(1, lid) for lid in (63, 64, 71, 72)] == [False, True, True, False]
    events = {event for name, event, port in n.events if (name, port) == ("h1", 1)}
    assert events == {
        AgentEvent.LID_CHANGE, AgentEvent.SM_CHANGE, AgentEvent.GID_CHANGE, AgentEvent.CLIENT_REREGISTER
    }  # fmt: skip
    n.events.clear()
    ok(agent, A.PORT_INFO, 1, settings_of(agent.port_info(1)))
    assert not n.events


BAD_SETTINGS: list[tuple[str, int, dict[str, int]]] = [
    ("h1", 1, {"lid": 0xC000}),
    ("h1", 1, {"lid": 5, "lmc": 1}),
    ("h1", 1, {"lid": 0xBFFF + 1}),
    ("h1", 1, {"master_sm_lid": 0}),
    ("h1", 1, {"port_state": PortState.INIT}),
    ("h1", 1, {"port_state": PortState.ACTIVE}),  # from INIT
    ("h1", 1, {"port_state": 9}),
    ("h1", 1, {"port_state": PortState.ARMED, "port_physical_state": 2}),
    ("h1", 1, {"port_physical_state": 5}),
    ("h1", 1, {"link_down_default_state": 3}),
    ("h1", 1, {"neighbor_mtu": 0}),
    ("h1", 1, {"neighbor_mtu": 6}),
    ("h1", 1, {"operational_vls": 5}),
    ("h1", 1, {"link_width_enabled": 64}),
    ("h1", 1, {"link_speed_enabled": 8}),
    ("h1", 1, {"link_speed_ext_enabled": 16}),
    ("h1", 2, {"port_state": PortState.ARMED}),  # it is down
    ("s1", 0, {"lid": 8, "lmc": 1}),
    ("s1", 1, {"port_state": PortState.ACTIVE}),
]


@pytest.mark.parametrize("name, port, wrong", BAD_SETTINGS)
def test_an_invalid_component_and_nothing_changes(name: str, port: int, wrong: dict[str, int]) -> None:
    n = net()
    agent = n.agents[name]
    before, calls = snapshot(agent), n.hardware[name].calls
    # Everything else in the same SMP is right, and must not be taken either.
    changes: dict[str, Any] = {"lid": 32, "mkey": KEY, "hoq_life": 3, "subnet_timeout": 1, **wrong}
    answer = request(agent, A.PORT_INFO, port, settings_of(agent.port_info(port), **changes))
    assert answer is not None
    assert answer.status == MadStatus.INVALID_VALUE
    assert snapshot(agent) == before
    assert n.hardware[name].calls == calls


def test_read_only_components_are_passed_over() -> None:
    agent = net().agents["h1"]
    before = agent.port_info(1)
    changes = {
        "mtu_cap": 1,
        "vl_cap": 1,
        "capability_mask": 0,
        "link_width_active": 1,
        "guid_cap": 1,
        "local_port_num": 9,
    }
    info = ok(agent, A.PORT_INFO, 1, settings_of(before, **changes))
    for name in changes:
        assert getattr(info, name) == getattr(before, name)


def test_port_states_follow_the_table() -> None:
    """All the ways through a port's life, against the table; and the table against the standard's figure."""
    n = net()
    agent = n.agents["h2"]
    state = PortState.INIT
    for wanted in (4, 3, 3, 4, 4, 3, 2, 1):
        event = {1: PortInput.SET_DOWN, 3: PortInput.SET_ARMED, 4: PortInput.SET_ACTIVE}.get(wanted)
        expected = None if event is None else next_state(state, event)
        answer = request(agent, A.PORT_INFO, 1, settings_of(agent.port_info(1), port_state=wanted))
        assert answer is not None
        assert (answer.status == 0) == (expected is not None)
        state = PortState(agent.port_info(1).port_state)
        assert expected in (None, state)
    assert state == PortState.DOWN
    n.run(SECOND)
    assert agent.port_info(1).port_state == PortState.INIT  # the link has trained again
    assert {s for s, _ in TRANSITIONS} == {PortState.DOWN, PortState.INIT, PortState.ARMED, PortState.ACTIVE}
    assert all(
        after == PortState.DOWN for (_, what), after in TRANSITIONS.items() if what is PortInput.LINK_DOWN
    )
    assert {before for (before, _), after in TRANSITIONS.items() if after is PortState.ACTIVE} == {
        PortState.ARMED,
        PortState.ACTIVE,
    }


def test_a_disabled_port_stays_down_until_it_is_enabled() -> None:
    n = net()
    agent = n.agents["h2"]
    down = settings_of(agent.port_info(1), port_state=1, port_physical_state=3)
    assert ok(agent, A.PORT_INFO, 1, down).port_physical_state == 3
    agent.link_changed(1, True)
    n.run(SECOND)
    assert agent.port_info(1).port_state == PortState.DOWN
    ok(agent, A.PORT_INFO, 1, settings_of(agent.port_info(1), port_state=1, port_physical_state=2))
    n.run(SECOND)
    assert (agent.port_info(1).port_state, agent.port_info(1).port_physical_state) == (PortState.INIT, 5)


def test_data_makes_an_armed_port_active() -> None:
    n = net()
    agent = n.agents["h2"]
    agent.data_arrived(1)
    assert agent.port_info(1).port_state == PortState.INIT
    ok(agent, A.PORT_INFO, 1, settings_of(agent.port_info(1), port_state=3))
    agent.data_arrived(1)
    assert agent.port_info(1).port_state == PortState.ACTIVE
    assert ("h2", AgentEvent.PORT_ACTIVE, 1) in n.events


def test_tables_reach_the_hardware_and_read_back() -> None:
    n = net()
    host, switch = n.agents["h1"], n.agents["s1"]
    keys = PKeyTable((0xFFFF, 0x8001, 5))
    assert ok(host, A.PKEY_TABLE, 0, keys.pack()).entries[:4] == (0xFFFF, 0x8001, 5, 0)
    assert n.hardware["h1"].pkeys[1, 0][:3] == [0xFFFF, 0x8001, 5]
    assert ("h1", AgentEvent.PKEY_CHANGE, 1) in n.events
    ok(switch, A.PKEY_TABLE, 7 << 16, keys.pack())
    assert n.hardware["s1"].pkeys[7, 0][:3] == [0xFFFF, 0x8001, 5]
    lanes = SLtoVLMappingTable(tuple(range(16)))
    assert ok(host, A.SL_TO_VL, 0, lanes.pack()) == lanes
    assert n.hardware["h1"].lanes[1] == bytes(range(16))
    low, high = VLArbitrationTable(((0, 4), (1, 8))), VLArbitrationTable(((2, 255),))
    ok(switch, A.VL_ARBITRATION, 1 << 16 | 3, low.pack())
    ok(switch, A.VL_ARBITRATION, 3 << 16 | 3, high.pack())
    ok(switch, A.PORT_INFO, 3, settings_of(switch.port_info(3), vl_high_limit=9))
    assert n.hardware["s1"].arbitration[3] == ([(2, 255)], [(0, 4), (1, 8)], 9)
    block = LinearForwardingTable(tuple(range(1, 21)) + (255,) * 44)
    assert ok(switch, A.LINEAR_FORWARDING, 2, block.pack()) == block
    assert [switch.tables.output_port(lid) for lid in (127, 128, 147, 148)] == [255, 1, 20, 255]
    assert n.hardware["s1"].lft[2] == block.pack()
    masks = MulticastForwardingTable((0b10, 0b110))
    ok(switch, A.MULTICAST_FORWARDING, 1 << 28 | 3, MulticastForwardingTable((1, 0)).pack())
    ok(switch, A.MULTICAST_FORWARDING, 3, masks.pack())
    assert switch.tables.multicast_ports(0xC000 + 96) == [1, 16]
    assert switch.tables.multicast_ports(0xC000 + 97) == [1, 2]
    assert n.hardware["s1"].mft[3, 0][:2] == [2, 6]
    guids = ok(host, A.GUID_INFO, 0, GUIDInfo((1, 2, 3)).pack()).entries
    assert guids[:3] == (host.profile.port_guid(1), 2, 3)  # the port's own cannot be written
    assert ok(host, A.LED_INFO, 0, LedInfo(on=True).pack()).on
    assert not ok(host, A.LED_INFO, 0, port=2).on


@pytest.mark.parametrize(
    "name, attribute, modifier, data",
    [
        ("s1", A.LINEAR_FORWARDING, 768, bytes(64)),
        ("s1", A.LINEAR_FORWARDING, 0, bytes([21]) * 64),
        ("s1", A.MULTICAST_FORWARDING, 32, bytes(64)),
        ("s1", A.MULTICAST_FORWARDING, 2 << 28, bytes(64)),
        ("s1", A.MULTICAST_FORWARDING, 1 << 28, b"\xff" * 64),
        ("s1", A.PKEY_TABLE, 21 << 16, bytes(64)),
        ("h1", A.PKEY_TABLE, 1, bytes(64)),
        ("h1", A.GUID_INFO, 1, bytes(64)),
        ("h1", A.VL_ARBITRATION, 5 << 16, bytes(64)),
        ("h1", A.VL_ARBITRATION, 2 << 16, bytes(64)),
        ("h1", A.VL_ARBITRATION, 1 << 16, b"\x0f\x01" * 32),
        ("s1", A.SWITCH_INFO, 0, SwitchInfo(linear_fdb_top=0xC000, default_port=255).pack()),
        ("s1", A.SWITCH_INFO, 0, SwitchInfo(default_port=21).pack()),
    ],
)
def test_what_a_table_cannot_hold_is_refused(name: str, attribute: int, modifier: int, data: bytes) -> None:
    n = net()
    agent = n.agents[name]
    before, calls = snapshot(agent), n.hardware[name].calls
    answer = request(agent, attribute, modifier, data)
    assert answer is not None
    assert answer.status == MadStatus.INVALID_VALUE
    assert (snapshot(agent), n.hardware[name].calls) == (before, calls)
