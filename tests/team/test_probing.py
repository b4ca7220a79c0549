"""Heartbeats and probes: proofs, forgeries, and what is concluded when nobody answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from team_lab import TEAM_VLAN, Lab
from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.team.heartbeat import ETHERTYPE, GROUP, Heartbeat, Kind
from verbena.team.member import TRANSITIONS, MemberEvent, MemberState
from verbena.team.offload.states import MILLISECOND

KEY = b"shared secret"
PROBES = {"heartbeat_key": KEY, "probe_interval_ns": 10 * MILLISECOND, "probe_misses": 2}
QUIET = {"rnics": 0, "rdma_vlan": None}


@given(st.integers(1, 2), st.binary(min_size=6, max_size=6), st.integers(0, 2**64 - 1))
def test_a_heartbeat_survives_the_wire(kind: int, mac: bytes, sequence: int) -> None:
    made = Heartbeat(kind=kind, team=mac, member=mac, sequence=sequence)
    frame = made.frame(GROUP, mac, KEY)
    assert Heartbeat.unpack(frame, 14) == made
    assert len(frame) == 14 + Heartbeat.SIZE + 16


@pytest.mark.parametrize("what", ["forged", "replayed", "short", "altered", "answer", "own", "kind"])
def test_forged_heartbeats_are_dropped_and_counted(what: str, seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(nics=2, **QUIET, **PROBES)
    lab.host(nics=1, **QUIET, **PROBES)
    lab.run(25)
    member = a.driver.member("nic0")
    mac, other = member.card.mac, bytes.fromhex("020000000099")
    probe = Heartbeat(kind=Kind.PROBE, team=other, member=other, sequence=lab.net.now)
    good = probe.frame(GROUP, other, KEY)
    answer = Heartbeat(kind=Kind.ANSWER, team=a.driver.mac, member=mac, answerer=other, sequence=12345)
    frames = {
        "forged": probe.frame(GROUP, other, b"another key"),
        "replayed": good,
        "short": good[:40],
        "altered": good[:40] + bytes((good[40] ^ 1,)) + good[41:],
        "answer": answer.frame(mac, other, KEY),
        "own": Heartbeat(kind=Kind.PROBE, team=a.driver.mac, member=mac, sequence=lab.net.now).frame(
            GROUP, mac, KEY
        ),
        "kind": Heartbeat(kind=7, team=other, member=other, sequence=1).frame(GROUP, other, KEY),
    }
    reason = {"altered": "forged", "answer": "replayed"}.get(what, what)
    if what == "replayed":
        lab.cards[0]["nic0"].deliver(good)  # the first time it is right
    before = a.driver.counters[f"drop.heartbeat.{reason}"]
    lab.cards[0]["nic0"].deliver(frames[what])
    assert a.driver.counters[f"drop.heartbeat.{reason}"] == before + 1
    lab.run(50)
    assert len(a.driver.usable) == 2


def test_a_forged_answer_does_not_keep_a_dead_member(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(nics=2, **QUIET, **PROBES)
    lab.host(nics=1, **QUIET, **PROBES)
    lab.run(25)
    card = lab.cards[0]["nic0"]
    seen: list[bytes] = []
    card.watch = lambda direction, frame: (
        seen.append(frame) if frame[12:14] == ETHERTYPE.to_bytes(2, "big") else None
    )
    lab.run(20)
    answers = [frame for frame in seen if frame[:6] == card.mac]
    assert answers
    card.silent = True
    for _ in range(120):
        lab.run(1)
        for frame in answers:  # sent again and again by somebody who has heard them
            card.deliver(frame)
    # The window of answers is as long as the probes that are remembered: these are too old by now.
    lab.run(700)
    for frame in answers:
        card.deliver(frame)
    lab.run(60)
    assert a.driver.member("nic0").state is MemberState.SUSPECT


def test_nothing_is_concluded_when_nobody_answers(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(nics=2, **QUIET, **PROBES)
    lab.host(nics=1, **QUIET, **PROBES)
    lab.run(25)
    lab.cards[1]["nic0"].set_link(False)
    for card in lab.cards[0].values():
        card.silent = True
    lab.run(200)
    assert len(a.driver.usable) == 2
    assert a.driver.counters["probe.no_reference"] > 0


def test_a_member_of_another_network_never_carries_anything(seed: int) -> None:
    lab = Lab(seed)
    a = lab.host(
        nics=2, **QUIET, arp_targets=(f"10.{TEAM_VLAN}.0.2",), probe_vlan=TEAM_VLAN, probe_interval_ns=10**7
    )
    lab.host(nics=1, **QUIET)
    lab.run(50)
    stranger = VirtualCard(lab.clock, "elsewhere", bytes.fromhex("020000000777"))
    VirtualSwitch(lab.clock, "another").plug(stranger)
    member = a.add(stranger)
    lab.run(200)
    assert member.state is MemberState.SUSPECT
    assert member.counters["tx.team"] == 0
    assert [m.name for m in a.driver.usable] == ["nic0", "nic1"]
    assert a.driver.counters["probe.lost"] == 1
    assert sum(event.kind == "suspect" for event in a.driver.events) == 1, "one clear message"


def test_the_table_of_member_states_is_complete() -> None:
    for state in MemberState:
        for event in MemberEvent:
            if state is MemberState.REMOVED:
                assert (state, event) not in TRANSITIONS
            elif not (state is MemberState.DISABLED and event is MemberEvent.ENABLE):
                assert (state, event) in TRANSITIONS, (state, event)
