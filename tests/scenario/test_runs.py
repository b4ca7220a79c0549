"""Workloads, run in both times; what a run writes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scenario.fabrics import ALL, EXAMPLES, FAULTS, FILE, HOSTS
from verbena import wire
from verbena.cli.dump import dump
from verbena.errors import VerbenaError
from verbena.scenario import programs
from verbena.scenario.load import load_fabric, parse_fabric
from verbena.scenario.outcome import NoWatcher, RunResult
from verbena.scenario.real import run_real
from verbena.scenario.report import write_report
from verbena.scenario.schema import FabricFile
from verbena.scenario.virtual import run_virtual

TIMES = [pytest.param("virtual"), pytest.param("real", marks=pytest.mark.loopback)]


def run(
    fabric: FabricFile, time: str, folder: Path, data: bytes | None = None, capture: bool = True
) -> RunResult:
    path = folder / "capture.pcapng" if capture else None
    if time == "virtual":
        return run_virtual(fabric, NoWatcher(), capture=path, data=data)
    given = None
    if data is not None:
        given = folder / "input"
        given.write_bytes(data)
    return run_real(
        fabric, NoWatcher(), folder=folder, capture=path, input_path=None if given is None else str(given)
    )


def assert_capture_is_right(path: Path) -> list[wire.CapturedPacket]:
    """Our own decoder and, where it is installed, tshark find nothing wrong."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert dump(str(path)) == 0
    if shutil.which("tshark"):
        command = ["tshark", "-n", "-r", str(path), "-Y", "_ws.malformed || !infiniband.bth"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout == ""
    with path.open("rb") as file:
        packets = list(wire.read_capture(file))
    assert all(a.time_ns <= b.time_ns for a, b in itertools.pairwise(packets))
    return packets


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("capture", [True, False])
def test_every_workload(time: str, capture: bool, tmp_path: Path) -> None:
    result = run(parse_fabric(ALL), time, tmp_path, capture=capture)
    assert [(o.name, o.ok, o.verdict) for o in result.outcomes] == [
        ("file", True, "SHA-256 equal"),
        ("ping", True, "20 rounds, every byte right"),
        ("counter", True, "80 additions make 560, each happened once"),
        ("burst", True, "100 sent = 100 received"),
    ]
    assert result.ok
    assert set(result.counters) == {"a0", "b0"}
    if capture:
        packets = assert_capture_is_right(tmp_path / "capture.pcapng")
        assert len(packets) == result.captured
        assert {packet.interface for packet in packets} == {"a0", "b0"}
    else:
        assert not (tmp_path / "capture.pcapng").exists()
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("*.log")), "the hosts' processes had nothing to complain about"


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("size", [0, 1, 29_999, 30_000, 100_001])
def test_files_of_any_size(time: str, size: int, tmp_path: Path) -> None:
    fabric = parse_fabric(HOSTS + "workloads:\n" + FILE)
    result = run(fabric, time, tmp_path, data=bytes(at * 7 % 251 for at in range(size)), capture=False)
    assert result.ok
    (outcome,) = result.outcomes
    assert [row.bytes for row in outcome.rows] == [size, size]
    assert len(set(outcome.facts["sha256"].values())) == 1


def test_virtual_time_repeats_itself(tmp_path: Path) -> None:
    results = []
    for name, seed in (("1", 5), ("2", 5), ("3", 6)):
        (tmp_path / name).mkdir()
        fabric = parse_fabric(ALL + FAULTS + f"seed: {seed}\n")
        result = run(fabric, "virtual", tmp_path / name)
        write_report(tmp_path / name, fabric, result)
        results.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    first, second, third = results
    assert first == second
    assert first["capture.pcapng"] != third["capture.pcapng"]


@pytest.mark.parametrize("seed", range(5))
def test_faults_change_nothing_but_time(seed: int, tmp_path: Path) -> None:
    fabric = parse_fabric(ALL + FAULTS + f"seed: {seed}\n")
    result = run(fabric, "virtual", tmp_path)
    assert [outcome.ok for outcome in result.outcomes] == [True] * 4, result.outcomes
    assert result.balanced
    burst = result.outcomes[-1].facts
    assert burst["sent"] + burst["doubled"] == burst["received"] + sum(burst["dropped"].values())
    assert_capture_is_right(tmp_path / "capture.pcapng")


@pytest.mark.loopback
def test_faults_in_real_time(tmp_path: Path) -> None:
    result = run(parse_fabric(ALL + FAULTS), "real", tmp_path)
    assert [outcome.ok for outcome in result.outcomes] == [True] * 4, result.outcomes
    assert sum(counters["faults.lost"] for counters in result.counters.values())
    assert_capture_is_right(tmp_path / "capture.pcapng")


@pytest.mark.parametrize("time", TIMES)
def test_a_datagram_without_a_buffer_is_counted(time: str, tmp_path: Path) -> None:
    text = "workloads:\n  - {kind: ud-burst, name: u, from: a0, to: b0, datagrams: 400, receive_buffers: 1}\n"
    result = run(parse_fabric(HOSTS + text), time, tmp_path, capture=False)
    (outcome,) = result.outcomes
    assert outcome.ok, outcome.verdict
    assert outcome.facts["received"] + sum(outcome.facts["dropped"].values()) == 400
    if time == "virtual":
        assert outcome.facts["dropped"] == {"drop.no_receive": 400 - outcome.facts["received"]}
        assert outcome.facts["received"] < 400


@pytest.mark.parametrize("time", TIMES)
def test_a_capture_has_its_limits(time: str, tmp_path: Path) -> None:
    text = ALL.replace("iterations: 20", "iterations: 20, capture: false") + "capture: {packets: 30}\n"
    result = run(parse_fabric(text), time, tmp_path)
    assert result.captured == 60
    assert result.not_captured > 0
    packets = assert_capture_is_right(tmp_path / "capture.pcapng")
    kinds = {wire.decode(packet.data, packet.link_type).transport.info.name for packet in packets}  # type: ignore[union-attr]
    assert not any("SEND" in kind and kind.startswith("RC") for kind in kinds)
    sent = sum(counters["tx.packets"] for counters in result.counters.values())
    assert sent > result.captured + result.not_captured, "counters go on while nothing is captured"


def test_ipv6(tmp_path: Path) -> None:
    text = ALL.replace("10.0.0.1", "'fd00::1'").replace("10.0.0.2", "'fd00::2'")
    result = run(parse_fabric(text), "virtual", tmp_path)
    assert result.ok
    assert_capture_is_right(tmp_path / "capture.pcapng")


def test_the_lossy_example(tmp_path: Path) -> None:
    result = run(load_fabric(str(EXAMPLES / "lossy.yaml")), "virtual", tmp_path)
    assert result.ok, result.outcomes
    assert_capture_is_right(tmp_path / "capture.pcapng")


def test_a_dead_network_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VerbenaError, match=r"workload file: .*RETRY_EXC_ERR"):
        run(parse_fabric(ALL + "wire: {faults: {loss: 1}}\n"), "virtual", tmp_path)


# --- verdicts ---------------------------------------------------------------------------------------------------


def seen_by_all(fabric: FabricFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    seen: list[Any] = []
    judge = programs.judge
    monkeypatch.setattr(
        "verbena.scenario.virtual.judge", lambda spec, each: (seen.append(each), judge(spec, each))[1]
    )
    run(fabric, "virtual", tmp_path, capture=False)
    return seen


def test_what_is_wrong_is_not_called_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fabric = parse_fabric(ALL)
    file, ping, counter, burst = seen_by_all(fabric, monkeypatch, tmp_path)
    wrong = [
        file | {"sink": file["sink"] | {"arrived": "0" * 64}},
        ping | {"server": {"wrong": 1}},
        counter | {"server": {"value": 559}},
        burst | {"sink": burst["sink"] | {"received": 99}},
    ]
    for spec, right, bad in zip(fabric.workloads, (file, ping, counter, burst), wrong, strict=True):
        assert programs.judge(spec, right).ok
        assert not programs.judge(spec, bad).ok
    twice = counter["client 0"]["before"]
    twice[-1] = twice[-2]
    assert not programs.judge(fabric.workloads[2], counter).ok


def test_packets_that_are_missing_are_not_called_right(tmp_path: Path) -> None:
    result = run(parse_fabric(ALL), "virtual", tmp_path, capture=False)
    assert result.ok
    what, left, right = result.balance[0]
    assert not replace(result, balance=[(what, left, right - 1)]).ok


# --- the run folder ---------------------------------------------------------------------------------------------


def test_the_report(tmp_path: Path) -> None:
    fabric = parse_fabric(ALL + FAULTS)
    result = run(fabric, "virtual", tmp_path)
    write_report(tmp_path, fabric, result)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"]
    assert parse_fabric(json.dumps(report["fabric"])) == fabric, "a report says how to run it again"
    assert json.loads((tmp_path / "counters.json").read_text()) == result.counters
    text = (tmp_path / "report.md").read_text()
    for word in (
        "everything right",
        "SHA-256 equal",
        "drop.icrc",
        "10.0.0.2",
        "Every packet is accounted for",
    ):
        assert word in text
    pytest.importorskip("matplotlib")
    assert (tmp_path / "throughput.svg").read_text().startswith("<?xml")
