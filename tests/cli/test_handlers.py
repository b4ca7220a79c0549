"""`verbena handlers`: what runs, live, and the study."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import verbena
from cli.processes import read_until, start
from handlers_lab import inbox, taker
from verbena import CompletionQueue, QPType
from verbena.cli import handlers as shown
from verbena.cli import main as cli
from verbena.runtime.pairs import connect_sides, make_side

A, B = "127.0.76.1", "127.0.76.2"


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.loopback
def test_what_runs_is_shown(apart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log: list[Any] = []

    def storage(cq: CompletionQueue) -> None:
        taker(log)(cq)
        raise ValueError("mine")

    assert cli.execute(["handlers", "--once"]) == 1
    assert "no program with completion handlers" in capsys.readouterr().err
    with verbena.open_device(A) as one, verbena.open_device(B) as two:
        here, there = make_side(one, QPType.RC), make_side(two, QPType.RC)
        connect_sides(here, there)
        first, second = one.set_completion_handler(storage, storage, priority=3)
        box = inbox(here, there, first)
        box.cq.req_notify()
        box.send()
        end = time.monotonic() + 20
        while one.completion_handler(first).figures.failures < 1 and time.monotonic() < end:
            time.sleep(0.001)
        one.completion_handler(second).mask()
        process = start("handlers", "--interval", "0.05")
        try:
            said = read_until(process, "storage")
            assert "raised 1 times" in read_until(process, "raised") or "raised 1 times" in said
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130
        assert cli.execute(["handlers", "--once", "-i", "0.01"]) == 0
        rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        assert [row[:6] for row in rows] == [
            [str(os.getpid()), str(first), "storage", "any", "3", str(box.cq.index)],
            [str(os.getpid()), str(second), "storage", "any", "3", "none"],
        ]
        assert rows[0][6:8] == ["0", "0%"], "nothing since the first look"
        assert (rows[0][-1], rows[1][-1]) == ("raised 1 times", "masked")
        assert float(rows[0][-2].replace(",", "")) > 0
        assert cli.execute(["handlers", "--json"]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert [one["calls"] for one in told["handlers"]] == [1, 0]
    assert cli.execute(["handlers", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_rates_are_those_since_the_last_look() -> None:
    one = {
        "id": 1, "function": "a.b.c", "processor": 2, "priority": 0, "queues": {}, "calls": 30, "busy_ns": 10**9,
        "wait_p50_ns": None, "wait_p99_ns": 5_400, "masked": False, "pending": True, "running": True,
        "waiting": 2, "failures": 0, "stuck": 1,
    }  # fmt: skip
    told = {"pid": 7, "adapter": "x", "when_ns": 4 * 10**9, "handlers": [one]}
    before = {**one, "calls": 10, "busy_ns": 0}
    table = shown.table_of([told], {(7, "x", 1): (2 * 10**9, before)})
    row = [str(next(iter(column.cells))) for column in table.columns]
    assert row[2:] == [
        "c",
        "2",
        "0",
        "none",
        "10",
        "50%",
        "-",
        "5",
        "pending, running, 2 waiting, stuck 1 times",
    ]
    for unknown in ({}, {(7, "x", 1): (2 * 10**9, {**one, "calls": 31})}):
        table = shown.table_of([told], unknown)  # another adapter of the same name, for instance
        assert [str(next(iter(c.cells))) for c in table.columns][6:8] == ["-", "-"]


def test_the_study_is_printed_and_drawn(apart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    small = ["handlers", "--study", "--processors", "2", "-n", "1,2,4", "--messages", "500"]
    pictures = [apart / "one.svg", apart / "two.svg"]
    for picture in pictures:
        assert cli.execute([*small, "--plot", str(picture)]) == 0
    assert pictures[0].read_bytes() == pictures[1].read_bytes(), "the same study, the same picture"
    out = capsys.readouterr().out
    rows = [cells(line) for line in out.splitlines() if line.startswith("│")][:3]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert float(rows[1][1].replace(",", "")) > 1.8 * float(rows[0][1].replace(",", ""))
    assert "4 handlers do no more: processors have run out." in out
    assert (
        cli.execute(["handlers", "--study", "--processors", "1", "-n", "1", "--messages", "100", "--json"])
        == 0
    )
    (only,) = json.loads(capsys.readouterr().out)
    assert only["handlers"] == 1
    assert only["busiest"] > 0.9


@pytest.mark.parametrize("wrong", [["-n", "two"], ["-n", "0"], ["--processors", "0"]])
def test_studies_that_cannot_be(wrong: list[str]) -> None:
    assert cli.execute(["handlers", "--study", *wrong]) == 2


def test_a_plot_of_no_known_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["handlers", "--study", "--plot", "plot.txt"]) == 1
    assert ".svg, .png or .pdf" in capsys.readouterr().err
