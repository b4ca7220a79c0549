"""An agent's keys and traps, and what it makes of nonsense."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from management.agent_lab import KEY, SECOND, A, net, ok, request, settings_of, snapshot
from management.sm_net import Net
from verbena.management.agent import SubnetManagementAgent
from verbena.wire.mad import MadStatus, Method
from verbena.wire.smp import Smp, directed_smp, lid_routed_smp
from verbena.wire.smp_attributes import (
    BadKeyDetails,
    BadMkeyDetails,
    CapabilityDetails,
    LinkStateDetails,
    Notice,
    PKeyTable,
    PortCapability,
    PortInfo,
    Trap,
)

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
