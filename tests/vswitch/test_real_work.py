"""Workloads between network namespaces, at a real switch in a process of its own: lossy against lossless."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from verbena import _pure
from verbena.cli.main import execute
from verbena.errors import InvalidAttributeError, SystemLimitError, VerbenaError
from verbena.runtime import namespaces, registry
from verbena.runtime.socket_loop import SocketLoop, Station
from verbena.runtime.socket_work import BackgroundFlows, TcpQueries, UdpQueries
from verbena.runtime.tap import Tap
from verbena.scenario.vswitch_real import _prepare, problem, run_query, switch_file
from verbena.scenario.vswitch_schema import QueryModel, SwitchFile

real = pytest.mark.network("netns", "tap")
compiled = pytest.mark.skipif(
    not _pure.compiled(), reason="the kernel's work, which an uncompiled switch only slows down"
)
WORKERS, BYTES, RATE_GBPS = 4, 60_000, 0.2
BOUND_NS = WORKERS * BYTES * 8 / RATE_GBPS
NAME = f"verbena-work-{os.getpid()}"


@pytest.fixture(autouse=True)
def _own_registry(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("run")  # without the test's name: a socket's path has 107 bytes at most
    monkeypatch.setenv("VERBENA_RUN", str(folder))
    monkeypatch.setattr(registry, "FOLDER", folder)


def model(**more: Any) -> QueryModel:
    given = {
        "kind": "partition-aggregate",
        "name": "search",
        "workers": WORKERS,
        "response_bytes": BYTES,
        "queries": 3,
        "rate_gbps": RATE_GBPS,
        "buffer_bytes": 12_000,
        "deadline_ms": 2_000.0,
    }
    return QueryModel.model_validate(given | more)


def left() -> list[str]:
    return [path.name for path in namespaces.FOLDER.glob(f"{NAME}-*")]


@real
@compiled
@pytest.mark.requirement("VSW-01")
def test_tcp_answers_lossy_and_lossless() -> None:
    lossy, lossless = (run_query(model(), 1, kind) for kind in (False, True))
    for side in (lossy, lossless):
        assert (len(side.queries_ns), len(side.flows_ns), side.incomplete) == (3, 3 * WORKERS, 0)
        assert min(side.queries_ns) > 0.8 * BOUND_NS, "no more goes to the aggregator than its port's rate"
    assert lossless.lost == 0, lossless.lost_at
    assert lossy.lost == sum(lossy.lost_at.values()) > 0
    assert lossy.retransmitted > 0
    assert any("aggregator" in place for place in lossy.lost_at), lossy.lost_at
    assert not left()


@real
@compiled
@pytest.mark.requirement("VSW-01", "VSW-22")
def test_udp_answers_are_complete_only_without_losses() -> None:
    lossless = run_query(model(kind="incast", transport="udp", runs=2, deadline_ms=6_000.0), 1, True)
    assert (lossless.incomplete, lossless.lost, len(lossless.queries_ns)) == (0, 0, 2), lossless.lost_at
    lossy = run_query(model(kind="incast", transport="udp", deadline_ms=1.0), 1, False)
    assert (lossy.incomplete, lossy.queries_ns) == (1, [])
    assert lossy.lost > 0
    assert lossy.in_time < 1


@real
@compiled
def test_background_flows_run_beside_the_queries() -> None:
    more = {"background": {"mean_gap_us": 2_000, "sizes": [3_000, 30_000]}, "tail_loss_probe": False}
    side = run_query(model(**more), 5, True)
    assert len(side.background_ns) > 0
    assert len(side.queries_ns) == 3
    assert side.lost == 0, side.lost_at


@real
@compiled
def test_the_command_writes_its_report_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "work.yaml"
    work = model(kind="incast", workers=2).model_dump(mode="json")
    file.write_text(json.dumps({"name": "work", "vswitch": {"path": {}, "workloads": [work]}}))
    folder = tmp_path / "out"
    assert execute(["vswitch", "report", str(file), "--time", "real", "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "search, lossless ..." in printed
    assert "from socket to socket" not in printed, "the path is in virtual time only"
    data = json.loads((folder / "report.json").read_text())
    assert (data["time"], data["ok"], data["losses"]) == ("real", True, [])
    assert data["workloads"][0]["lossless"]["lost"] == 0
    assert "In real time" in (folder / "report.md").read_text()
    assert (folder / "report.svg").exists() == ("report.svg" in (folder / "report.md").read_text())
    assert not left()


@real
def test_what_the_kernel_has_not_is_told() -> None:
    with pytest.raises(SystemLimitError, match="mark_bytes"):
        run_query(model(mark_bytes=20_000), 1, True)
    assert problem(model()) is None
    kernel_has = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if "dctcp" not in kernel_has:
        with pytest.raises(SystemLimitError, match="no congestion control dctcp"):
            run_query(model(congestion="dctcp", workers=1), 1, True)
    assert not left()


@real
def test_settings_of_tcp_are_made_inside_the_namespace() -> None:
    space = f"{NAME}-set"
    namespaces.create(space)
    try:
        tap = Tap("eth0", namespace=space, addresses=["10.74.0.1/24"], offload=False)
        station = Station("worker1", space, "10.74.0.1")
        before = Path("/proc/sys/net/ipv4/tcp_early_retrans").read_text()
        _prepare(station, model(min_rto_ms=30, tail_loss_probe=False))
        path = Path("/proc/sys/net/ipv4/tcp_early_retrans")
        assert namespaces.inside(space, path.read_text).strip() == "0"
        assert path.read_text() == before
        route = namespaces.inside(space, lambda: os.popen("ip route show dev eth0").read())
        assert "rto_min lock 30ms" in route or "rto_min 30ms" in route
        assert station.counters()["Tcp.RetransSegs"] == 0
        with pytest.raises(SystemLimitError, match=r"net.ipv4.tcp_early_retrans cannot be many"):
            station.set("ipv4.tcp_early_retrans", "many")
        tap.close()
    finally:
        namespaces.remove(space)


@real
def test_a_worker_that_goes_ends_the_queries_with_a_sentence() -> None:
    """All in one namespace, over its loopback interface."""
    space = f"{NAME}-lo"
    namespaces.create(space)
    try:
        namespaces.inside(space, lambda: os.system("ip link set lo up"))
        one, two = Station("aggregator", space, "127.0.0.1"), Station("worker1", space, "127.0.0.2")
        settings = {"response_bytes": 100_000, "queries": 2, "deadline_ns": 10**10, "gap_ns": 1000}
        with closing(SocketLoop()) as loop:
            work = TcpQueries(loop, one, [two], congestion="cubic", **settings)
            work.start()
            loop.run(lambda: work.done, 30 * 10**9)
            assert (len(work.times.queries_ns), work.times.in_time) == (2, 2)
        with closing(SocketLoop()) as loop:
            work = TcpQueries(loop, one, [two], congestion="reno", **settings)
            work.start()
            (theirs,) = work._owed
            theirs.shutdown(1)
            with pytest.raises(VerbenaError, match="the connection of worker1"):
                loop.run(lambda: work.done, 30 * 10**9)
        with closing(SocketLoop()) as loop:
            datagrams = UdpQueries(loop, one, [two], give_up_ns=1000, **settings)
            with pytest.raises(TimeoutError):
                loop.run(lambda: datagrams.done, 1_000_000)
            datagrams.start()
            loop.run(lambda: datagrams.done, 30 * 10**9)
            assert datagrams.incomplete + len(datagrams.times.queries_ns) == 2
            with pytest.raises(InvalidAttributeError, match="two hosts"):
                BackgroundFlows(loop, Random(1), [one], mean_gap_ns=1, sizes=[1], congestion="cubic")
    finally:
        namespaces.remove(space)


def test_the_switch_file_has_the_marks_of_the_cluster() -> None:
    stations = [Station("aggregator", "s-0", "10.74.0.1"), Station("worker1", "s-1", "10.74.0.2")]
    for lossless, high in ((True, 12_000 - 1_522), (False, 12_000)):
        file = SwitchFile.model_validate(switch_file("s", model(workers=1), stations, lossless))
        live = file.vswitch.live
        assert live is not None
        assert live.lossless == ((0,) if lossless else ())
        aggregator, worker = live.ports
        assert aggregator.rate_gbps == RATE_GBPS
        assert aggregator.output.marks().octets == (high // 2, high, 12_000)
        assert (aggregator.paced, worker.rate_gbps) == (lossless, 10)
