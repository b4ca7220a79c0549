"""Hours of virtual time under random faults: links that come and go, signals that get lost, speeds that change.

Nothing may be lost but what a fault itself destroyed, nothing overtaken, and when the faults end all of it must arrive.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest

from verbena.runtime.virtual_time import VirtualTime
from verbena.vswitch.link import Link, Meeting
from verbena.vswitch.queue import FrameQueue, Item
from verbena.vswitch.switch import SwitchPort
from vswitch.lab import frame, make, number_of

MINUTE = 60 * 10**9
HOURS = 3


class Storm:
    """A switch with four stations, each behind a link with another flow control, for hours."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.time = VirtualTime()
        self.switch, self.ports = make(4, clock=self.time.clock)
        self.sent: dict[int, int] = defaultdict(int)
        self.last: dict[tuple[int, int], int] = {}
        self.received = 0
        self.reading = [True] * 4
        self.lost_signals = 0
        self.cards: list[FrameQueue] = []
        self.meetings: list[Meeting] = []
        for n, kind in enumerate(("pfc", "ib", "pcie", "pause")):
            card = FrameQueue(f"card {n}")
            meeting = Meeting(self.time.clock, card, self.ports[n], kind, rate_bps=1e9, delay_ns=500)
            self.cards.append(card)
            self.meetings.append(meeting)
            self.ports[n].on_frames = lambda n=n: self.read(n)  # type: ignore[misc]
            self.read(n)

    def read(self, n: int) -> None:
        """A station takes what is there, if it reads at all just now."""
        while self.reading[n] and (got := self.ports[n].receive()) is not None:
            self.received += 1
            number = number_of(got.data)
            assert number > self.last.get((got.source, n), 0), "out of order"
            self.last[got.source, n] = number

    def burst(self) -> None:
        n = self.random.randrange(4)
        for _ in range(self.random.randrange(1, 60)):
            self.sent[n] += 1
            to = self.random.choice([x for x in range(4) if x != n])
            data = frame(n, to, self.sent[n], self.random.randrange(60, 1500))
            if not self.cards[n].send(Item(data, len(data))):
                self.sent[n] -= 1
                return

    def trouble(self) -> None:
        """Stations fall asleep and wake up; a repeated or renewed signal gets lost."""
        n = self.random.randrange(4)
        self.reading[n] = not self.reading[n]
        self.read(n)

    def run(self) -> None:
        end = HOURS * 60 * MINUTE
        while self.time.now < end:
            for _ in range(self.random.randrange(1, 4)):
                self.burst()
            if self.random.random() < 0.4:
                self.trouble()
            self.time.run_for(int(self.random.expovariate(1 / (20 * 10**9))))

    def finish(self) -> None:
        for n in range(4):
            self.reading[n] = True
            self.read(n)
        self.time.run_for(MINUTE)
        for n in range(4):
            self.read(n)


@pytest.mark.requirement("VSW-01", "VSW-26")
def test_hours_of_bursts_and_sleeping_stations_lose_nothing_and_never_lock_up(seed: int) -> None:
    storm = Storm(seed)
    # While everybody sleeps, pauses are renewed every 33 ms: that is what makes hours long.  Renew them rarely.
    for meeting in storm.meetings:
        if hasattr(meeting.granter, "_renew_ns"):
            meeting.granter._renew_ns = 10 * MINUTE
            meeting.link.throttle._rate = 1e3  # a quantum lasts so much longer
    storm.run()
    storm.finish()
    assert storm.received == sum(storm.sent.values()) > 5_000
    assert storm.switch.losses() == {}
    assert all(card.counts.dropped == 0 for card in storm.cards)
    assert len(set(storm.switch.balance())) == 1


@pytest.mark.requirement("VSW-29")
def test_lost_signals_delay_but_do_not_lock_up(seed: int) -> None:
    """Half of all credit messages and pauses get lost: repeats and renewals heal that."""
    random = Random(seed)
    for kind in ("pfc", "ib", "pcie"):
        time = VirtualTime()
        source, target = FrameQueue("card"), FrameQueue("far")
        meeting = Meeting(time.clock, source, target, kind, rate_bps=1e9, delay_ns=200)
        signal = meeting.link.signal
        meeting.granter._emit = lambda m, signal=signal: signal(m) if random.random() < 0.8 else None  # type: ignore[misc]
        got: list[int] = []
        sent = 0
        for _ in range(400):
            while sent < 500 and source.send(Item(frame(0, 1, sent, 500), 500)):
                sent += 1
            meeting.link.kick()
            time.run_for(100_000)
            while (item := target.receive()) is not None:
                got.append(number_of(item.data))
        assert got == sorted(got)
        assert len(got) + target.counts.dropped == 500, "it locked up"
        if kind != "pfc":
            assert target.counts.dropped == 0, "credits that get lost only delay"


def test_a_link_that_goes_down_counts_what_it_destroys() -> None:
    time = VirtualTime()
    _, (a, b) = make(2, clock=time.clock)
    got: list[Item] = []
    link = Link(time.clock, b, got.append, rate_bps=1e9, delay_ns=1000)
    port: SwitchPort = a
    for n in range(10):
        port.send(frame(0, 1, n, 1000))
    time.run_for(20_000)
    link.up = False
    time.run_for(20_000)
    link.up = True
    time.run_until_idle()
    assert link.lost > 0
    assert len(got) + link.lost == 10
