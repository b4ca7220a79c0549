"""Simulated traffic through whole fabrics: full bandwidth, deadlock, victims, fairness, priorities, determinism."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scenario.fabrics import EXAMPLES
from scenario.scales import run, simulation, wire
from verbena import _pure
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.load import load_fabric
from verbena.scenario.simulation import Simulation

PLAIN = bool(_pure.plain_modules())
LONG = 1 if PLAIN else 4  # uncompiled, shorter runs do


@pytest.mark.parametrize("by", [1, 4, 5])
def test_shift_on_a_fat_tree_has_full_bandwidth(by: int) -> None:
    """With fat-tree routing no two hosts of a shift share a link (Zahavi 2009): every link carries its full rate."""
    flow = f"{{pattern: shift, by: {by}, load: 1, process: periodic}}"
    found = run(
        "{generate: fat-tree, parameters: {k: 4}, routing: ftree, lanes: 1}",
        f"duration_us: 60, warmup_us: 20, flows: [{flow}]",
    )
    assert found.accepted_load > 0.995
    assert found.flows[0].fairness == pytest.approx(1, abs=1e-3)
    assert found.flows[0].smallest_gbps == pytest.approx(100 * 4096 / wire(4096), rel=0.02)
    # Without contention packets take what an empty path takes.
    assert found.latency_max < 700 + 5 * (100 + 8 + 100)


@pytest.mark.parametrize("routing", ["ftree", "minhop"])
def test_another_permutation_shares_links(routing: str) -> None:
    """The control: it is a property of shifts, which a permutation drawn at random does not have."""
    found = run(
        f"{{generate: fat-tree, parameters: {{k: 4}}, routing: {routing}, lanes: 1}}",
        "duration_us: 60, warmup_us: 20, flows: [{pattern: permutation, load: 1, process: periodic}]",
    )
    assert found.accepted_load < 0.95


RING = (
    "{{generate: ring, parameters: {{switches: 5}}, lanes: {lanes}, routing: {routing}, buffer_bytes: 4352}}"
)
ROUND = "duration_us: 1500, samples: 150, flows: [{pattern: shift, by: 2, load: 1, bytes: 4096}]"


@pytest.mark.requirement("LNK-16")
def test_a_ring_with_one_lane_deadlocks() -> None:
    """Ring of 5, everybody to the second next, buffers of one packet: min-hop routing on one lane comes to a stand; it
    was warned of, and the circle is named."""
    made = simulation(RING.format(lanes=1, routing="minhop"), ROUND)
    (warning,) = made.warnings
    assert warning.startswith("this routing can deadlock: packets can wait for each other in a circle: s")
    found = made.run()
    assert found.deadlock
    assert {entry.split("[")[0] for entry in found.deadlock} == {f"s{i}" for i in range(5)}
    assert all(entry.endswith("lane 0") for entry in found.deadlock)
    assert found.samples[-1].ns < 1_000_000  # it was not run on for nothing
    assert not found.drops
    assert found.inside > 0


@pytest.mark.requirement("LNK-16")
@pytest.mark.parametrize("routing", ["layered", "dor", "updn"])
def test_a_ring_with_lanes_does_not_deadlock(routing: str) -> None:
    """With the paths on layers, or without those that make the circle, the same traffic through the same buffers goes
    on to the end, and what was sent arrives."""
    fabric = RING.format(lanes=4, routing=routing)
    if routing == "dor":
        fabric = fabric.replace("ring, parameters: {switches: 5}", "torus, parameters: {dimensions: [5]}")
    made = simulation(fabric, ROUND.replace("load: 1", "load: 1, stop_us: 150"))
    assert made.warnings == []
    found = made.run()
    assert not found.deadlock
    assert (found.inside, found.waiting) == (0, 0)
    assert found.delivered == found.offered > 0


def test_heavy_incast_is_no_deadlock() -> None:
    """Heads that wait long, in buffers that are full through the whole tree: none of them for itself."""
    flows = "{pattern: incast, destinations: [h0], load: 1}, {pattern: uniform, load: 0.3}"
    found = run(
        "{generate: fat-tree, parameters: {k: 4}, lanes: 1, buffer_bytes: 8 KiB}",
        f"duration_us: 200, samples: 40, flows: [{flows}]",
    )
    assert not found.deadlock
    assert not found.drops
    assert found.latency_max > 50_000


@pytest.mark.requirement("LNK-19")
def test_incast_loses_nothing_and_slows_the_senders() -> None:
    """Eight to one at full rate: no packet is dropped anywhere, each sender gets its part, buffers never overflow."""
    names = ", ".join(f"h{i}" for i in range(1, 9))
    flow = f"{{pattern: incast, sources: [{names}], destinations: [h0], load: 1}}"
    found = run(
        "{generate: star, parameters: {hosts: 9}, lanes: 1, buffer_bytes: 16 KiB}",
        f"duration_us: {250 * LONG}, warmup_us: 50, flows: [{flow}]",
    )
    assert not found.drops
    assert "buffer_overrun" not in found.counters
    assert "sent_without_credit" not in found.counters
    assert found.waiting > 0
    (flow_found,) = found.flows
    assert flow_found.throughput_gbps == pytest.approx(100 * 4096 / wire(4096), rel=0.01)
    assert flow_found.smallest_gbps == pytest.approx(flow_found.largest_gbps, rel=0.02)
    assert flow_found.fairness == pytest.approx(1, abs=1e-3)


def victims() -> list[tuple[float, float, float]]:
    """Of both workloads of the example: the crowd's throughput, the victim's, and its mean latency."""
    file = load_fabric(str(EXAMPLES / "fabric-victim.yaml"))
    assert file.fabric is not None
    found = []
    for spec in file.workloads:
        assert isinstance(spec, Traffic)
        measured = Simulation(build_topology(file), file.fabric, spec, file.seed).run()
        assert not measured.drops
        crowd, one = measured.flows
        found.append((crowd.throughput_gbps, one.throughput_gbps, one.latency_mean))
    return found


@pytest.mark.requirement("LNK-17")
def test_a_victim_is_freed_by_a_lane_of_its_own() -> None:
    """The crowd's packets, for a receiver that takes a quarter of them, fill the buffer behind the link they share.

    On the same lane the victim stands behind them, though its own way is free; on another it passes.
    """
    (crowd, slow, waiting), (same_crowd, free, passing) = victims()
    rate = 100 * 4096 / wire(4096)
    assert crowd < 0.9 * rate  # it stands behind the victim's packets, too
    assert same_crowd == pytest.approx(rate, rel=0.02)
    assert free == pytest.approx(0.4 * rate, rel=0.15)
    assert passing < 3000
    assert slow < 0.8 * free
    assert waiting > 10 * passing


def test_a_priority_class_has_bounded_latency() -> None:
    """Isochronous packets on a lane of the high table wait for one packet of the others at each output, at most."""
    fabric = (
        "{generate: star, parameters: {hosts: 6}, lanes: 2, buffer_bytes: 16 KiB, "
        "arbitration: {high: [[1, 4]], low: [[0, 255]], limit: 255}}"
    )
    others = "{pattern: incast, sources: [h1, h2, h3, h4], destinations: [h0], load: 1}"
    voice = (
        "{name: voice, pattern: pairs, sources: [h5], destinations: [h0], load: 0.02, bytes: 256, "
        "process: periodic, level: 1}"
    )
    traffic = f"duration_us: {200 * LONG}, warmup_us: 50, flows: [{others}, {voice}]"
    found = run(fabric, traffic)
    packet_ns = wire(4096) * 8 / 100
    empty_ns = 2 * 100 + (92 + wire(256)) * 8 / 100 + 100
    assert found.flows[1].delivered > 30
    assert found.flows[1].latency_max <= empty_ns + packet_ns + 1
    assert found.flows[0].latency_mean > 10 * packet_ns
    equal = run(fabric.replace("high: [[1, 4]], low: [[0, 255]]", "low: [[0, 255], [1, 1]]"), traffic)
    assert equal.flows[1].latency_max > 2 * found.flows[1].latency_max


def test_priority_gets_its_share_by_weights() -> None:
    """Two saturated lanes with weights 3 and 1 divide a link three to one."""
    fabric = (
        "{generate: line, parameters: {switches: 2, hosts: 2}, lanes: 2, buffer_bytes: 64 KiB, "
        "arbitration: {low: [[0, 192], [1, 64]]}}"
    )
    flows = (
        "{name: three, pattern: pairs, sources: [h0.0], destinations: [h1.0], load: 1}, "
        "{name: one, pattern: pairs, sources: [h0.1], destinations: [h1.1], load: 1, level: 1}"
    )
    found = run(fabric, f"duration_us: 1000, warmup_us: 200, flows: [{flows}]")
    three, one = (flow.throughput_gbps for flow in found.flows)
    assert three / one == pytest.approx(3, rel=0.05)


def test_a_parking_lot_is_unfair() -> None:
    """Hosts of a line send to its end: at each switch the nearer half the rate is the local host's; the measure says
    so."""
    names = "h0, h1, h2, h3"
    found = run(
        "{generate: line, parameters: {switches: 5}, lanes: 1, buffer_bytes: 16 KiB}",
        f"duration_us: {400 * LONG}, warmup_us: 100, "
        f"flows: [{{pattern: incast, sources: [{names}], destinations: [h4], load: 1}}]",
    )
    (flow,) = found.flows
    assert flow.largest_gbps / flow.smallest_gbps == pytest.approx(4, rel=0.15)  # 1/2, 1/4, 1/8, 1/8
    shares = [1 / 2, 1 / 4, 1 / 8, 1 / 8]
    assert flow.fairness == pytest.approx(1 / (4 * sum(x * x for x in shares)), rel=0.05)


def test_bursts_make_queues() -> None:
    """The same load in bursts of 16 packets has the same throughput, and far longer latencies."""
    results = {}
    for process in ("periodic", "poisson", "bursty"):
        flow = f"{{pattern: uniform, load: 0.4, process: {process}}}"
        found = run(
            "{generate: star, parameters: {hosts: 8}, buffer_bytes: 64 KiB}",
            f"duration_us: 1000, warmup_us: 100, flows: [{flow}]",
        )
        results[process] = found
        assert found.accepted_load == pytest.approx(0.4, rel=0.15)
    assert results["bursty"].latency_mean > 3 * results["poisson"].latency_mean
    assert results["poisson"].latency_mean > results["periodic"].latency_min


def test_a_trace_arrives_as_it_was_written(tmp_path: Path) -> None:
    """Every packet of the file, at the time that an empty path takes after its own."""
    (tmp_path / "trace.csv").write_text(
        "time_ns,source,destination,bytes\n1000,h0,h1,4096\n9000,h0,h2,100\n5000,h2,h1,0\n"
    )
    text = (
        "name: t\nfabric: {generate: star, parameters: {hosts: 3}}\nworkloads:\n"
        "  - {kind: traffic, name: t, duration_us: 20, flows: [{pattern: trace, file: trace.csv}]}\n"
    )
    from verbena.cli.run import run as run_file

    (tmp_path / "t.yaml").write_text(text)
    assert run_file(str(tmp_path / "t.yaml"), out=str(tmp_path / "out"), quiet=True) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    facts = report["workloads"][0]["facts"]
    assert (facts["packets_offered"], facts["packets_delivered"]) == (3, 3)
    assert facts["throughput_gbps"] == pytest.approx((4096 + 100 + 0) * 8 / 20_000)
    empty = 2 * 100 + 100 + (92 + wire(4096)) * 8 / 100
    assert facts["latency_max_ns"] == pytest.approx(empty, abs=1e-3)


def test_hot_spots_are_named() -> None:
    """The link to the crowded host is the hottest, and always busy."""
    flow = "{pattern: hotspot, destinations: [h3], share: 0.5, load: 0.6}"
    found = run(
        "{generate: star, parameters: {hosts: 8}}", f"duration_us: 200, warmup_us: 50, flows: [{flow}]"
    )
    name, share = found.hottest[0]
    assert name.endswith("-> h3[1]")
    assert share == pytest.approx(1, abs=0.01)
    assert found.hottest[1][1] < 0.9


def digest(seed: int) -> str:
    """Everything that a run measured, but for how long it took."""
    flows = "{pattern: uniform, load: 0.6, process: bursty}, {pattern: permutation, load: 0.2, bytes: 300, level: 1}"
    found = run(
        "{generate: fat-tree, parameters: {k: 4}, lanes: 2, routing: ftree}",
        f"duration_us: 20, warmup_us: 5, samples: 4, flows: [{flows}]",
        seed,
    )
    found.wall_s = 0
    return json.dumps(asdict(found))


def test_the_same_seed_gives_the_same_run_compiled_or_not() -> None:
    mine = digest(7)
    assert digest(7) == mine
    assert digest(8) != mine
    environment = {**os.environ, "VERBENA_PURE": "" if PLAIN else "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    if PLAIN:
        del environment["VERBENA_PURE"]
    program = "from scenario.test_simulation_fabrics import digest; print(digest(7))"
    other = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert other.returncode == 0, other.stderr
    assert other.stdout.splitlines()[-1] == mine


@pytest.mark.requirement("SWR-03")
@pytest.mark.skipif(PLAIN, reason="a thousand hosts take minutes uncompiled")
@pytest.mark.slow
def test_a_thousand_hosts() -> None:
    """A three-level tree of 1,024 hosts in one subnet: random pairs, all of which get their packets."""
    flow = "{pattern: permutation, load: 0.3, stop_us: 20}"
    found = run(
        "{generate: fat-tree, parameters: {k: 16}, lanes: 1, routing: ftree}",
        f"duration_us: 100, samples: 4, flows: [{flow}]",
    )
    assert found.hosts == 1024
    assert found.offered == found.delivered > 10_000
    assert not found.drops
    assert found.flows[0].smallest_gbps > 0
