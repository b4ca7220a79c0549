"""Forwarding, learning, VLANs, bad input, ports that vanish, and the watchdog."""

from __future__ import annotations

import pytest

from verbena.errors import InvalidAttributeError, ResourceError
from verbena.runtime.virtual_time import VirtualClock, VirtualTime
from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.watchdog import Watchdog
from vswitch.lab import EVERYBODY, fill, frame, mac, make, take_all

# --- forwarding -------------------------------------------------------------------------------------------------


def test_group_frames_reach_everybody_else_once_as_each_has_room() -> None:
    switch, (a, b, c) = make(3, output=Marks(0, 1, 1))
    for n in range(3):
        a.send(frame(0, EVERYBODY, n))
    got: dict[str, list[int]] = {"b": [], "c": []}
    for _ in range(4):  # what one has not taken yet holds the next one back for the other, too
        got["b"] += take_all(b)
        got["c"] += take_all(c)
    assert got == {"b": [0, 1, 2], "c": [0, 1, 2]}
    assert a.receive() is None
    assert len(set(switch.balance())) == 1
    assert switch.status()["ports"]["p1"]["tx_frames"] == switch.status()["ports"]["p2"]["tx_frames"] == 3


def test_learning_with_a_limit_and_age() -> None:
    time = VirtualTime()
    switch, (a, b, c) = make(3, clock=time.clock, learning=True, most_learned=4, aging_ns=1_000)
    b.send(frame(40, EVERYBODY))
    take_all(a), take_all(c)
    a.send(frame(0, 40, 5))
    assert (take_all(b), take_all(c)) == ([5], [])
    for invented in range(100, 150):
        a.send(frame(invented, 1))
    assert switch.engine.learned == 4
    assert switch.status()["addresses_refused"] >= 40, "a flood of addresses ends at the limit, counted"
    take_all(b)
    a.send(frame(0, 1, 6))
    assert take_all(b) == [6], "and pushes nobody out"
    time.run_for(5_000)
    assert switch.age() == 4
    assert switch.engine.learned == 0


def test_vlans_separate_and_tags_come_and_go() -> None:
    switch, (a, b) = make(2, vlans=True)
    trunk = switch.add_port(PortConfig("trunk", (), vlans=frozenset({1, 7}), tagged=True))
    other = switch.add_port(PortConfig("other", (mac(9),), pvid=7, vlans=frozenset({7})))
    a.send(frame(0, 9, 1))
    assert take_all(other) == [], "VLAN 1 does not reach a station in VLAN 7"
    trunk.receive()
    a.send(frame(0, EVERYBODY, 2))
    assert take_all(b)[-1] == 2
    got = trunk.receive()
    assert got is not None
    assert got.data[12:16].hex() == "81000001", "tagged on the trunk"
    tagged = frame(50, 9, 3)
    trunk.send(tagged[:12] + bytes.fromhex("8100a007") + tagged[12:])
    arrived = other.receive()
    assert arrived is not None
    assert arrived.data == tagged, "untagged at the station"
    assert arrived.priority == 5
    wrong = frame(0, 9, 4)
    a.send(wrong[:12] + bytes.fromhex("81000007") + wrong[12:])
    assert a.state()["drop.vlan"] == 1
    assert len(set(switch.balance())) == 1


# --- bad input --------------------------------------------------------------------------------------------------


def test_frames_with_wrong_lengths_are_dropped_and_counted() -> None:
    switch, (a, b) = make(2, max_frame=1522)
    a.send(b"")
    a.send(frame(0, 1)[:13])
    a.send((mac(1) + mac(0) + b"\x81\x00\x00")[:15])
    a.send(frame(0, 1, size=1523))
    a.send(mac(1) + mac(0) + (600).to_bytes(2, "big") + bytes(46))
    state = a.state()
    assert {k: v for k, v in state.items() if k.startswith("drop.")} == {
        "drop.short": 3,
        "drop.long": 1,
        "drop.length": 1,
    }
    assert a.send(frame(0, 1, 1, size=1522))
    assert take_all(b) == [1]
    a.send(frame(0, 0))
    assert a.state()["drop.hairpin"] == 1
    assert len(set(switch.balance())) == 1


def test_a_port_that_vanishes_with_frames_queued_frees_the_others() -> None:
    switch, (a, b, c) = make(3, input=Marks(2, 8, 10), output=Marks(2, 8, 10))
    taken = fill(a, frame(0, 1))
    woken: list[int] = []
    a.on_room = woken.append
    b.send(frame(1, 2, 7))
    switch.remove_port("p1")
    assert woken == [0]
    assert switch.gone["p1"]["drop.port_gone"] == taken
    assert take_all(c) == [7], "what it had sent arrives"
    assert a.send(frame(0, 2, 8))
    assert take_all(c) == [8]
    assert len(set(switch.balance())) == 1
    with pytest.raises(InvalidAttributeError, match="no port p1"):
        switch.remove_port("p1")


def test_more_ports_than_there_are() -> None:
    switch, _ = make(2)
    for n in range(14):
        switch.add_port(PortConfig(f"x{n}"))
    with pytest.raises(ResourceError):
        switch.add_port(PortConfig("one more"))
    with pytest.raises(InvalidAttributeError, match="already"):
        make(1)[0].add_port(PortConfig("p0"))


# --- watchdog ---------------------------------------------------------------------------------------------------


def test_a_dead_receiver_does_not_freeze_the_others() -> None:
    time = VirtualTime()
    clock: VirtualClock = time.clock
    switch, (a, b, c) = make(3, clock=clock, voq=False, input=Marks(2, 8, 10), output=Marks(2, 8, 10))
    said: list[tuple[str, str]] = []
    dog = Watchdog(switch, clock, lambda *x: said.append(x), detect_ns=1_000_000, restore_ns=1_000_000)
    fill(a, frame(0, 1))
    assert not a.send(frame(0, 2)), "frozen: the head of the line is for a receiver that never reads"
    time.run_for(10_000_000)
    assert not a.send(frame(0, 2)), "without a watchdog, for ever"
    dog.start()
    time.run_for(1_600_000)
    assert said == [("p1", "dead")]
    assert b.state()["drop.dead_output"] > 0
    assert a.send(frame(0, 2, 5))
    assert take_all(c) == [5]
    b.pause(0xFF)
    time.run_for(5_000_000)
    assert ("p1", "restored") not in said, "still pausing everything"
    b.pause(0)
    time.run_for(3_000_000)
    assert said[-1] == ("p1", "restored")
    a.send(frame(0, 1, 6))
    assert take_all(b) == [6]
    assert (dog.detections, dog.restorations) == (1, 1)
    assert len(set(switch.balance())) == 1
    dog.stop()
    assert time.clock.next_time() is None


def test_one_that_never_reads_holds_others_up_less_and_less() -> None:
    time = VirtualTime()
    switch, (a, _, _) = make(3, clock=time.clock, voq=False, input=Marks(2, 8, 10), output=Marks(2, 8, 10))
    said: list[int] = []
    dog = Watchdog(
        switch, time.clock, lambda _, what: said.append(time.now), detect_ns=1_000_000, restore_ns=1_000_000
    )
    dog.start()
    for _ in range(400):
        fill(a, frame(0, 1), 1_000) if a.state()["up"] and not dog.dead else None
        time.run_for(250_000)
    dead = [end - begin for begin, end in zip(said[::2], said[1::2], strict=False)]
    assert dead == sorted(dead)
    assert dead[-1] > 8 * dead[0]


def test_a_receiver_that_is_only_slow_is_left_alone() -> None:
    time = VirtualTime()
    switch, (a, b) = make(2, clock=time.clock)
    dog = Watchdog(switch, time.clock, lambda *_: None, detect_ns=1_000_000)
    dog.start()
    for _ in range(20):
        fill(a, frame(0, 1))
        time.run_for(500_000)
        b.receive()
    assert dog.detections == 0
