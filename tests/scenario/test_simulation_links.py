"""Simulated traffic against formulas: latency of an empty path, limited credits, queueing, saturation."""

from __future__ import annotations

import pytest

from scenario.scales import run, simulation, wire
from verbena import _pure

DAY = 1 if _pure.plain_modules() else 8  # uncompiled, shorter runs do


def star(hosts: int, **keys: object) -> str:
    given = "".join(f", {key}: {value}" for key, value in keys.items())
    return f"{{generate: star, parameters: {{hosts: {hosts}}}{given}}}"


@pytest.mark.parametrize("payload", [0, 52, 54, 256, 4096])
@pytest.mark.parametrize("cut_through", [True, False])
def test_latency_of_an_empty_path(payload: int, cut_through: bool) -> None:
    """As in `fabric.trains`: three switches, four cables, to the nanosecond."""
    link = "link: {rate: 4xEDR, delay_ns: 70}, switch_latency_ns: 130, lanes: 1"
    fabric = (
        f"{{generate: line, parameters: {{switches: 3}}, cut_through: {str(cut_through).lower()}, {link}}}"
    )
    flow = f"{{pattern: pairs, sources: [h0], destinations: [h2], load: 0.01, process: periodic, bytes: {payload}}}"
    found = run(fabric, f"duration_us: 100, flows: [{flow}]")
    size = 26 + payload + -payload % 4
    byte_ns = 8 / 100
    whole = (size + -(-size // 80) * 12) * byte_ns
    at_switch = (min(size, 80) + 12) * byte_ns if cut_through else whole
    expected = 4 * 70 + 3 * (130 + at_switch) + whole
    assert found.latency_min == pytest.approx(expected, abs=1e-3)
    assert found.latency_max == found.latency_min == found.percentiles[0.5]
    assert found.delivered >= 3


def test_latency_over_links_of_several_rates() -> None:
    """A slow link in the middle: the head waits for nothing there, the rest for the slow link; and behind it, the head
    is held back until no later flit would come too late."""
    more = "hosts: [{name: a, adapters: [{name: a}]}, {name: b, adapters: [{name: b}]}]\n"
    fabric = (
        "{switches: [{name: s, ports: 2}, {name: t, ports: 2}], link: {delay_ns: 0}, switch_latency_ns: 0, "
        "links: [{from: a, to: s}, {from: s, to: t, rate: 1xSDR}, {from: t, to: b}]}"
    )
    flow = "{pattern: pairs, sources: [a], destinations: [b], load: 0.001, process: periodic, bytes: 1024}"
    found = run(fabric, f"duration_us: 500, flows: [{flow}]", more=more)
    fast, slow = 8 / 100, 8 / 2
    size = 1050
    head = 92 * fast
    assert head + wire(1024) * slow <= found.latency_min
    last = (size % 80 + 12) * fast
    assert found.latency_min == pytest.approx(head + wire(1024) * slow + last, abs=fast * 92)


@pytest.mark.parametrize("packets", [1, 2, 3])
def test_throughput_under_limited_credits(packets: int) -> None:
    """A long cable whose receive buffer holds few packets: so many each round trip, `fabric.trains`."""
    size, delay = 4122, 2000
    blocks = -(-size // 64)
    fabric = star(
        2,
        buffer_bytes=max(packets * blocks * 64, 4224),
        link=f"{{delay_ns: {delay}}}",
        switch_latency_ns=0,
        lanes=1,
    )
    flow = "{pattern: pairs, sources: [h0], destinations: [h1], load: 1.5, process: periodic}"
    found = run(fabric, f"duration_us: 400, warmup_us: 100, flows: [{flow}]")
    byte_ns = 8 / 100
    whole = wire(4096) * byte_ns
    # Of an endnode's buffer: until the last byte is there, and the credit is back.
    round_trip = whole + delay + delay + 12 * byte_ns
    expected = min(1.0, packets * whole / round_trip)
    assert found.accepted_load * 2 == pytest.approx(expected, rel=0.02)  # one of two links is used


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_queueing_at_one_output(load: float) -> None:
    """M/D/1: many Poisson sources with one packet size share an output; they wait rho / (2 (1 - rho)) services."""
    sources = 24
    names = ", ".join(f"h{i}" for i in range(1, sources + 1))
    fabric = star(
        sources + 1, buffer_bytes="256 KiB", lanes=1, link="{rate: 4xEDR, delay_ns: 0}", switch_latency_ns=0
    )
    flow = f"{{pattern: incast, sources: [{names}], destinations: [h0], load: {load / sources}, bytes: 230}}"
    found = run(fabric, f"duration_us: {900 * DAY}, warmup_us: 100, samples: 1, flows: [{flow}]")
    service = wire(230) * 8 / 100
    waited = found.latency_mean - found.latency_min
    # The sources' own queues are almost empty, each has a 24th of the load: together a little more than one queue.
    expected = service * load / (2 * (1 - load))
    assert expected * 0.9 < waited < expected * 1.15 + service * load / sources


@pytest.mark.parametrize("voq, low, high", [("false", 0.56, 0.66), ("true", 0.9, 1.0)])
def test_saturation_of_a_switch(voq: str, low: float, high: float) -> None:
    """Karol, Hluchyj, Morgan 1987: 2 - sqrt 2 = 0.586 of the inputs' rate with one queue for each input, for many
    ports and fixed sizes (0.618 for 8 ports, 0.604 for 16); with a queue for each output nothing is lost to others."""
    fabric = star(16, voq=voq, lanes=1, buffer_bytes="64 KiB", link="{delay_ns: 10}", switch_latency_ns=10)
    flow = "{pattern: uniform, load: 1, bytes: 1024}"
    found = run(fabric, f"duration_us: {100 * DAY}, warmup_us: 40, samples: 4, flows: [{flow}]")
    assert low < found.accepted_load < high
    assert found.waiting > 0
    assert not found.drops


def test_samples_add_up_where_packets_straddle_their_borders() -> None:
    """A link that never rests is busy for all of every sample, however short: a sixth of a packet here."""
    flow = "{pattern: pairs, sources: [h0], destinations: [h1], load: 1, process: periodic}"
    made = simulation(
        star(2, lanes=1, link="{delay_ns: 0}", switch_latency_ns=0),
        f"duration_us: 20, warmup_us: 5, samples: 250, flows: [{flow}]",
    )
    found = made.run()
    assert len(found.samples) == 250
    assert {round(sample.use_max, 9) for sample in found.samples} == {1.0}
    assert found.hottest[0][1] == pytest.approx(1.0)
    # Two of four directions are busy.
    assert {round(sample.use_mean, 2) for sample in found.samples} == {0.5}
    assert sum(sample.delivered for sample in found.samples) == found.delivered_bytes


def test_bytes_of_a_flow_that_differs_from_the_first() -> None:
    """Each flow's payload by its own packets' size."""
    flows = (
        "{name: big, pattern: pairs, sources: [h0], destinations: [h1], load: 0.5, bytes: 4096, process: periodic}, "
        "{name: small, pattern: pairs, sources: [h2], destinations: [h3], load: 0.5, bytes: 10, process: periodic}"
    )
    found = run(star(4), f"duration_us: 200, flows: [{flows}]")
    big, small = found.flows
    assert (big.name, small.name) == ("big", "small")
    assert big.throughput_gbps == pytest.approx(50 * 4096 / wire(4096), rel=0.03)
    assert small.throughput_gbps == pytest.approx(50 * 10 / wire(12), rel=0.03)
    assert found.delivered_bytes == big.delivered * 4096 + small.delivered * 10
    assert found.throughput_gbps == pytest.approx(big.throughput_gbps + small.throughput_gbps)
    assert found.accepted_load == pytest.approx(0.25, rel=0.03)
    assert found.offered_load == pytest.approx(0.25, rel=0.03)


def test_warm_up_is_not_measured() -> None:
    """What was sent before it ended is in no figure."""
    flow = "{pattern: pairs, sources: [h0], destinations: [h1], load: 1, process: periodic, stop_us: 40}"
    found = run(star(2), f"duration_us: 100, warmup_us: 50, flows: [{flow}]")
    assert (found.offered, found.delivered, found.delivered_bytes, found.packet_hops) == (0, 0, 0, 0)
    assert found.accepted_load == 0
    assert found.flows[0].fairness is None
    assert found.simulated_ns == 50_000
