"""Wires that wrap wires: the fault injector's laws, the tap, the tracer."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from lab import RC, Lab, pattern, take, write
from verbena import Burst, FaultInjector, Faults, InvalidAttributeError, PcapTap, Tracer, VirtualNetwork, Wire
from verbena.cli.dump import dump
from verbena.runtime.pairs import connect_sides, make_side
from verbena.runtime.virtual_time import VirtualClock

A, B = b"\0" * 10 + b"\xff\xff\x0a\0\0\x01", b"\0" * 10 + b"\xff\xff\x0a\0\0\x02"


class Sink(Wire):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.bursts: list[Burst] = []

    def send(self, burst: Burst) -> None:
        self.bursts.append(burst)


def test_bursts_come_apart_into_their_packets() -> None:
    burst = Burst(pattern(1000), 300, A, B, first_ident=7)
    parts = list(burst.packets())
    assert len(burst) == len(parts) == 4
    assert [len(p.data) for p in parts] == [300, 300, 300, 100]
    assert [p.first_ident for p in parts] == [7, 8, 9, 10]
    assert b"".join(p.data for p in parts) == burst.data
    empty = Burst(b"", 0, A, B)
    assert len(empty) == len(list(empty.packets())) == 1, "a datagram with nothing in it"


def inject(seed: int, faults: Faults, packets: int = 2000) -> tuple[FaultInjector, Sink, VirtualClock]:
    sink, clock = Sink(), VirtualClock()
    wire = FaultInjector(sink, faults, Random(seed), clock)
    for i in range(packets // 4):
        clock.call_at(1000 * i, lambda i=i: wire.send(Burst(bytes([i % 256]) * 64, 16, A, B)))
    while clock.step():
        pass
    return wire, sink, clock


@pytest.mark.parametrize("kind", ["loss", "duplication", "reordering", "corruption", "delay", "all", "none"])
def test_the_fault_injector_counts_what_it_does(seed: int, kind: str) -> None:
    names = ("loss", "duplication", "reordering", "corruption", "delay")
    share = {name: 0.2 for name in names if kind in (name, "all")}
    wire, sink, _ = inject(seed, Faults(**share, delay_ns=50_000))
    c = wire.counters
    assert c["sent"] == 2000
    assert c["sent"] + c["duplicated"] == c["passed"] + c["lost"] + wire.held
    assert c["passed"] == len(sink.bursts)
    told = {"loss": "lost", "duplication": "duplicated", "reordering": "reordered", "corruption": "damaged"}
    for name in names:
        count = c[told.get(name, "delayed")]
        assert (250 < count < 650) if name in share else count == 0, name
    damaged = sum(len(set(b.data)) > 1 for b in sink.bursts)
    assert (damaged > 0) == ("corruption" in share)


def test_the_fault_injector_repeats_itself(seed: int) -> None:
    faults = Faults(0.1, 0.1, 0.1, 0.1, 0.1)
    first, second, other = (inject(s, faults)[1].bursts for s in (seed, seed, seed + 1))
    assert first == second != other


def test_a_packet_kept_back_is_released_in_the_end() -> None:
    wire, sink, clock = inject(1, Faults(reordering=1.0, delay_ns=5_000), packets=4)
    assert wire.held == 0
    assert len(sink.bursts) == 4
    assert clock.now() >= 5_000


@pytest.mark.parametrize("name", ["loss", "duplication", "reordering", "corruption", "delay"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_faults_are_probabilities(name: str, value: float) -> None:
    with pytest.raises(InvalidAttributeError, match=f"{name} = {value}: a probability from 0 to 1"):
        Faults(**{name: value})
    with pytest.raises(InvalidAttributeError, match="delay_ns"):
        Faults(delay_ns=-1)


@pytest.mark.parametrize("addresses", [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_a_tap_writes_every_packet_with_its_right_crc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], addresses: tuple[str, str]
) -> None:
    path = tmp_path / "both.pcapng"
    taps: list[PcapTap] = []
    with path.open("wb") as file:

        def wrap(wire: Wire, clock: VirtualClock, random: Random) -> Wire:
            if taps:
                return wire
            taps.append(PcapTap(wire, file, clock))
            return taps[0]

        net = VirtualNetwork(wrap=wrap)
        a, b = (make_side(net.open_device(address), RC) for address in addresses)
        connect_sides(a, b, mtu=256)
        a.qp.post_send(write(a, b, 3000))
        take(a.cq, 1)
        net.run_until_idle()
        a.ctx.close()
    sent = b.ctx.counters()
    assert taps[0].written == sent["rx.packets"] + sent["tx.packets"]
    assert dump(str(path)) == 0, "every CRC is right"
    lines = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
    assert sum("RDMA_WRITE" in line for line in lines) == 12


def test_a_tracer_says_a_line_for_each_packet() -> None:
    lines: list[str] = []
    net = VirtualNetwork(wrap=lambda wire, clock, random: Tracer(wire, lines.append, clock))
    a, b = (make_side(net.open_device(f"10.0.0.{i}"), RC) for i in (1, 2))
    connect_sides(a, b, mtu=256)
    a.qp.post_send(write(a, b, 500))
    take(a.cq, 1)
    assert len(lines) == 6, "each of three packets goes out, and comes in"
    assert "-> RC RDMA_WRITE_FIRST qp 0x10 psn" in lines[0]
    assert lines[-1].split()[1:4] == ["<-", "RC", "ACKNOWLEDGE"]
    tracer = Tracer(Sink(), lines.append, VirtualClock())
    tracer.send(Burst(b"\x1f\0\0", 3, A, B))
    assert "opcode 0x1f 3 bytes" in lines[-1]


def test_wires_stack() -> None:
    """A recorder around a fault injector sees what was sent; one inside of it, what got through."""
    lab = Lab(3, Faults(loss=0.3))
    a, b = lab.pair(timeout=5)
    for i in range(20):
        a.qp.post_send(write(a, b, 5000, i))
    assert all(e.ok for e in take(a.cq, 20))
    lab.settle()
    fault = lab.faults[0].counters
    assert len(lab.taps[0].out) == fault["sent"] > fault["passed"] == b.ctx.counters()["rx.packets"]
    lab.check_laws()
