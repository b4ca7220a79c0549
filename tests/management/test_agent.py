"""A node's agent: every attribute read and written, keys, traps, and what it makes of nonsense."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from management.sm_net import Net
from verbena.fabric.topology import Topology
from verbena.management.agent import AgentEvent, SubnetManagementAgent
from verbena.management.port_states import TRANSITIONS, PortInput, next_state
from verbena.wire.mad import MadStatus, Method
from verbena.wire.smp import AttributeId, Smp, directed_smp, lid_routed_smp
from verbena.wire.smp_attributes import (
    BadKeyDetails,
    BadMkeyDetails,
    CapabilityDetails,
    GUIDInfo,
    LedInfo,
    LinearForwardingTable,
    LinkStateDetails,
    MulticastForwardingTable,
    NodeDescription,
    NodeInfo,
    Notice,
    PKeyTable,
    PortCapability,
    PortInfo,
    PortState,
    SLtoVLMappingTable,
    SwitchInfo,
    Trap,
    VLArbitrationTable,
)

A = AttributeId
SECOND = 1_000_000_000
KEY = 0x1234_5678_9ABC_DEF0


def net() -> Net:
    topology = Topology()
    topology.add_host("h1", 2)
    topology.add_host("h2")
    topology.add_switch("s1", 20)
    topology.add_router("r1")
    topology.connect("h1", "s1")
    topology.connect("h2", "s1")
    topology.connect("r1", "s1")
    return Net(topology)


def request(
    agent: SubnetManagementAgent,
    attribute: int,
    modifier: int = 0,
    data: bytes | None = None,
    *,
    port: int = 1,
    mkey: int = 0,
    method: int | None = None,
) -> Smp | None:
    """What an agent answers to a SubnGet, or with `data` to a SubnSet."""
    how = method if method is not None else Method.GET if data is None else Method.SET
    mad = directed_smp(how, attribute, modifier, (1,), data=data or b"", mkey=mkey, transaction_id=77)
    answer = agent.receive(mad, port)
    return None if answer is None else Smp.unpack(answer)


def ok(
    agent: SubnetManagementAgent, attribute: int, modifier: int = 0, data: bytes | None = None, **more: Any
) -> Any:
    answer = request(agent, attribute, modifier, data, **more)
    assert answer is not None
    assert (answer.status, answer.method, answer.direction) == (0, Method.GET_RESPONSE, True)
    assert (answer.transaction_id, answer.attribute_id, answer.attribute_modifier) == (
        77,
        attribute,
        modifier,
    )
    return answer.attribute()


def snapshot(agent: SubnetManagementAgent) -> list[Any]:
    """Everything that can be read, counters of violations aside."""
    ports = [replace(agent.port_info(p), mkey_violations=0) for p in agent.profile.port_numbers]
    tables = agent.tables
    return [
        ports,
        [tables.pkeys(p) for p in agent.profile.port_numbers],
        [tables.guids(p) for p in agent.profile.port_numbers],
        [tables.output_port(lid) for lid in range(200)],
        [tables.multicast_ports(0xC000 + i) for i in range(64)],
        [tables.get_arbitration(p, 1) for p in agent.profile.port_numbers],
    ]


def settings_of(info: PortInfo, **changes: Any) -> bytes:
    """A SubnSet(PortInfo) that changes only what is named; a port without LIDs gets some."""
    return replace(
        info, **{"lid": info.lid or 7, "master_sm_lid": info.master_sm_lid or 1, "port_state": 0,
                 "port_physical_state": 0, **changes}
    ).pack()  # fmt: skip


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


# --- the M_Key ----------------------------------------------------------------------------------------------------


def protected(bits: int, lease_s: int = 0) -> tuple[Net, SubnetManagementAgent]:
    n = net()
    agent = n.agents["h1"]
    changes = {"lid": 3, "mkey": KEY, "mkey_protect_bits": bits, "mkey_lease_period": lease_s}
    ok(agent, A.PORT_INFO, 1, settings_of(agent.port_info(1), **changes))
    return n, agent


@pytest.mark.parametrize("bits", range(4))
@pytest.mark.requirement("SUB-16")
def test_a_wrong_key_changes_nothing(bits: int) -> None:
    n, agent = protected(bits)
    before, calls = snapshot(agent), n.hardware["h1"].calls
    for attempt, key in enumerate((0, KEY + 1), 1):
        for attribute, data in (
            (A.PORT_INFO, settings_of(agent.port_info(1), mkey=0, lid=99)),
            (A.PKEY_TABLE, PKeyTable((0xFFFF, 1)).pack()),
            (A.SL_TO_VL, bytes(8)),
            (A.GUID_INFO, bytes(64)),
        ):
            assert request(agent, attribute, 0, data, mkey=key) is None
        assert agent.port_info(1).mkey_violations == 4 * attempt
        read = request(agent, A.PORT_INFO, 0, mkey=key)
        if bits < 2:
            assert read is not None
            shown = PortInfo.unpack(read.data).mkey
            assert shown == (KEY if bits == 0 else 0)
        else:
            assert read is None
            ok(agent, A.PORT_INFO, 0, settings_of(agent.port_info(1), mkey_violations=4 * attempt), mkey=KEY)
            agent.update_keys(1, mkey_violations=4 * attempt)
    assert (snapshot(agent), n.hardware["h1"].calls - calls) == (before, 0)
    info = ok(agent, A.PORT_INFO, 0, settings_of(agent.port_info(1), lid=99, mkey_violations=0), mkey=KEY)
    assert (info.lid, info.mkey_violations) == (99, 0)


def test_another_port_of_the_adapter_does_not_open_a_protected_one() -> None:
    _, agent = protected(0)
    before = snapshot(agent)
    answer = request(agent, A.PORT_INFO, 1, settings_of(agent.port_info(1), mkey=0), port=2, mkey=0)
    assert answer is not None
    assert answer.status == MadStatus.INVALID_VALUE
    assert snapshot(agent) == before


def test_the_lease_ends_the_protection_of_reading_only() -> None:
    n, agent = protected(2, lease_s=10)
    assert request(agent, A.PORT_INFO) is None
    n.run(9 * SECOND)
    ok(agent, A.PORT_INFO, mkey=KEY)  # the manager lives: the lease begins anew
    n.run(9 * SECOND)
    assert request(agent, A.PORT_INFO) is None
    n.run(11 * SECOND)
    assert ok(agent, A.PORT_INFO).mkey == KEY
    assert request(agent, A.PORT_INFO, 0, settings_of(agent.port_info(1), lid=99)) is None
    _, agent = protected(2, lease_s=0)
    assert request(agent, A.PORT_INFO) is None


# --- traps --------------------------------------------------------------------------------------------------------


class Traps:
    """Catches an agent's traps."""

    def __init__(self, n: Net, name: str, lid: int = 3) -> None:
        self.net, self.agent = n, n.agents[name]
        self.caught: list[tuple[int, int, Notice, bytes]] = []
        port = 0 if self.agent.profile.is_switch else 1
        ok(self.agent, A.PORT_INFO, port, settings_of(self.agent.port_info(port), lid=lid, subnet_timeout=10))
        self.agent.send = self._send

    def _send(self, port: int, mad: bytes, dlid: int, level: int) -> None:
        smp = Smp.unpack(mad)
        assert (smp.method, smp.attribute_id, smp.is_directed) == (Method.TRAP, A.NOTICE, False)
        self.caught.append((self.net.clock.now(), dlid, Notice.unpack(smp.data), mad))

    def repress(self) -> None:
        mad = bytearray(self.caught[-1][3])
        mad[3] = Method.TRAP_REPRESS
        assert self.agent.receive(bytes(mad), 1) is None


def test_a_switch_tells_of_its_links_until_it_is_heard() -> None:
    n = net()
    traps = Traps(n, "s1")
    n.pull(next(iter(n.topology.at)))
    n.run(SECOND // 50)
    assert len(traps.caught) > 2
    times = [time for time, *_ in traps.caught]
    assert all(b - a >= 4096 << 10 for a, b in itertools.pairwise(times))
    _, dlid, notice, _ = traps.caught[0]
    assert (dlid, notice.trap, notice.producer, notice.issuer_lid) == (1, Trap.LINK_STATE, 2, 3)
    assert LinkStateDetails.unpack(notice.details).lid == 3
    traps.repress()
    seen = len(traps.caught)
    n.run(SECOND)
    assert len(traps.caught) == seen
    info = ok(traps.agent, A.SWITCH_INFO)
    assert info.port_state_change
    assert not ok(traps.agent, A.SWITCH_INFO, 0, info.pack()).port_state_change


def test_a_trap_is_given_up_and_counted() -> None:
    n = net()
    traps = Traps(n, "s1")
    n.pull(next(iter(n.topology.at)))
    n.run(60 * SECOND)
    assert len(traps.caught) == 10
    assert traps.agent.counters["trap.given_up"] == 1
    assert n.clock.next_time() is None


def test_wrong_keys_are_told() -> None:
    n = net()
    traps = Traps(n, "h1")
    ok(traps.agent, A.PORT_INFO, 1, settings_of(traps.agent.port_info(1), mkey=KEY))
    request(traps.agent, A.SL_TO_VL, 5, bytes(8), mkey=1)
    n.run(1000)
    notice = traps.caught[0][2]
    details = BadMkeyDetails.unpack(notice.details)
    assert (notice.trap, notice.type) == (Trap.BAD_MKEY, 2)
    assert (details.mkey, details.method, details.attribute_id, details.attribute_modifier) == (
        1,
        2,
        A.SL_TO_VL,
        5,
    )
    assert details.dr_notice
    traps.agent.bad_pkey(1, pkey=0x8123, slid=9, dlid=3, sl=2, qp1=11, qp2=22)
    n.run(SECOND // 50)
    bad = next(BadKeyDetails.unpack(x.details) for _, _, x, _ in traps.caught if x.trap == Trap.BAD_PKEY)
    assert (bad.key, bad.lid1, bad.lid2, bad.sl, bad.qp1, bad.qp2) == (0x8123, 9, 3, 2, 11, 22)
    assert traps.agent.port_info(1).pkey_violations == 1


def test_changes_of_the_node_itself_are_told() -> None:
    n = net()
    traps = Traps(n, "h1")
    traps.agent.set_capability(PortCapability.SM, True, 1)
    n.run(1000)
    details = CapabilityDetails.unpack(traps.caught[0][2].details)
    assert traps.caught[0][2].trap == Trap.CAPABILITY
    assert details.capability_mask & PortCapability.SM
    assert not details.node_description
    traps.repress()
    traps.agent.rename("h1 HCA-1")
    n.run(SECOND // 100)
    assert CapabilityDetails.unpack(traps.caught[-1][2].details).node_description
    assert str(ok(traps.agent, A.NODE_DESCRIPTION)) == "h1 HCA-1"
    traps.repress()
    traps.agent.port_error(1, Trap.LINK_INTEGRITY)
    n.run(SECOND // 100)
    assert traps.caught[-1][2].trap == Trap.LINK_INTEGRITY


def test_without_a_manager_traps_are_counted_only() -> None:
    n = net()
    n.agents["s1"].send = None
    n.pull(next(iter(n.topology.at)))
    assert n.agents["s1"].counters["trap.no_manager"] >= 1
    assert n.clock.next_time() is None


# --- hostile input ------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.sampled_from(("h1", "s1", "r1")), st.integers(0, 25), st.binary(min_size=250, max_size=258))
def test_noise(name: str, port: int, data: bytes) -> None:
    agent = _FUZZED.agents[name]
    answer = agent.receive(data, port)
    assert answer is None or len(answer) == 256


@settings(max_examples=500)
@given(
    st.sampled_from(("h1", "s1", "r1")),
    st.sampled_from((Method.GET, Method.SET, Method.TRAP_REPRESS)),
    st.sampled_from([*A, 0x13, 0xFFFF]),
    st.integers(0, 30) | st.integers(0, 2**32 - 1),
    st.binary(max_size=64),
    st.integers(0, 22),
    st.booleans(),
)
def test_requests_with_anything_in_them(
    name: str, method: int, attribute: int, modifier: int, data: bytes, port: int, directed: bool
) -> None:
    """Whatever is refused has changed nothing; whatever is taken can be read back."""
    agent = net().agents[name]
    before = snapshot(agent)
    mad = (
        directed_smp(method, attribute, modifier, (1,), data=data)
        if directed
        else lid_routed_smp(method, attribute, modifier, data=data)
    )
    answer = agent.receive(mad, port)
    if method == Method.TRAP_REPRESS:
        assert answer is None
        return
    assert answer is not None
    smp = Smp.unpack(answer)
    assert smp.method == Method.GET_RESPONSE
    assert smp.direction == directed
    if smp.status or method == Method.GET:
        assert snapshot(agent) == before
    if smp.status == 0:
        smp.attribute()


_FUZZED = net()
