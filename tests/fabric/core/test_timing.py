"""Times against formulas: empty paths, limited credit, a queue at one output."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.core.nets import GBPS, RATE, Net, chain, packet, star
from verbena import _pure
from verbena.fabric.kinds import TraceKind
from verbena.fabric.trains import zero_load_latency_ps

LONG = 1 if _pure.compiled() else 0


def delivered_at(net: Net) -> list[int]:
    return [t[0] for t in net.core.take_trace() if t[2] == TraceKind.DELIVER]


@pytest.mark.parametrize("flits", [False, True])
@pytest.mark.parametrize("payload", [0, 40, 256, 1024, 4096])
@pytest.mark.parametrize(
    "rates", [(100, 100, 100, 100), (100, 25, 200, 10), (8, 100, 40, 400), (2, 2, 100, 4)]
)
def test_latency_of_an_empty_path_is_exact(flits: bool, payload: int, rates: tuple[int, ...]) -> None:
    delays = (100, 7, 1000, 0)
    net = Net(flits=flits)
    row = [net.switch(latency_ns=latency) for latency in (150, 0, 31)]
    net.host(row[0], rate=rates[0] * GBPS, delay=delays[0])
    net.host(row[2], rate=rates[3] * GBPS, delay=delays[3])
    net.link(row[0], row[1], rate=rates[1] * GBPS, delay=delays[1])
    net.link(row[1], row[2], rate=rates[2] * GBPS, delay=delays[2])
    net.route()
    net.core.trace_on(TraceKind.DELIVER)
    data = packet(2, bytes(payload))
    net.run(1234)
    net.core.inject(net.hosts[0], data)
    (found,) = net.settle()
    links = [(rate * GBPS, delay) for rate, delay in zip(rates, delays, strict=True)]
    expected = 1_234_000 + zero_load_latency_ps(len(data) + 2, links, (150, 0, 31))
    assert delivered_at(net) == [expected]
    assert found[0] == -(-expected // 1000)


def test_the_helper_is_the_formula_where_all_rates_are_equal() -> None:
    flits = -(-4154 // 80)
    formula = 3 * 100_000 + 2 * (150_000 + 92 * 80) + (4154 + 12 * flits) * 80
    assert zero_load_latency_ps(4154, [(RATE, 100)] * 3, (150, 150)) == formula


@pytest.mark.parametrize("flits", [False, True])
def test_store_and_forward_waits_for_the_whole_packet(flits: bool) -> None:
    net = star(2, flits=flits, switch={"cut_through": False})
    net.core.trace_on(TraceKind.DELIVER)
    data = packet(2, bytes(4096))
    net.core.inject(net.hosts[0], data)
    net.settle()
    links = [(RATE, 100)] * 2
    assert delivered_at(net) == [zero_load_latency_ps(len(data) + 2, links, (150,), cut_through=False)]


@settings(max_examples=30 if LONG else 5, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 1024), min_size=1, max_size=8),
    rates=st.lists(st.sampled_from([8, 10, 25, 100, 400]), min_size=3, max_size=3),
)
def test_both_modes_give_the_same_times(sizes: list[int], rates: list[int]) -> None:
    times = []
    for flits in (False, True):
        net = Net(flits=flits)
        a, b = net.switch(), net.switch(latency_ns=3)
        net.host(a, rate=rates[0] * GBPS)
        net.host(b, rate=rates[2] * GBPS)
        net.link(a, b, rate=rates[1] * GBPS, delay=20)
        net.route()
        net.core.trace_on(TraceKind.DELIVER)
        for size in sizes:
            net.core.inject(net.hosts[0], packet(2, bytes(size)))
        assert len(net.settle()) == len(sizes)
        times.append(delivered_at(net))
    assert times[0] == times[1]


@pytest.mark.parametrize("flits", [False, True])
@pytest.mark.parametrize("packets", [1, 2, 3, 8])
def test_throughput_under_limited_credit(flits: bool, packets: int) -> None:
    """min(link rate, buffer / round trip)."""
    delay = 500
    size = len(packet(2, bytes(1024))) + 2
    blocks = -(-size // 64)
    net = Net(flits=flits)
    a, b = net.endpoint(buffer_bytes=blocks * 64 * packets), net.endpoint(buffer_bytes=blocks * 64 * packets)
    net.join(a, b, RATE, delay)
    net.route()
    wire = size + 12 * -(-size // 80)
    serial = wire * 80
    trip = serial + delay * 1000 + delay * 1000 + 12 * 80
    net.core.add_source(a, mean_gap_ns=10, process="periodic", size=size, destinations=[(2, 0)])
    net.run(20_000)
    net.core.clear_statistics()
    span = 400_000
    net.run(20_000 + span)
    rate = net.core.statistics()["delivered_bytes"] / size * 1000 / span
    expected = min(1e6 / serial, packets * 1e6 / trip)
    assert rate == pytest.approx(expected, rel=0.01)


@pytest.mark.skipif(not LONG, reason="millions of events")
@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mean_wait_at_one_output_is_that_of_a_queue_with_poisson_input(load: float) -> None:
    """M/D/1: many sources, one output; the wait is load / (2 (1 - load)) services."""
    net = Net()
    node = net.switch(latency_ns=0, voq=True)
    for _ in range(60):
        net.host(node, rate=1000 * GBPS, delay=0, buffer_bytes=1 << 24)
    net.host(node, rate=10 * GBPS, delay=0, buffer_bytes=1 << 24)
    net.route()
    size = 1022
    service = (size + 12 * -(-size // 80)) * 800
    for host in net.hosts[:-1]:
        net.core.add_source(host, mean_gap_ns=service / 1000 / load * 60, size=size, destinations=[(61, 0)])
    net.run(5_000_000)
    net.core.clear_statistics()
    net.run(250_000_000)
    h = net.core.latency_histogram()
    empty = zero_load_latency_ps(size, [(1000 * GBPS, 0), (10 * GBPS, 0)], (0,))
    # A packet waits for what is in front of it: also for a part of a microsecond at its own input, which is little.
    wait = h["sum_ps"] / h["count"] - empty
    assert wait == pytest.approx(service * load / (2 * (1 - load)), rel=0.05)


def saturation(ports: int, voq: bool) -> float:
    net = star(ports, switch={"voq": voq, "latency_ns": 0}, delay=0, buffer_bytes=1 << 18)
    size = 1022
    service = (size + 12 * -(-size // 80)) * 80
    everywhere = tuple((lid, 0) for lid in range(1, ports + 1))
    for host in net.hosts:
        net.core.add_source(host, mean_gap_ns=service / 1000, size=size, destinations=everywhere)
    net.run(1_000_000)
    net.core.clear_statistics()
    net.run(4_000_000)
    packets = net.core.statistics()["delivered_bytes"] / size
    return packets * service / 1000 / 3_000_000 / ports


@pytest.mark.skipif(not LONG, reason="millions of events")
def test_saturation_of_an_input_queued_switch() -> None:
    """2 - sqrt(2) = 0.586 for many ports with one queue an input (Karol, Hluchyj, Morgan 1987: 0.60 for 16 to 32)."""
    assert saturation(32, voq=False) == pytest.approx(0.59, abs=0.025)
    assert saturation(32, voq=True) > 0.95


@pytest.mark.parametrize("flits", [False, True])
def test_inputs_share_an_output_fairly(flits: bool) -> None:
    net = star(5, flits=flits)
    for host in net.hosts[:4]:
        net.core.add_source(host, mean_gap_ns=50, process="periodic", size=1022, destinations=[(5, 0)])
    net.run(100_000)
    sent = [net.core.port_counters(host)["xmit_packets"] for host in net.hosts[:4]]
    assert max(sent) - min(sent) <= 1
    assert sum(sent) > 900


def test_a_long_chain_of_switches() -> None:
    net = chain([1, 0, 0, 0, 0, 1])
    net.core.trace_on(TraceKind.DELIVER)
    data = packet(2, bytes(2048))
    net.core.inject(net.hosts[0], data)
    net.settle()
    assert delivered_at(net) == [zero_load_latency_ps(len(data) + 2, [(RATE, 100)] * 7, (150,) * 6)]
