"""The command `verbena`: help, version, and how failures are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import verbena
from cli.processes import command
from cli.processes import verbena as run_verbena
from verbena.cli import main as cli

GOLDEN = Path(__file__).parent.parent / "golden"
COMMANDS = ("pingpong", "perf", "rping", "run", "dump", "show", "contexts")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["--version"]) == 0
    assert capsys.readouterr().out == f"verbena {verbena.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(arguments) == (0 if arguments else 2)
    printed = capsys.readouterr()
    assert all(f"\n  {name} " in printed.out for name in COMMANDS)
    assert printed.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute([name, "--help"]) == 0
    assert f"Usage: verbena {name}" in capsys.readouterr().out


def test_help_imports_only_what_it_needs() -> None:
    program = (
        "import sys; from verbena.cli.main import execute; execute(['--help'])\n"
        "heavy = {'rich', 'yaml', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pingpong"], "service"),
        (["pingpong", "xx"], "'xx' is not one of"),
        (["pingpong", "rc", "-s", "-1"], "'-s'"),
        (["pingpong", "rc", "-s", "many"], "'-s'"),
        (["pingpong", "rc", "-m", "1000"], "'-m'"),
        (["pingpong", "rc", "-n", "0"], "'-n'"),
        (["pingpong", "rc", "-p", "65536"], "'-p'"),
        (["pingpong", "rc", "-r", "0"], "'-r'"),
        (["pingpong", "rc", "-x"], "-x"),
        (["perf", "write", "--bw", "--lat"], "exclude each other"),
        (["perf", "--local"], "write, read, send or atomic"),
        (["perf", "read", "somewhere", "--local"], "give no HOST"),
        (["perf", "read", "somewhere", "--lat", "-q", "2"], "one queue pair"),
        (["rping"], "-s (server) or -c (client)"),
        (["rping", "-c"], "-a"),
        (["run"], "file"),
        (["dump"], "capture"),
        (["show"], "either FILE or --generate"),
        (["show", "x", "--generate", "star hosts=1"], "either FILE or --generate"),
        (["show", "x", "--format", "png"], "'png' is not one of"),
        (["jump"], "'jump'"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("verbena: " if arguments[0] == "jump" else f"verbena {arguments[0]}: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert "--help" in printed.err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (verbena.SystemLimitError("no room\nhere"), 1, "verbena dump: no room here\n"),
        (FileNotFoundError(2, "No such file", "x.pcap"), 1, "verbena dump: x.pcap: No such file\n"),
        (OSError(28, "No space left"), 1, "verbena dump: No space left\n"),
        (MemoryError(), 1, "verbena dump: there is not enough memory for that\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures_are_one_sentence(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("verbena.cli.dump.dump", fail)
    assert cli.execute(["dump", "x.pcap"]) == status
    assert capsys.readouterr().err == said


def test_dump_passes_its_options_and_status_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["dump", str(GOLDEN / "rc_pingpong.pcap"), "-n", "2"]) == 0
    assert "every CRC is right" in capsys.readouterr().out
    assert cli.execute(["dump", "/nonexistent.pcap"]) == 2


def test_a_reader_that_has_seen_enough() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        command("--help"), stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode == 1


def test_the_installed_script() -> None:
    assert run_verbena("--version").out == f"verbena {verbena.__version__}\n"
