"""Link aggregation control: the tables, a partner that speaks it, one that does not, and forged data units."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from team_lab import Lab, Stream
from verbena.runtime.virtual_time import VirtualTime
from verbena.team.lacp import MUX, RECEIVE, LacpPort, LacpTimes, MuxState, ReceiveState
from verbena.team.member import MemberState
from verbena.wire.errors import DecodeError
from verbena.wire.lacp import SLOW_PROTOCOLS_GROUP, Lacpdu, LacpInfo, LacpState

TIMES = LacpTimes().divided(100)
SLOW = b"\x88\x09"
infos = st.builds(
    LacpInfo,
    system_priority=st.integers(0, 0xFFFF),
    system=st.binary(min_size=6, max_size=6),
    key=st.integers(0, 0xFFFF),
    port_priority=st.integers(0, 0xFFFF),
    port=st.integers(0, 0xFFFF),
    state=st.integers(0, 255),
)


@given(infos, infos, st.integers(0, 0xFFFF))
def test_a_data_unit_survives_the_wire(actor: LacpInfo, partner: LacpInfo, delay: int) -> None:
    pdu = Lacpdu(actor, partner, delay)
    frame = pdu.frame(bytes(6))
    assert len(frame) == 14 + 110
    assert frame[:6] == SLOW_PROTOCOLS_GROUP
    assert Lacpdu.parse(frame[14:]) == pdu


@given(st.binary(max_size=130))
def test_nothing_that_comes_raises_anything_else(payload: bytes) -> None:
    with contextlib.suppress(DecodeError):
        Lacpdu.parse(payload)


def aggregated(seed: int, links: int = 3, **more: object) -> Lab:
    lab = Lab(seed, lacp=True, lacp_times=TIMES)
    lab.host(nics=links, rnics=0, rdma_vlan=None, lacp=True, lacp_times=TIMES, **more)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(100)
    return lab


def test_a_partner_that_speaks_it(seed: int) -> None:
    lab = aggregated(seed)
    driver = lab.hosts[0].driver
    assert len(driver.usable) == 3
    streams = [Stream(lab, lab.random.randbytes(20_000), port=80 + i) for i in range(20)]
    lab.until(lambda: all(stream.done for stream in streams))
    assert sum(m.counters["tx.team"] > 0 for m in driver.members) == 3
    assert sum(m.counters["rx.team"] > 0 for m in driver.members) == 3, "the switch spreads, too"
    # A link goes: at once.  The partner falls silent on another: within the time-out.
    lab.cards[0]["nic0"].set_link(False)
    assert len(driver.usable) == 2
    lab.cards[0]["nic1"].silent = True
    silent = lab.net.now
    lab.until(lambda: len(driver.usable) == 1, 1000)
    assert TIMES.short_timeout - TIMES.fast_periodic <= lab.net.now - silent
    assert lab.net.now - silent <= 2 * TIMES.short_timeout + TIMES.fast_periodic
    lab.cards[0]["nic0"].set_link(True)
    lab.cards[0]["nic1"].silent = False
    lab.until(lambda: len(driver.usable) == 3, 2000)


def test_the_administrator_s_wish_reaches_the_partner(seed: int) -> None:
    lab = aggregated(seed)
    host = lab.hosts[0]
    host.driver.fail("nic1")
    lab.run(5)
    before = lab.cards[0]["nic1"].counters["rx"]
    stream = [Stream(lab, lab.random.randbytes(20_000), port=80 + i) for i in range(10)]
    lab.until(lambda: all(each.done for each in stream))
    assert lab.cards[0]["nic1"].counters["rx"] - before < 10, "nothing but data units"
    host.driver.recover("nic1")
    lab.run(100)
    assert len(host.driver.usable) == 3


def test_a_switch_that_does_not_speak_it_gets_one_link(seed: int) -> None:
    lab = Lab(seed)
    lab.host(nics=3, rnics=0, rdma_vlan=None, lacp=True, lacp_times=TIMES)
    lab.host(nics=1, rnics=0, rdma_vlan=None)
    lab.run(300)
    assert len(lab.hosts[0].driver.usable) == 1
    stream = Stream(lab, lab.random.randbytes(20_000))
    lab.until(lambda: stream.done)


@pytest.mark.parametrize("what", ["own", "group", "none", "other_system", "short", "header", "version"])
def test_forged_data_units_are_dropped_and_counted(what: str, seed: int) -> None:
    lab = aggregated(seed)
    driver = lab.hosts[0].driver
    member = driver.member("nic0")
    port = driver._ports[member]
    partner, own = port.partner, port.actor
    evil = LacpInfo(system=bytes.fromhex("02eeeeeeeeee"), key=9, port=1, state=LacpState.ACTIVITY)
    frames = {
        "own": Lacpdu(own, partner),
        "group": Lacpdu(LacpInfo(system=b"\x01" * 6, port=1), own),
        "none": Lacpdu(LacpInfo(), own),
        "other_system": Lacpdu(evil, own),
    }
    reason = {"group": "header", "none": "header"}.get(what, what)
    if what in frames:
        frame = frames[what].frame(evil.system)
    else:
        body = Lacpdu(partner, own).frame(bytes(6))[14:]
        bad = {
            "short": body[:50],
            "header": body[:2] + b"\x01\x13" + body[4:],
            "version": b"\x01\x00" + body[2:],
        }
        frame = SLOW_PROTOCOLS_GROUP + evil.system + SLOW + bad[what]
    for _ in range(5):
        lab.cards[0]["nic0"].deliver(frame)
    assert member.counters[f"drop.lacp.{reason}"] == 5
    assert port.partner == partner
    lab.run(50)
    assert len(driver.usable) == 3
    assert member.state is MemberState.ACTIVE
    lab.cards[0]["nic0"].deliver(b"\x02" * 6 + frame[6:])
    assert member.counters["drop.rx.slow_protocol"] == 1, "not to the protocol's address"


def test_no_more_than_three_data_units_in_a_second() -> None:
    net = VirtualTime()
    sent: list[int] = []
    port = LacpPort(
        net.clock,
        b"\x02" * 6,
        1,
        1,
        lambda pdu: sent.append(net.now),
        lambda port: None,
        Counter(),
        times=LacpTimes(),
    )
    port.link(True)
    peer = LacpInfo(system=b"\x06" * 6, key=1, port=1, state=LacpState.ACTIVITY | LacpState.TIMEOUT)
    for i in range(50):
        port.receive(Lacpdu(peer, LacpInfo(port=i)).frame(bytes(6))[14:])
        net.run_for(40_000_000)
    assert len(sent) >= 4
    for at in sent:
        assert sum(at <= other < at + 10**9 for other in sent) <= 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["up", "down", "pdu", "sync", "select", "unselect", "wait", "long"]), max_size=40
    )
)
def test_the_machines_keep_to_their_tables(steps: list[str]) -> None:
    """Whatever happens, frames pass only with a link, a partner in sync, and if the port is selected."""
    net = VirtualTime()
    told: list[Lacpdu] = []
    port = LacpPort(net.clock, b"\x02" * 6, 1, 1, told.append, lambda port: None, Counter(), times=TIMES)
    up = False
    for step in steps:
        if step in ("up", "down"):
            up = step == "up"
            port.link(up)
        elif step in ("pdu", "sync"):
            state = LacpState.AGGREGATION | LacpState.ACTIVITY | LacpState.TIMEOUT
            state |= LacpState.SYNCHRONIZATION if step == "sync" else 0
            actor = LacpInfo(system=b"\x06" * 6, key=1, port=4, state=state)
            port.receive(Lacpdu(actor, port.actor).frame(bytes(6))[14:])
        elif step in ("select", "unselect"):
            port.select(step == "select")
        else:
            net.run_for(TIMES.aggregate_wait if step == "wait" else 4 * TIMES.short_timeout)
        if port.distributing:
            assert up
            assert port.selected
            assert port.receive_state in (ReceiveState.CURRENT, ReceiveState.EXPIRED)
            assert port.partner.state & LacpState.SYNCHRONIZATION
        collecting = bool(port.actor.state & LacpState.COLLECTING)
        assert collecting is port.distributing
        assert port.receive_state in {state for state, _ in RECEIVE} | set(RECEIVE.values())
        assert port.mux_state in {state for state, _ in MUX} | {MuxState.DETACHED}
    port.stop()


@pytest.mark.parametrize("later", [0.0, 0.3, 0.9])
def test_two_ends_that_are_alike_do_not_silence_each_other(later: float) -> None:
    """Both send every period; what comes does not put off what goes, so that nobody ever times out."""
    net = VirtualTime()
    ends: list[LacpPort] = []
    seen: set[tuple[ReceiveState, bool]] = set()
    delays = itertools.cycle((9, 7, 5, 4, 3, 2, 1))  # each comes a little earlier than it was due

    def note(port: LacpPort) -> None:
        seen.add((port.receive_state, port.distributing))

    def cross(to: int) -> Callable[[Lacpdu], None]:
        def send(pdu: Lacpdu) -> None:
            payload = pdu.frame(bytes(6))[14:]
            delay = next(delays) * TIMES.fast_periodic // 200 if to else 1000
            net.clock.call_at(net.now + delay, lambda: ends[to].receive(payload))

        return send

    for i in range(2):
        system = bytes((2, 0, 0, 0, 0, i + 1))
        ends.append(LacpPort(net.clock, system, 1, 1, cross(1 - i), note, Counter(), times=TIMES))
    ends[0].link(True)
    net.run_for(round(later * TIMES.fast_periodic))
    ends[1].link(True)
    for port in ends:
        port.select(True)
    net.run_for(4 * TIMES.short_timeout)
    seen.clear()
    net.run_for(10 * TIMES.short_timeout)
    assert seen == {(ReceiveState.CURRENT, True)}
