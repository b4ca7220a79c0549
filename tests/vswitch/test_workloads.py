"""TCP and UDP at a cluster: congestion controls by their rules, partition-aggregate lossy against lossless."""

from __future__ import annotations

from random import Random

import pytest

from verbena.errors import InvalidAttributeError
from verbena.runtime.virtual_time import VirtualTime
from verbena.vswitch.cluster import Cluster
from verbena.vswitch.congestion import CONTROLS, Cubic, Dctcp, Reno
from verbena.vswitch.tcp import MSS, Sender
from verbena.vswitch.workloads import Background, DatagramQueries, Datagrams, PartitionAggregate, Times


def cluster(
    workers: int, lossless: bool, *, buffer_bytes: int = 65_536, mark_bytes: int = 0, signal: str = "pfc"
) -> tuple[VirtualTime, Cluster, list[str]]:
    time = VirtualTime()
    names = [f"w{n}" for n in range(workers)]
    rates = dict.fromkeys(["agg", *names], 10e9) | {"agg": 1e9}
    made = Cluster(
        time.clock,
        ["agg", *names],
        rates,
        lossless=lossless,
        buffer_bytes=buffer_bytes,
        mark_bytes=mark_bytes,
        signal=signal,
    )
    return time, made, names


def query(lossless: bool, seed: int, *, workers: int = 16, response: int = 65_536, **more: object) -> Times:
    place = {k: more.pop(k) for k in ("buffer_bytes", "mark_bytes", "signal") if k in more}
    time, made, names = cluster(workers, lossless, **place)  # type: ignore[arg-type]
    work = PartitionAggregate(made, Random(seed), "agg", names, response_bytes=response, queries=3, **more)  # type: ignore[arg-type]
    work.start()
    time.run_until_idle()
    assert work.done
    assert len(set(made.switch.balance())) == 1
    if lossless:
        assert made.lost() == {}
        assert work.times.retransmitted == work.times.timeouts == 0
    return work.times


@pytest.mark.requirement("VSW-15")
@pytest.mark.parametrize("congestion", sorted(CONTROLS))
def test_partition_aggregate_waits_for_no_timer_when_nothing_is_lost(congestion: str, seed: int) -> None:
    """16 workers, 64 KB each, 1 Gb/s, 64 KB of buffer: bound 8.7 ms with headers; the lossy one waits for 200 ms."""
    mark = 20_000 if congestion == "dctcp" else 0
    lossless = query(True, seed, congestion=congestion, mark_bytes=mark)
    lossy = query(False, seed, congestion=congestion, mark_bytes=mark)
    assert 8.6e6 < Times.mean(lossless.queries_ns) < 10e6
    assert lossy.retransmitted > 0
    assert Times.mean(lossy.queries_ns) > 7 * Times.mean(lossless.queries_ns)
    assert lossless.in_time == lossless.answers == 48


@pytest.mark.parametrize(
    "workers, response, buffer_bytes", [(1, 1000, 65_536), (5, 20_000, 16_384), (24, 9_000, 32_768)]
)
def test_other_numbers_lossless(workers: int, response: int, buffer_bytes: int, seed: int) -> None:
    for signal in ("pfc", "onoff", "ib", "pcie"):
        times = query(
            True, seed, workers=workers, response=response, buffer_bytes=buffer_bytes, signal=signal
        )
        bound = workers * response * 8
        assert bound < Times.mean(times.queries_ns) < 1.2 * bound + 400_000


def test_a_shorter_timer_hurts_less() -> None:
    long, short = (query(False, 3, min_rto_ns=ms * 1_000_000) for ms in (200, 10))
    assert Times.mean(long.queries_ns) > 2 * Times.mean(short.queries_ns)


def test_all_of_a_flow_arrives_in_spite_of_losses(seed: int) -> None:
    """Any buffer, any control: the model repairs what it loses."""
    random = Random(seed)
    for name in CONTROLS:
        time, made, names = cluster(4, False, buffer_bytes=random.randrange(7_000, 20_000))
        done: list[Sender] = []
        for worker in names:
            made.tcp(
                worker,
                "agg",
                random.randrange(1, 400_000),
                congestion=name,
                min_rto_ns=10_000_000,
                on_done=done.append,
            ).start()
        time.run_until_idle()
        assert len(done) == 4
        assert not made.hosts["agg"].receivers


@pytest.mark.requirement("VSW-22")
def test_a_tcp_reader_that_sleeps_closes_its_window() -> None:
    time, made, names = cluster(1, True)
    done: list[Sender] = []
    sender = made.tcp(
        names[0],
        "agg",
        1_000_000,
        congestion="cubic",
        min_rto_ns=200_000_000,
        room=100_000,
        on_done=done.append,
    )
    (receiver,) = made.hosts["agg"].receivers.values()
    receiver.reading = False
    sender.start()
    time.run_for(1_000_000_000)
    assert 100_000 - MSS < receiver.upto <= 100_000, "what its buffer holds came, and no more"
    assert made.lost() == {}
    receiver.read()
    time.run_until_idle()
    assert len(done) == 1
    assert sender.retransmitted == 0


def test_background_flows_and_datagrams_share_the_cluster(seed: int) -> None:
    for lossless in (True, False):
        time, made, names = cluster(6, lossless)
        flows = Background(
            made, Random(seed), names, mean_gap_ns=400_000, sizes=(2_000, 60_000), duration_ns=10_000_000
        )
        udp = [Datagrams(made, name, "agg", flow=100 + n, count=300) for n, name in enumerate(names[:3])]
        flows.start()
        for work in udp:
            work.start()
        time.run_until_idle()
        assert flows.open == 0
        assert len(flows.times.flows_ns) > 10
        assert [work.sent for work in udp] == [300] * 3
        received = sum(work.received for work in udp)
        assert (received == 900) == lossless
        assert received + made.lost().get("agg: output_full", 0) >= 900
        assert len(set(made.switch.balance())) == 1


def test_queries_over_udp_are_complete_only_without_losses(seed: int) -> None:
    for lossless in (True, False):
        time, made, names = cluster(8, lossless)
        work = DatagramQueries(made, Random(seed), "agg", names, response_bytes=60_000, queries=3)
        work.start()
        time.run_until_idle()
        assert work.incomplete == (0 if lossless else 3)
        assert len(work.times.queries_ns) == (3 if lossless else 0)
        assert bool(made.lost()) != lossless
        assert work.times.answers == 24


def test_reno_by_its_rules() -> None:
    """RFC 5681: slow start doubles, avoidance adds a segment a window, a loss halves, a timeout leaves one."""
    reno = Reno(1000)
    reno.acknowledged(10_000, 0, 1000, False, 0, 0)
    assert reno.window == 20_000
    reno.lost(0)
    assert reno.window == reno.threshold == 10_000
    for _ in range(10):
        reno.acknowledged(1000, 0, 1000, False, 0, 0)
    assert 10_900 < reno.window < 11_000
    reno.timed_out(0)
    assert reno.window == 1000


def test_cubic_by_its_rules() -> None:
    """RFC 9438: x 0.7 at a loss, back at W_max after K = cbrt(W_max x 0.3 / 0.4) seconds."""
    cubic = Cubic(1000, 100)
    cubic.lost(0)
    assert cubic.window == 70_000
    k_ns = int((100 * 0.3 / 0.4) ** (1 / 3) * 1e9)
    for now in range(0, k_ns, 100_000_000):
        cubic.acknowledged(int(cubic.window), now, 100_000_000, False, 0, 0)
    assert 97_000 < cubic.window < 103_000


def test_dctcp_by_its_rules() -> None:
    """RFC 8257: alpha follows the share of marked bytes with gain 1/16; the window falls by half of it."""
    dctcp = Dctcp(1000, 100)
    dctcp.threshold = 1.0
    dctcp.alpha = 0.5
    dctcp.acknowledged(50_000, 0, 1000, True, 0, 0)
    assert dctcp.alpha == pytest.approx(0.5 + (1 - 0.5) / 16)
    assert dctcp.window < 100_500 * (1 - dctcp.alpha / 2) + 1000
    alpha = dctcp.alpha
    for n in range(1, 200):
        dctcp.acknowledged(1000, 0, 1000, False, n, n)
    assert dctcp.alpha < alpha / 100


def test_wrong_settings_are_refused() -> None:
    time, made, names = cluster(1, True)
    with pytest.raises(InvalidAttributeError, match="no congestion control"):
        made.tcp(names[0], "agg", 10, congestion="vegas", min_rto_ns=1, on_done=lambda _: None)
    with pytest.raises(InvalidAttributeError, match="four frames"):
        Cluster(time.clock, ["a"], {"a": 1e9}, lossless=True, buffer_bytes=100)
    with pytest.raises(InvalidAttributeError, match="1 or more"):
        PartitionAggregate(made, Random(1), "agg", [])
