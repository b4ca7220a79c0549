"""`verbena show`: tables, pictures and dumps, from files and from generators."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from verbena.cli import main as cli
from verbena.fabric.generators import GENERATORS, parameters
from verbena.fabric.ibnetdiscover import read
from verbena.scenario.draw import NO_MATPLOTLIB

DUMPS = Path(__file__).parent.parent / "fabric" / "dumps"


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["show", str(DUMPS / "edr.txt")]) == 0
    printed = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.out.splitlines()]
    assert ["quartz03 HCA-2", "adapter", "quartz03", "1/1", "0x7cfe90030091a44d", "10"] in rows
    assert ["MF0;edge-sw1:MSB7800/U1", "switch", "edge-sw1", "6/37", "0x248a0703004d7da0", "1"] in rows
    assert [
        "MF0;edge-sw1:MSB7800/U1 port 3",
        'login "old" HCA-1 (rack #4) port 2',
        "4xFDR",
        "54.5455",
        "100",
    ] in rows
    last = printed.out.splitlines()[-1]
    assert last == "2 switches, 7 adapters, 9 links, 1 subnet, 809.1 Gb/s each way in all"
    assert printed.err == (
        f"warning: {DUMPS / 'edr.txt'}: links of different rates: 7 4xEDR, 2 4xFDR; senders may fill the slower ones\n"
    )


def test_ranges_of_lids(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["show", str(DUMPS / "old.txt")]) == 0
    assert " 4-5 6-7 │" in capsys.readouterr().out


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "ring.svg"
    assert cli.execute(["show", "--generate", "ring switches=5", "-o", str(output)]) == 0
    assert b"ring: 5 adapters, 5 switches, 10 links" in output.read_bytes()


def test_a_dump(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output = tmp_path / "fabric.txt"
    arguments = ["show", "--generate", "fat-tree k=4", "--format", "ibnetdiscover"]
    assert cli.execute([*arguments, "--output", str(output)]) == 0
    topology = read(output.read_text().splitlines())
    assert [node.lid(1)[0] for node in topology.hosts] == list(range(1, 17))
    assert cli.execute(arguments) == 0
    again = capfdbinary.readouterr().out.decode()
    assert again.partition("# Initiated")[2] == output.read_text().partition("# Initiated")[2]


def test_a_table_in_a_file(tmp_path: Path) -> None:
    output = tmp_path / "table.txt"
    assert cli.execute(["show", "--generate", "star hosts=1", "-o", str(output)]) == 0
    assert output.read_text().splitlines()[-1] == (
        "1 switch, 1 adapter, 1 link, 1 subnet, 100.0 Gb/s each way in all"
    )


def test_a_wrong_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.txt"
    cut.write_text("".join((DUMPS / "edr.txt").read_text().splitlines(keepends=True)[:22]))
    assert cli.execute(["show", str(cut)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{cut}:11: SWITCH")
    assert printed.err.count("\n") == 1
    assert "which is not in the file (cut off?)" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nonexistent"], "/nonexistent: No such file or directory\n"),
        (
            ["fabric.yaml"],
            "fabric.yaml: No such file or directory\n",
        ),
        (
            ["--generate", "ring switches=2"],
            "verbena show: --generate: ring: switches is 2; it must be from 3",
        ),
        (["--generate", ""], "verbena show: --generate: name a kind of topology: one of back-to-back, star"),
    ],
)
def test_wrong_use(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["show", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1


def test_a_file_that_is_one_long_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(10_000_000))
    assert cli.execute(["show", str(path)]) == 2
    assert (
        capsys.readouterr().err == f"{path}:1: it is longer than 4096 characters, as no line of a dump is\n"
    )


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.execute(["show", "--generate", "star hosts=2", "--format", "svg"]) == 1
    assert capsys.readouterr().err == f"verbena show: {NO_MATPLOTLIB}\n"


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "none" / "x.txt"
    arguments = ["show", "--generate", "star hosts=2", "-o", str(output)]
    assert cli.execute(arguments) == 1
    assert capsys.readouterr().err == f"verbena show: {output}: No such file or directory\n"


def test_the_guide_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command in docs/topologies.md that is shown with its output prints that."""
    whole = (DUMPS / "edr.txt").read_text().splitlines(keepends=True)
    (tmp_path / "cut.txt").write_text("".join(whole[:22]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verbena.cli.show.time.ctime", lambda: "then")
    guide = (Path(__file__).parents[2] / "docs" / "topologies.md").read_text()
    shown = re.findall(r"^```\n\$ verbena (.*)\n((?:.*\n)*?)```$", guide, re.MULTILINE)
    assert len(shown) == 4
    for command, output in shown:
        cli.execute(shlex.split(command))
        printed = capsys.readouterr()
        assert printed.out + printed.err == re.sub("generated on .*", "generated on then", output)


def test_the_guide_lists_every_generator() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "topologies.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", guide, re.MULTILINE)
    assert [kind for kind, _ in rows] == list(GENERATORS)
    for kind, cell in rows:
        assert all(f"`{parameter.name}`" in cell or cell == "the same" for parameter in parameters(kind))
