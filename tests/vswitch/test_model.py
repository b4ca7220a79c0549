"""The switch against a plain model, and random traffic, settings and faults: nothing lost, nothing out of order."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verbena.vswitch.config import Marks, PortConfig
from verbena.vswitch.switch import SwitchPort
from vswitch.lab import EVERYBODY, PlainSwitch, fill, frame, mac, make, number_of

PORTS = 4
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"), st.integers(0, PORTS - 1), st.integers(0, PORTS - 1), st.integers(60, 1500)
        ),
        st.tuples(st.just("receive"), st.integers(0, PORTS - 1), st.integers(1, 6), st.just(0)),
    ),
    max_size=150,
)


@settings(max_examples=60)
@given(operations, st.booleans(), st.integers(0, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 5))
def test_the_switch_does_what_the_plain_model_does(
    work: list[tuple[str, int, int, int]], voq: bool, low: int, more: int, out_low: int, out_more: int
) -> None:
    input, output = (
        Marks(low, low + more, low + more + 2),
        Marks(out_low, out_low + out_more, out_low + out_more),
    )
    switch, ports = make(PORTS, input=input, output=output, voq=voq)
    model = PlainSwitch(PORTS, input, output, voq, switch.config.max_frame)
    for at, (what, a, b, c) in enumerate(work):
        if what == "send":
            assert ports[a].send(frame(a, b, at, c)) == model.send(a, at, b, c)
        else:
            for _ in range(b):
                got = ports[a].receive()
                assert (None if got is None else number_of(got.data)) == model.receive(a)
        if not voq:
            continue  # the order in which several blocked heads are served may differ; see the next test
        for i in range(PORTS):
            for outgoing, queue in ((False, model.inputs[i]), (True, model.outputs[i])):
                state = switch.engine.queue_state(i, outgoing, 0)
                assert (state["frames"], state["stopped"]) == (len(queue.frames), queue.stopped)
                assert (state["stops"], state["starts"]) == (queue.stops, queue.starts)
        assert len(set(switch.balance())) == 1


class Traffic:
    """Random producers and consumers at a switch, checked for conservation and order of each flow."""

    def __init__(self, random: Random, **config: object) -> None:
        self.random = random
        low, out_low = random.randint(0, 20), random.randint(0, 20)
        input = Marks(low, low + random.randint(1, 40), low + 60)
        output = Marks(out_low, out_low + random.randint(1, 40), out_low + 45)
        self.switch, self.ports = make(6, input=input, output=output, **config)  # type: ignore[arg-type]
        self.sent = self.received = 0
        self.last: dict[tuple[bytes, bytes, int], int] = defaultdict(int)
        self.speeds = [random.random() for _ in range(2 * len(self.ports))]
        self.woken: set[int] = set(range(len(self.ports)))
        for port in self.ports:
            self.listen(port)

    def listen(self, port: SwitchPort) -> None:
        number = self.ports.index(port)
        port.on_frames = lambda: self.woken.add(number)

    def produce(self, i: int) -> None:
        to = self.random.choice([*range(len(self.ports)), EVERYBODY])
        data = frame(i, to, self.sent + 1, self.random.randint(60, 1518), self.random.choice([None, 0, 3]))
        self.sent += self.ports[i].send(data)

    def consume(self, i: int) -> None:
        """Only those that were woken look: a wake-up that is lost shows as frames that nobody takes."""
        if i not in self.woken:
            return
        got = self.ports[i].receive()
        if got is None:
            self.woken.discard(i)
            return
        self.received += 1
        flow = (got.data[:6], bytes([got.source]), got.priority * 16 + i)
        assert number_of(got.data) > self.last[flow], "out of order"
        self.last[flow] = number_of(got.data)

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            i = self.random.randrange(len(self.ports))
            if self.random.random() < self.speeds[i]:
                self.produce(i)
            i = self.random.randrange(len(self.ports))
            if self.random.random() < self.speeds[-1 - i]:
                self.consume(i)

    def drain(self) -> None:
        while self.woken:
            for i in list(self.woken):
                self.consume(i)


@pytest.mark.requirement("VSW-02", "VSW-24", "VSW-26")
@pytest.mark.parametrize("voq", [True, False])
@pytest.mark.parametrize("which", range(4))
def test_random_traffic_is_conserved_in_order_and_never_hangs(seed: int, which: int, voq: bool) -> None:
    random = Random(f"{seed} {which}")
    traffic = Traffic(random, voq=voq, lossless=frozenset({0, 3}), bypass=random.random() < 0.5)
    traffic.run(3_000)
    traffic.drain()
    came, went = traffic.switch.balance()
    assert came == went
    assert traffic.switch.losses() == {}
    states = traffic.switch.status()["ports"].values()
    queued = sum(q["frames"] for s in states for side in ("input", "output") for q in s[side].values())
    assert queued == 0, "a wake-up was lost: frames lie there, and nobody was told"
    assert sum(s["tx_frames"] for s in states) == traffic.received > 500


@pytest.mark.parametrize("which", range(4))
def test_ports_that_vanish_and_return_hurt_nobody_else(seed: int, which: int) -> None:
    random = Random(f"{seed} {which}")
    traffic = Traffic(random, voq=True, lossless=frozenset({0, 3}))
    for _ in range(12):
        traffic.run(250)
        victim = random.randrange(len(traffic.ports))
        traffic.switch.remove_port(f"p{victim}")
        assert len(set(traffic.switch.balance())) == 1
        back = traffic.switch.add_port(PortConfig(f"p{victim}", (mac(victim),), input=Marks(4, 8, 10)))
        traffic.ports[victim] = back
        traffic.listen(back)
        traffic.woken.add(victim)
        new = {key: value for key, value in traffic.last.items() if key[2] % 16 != victim}
        traffic.last = defaultdict(int, new)
    traffic.drain()
    assert len(set(traffic.switch.balance())) == 1
    assert traffic.switch.losses() == {}


def test_a_lossy_class_drops_what_a_lossless_one_keeps() -> None:
    """The negative of conservation: without thresholds the same traffic loses frames, and says where."""
    for lossless, lost in ((frozenset({0}), False), (frozenset(), True)):
        switch, ports = make(2, input=Marks(2, 4, 6), output=Marks(2, 4, 6), lossless=lossless)
        if lost:
            for i in range(50):
                assert ports[0].send(frame(0, 1, i))
        else:
            assert fill(ports[0], frame(0, 1)) == 8
        assert bool(switch.losses()) == lost
        assert len(set(switch.balance())) == 1
