"""`verbena vswitch report`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verbena.cli.main import execute
from verbena.scenario.vswitch_plot import completions
from verbena.scenario.vswitch_report import Comparison, Side, load_switch_file
from verbena.scenario.vswitch_schema import QueryModel

SMALL = """
name: small
seed: 3
vswitch:
  path:
    machines: 2
    frames: 60
  workloads:
    - kind: partition-aggregate
      name: search
      workers: 16
      response_bytes: 64 KiB
      queries: 1
      background: {mean_gap_us: 20000, sizes: [3 kB]}
    - kind: incast
      name: incast
      workers: 4
      response_bytes: 5 kB
      congestion: dctcp
      mark_bytes: 20 kB
      signal: ib
    - kind: incast
      name: datagrams
      transport: udp
      workers: 8
      response_bytes: 60 kB
"""


@pytest.mark.requirement("VSW-01")
def test_a_report_shows_where_frames_are_lost_and_what_that_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    for folder in ("first", "second"):
        assert execute(["vswitch", "report", str(file), "-o", str(tmp_path / folder)]) == 0
    printed = capsys.readouterr().out
    assert "search, lossless ..." in printed
    assert "times sooner without losses" in printed
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("report.md", "report.json", "report.svg"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), "the same seed, the same report"
    data = json.loads((first / "report.json").read_text())
    assert data["ok"] is True
    assert len(data["losses"]) == 13
    search, incast, datagrams = data["workloads"]
    assert (datagrams["lossy"]["incomplete"], datagrams["lossless"]["incomplete"]) == (1, 0)
    assert search["speedup"] > 3
    assert search["lossless"]["lost"] == incast["lossless"]["lost"] == 0
    assert search["lossy"]["lost"] > 0
    assert len(search["lossless"]["background_ns"]) > 0
    assert "| nothing | 120 | 120 |" in (first / "report.md").read_text()


@pytest.mark.parametrize(
    "text, line, said",
    [
        (
            "name: x\nvswitch:\n  workloads:\n    - kind: incast\n      name: a\n      wokers: 3\n",
            6,
            "unknown key 'wokers'",
        ),
        ("name: x\nvswitch:\n  path:\n    bytes: 20\n", 4, "too small"),
        ("name: x\nvswitch:\n  workloads:\n    - name: a\n      kind: quiet\n", 5, "not one of"),
        ("name: x\n", 1, "vswitch is missing"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, said: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    assert execute(["vswitch", "report", str(file)]) == 1
    error = capsys.readouterr().err
    assert f"wrong.yaml:{line}:" in error
    assert said in error


def test_the_examples_are_right() -> None:
    folder = Path(__file__).resolve().parents[2] / "examples" / "vswitch"
    for name, workloads in (
        ("report", ["search", "incast"]),
        ("workloads", ["beside-flows", "quick-timer", "datagrams"]),
    ):
        file = load_switch_file(str(folder / f"{name}.yaml"))
        assert [workload.name for workload in file.vswitch.workloads] == workloads


def test_another_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["vswitch", "report", "none.yaml", "--time", "never"]) == 1
    assert "--time never: real or virtual" in capsys.readouterr().err
    live = Path(__file__).resolve().parents[2] / "examples" / "vswitch" / "live.yaml"
    assert execute(["vswitch", "report", str(live), "--time", "real"]) == 1
    assert "it has no workloads" in capsys.readouterr().err


def test_what_was_never_complete_is_no_share_of_the_picture(tmp_path: Path) -> None:
    """A line ends at the share of all queries, and all answers, that ever were complete."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    model = QueryModel(kind="incast", name="datagrams", workers=4, runs=2, transport="udp")
    lossy = Side(queries_ns=[], flows_ns=[2_000_000, 1_000_000], incomplete=2)
    lossless = Side(queries_ns=[5_000_000, 4_000_000], flows_ns=[4_000_000] * 8)
    axes = Figure().subplots()
    completions(axes, Comparison("datagrams", model, lossy, lossless))
    lines = {line.get_label(): line for line in axes.get_lines()}
    ends = {
        str(label): max(line.get_ydata(), default=0) for label, line in lines.items() if ":" in str(label)
    }
    assert ends == {
        "lossy: queries": 0,
        "lossy: answers": 0.25,
        "lossless: queries": 1,
        "lossless: answers": 1,
    }
    assert list(lines["lossy: answers"].get_xdata()) == [1, 2]


def test_a_file_of_another_kind_is_told_its_own_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fabric.yaml"
    file.write_text("name: x\nhosts: []\nvswitch: {}\n")
    assert execute(["vswitch", "report", str(file)]) == 1
    told = capsys.readouterr().err
    assert "unknown key 'hosts': known here are " in told
    assert "did you mean hosts" not in told
