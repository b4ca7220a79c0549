"""The connection manager under hostile messages, and between two sides on a bad network."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from management.cm_net import A, B, C, Net, Program, pair
from verbena.management.communication import Event, State
from verbena.management.negotiation import Offer
from verbena.wire import MAD_SIZE, CmMessage, cm_mad

SECOND = 1_000_000_000
Mutation = tuple[int, int]


def balanced(net: Net) -> bool:
    return all(
        m.counters["mads"]
        == m.counters["accepted"] + sum(n for k, n in m.counters.items() if k.startswith("dropped."))
        for m in net.managers.values()
    )


def a_life() -> list[tuple[bytes, bytes]]:
    """All messages of one connection: who sent them, and their bytes."""
    net, client, _ = pair(seed=1)
    comm = client.connect(B)
    net.run()
    client.manager.disconnect(comm)
    net.run()
    return [(source, cm_mad(message, number).pack()) for source, message, number in net.sent]


LIFE = a_life()
MUTATIONS = st.lists(st.tuples(st.integers(0, MAD_SIZE - 1), st.integers(0, 255)), max_size=6)
# Which message of a like life, from whom it comes, how it was changed.
MESSAGES = st.lists(
    st.tuples(st.integers(0, len(LIFE) - 1), st.sampled_from([A, B, C]), MUTATIONS), max_size=40
)


@settings(max_examples=150)
@given(MESSAGES, st.booleans())
def test_changed_messages_never_raise_nor_pile_up(
    messages: Sequence[tuple[int, bytes, Sequence[Mutation]]], accepts: bool
) -> None:
    net, client, server = pair(seed=1, accepts=accepts, backlog=4)
    client.connect(B)
    net.run(500)
    for index, source, mutations in messages:
        data = bytearray(LIFE[index][1])
        for place, value in mutations:
            data[place] = value
        for manager in (client.manager, server.manager):
            before = len(net.sent)
            manager.receive(source, bytes(data))
            assert len(net.sent) - before <= 2
        net.run(1_500)
        assert server.manager.known <= 4 + len(server.requests)
        waiting = [r for r in server.requests if r.state in (State.REQ_RCVD, State.MRA_REQ_SENT)]
        assert len(waiting) <= 4
    assert balanced(net)
    for manager in net.managers.values():
        manager.close()
        assert manager.known == 0


@given(st.binary(max_size=300))
def test_any_bytes_are_taken_or_counted(data: bytes) -> None:
    net, _, server = pair()
    server.manager.receive(A, data)
    assert balanced(net)


def test_a_flood_of_requests_fills_the_backlog_and_nothing_else() -> None:
    net, client, server = pair(accepts=False, backlog=8)
    for number in range(500):
        client.connect(B, offer=Offer(qpn=1000 + number, psn=0))
        net.run(5_000)
        assert server.manager.known <= 8
    assert server.manager.counters["refused.no_resources"] == 492


def test_a_flood_of_rejected_requests_is_forgotten() -> None:
    net, client, server = pair(accepts=False)
    for number in range(4_200):
        client.connect(B, offer=Offer(qpn=10_000 + number, psn=0))
        net.run(2_000)
        server.manager.reject(server.requests[-1])
    assert server.manager.known <= 4_096
    net.run()
    assert server.manager.known == client.manager.known == 0


class BadNetwork:
    """Loses, doubles, delays and reorders."""

    def __init__(self, random: Random, loss: float) -> None:
        self.random = random
        self.loss = loss

    def __call__(self, message: CmMessage) -> list[int]:
        chance = self.random.random
        if chance() < self.loss:
            return []
        copies = 2 if chance() < 0.2 else 1
        return [self.random.randrange(300_000_000) if chance() < 0.3 else 0 for _ in range(copies)]


@pytest.mark.parametrize("loss", [0.02, 0.3, 0.6])
def test_connections_on_a_bad_network_are_made_or_fail_on_both_sides(loss: float, seed: int) -> None:
    for round_ in range(15):
        random = Random(f"{seed} {round_}")
        net, client, server = pair(seed=random.getrandbits(32), backlog=64)
        net.filter = BadNetwork(random, loss)
        comms = [client.connect(B, offer=Offer(qpn=100 + i, psn=i)) for i in range(20)]
        net.run(60 * SECOND)
        made = [c for c in comms if c.state is State.ESTABLISHED]
        for comm in comms:
            told = [event for who, event in client.events if who is comm]
            assert told[-1] in (Event.ESTABLISHED, Event.REFUSED, Event.TIMED_OUT, Event.ENDED)
        if loss < 0.1:
            assert len(made) == 20
        # Who got the RTU has a peer that is connected.  The other way round it is so, unless all retries of the REP
        # (or their answers) were lost, and the REJ at the end of them, too: that, no protocol can mend.
        there = {r.local_id for r in server.requests if r.state is State.ESTABLISHED}
        here = {c.remote_id for c in made}
        assert there <= here
        assert loss > 0.5 or there == here
        if random.random() < 0.2:
            (client if random.random() < 0.5 else server).manager.close()
        for comm in made:
            client.manager.disconnect(comm)
        for request in server.requests:
            server.manager.disconnect(request)
        net.run()
        assert balanced(net)
        assert client.manager.known == server.manager.known == 0


def test_a_run_is_repeated_exactly(seed: int) -> None:
    def run() -> list[tuple[bytes, CmMessage, int]]:
        net, client, _ = pair(seed=seed)
        net.filter = BadNetwork(Random(seed), 0.3)
        client.connect(B)
        net.run(10 * SECOND)
        return net.sent

    assert run() == run()


def test_a_manager_connects_to_itself() -> None:
    net = Net()
    both = Program(net.add(A))
    both.manager.listen(0x0106_1C06, 4, both.on_request)
    comm = both.connect(A)
    net.run()
    assert comm.state is both.requests[0].state is State.ESTABLISHED
    both.manager.disconnect(comm)
    net.run()
    assert both.manager.known == 0
