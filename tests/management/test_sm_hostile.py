"""Forged, malformed and misplaced management packets: counted, and without effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    redundant_topology,
    settle,
)
from verbena.fabric.topology import PortId
from verbena.management.subnet_manager import SubnetEvent, SubnetEventKind, SubnetManagerConfig
from verbena.wire.mad import Method
from verbena.wire.smp import (
    AttributeId,
    Smp,
    directed_smp,
    lid_routed_smp,
    parse_smp_packet,
    smp_packet,
)
from verbena.wire.smp_attributes import Notice, PKeyTable, PortInfo, SmState, Trap

SECOND = 1_000_000_000
KEY = 0xFEED_FACE_CAFE_BEEF


def frozen(net: Net) -> list[object]:
    """Everything that management has set anywhere."""
    ports = [
        replace(agent.port_info(p), mkey_violations=0)
        for agent in net.agents.values()
        for p in agent.profile.port_numbers
    ]
    tables = [[a.tables.output_port(lid) for lid in range(64)] for a in net.agents.values()]
    return [ports, tables, [a.tables.pkeys(p) for a in net.agents.values() for p in a.profile.port_numbers]]


@pytest.mark.requirement("SUB-16")
def test_writes_without_the_managers_key_are_refused_everywhere() -> None:
    net = Net(redundant_topology())
    events: list[SubnetEvent] = []
    config = SubnetManagerConfig(mkey=KEY, mkey_protect_bits=1)
    manager = manager_on(net, "h1", config, on_event=events.append)
    settle(net, manager)
    before = frozen(net)
    answers: list[Smp] = []
    attacker = net.interfaces["h3"]
    attacker.set_receiver(lambda mad, slid: answers.append(Smp.unpack(mad)))
    routes = {"s3": (1,), "s2": (1, 1), "s1": (1, 2)}
    routes |= {"h1": (1, 2, 3)}
    assert net.topology.peer(PortId("s3", 3)) == PortId("h3", 1)
    for name, path in routes.items():
        info = net.agents[name].port_info(next(iter(net.agents[name].profile.port_numbers)))
        takeover = replace(info, mkey=0, lid=50, master_sm_lid=50, port_state=0, port_physical_state=0).pack()
        for key in (0, KEY - 1):
            for attribute, data in (
                (AttributeId.PORT_INFO, takeover),
                (AttributeId.PKEY_TABLE, PKeyTable((0xFFFF, 0x8001)).pack()),
                (AttributeId.LINEAR_FORWARDING, bytes(64)),
                (AttributeId.SWITCH_INFO, bytes(20)),
            ):
                attacker.send(
                    directed_smp(Method.SET, attribute, 0, path, data=data, mkey=key), path=path, dlid=None
                )
                lid = net.agents[name].lid(next(iter(net.agents[name].profile.port_numbers)))
                attacker.send(
                    lid_routed_smp(Method.SET, attribute, 0, data=data, mkey=key), path=None, dlid=lid
                )
    net.run(5 * SECOND)
    assert not answers
    assert frozen(net) == before
    assert sum(net.agents[name].counters["drop.mkey"] for name in routes) == 4 * 2 * 4 * 2
    assert {e.lid for e in events if e.kind is SubnetEventKind.TRAP and e.trap == Trap.BAD_MKEY} == {
        net.agents[name].lid(next(iter(net.agents[name].profile.port_numbers))) for name in routes
    }
    # With the key it is the manager's right; and reading does not show the key.
    attacker.send(directed_smp(Method.GET, AttributeId.PORT_INFO, 0, (1,)), path=(1,), dlid=None)
    net.run(SECOND)
    assert PortInfo.unpack(answers[-1].data).mkey == 0
    net.pull(PortId("h4", 1))
    net.run(SECOND)
    assert manager.subnet is not None
    assert_all_reachable(net)


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.requirement("SUB-16")
def test_a_living_manager_keeps_the_protection_up(alive: bool) -> None:
    """A wrong key starts the lease; the manager, told by trap 256, ends it; without a manager the key can be read."""
    net = Net(redundant_topology())
    config = SubnetManagerConfig(mkey=KEY, mkey_protect_bits=2, mkey_lease_s=5, sweep_interval_ns=0)
    manager = manager_on(net, "h1", config)
    settle(net, manager)
    if not alive:
        manager.stop()
    mad = lid_routed_smp(Method.SET, AttributeId.PORT_INFO, 0, data=bytes(64), mkey=1)
    for name, port in (("s2", 0), ("h2", 1)):
        net.interfaces["h3"].send(mad, path=None, dlid=net.agents[name].lid(port))
    net.run(20 * SECOND)
    for name, port in (("s2", 0), ("h2", 1)):
        info = net.agents[name].port_info(port)
        assert (info.mkey, info.mkey_violations) == (KEY, 1)
        assert info.mkey_protect_bits == (2 if alive else 0)


@pytest.mark.requirement("SUB-14")
def test_a_switch_is_an_end_for_management_at_its_lid() -> None:
    net = Net(redundant_topology())
    settle(net, manager_on(net, "h1"))
    got: list[Smp] = []
    net.interfaces["h3"].set_receiver(lambda mad, slid: got.append(Smp.unpack(mad)))
    for name in ("s1", "s2", "s3"):
        mad = lid_routed_smp(Method.GET, AttributeId.NODE_INFO, 0, transaction_id=5)
        net.interfaces["h3"].send(mad, path=None, dlid=net.agents[name].lid(0))
        net.run(SECOND)
        info = got[-1].attribute()
        assert info.node_guid == net.topology.nodes[name].guid  # type: ignore[union-attr]
    # What is no SMP is not taken for one: a datagram for another queue pair at the switch's management port.
    data = bytearray(
        smp_packet(lid_routed_smp(Method.GET, AttributeId.NODE_INFO, 0), 1, net.agents["s1"].lid(0))
    )
    data[8 + 7] = 1  # to queue pair 1
    before = len(got)
    net.interfaces["s1"].receive(bytes(data), 1)
    assert sum(net.interfaces["s1"].counters.values()) == 1
    net.run(SECOND)
    assert len(got) == before


def test_forged_answers_are_not_believed() -> None:
    """Somebody on the subnet answers everything first, with lies: only an answer by the right route counts."""
    net = Net(redundant_topology())
    manager = manager_on(net, "h1")
    receive = net.interfaces["h1"].receive
    forged = 0

    def lie() -> None:
        nonlocal forged
        tid = (manager.guid & 0xFFFFFFFF) << 32 | manager.statistics.smps_sent
        for attribute in (AttributeId.NODE_INFO, AttributeId.PORT_INFO):
            smp = Smp.unpack(
                directed_smp(Method.GET_RESPONSE, attribute, 0, (1, 5, 5, 5), transaction_id=tid)
            )
            forged += 1
            receive(smp_packet(replace(smp, direction=True, hop_pointer=1, data=bytes(64)).pack()), 1)

    net.before_send = lie
    settle(net, manager)
    net.before_send = lambda: None
    assert found_cables(manager) == cables(net.topology)
    assert manager.statistics.unexpected >= forged > 0
    assert_all_reachable(net)


def trap(number: int = Trap.LINK_STATE, lid: int = 1) -> bytes:
    data = Notice(type=1, producer=2, trap=number, issuer_lid=lid).pack()
    return lid_routed_smp(Method.TRAP, AttributeId.NOTICE, 0, data=data, transaction_id=9)


def test_traps_from_strangers_start_nothing() -> None:
    net = Net(redundant_topology())
    manager = manager_on(net, "h1", SubnetManagerConfig(sweep_interval_ns=0))
    settle(net, manager)
    sweeps, sent = manager.statistics.heavy_sweeps, net.sent["packets"]
    own = net.agents["h1"].lid(1)
    for slid in (0, 4000, 0xFFFF, 0xC000):
        net.interfaces["h1"].receive(smp_packet(trap(), slid, own), 1)
    net.run(5 * SECOND)
    assert (manager.statistics.heavy_sweeps, net.sent["packets"]) == (sweeps, sent)
    assert manager.statistics.forged_traps == 4
    # One that is real: repressed, and looked into; many at once are one sweep.
    for _ in range(50):
        net.interfaces["h1"].receive(smp_packet(trap(), net.agents["s3"].lid(0), own), 1)
    net.run(5 * SECOND)
    assert manager.statistics.heavy_sweeps == sweeps + 1
    assert manager.statistics.traps == 50


def corrupt(random: Random, answer: bytes) -> bytes:
    """An answer whose contents are wrong, but which fits its question."""
    mad = bytearray(answer)
    how = random.randrange(4)
    if how == 0:
        mad[64:128] = random.randbytes(64)
    elif how == 1:
        mad[64 + random.randrange(64)] = random.randrange(256)
    elif how == 2:
        mad[4:6] = (0x80 | random.randrange(128), random.randrange(256))
    else:
        mad[64:128] = bytes([random.choice((0, 0xFF))]) * 64
    return bytes(mad)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.floats(0.01, 0.5))
def test_nodes_that_answer_nonsense_do_not_bring_the_manager_down(seed: int, share: float) -> None:
    random = Random(seed)
    net = Net(redundant_topology(), seed=seed)

    def spoil(receive: Callable[[bytes, int], bytes | None]) -> Callable[[bytes, int], bytes | None]:
        def answer(mad: bytes, port: int) -> bytes | None:
            real = receive(mad, port)
            return corrupt(random, real) if real is not None and random.random() < share else real

        return answer

    for name in ("s2", "h2", "s3"):
        net.agents[name].receive = spoil(net.agents[name].receive)  # type: ignore[method-assign]
    manager = manager_on(net, "h1")
    net.run(60 * SECOND)
    assert manager.state in (SmState.MASTER, SmState.STANDBY)
    assert manager.subnet is not None
    given_out = [lid for port in manager.subnet.end_ports() for lid in port.lids]
    for name in ("s2", "h2", "s3"):
        del net.agents[name].receive  # they recover
    for end in ("s2", "h2", "s3"):
        net.reset(end)
    net.run(60 * SECOND)
    assert found_cables(manager) == cables(net.topology)
    assert_all_reachable(net)
    assert len(given_out) == len(set(given_out))


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.binary(min_size=256, max_size=256), st.booleans(), st.integers(0, 0xFFFF)), max_size=20
    )
)
def test_noise_at_the_manager(packets: list[tuple[bytes, bool, int]]) -> None:
    net, manager = _NOISY
    before = {end: lids_of(net, end) for end in net.end_ports()}
    for data, shaped, slid in packets:
        mad = data
        if shaped:  # past the first checks
            mad = bytes([1, data[1] & 0x80 | 1, 1, data[3] & 0x87]) + data[4:16] + b"\0" + data[17:]
        packet = smp_packet(mad, slid, slid) if mad[1] == 1 else smp_packet(mad)
        net.interfaces["h1"].receive(packet, 1)
        parse_smp_packet(packet)
    net.run(SECOND)
    assert manager.state is SmState.MASTER
    assert {end: lids_of(net, end) for end in net.end_ports()} == before


def _noisy() -> tuple[Net, object]:
    net = Net(redundant_topology())
    manager = manager_on(net, "h1", SubnetManagerConfig(mkey=KEY))
    settle(net, manager)
    return net, manager


_NOISY = _noisy()
