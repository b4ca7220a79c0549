"""`verbena sweep`, as a user runs it: results, interruption, failures, a cluster of one's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from verbena.cli.sweep import sweep
from verbena.errors import FabricFileError
from verbena.scenario.study import (
    Point,
    Results,
    columns_of,
    parse_variation,
    points,
    run_point,
    varied,
)
from verbena.scenario.study_plot import curves_of

parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
pytest.importorskip("distributed", reason="needs dask.distributed")

Output = pytest.CaptureFixture[str]
TEXT = """
name: small
fabric: {generate: star, parameters: {hosts: 4}, lanes: 1, buffer_bytes: 8 KiB}
workloads:
  - {kind: traffic, name: t, duration_us: 20, samples: 2, flows: [{pattern: uniform, load: 0.3, bytes: 1024}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return str(path)


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = parquet.read_table(folder / "results.parquet").to_pylist()
    return found


# --- what is varied ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, values",
    [
        ("load=0.1:0.9:0.1", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("load=0.1:0.3:0.15", (0.1, 0.25)),
        ("lanes=1:4:1", (1, 2, 3, 4)),
        ("lanes=1,2,8", (1, 2, 8)),
        ("fabric.voq=true,false", (True, False)),
        ("fabric.routing=minhop,ftree", ("minhop", "ftree")),
        ("buffer_bytes=8 KiB,1e5", ("8 KiB", 1e5)),
    ],
)
def test_values(text: str, values: tuple[object, ...]) -> None:
    found = parse_variation(text).values
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text",
    [
        "load",
        "load=",
        "=1",
        "load=1:2",
        "load=1:0:1",
        "load=0:1:0",
        "load=0:1:-1",
        "load=a:b:c",
        "load=nan:1:1",
    ]
    + ["load=0:inf:1", "load=[1],2", "load=1,,2", "load=0:1e9:1e-9", "load={"],
)
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(FabricFileError, match="--vary"):
        parse_variation(text)


def test_all_combinations_and_seeds() -> None:
    found = points([parse_variation("a=1,2"), parse_variation("b=x,y")], 3)
    assert len(found) == len(set(found)) == len({point.name for point in found}) == 12
    assert found[0] == Point((("a", 1), ("b", "x")), 0)
    for wrong in (["a=1", "a=2"], ["seed=1,2"]):
        with pytest.raises(FabricFileError, match="vary each key once"):
            points([parse_variation(each) for each in wrong], 1)


def test_setting_values() -> None:
    def fabric(*values: tuple[str, object]) -> dict[str, object]:
        made = varied(TEXT, "f.yaml", Point(tuple(values), 9))  # type: ignore[arg-type]
        data: dict[str, object] = json.loads(made.model_dump_json())
        assert data["seed"] == 9
        return data

    assert fabric(("load", 0.5))["workloads"][0]["flows"][0]["load"] == 0.5  # type: ignore[index]
    assert fabric(("workloads.t.flows.0.load", 0.6))["workloads"][0]["flows"][0]["load"] == 0.6  # type: ignore[index]
    assert fabric(("fabric.voq", True))["fabric"]["voq"] is True  # type: ignore[index]
    assert fabric(("hosts", 6))["fabric"]["parameters"]["hosts"] == 6  # type: ignore[index]
    for key, message in (
        ("lode", "no such key"),
        ("workloads.u.flows.0.load", "no such key"),
        ("fabric.vok", "unknown key 'vok'"),
    ):
        with pytest.raises(FabricFileError, match=message):
            varied(TEXT, "f.yaml", Point(((key, 1),), 0))
    with pytest.raises(FabricFileError, match=r"with load=0: load: 0"):
        varied(TEXT, "f.yaml", Point((("load", 0),), 0))


def test_columns_have_one_type() -> None:
    records = [{"a": 1, "b": "x"}, {"a": 2.5, "b": 3, "c": True}, {"a": None}]
    assert columns_of(records) == {"a": [1.0, 2.5, None], "b": ["x", "3", None], "c": [None, True, None]}


def test_curves() -> None:
    records = [
        {"workload": "t", "load": 0.1, "voq": voq, "seed": seed, "n": seed + voq}
        for voq in (0, 1)
        for seed in (0, 1)
    ]
    assert curves_of(records, ["load", "voq"], "n") == {"voq=0": {0.1: [0, 1]}, "voq=1": {0.1: [1, 2]}}


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study(file: str, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "study"
    given = ["load=0.2,0.8", "fabric.voq=false,true"]
    assert sweep(file, vary=given, seeds=2, out=str(out), workers=2, csv=True) == 0
    output = capsys.readouterr()
    assert output.err == ""
    found = rows(out)
    assert [(row["load"], row["fabric.voq"], row["seed"]) for row in found] == [
        (load, voq, seed) for load in (0.2, 0.8) for voq in (False, True) for seed in (0, 1)
    ]
    assert all(row["ok"] is True and row["workload"] == "t" for row in found)
    for row in found:
        assert row["accepted_load"] == pytest.approx(row["load"], abs=0.2)
    low, high = (
        sum(row["latency_mean_ns"] for row in found if row["load"] == load)
        for load in (0.2, 0.8)  # type: ignore[misc]
    )
    assert low < high
    # A study's run is the run.
    point = Point((("load", 0.8), ("fabric.voq", True)), 1)
    (alone,) = run_point(TEXT, file, point)
    assert {key: found[-1][key] for key in alone} == alone
    assert (out / "results.csv").read_text().splitlines()[0].startswith("load,fabric.voq,seed,workload,ok,")
    assert (out / "study.svg").read_text().count("fabric.voq=True") >= 1
    # Done is done; more is added.
    assert sweep(file, vary=given, seeds=3, out=str(out), workers=1) == 0
    assert "8 of 12 runs were done before" in capsys.readouterr().out
    assert len(rows(out)) == 12


@pytest.mark.slow
def test_one_that_fails_does_not_lose_the_others(file: str, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "study"
    status = sweep(file, vary=["hosts=3,1,2"], out=str(out), workers=1, quiet=True)
    assert status == 1
    assert [row["hosts"] for row in rows(out)] == [3, 2]
    assert re.search(
        r"verbena sweep: hosts=1 seed 0: with hosts=1: .*at least 2 hosts", capsys.readouterr().err
    )


def test_wrong_use(file: str, tmp_path: Path, capsys: Output) -> None:
    for given, message in (
        (["lode=1"], "verbena sweep: --vary lode: "),
        (["load=0"], "verbena sweep: with load=0: load: 0"),
        (["load"], "verbena sweep: --vary load: write KEY=FIRST:LAST:STEP"),
    ):
        assert sweep(file, vary=given, out=str(tmp_path / "o")) == 2
        assert message in capsys.readouterr().err
    assert sweep(str(tmp_path / "none.yaml"), vary=["load=1"]) == 2
    assert "none.yaml: No such file" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text(TEXT.replace("generate: star", "generate: stare"))
    assert sweep(str(tmp_path / "bad.yaml"), vary=["load=1"]) == 2
    assert "'stare' is no kind of topology" in capsys.readouterr().err


def test_another_file_wants_another_folder(file: str, tmp_path: Path, capsys: Output) -> None:
    Results(tmp_path / "study", "something else")
    assert sweep(file, vary=["load=0.5"], out=str(tmp_path / "study")) == 2
    assert "holds a study of another fabric file" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_and_taken_up_again(file: str, tmp_path: Path) -> None:
    """What was done before Ctrl-C is in the table, and is not done again."""
    out = tmp_path / "study"
    Path(file).write_text(TEXT.replace("duration_us: 20", "duration_us: 400"))
    command = [sys.executable, "-m", "verbena.cli.main", "sweep", file, "--vary", "load=0.5", "-o", str(out)]
    command += ["--workers", "1"]
    process = subprocess.Popen(
        [*command, "--seeds", "500"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 120
    while len(list((out / "points").glob("*.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "verbena sweep: interrupted; the same command goes on from here" in errors
    assert "Traceback" not in errors
    before = {path.name: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}
    assert len(rows(out)) == len(before) >= 2
    done = subprocess.run(
        [*command, "--seeds", str(len(before) + 1)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of {len(before) + 1} runs were done before" in done.stdout
    assert len(rows(out)) == len(before) + 1
    assert all((out / "points" / name).stat().st_mtime_ns == when for name, when in before.items())


# --- a cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """A Dask scheduler with one worker, each a process of its own."""
    known = tmp_path / "scheduler.json"
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(known)]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--no-nanny",
        "--nthreads",
        "1",
        "--no-dashboard",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    with subprocess.Popen([*program, *options], **quiet) as first:  # type: ignore[call-overload]
        try:
            limit = time.monotonic() + 60
            while not known.exists():
                assert first.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.1)
            address = json.loads(known.read_text())["address"]
            with subprocess.Popen([*worker, address], **quiet) as second:  # type: ignore[call-overload]
                try:
                    yield address
                finally:
                    second.terminate()
        finally:
            first.terminate()


@pytest.mark.slow
@pytest.mark.loopback
def test_on_a_cluster(file: str, tmp_path: Path, scheduler: str) -> None:
    out = tmp_path / "study"
    assert sweep(file, vary=["load=0.2,0.4"], out=str(out), scheduler=scheduler, quiet=True) == 0
    assert [row["load"] for row in rows(out)] == [0.2, 0.4]


@pytest.mark.loopback
def test_no_cluster(file: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verbena.cli.sweep.WAIT_S", 0.5)
    assert sweep(file, vary=["load=0.2"], out=str(tmp_path / "o"), scheduler="tcp://127.0.0.1:9") == 1
    assert "verbena sweep: no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
