"""A byte-exact stream under thousands of random events, against a plain model: the bytes that were written."""

from __future__ import annotations

from random import Random

import pytest

from team_lab import Lab, Transfer, connect
from verbena.team.host import TeamHost
from verbena.team.offload.session import Session
from verbena.team.offload.states import MILLISECOND, OffloadConfig, Path

SETTINGS = OffloadConfig(
    stall_ns=40 * MILLISECOND,
    attempt_ns=10 * MILLISECOND,
    move_ns=20 * MILLISECOND,
    evaluate_ns=MILLISECOND,
    hold_ns=MILLISECOND,
    keepalive_ns=100 * MILLISECOND,
    slot_size=2048,
    slots=4,
    send_buffer=16_384,
    receive_buffer=32_768,
    tcp_in_flight=8_192,
)


class Endless(Transfer):
    """Writes without an end, until told; what comes is compared at once with what it should be."""

    def __init__(self, session: Session, mine: int, theirs: int) -> None:
        self.out, self.expected = Random(mine), Random(theirs)
        self.compared = 0
        self.ending = False
        super().__init__(session, b"")

    def pump(self) -> None:
        session = self.session
        while session.error is None and session.room >= 512 and not self.ending:
            session.write(self.out.randbytes(512))
            self.sent += 512
        if self.ending:
            session.close_writing()
        self.received += session.read() if session.readable else b""
        while len(self.received) >= 512:
            assert self.received[:512] == self.expected.randbytes(512), f"wrong bytes behind {self.compared}"
            del self.received[:512]
            self.compared += 512


class Chaos:
    """Does one random thing at a time to one of two hosts."""

    def __init__(self, lab: Lab, session: Session) -> None:
        self.lab = lab
        self.random = lab.random
        self.session = session
        self.done: dict[str, int] = {}

    def one(self) -> None:
        host = self.random.randrange(2)
        what = self.random.choice(
            ("pull", "plug", "plug", "plug", "break", "mend", "mend", "fail", "recover", "recover")
            + ("offload", "offload", "upload", "free", "remove", "add", "add")
        )
        self.done[what] = self.done.get(what, 0) + 1
        getattr(self, what)(host, self.lab.hosts[host], self.lab.cards[host])

    def pull(self, host: int, team: TeamHost, cards: dict) -> None:
        self.random.choice(list(cards.values())).set_link(False)

    def plug(self, host: int, team: TeamHost, cards: dict) -> None:
        for card in cards.values():
            card.set_link(True)

    def break_(self, host: int, team: TeamHost, cards: dict) -> None:
        self.random.choice(list(cards.values())).silent = True

    def mend(self, host: int, team: TeamHost, cards: dict) -> None:
        for card in cards.values():
            card.silent = False

    def fail(self, host: int, team: TeamHost, cards: dict) -> None:
        team.driver.fail(self.random.choice(team.driver.members).name) if team.driver.members else None

    def recover(self, host: int, team: TeamHost, cards: dict) -> None:
        for member in team.driver.members:
            team.driver.recover(member.name)

    def pin(self, path: Path | None) -> None:
        self.session.pinned = path

    def offload(self, host: int, team: TeamHost, cards: dict) -> None:
        self.pin(Path.OFFLOAD)

    def upload(self, host: int, team: TeamHost, cards: dict) -> None:
        self.pin(Path.UPLOAD)

    def free(self, host: int, team: TeamHost, cards: dict) -> None:
        self.pin(None)

    def remove(self, host: int, team: TeamHost, cards: dict) -> None:
        if team.driver.members:
            team.remove(self.random.choice(team.driver.members).name)

    def add(self, host: int, team: TeamHost, cards: dict) -> None:
        there = {member.name for member in team.driver.members}
        for name, card in cards.items():
            if name not in there:
                rdma = team.rdma.get(name)
                team.add(card, context=rdma.context if rdma else None)
                return


setattr(Chaos, "break", Chaos.break_)


@pytest.mark.requirement("TEM-15")
def test_the_stream_survives_thousands_of_random_events(seed: int) -> None:
    lab = Lab(seed, rate_bps=50e6)
    probes = {"probe_interval_ns": 5 * MILLISECOND, "heartbeat_key": b"shared secret", "probe_misses": 2}
    for _ in range(2):
        lab.host(nics=2, rnics=2, offload=SETTINGS, **probes)
    lab.run(50)
    a, b = connect(lab, near=lambda s: Endless(s, 1, 2), far=lambda s: Endless(s, 2, 1))
    chaos = Chaos(lab, a.session)
    for _ in range(2_000):
        chaos.one()
        lab.run(lab.random.choice((0.02, 0.3, 2, 5)))
        assert a.session.error is None, lab.hosts[0].sockets.events
        assert b.session.error is None, lab.hosts[1].sockets.events
    for number in range(2):
        for what in ("plug", "mend", "recover", *["add"] * 4):
            getattr(chaos, what)(number, lab.hosts[number], lab.cards[number])
    a.ending = b.ending = True
    lab.run(1000)
    lab.until(lambda: a.session.at_end and b.session.at_end, 20_000)
    assert a.compared == b.sent
    assert b.compared == a.sent
    moved = lab.hosts[0].sockets.counters
    assert moved["path.resumed"] > 20
    assert a.session.moves > 100
    assert len(a.session.bytes_by_path) == 3
