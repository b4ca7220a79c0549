"""The switch row by row: thresholds, the two flow charts, Algorithm 1, fairness, the controller."""

from __future__ import annotations

from random import Random

import pytest

from verbena import _pure
from verbena.errors import ClosedError, InvalidAttributeError
from verbena.runtime.virtual_time import VirtualTime
from verbena.vswitch.config import Marks
from verbena.vswitch.kinds import Outcome, Step
from vswitch.lab import fill, frame, mac, make, number_of, steps, take_all

MILLION = 1_000_000 if _pure.compiled() else 50_000
"""Uncompiled, a twentieth of it: the same code, and the same result for each frame."""


@pytest.mark.requirement("VSW-01")
@pytest.mark.parametrize("lossless", [True, False])
def test_a_slow_consumer_loses_nothing_and_without_control_it_does(lossless: bool) -> None:
    marks = Marks(32, 64, 80)
    switch, (a, b) = make(2, input=marks, output=marks, lossless=frozenset({0} if lossless else ()))
    data = frame(0, 1)
    sent = 0
    while sent < MILLION:
        for _ in range(300):
            if not a.send(data):
                break
            sent += 1
        for _ in range(100):
            if b.receive(sleep=False) is None:
                break
    assert bool(switch.losses()) != lossless
    assert len(set(switch.balance())) == 1


@pytest.mark.requirement("VSW-02")
def test_a_queue_for_each_stream_and_a_full_one_hurts_no_other() -> None:
    switch, ports = make(4)
    assert list(switch.status()["ports"]) == ["p0", "p1", "p2", "p3"]
    fill(ports[0], frame(0, 3))
    assert ports[0].stopped()
    assert not ports[1].stopped()
    assert ports[1].send(frame(1, 2))
    assert switch.losses() == {}


@pytest.mark.requirement("VSW-03", "VSW-09")
def test_stop_at_eight_of_ten_restart_at_the_low_mark() -> None:
    _, (a, b) = make(2, input=Marks(3, 8, 10), output=Marks(0, 1, 1), trace=True)
    commands: list[str] = []
    a.on_stop = lambda _: commands.append("stop")
    a.on_start = lambda _: commands.append("start")
    assert fill(a, frame(0, 1)) == 9  # one is in the output
    assert a.occupancy(outgoing=False)[0] == 8
    assert commands == ["stop"]
    for left in range(7, 3, -1):
        b.receive()
        assert a.occupancy(outgoing=False)[0] == left
        assert not a.send(frame(0, 1)), "above the low mark it stays stopped"
    b.receive()
    assert commands == ["stop", "start"], "said once for each crossing"
    assert a.send(frame(0, 1))
    for wrong in ((5, 5, 10), (6, 5, 10), (0, 11, 10), (-1, 5, 10)):
        with pytest.raises(InvalidAttributeError, match="is right"):
            Marks(*wrong)
    with pytest.raises(InvalidAttributeError, match="bytes"):
        Marks(low_bytes=9000, high_bytes=9000)


def test_thresholds_in_bytes() -> None:
    _, (a, b) = make(2, input=Marks(high_bytes=3000, low_bytes=1000), output=Marks(0, 1, 1))
    assert fill(a, frame(0, 1, size=1000)) == 4
    b.receive()
    assert a.stopped()
    b.receive()
    assert not a.stopped()


@pytest.mark.requirement("VSW-04")
@pytest.mark.parametrize("sizes", [(64, 64), (64, 1500)])
def test_two_inputs_share_an_output_in_bytes(sizes: tuple[int, int]) -> None:
    """The rule: deficit round robin, equal shares in bytes."""
    _, (a, b, c) = make(3, input=Marks(32, 64, 80), output=Marks(4, 8, 8))
    octets = [0, 0]
    for _ in range(8000):
        fill(a, frame(0, 2, size=sizes[0]))
        fill(b, frame(1, 2, size=sizes[1]))
        got = c.receive()
        assert got is not None
        octets[got.source] += got.length
    assert 0.9 < octets[0] / octets[1] < 1.1


@pytest.mark.requirement("VSW-05")
def test_no_credit_nothing_moves_three_credits_three_packets() -> None:
    switch, (a, b) = make(2, trace=True)
    switch.grant("p1", 0, 0)
    for n in range(6):
        a.send(frame(0, 1, n))
    assert take_all(b) == []
    steps(switch)
    switch.grant("p1", 0, 3)
    assert steps(switch)[0] == Step.IN_SIGNAL
    assert take_all(b) == [0, 1, 2]
    switch.grant("p1", 0, None)
    assert take_all(b) == [3, 4, 5]


@pytest.mark.requirement("VSW-06", "VSW-27")
def test_packets_for_forwarding_skip_the_input_queue() -> None:
    switch, (a, b) = make(2, output=Marks(0, 2, 2), trace=True)
    a.send(frame(0, 1))
    assert Step.IN_FROM_PRODUCER in steps(switch)
    assert a.send(frame(0, 1, 1), direct=True)
    found = steps(switch)
    assert found[:3] == [Step.IN_ARRIVED, Step.IN_FOR_FORWARDING, Step.IN_OUTPUT_ROOM]
    assert Step.IN_QUEUED not in found
    a.send(frame(0, 1, 2), direct=True)  # the output is full: it waits in the input queue, like any other
    assert a.occupancy(outgoing=False)[0] == 1
    assert take_all(b) == [0, 1, 2]
    assert len(set(switch.balance())) == 1


@pytest.mark.requirement("VSW-27")
def test_with_bypass_thresholds_and_counts_still_hold() -> None:
    marks = Marks(2, 5, 8)
    switch, (a, b) = make(2, input=marks, output=marks, bypass=True)
    assert fill(a, frame(0, 1)) == 10
    assert len(take_all(b)) == 10
    assert switch.losses() == {}
    assert len(set(switch.balance())) == 1


@pytest.mark.requirement("VSW-07")
def test_at_the_stop_the_packet_in_hand_and_those_on_the_way_are_kept() -> None:
    switch, (a, b) = make(2, input=Marks(1, 4, 8), output=Marks(0, 1, 1), trace=True)
    for n in range(4):
        a.arrive(frame(0, 1, n))
    steps(switch)
    a.arrive(frame(0, 1, 4))
    assert steps(switch) == [
        Step.IN_ARRIVED,
        Step.IN_FROM_PRODUCER,
        Step.IN_QUEUED,
        Step.IN_ABOVE_STOP,
        Step.IN_OUTPUT_FULL,
    ]
    for n in range(5, 9):  # on the way when the stop was said
        assert a.arrive(frame(0, 1, n)) is Outcome.QUEUED
    assert a.arrive(frame(0, 1, 9)) is Outcome.DROPPED, (
        "more than the room above the mark is lost, and counted"
    )
    assert switch.losses() == {"p0: overrun": 1}
    assert take_all(b) == list(range(9))


@pytest.mark.requirement("VSW-08")
def test_a_packet_waits_for_the_output_and_exactly_the_allowed_number_moves() -> None:
    _, (a, b) = make(2, output=Marks(2, 4, 4))
    for n in range(10):
        a.send(frame(0, 1, n))
    assert a.occupancy(outgoing=False)[0] == 6
    assert number_of(b.receive().data) == 0  # type: ignore[union-attr]
    assert a.occupancy(outgoing=False)[0] == 6, "above the output's low mark nothing moves"
    b.receive()
    assert a.occupancy(outgoing=False)[0] == 4, "at the low mark it is filled up again"
    assert take_all(b) == list(range(2, 10))


@pytest.mark.requirement("VSW-10")
def test_the_output_side_step_by_step() -> None:
    switch, (a, b) = make(2, output=Marks(1, 3, 3), trace=True)
    for n in range(5):
        a.send(frame(0, 1, n))
    steps(switch)
    b.receive()
    assert steps(switch) == [Step.OUT_DEQUEUED, Step.OUT_ABOVE_RESTART, Step.OUT_CONSUMED]
    b.receive()
    found = steps(switch)
    assert found[:3] == [Step.OUT_DEQUEUED, Step.OUT_BELOW_RESTART, Step.OUT_FORWARDER_WOKEN]
    assert found[-1] == Step.OUT_CONSUMED
    assert found.count(Step.IN_MOVED) == 2
    b.receive()
    assert Step.OUT_FORWARDER_WOKEN not in steps(switch), "woken at the crossing only"


@pytest.mark.requirement("VSW-11", "VSW-24")
def test_a_full_output_stops_only_those_who_send_to_it() -> None:
    for voq, free in ((True, 40), (False, 0)):
        switch, (a, b, c, d) = make(4, input=Marks(60, 64, 80), output=Marks(0, 1, 2), voq=voq)
        fill(b, frame(1, 2))
        for n in range(4):
            a.send(frame(0, 2, n))
        delivered = []
        for n in range(40):
            a.send(frame(0, 3, n))
            delivered += take_all(d)
        assert len(delivered) == free, "without virtual output queues the head of the line blocks"
        assert delivered == list(range(free))
        assert [n for n in take_all(c) if n][:3] == [1, 2, 3], "order kept"
        assert take_all(d) == list(range(free, 40))
        assert switch.losses() == {}


@pytest.mark.requirement("VSW-14")
def test_a_controller_changes_thresholds_and_the_table_at_run_time() -> None:
    switch, (a, b, c) = make(3, input=Marks(10, 20, 30), output=Marks(0, 1, 1))
    assert fill(a, frame(0, 1)) == 21
    switch.set_marks("p0", 0, input=Marks(30, 40, 50))
    assert fill(a, frame(0, 1)) == 20, "20 more"
    switch.set_marks("p0", 0, input=Marks(2, 4, 50))
    assert a.stopped()
    assert len(take_all(b)) == 41
    assert switch.losses() == {}
    switch.add_entry(mac(77), "p2")
    a.send(frame(0, 77))
    assert len(take_all(c)) == 1
    switch.remove_entry(mac(77))
    a.send(frame(0, 77))
    assert len(take_all(b)) == 1, "unknown, and no physical port: to all"


@pytest.mark.requirement("VSW-15")
def test_lossy_classes_drop_and_lossless_ones_do_not() -> None:
    switch, (a, b) = make(2, input=Marks(5, 10, 12), output=Marks(5, 10, 12), lossless=frozenset({3}))
    for n in range(100):
        assert a.send(frame(0, 1, n, priority=0)), "a lossy class never makes its producer wait"
    assert fill(a, frame(0, 1, priority=3)) == 20, "and does not pause the lossless one"
    assert switch.losses() == {"p1: output_full": 88}
    got = [b.receive() for _ in range(32)]
    assert [g.priority for g in got if g].count(3) == 20


@pytest.mark.requirement("VSW-19")
def test_local_addresses_stay_local_foreign_ones_go_to_the_physical_port() -> None:
    switch, (a, b, physical) = make(2, physical=True)
    a.send(frame(0, 1, 1))
    a.send(frame(0, 99, 2))
    assert (take_all(b), take_all(physical)) == ([1], [2])
    physical.arrive(frame(50, 99, 3))
    assert physical.state()["drop.foreign"] == 1, "what is behind the physical port does not come back to it"
    switch.remove_port("p1")
    assert mac(1) not in [entry[1] for entry in switch.table()]
    a.send(frame(0, 1, 4))
    assert take_all(physical) == [4], "one that left is not local any more"
    with pytest.raises(ClosedError):
        b.receive()


@pytest.mark.requirement("VSW-23", "VSW-26")
def test_the_sender_sleeps_when_its_queue_is_full_and_is_woken_once() -> None:
    _, (a, b) = make(2, input=Marks(2, 6, 8), output=Marks(0, 1, 1))
    woken: list[int] = []
    a.on_room = woken.append
    taken = fill(a, frame(0, 1))
    for _ in range(5):
        assert not a.send(frame(0, 1))
    assert a.state()["producer_slept"] == 1
    assert woken == []
    assert len(take_all(b)) == taken
    assert woken == [0]
    assert a.state()["producer_woken"] == 1


@pytest.mark.requirement("VSW-25")
def test_the_receivers_three_cases() -> None:
    switch, (a, b) = make(2, trace=True)
    told: list[bool] = []
    b.on_frames = lambda: told.append(True)
    a.send(frame(0, 1, 1))
    steps(switch)
    assert b.receive() is not None
    assert steps(switch) == [Step.OUT_DEQUEUED, Step.OUT_CONSUMED], "not empty: consume"
    switch.engine.push = False  # nobody but the consumer runs the forwarder
    a.send(frame(0, 1, 2))
    steps(switch)
    got = b.receive()
    assert got is not None
    assert number_of(got.data) == 2
    assert [s for s in steps(switch) if s > Step.IN_BELOW_RESTART or s == Step.IN_MOVED] == [
        Step.OUT_PULL,
        Step.IN_MOVED,
        Step.OUT_DEQUEUED,
        Step.OUT_CONSUMED,
    ], "empty: pull, then consume"
    assert b.receive() is None
    assert steps(switch) == [Step.OUT_PULL, Step.OUT_SLEEP], "still empty: sleep"
    assert told == []
    a.send(frame(0, 1, 3))
    assert told == [True], "woken by the sender"
    assert take_all(b) == [3]


@pytest.mark.requirement("VSW-26")
@pytest.mark.parametrize("fast", ["sender", "receiver"])
def test_who_is_faster_sleeps_and_the_other_wakes_it(fast: str) -> None:
    time = VirtualTime()
    clock = time.clock
    _, (a, b) = make(2, input=Marks(4, 16, 20), output=Marks(4, 16, 20), clock=clock)
    left = 2000
    got: list[int] = []
    gaps = {"send": 10 if fast == "sender" else 100, "receive": 100 if fast == "sender" else 10}

    def send(_: int = 0) -> None:
        nonlocal left
        if left and a.send(frame(0, 1, 2000 - left)):
            left -= 1
            clock.call_at(clock.now() + gaps["send"], send)

    def receive() -> None:
        found = b.receive()
        if found is not None:
            got.append(number_of(found.data))
            clock.call_at(clock.now() + gaps["receive"], receive)

    a.on_room, b.on_frames = send, receive
    send()
    receive()
    time.run_until_idle()
    assert got == list(range(2000)), "a lost wake-up would leave frames behind"
    producer, consumer = a.state(), b.state()
    if fast == "sender":
        assert producer["producer_slept"] == producer["producer_woken"] > 50
        assert consumer["consumer_slept"] < 5
    else:
        assert consumer["consumer_slept"] > 1900
        assert consumer["consumer_woken"] >= consumer["consumer_slept"] - 1
        assert producer["producer_slept"] == 0


@pytest.mark.requirement("VSW-26")
def test_a_million_packets_at_random_speeds_no_hang(seed: int) -> None:
    random = Random(seed)
    switch, (a, b) = make(2, input=Marks(8, 32, 40), output=Marks(8, 32, 40))
    awake = {"a": True, "b": True}
    a.on_room = lambda _: awake.update(a=True)
    b.on_frames = lambda: awake.update(b=True)
    data = frame(0, 1)
    sent = received = 0
    while received < MILLION // 2:
        assert awake["a"] or awake["b"], "both sleep: a wake-up was lost"
        if awake["a"]:
            for _ in range(random.randrange(100)):
                if not a.send(data):
                    awake["a"] = False
                    break
                sent += 1
        if awake["b"]:
            for _ in range(random.randrange(100)):
                if b.receive() is None:
                    awake["b"] = False
                    break
                received += 1
    assert switch.losses() == {}
    assert sent - received == sum(a.occupancy(outgoing=False)[:1] + b.occupancy(outgoing=True)[:1])
