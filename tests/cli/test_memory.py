"""`verbena memory`: of a fabric file, of a run, and of a program that is running."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from lab import Lab
from memory.host_lab import PAGE, two_ends
from scenario.fabrics import EXAMPLES
from verbena import Access, VirtualNetwork
from verbena.cli import main as cli
from verbena.cli.memory import memory
from verbena.errors import SystemLimitError
from verbena.runtime.memory_service import MemoryService, ask
from verbena.runtime.memory_view import memory_view

FILE = str(EXAMPLES / "ring-buffer.yaml")


def test_the_page_shows_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (EXAMPLES.parent / "docs" / "memory.md").read_text()
    monkeypatch.chdir(EXAMPLES.parent)
    command = "verbena memory examples/ring-buffer.yaml --host consumer -n 3"
    assert cli.execute(command.split()[1:]) == 0
    assert f"$ {command}\n{capsys.readouterr().out}```" in page


def test_the_page_shows_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    page = (EXAMPLES.parent / "docs" / "memory.md").read_text()
    source, rest = page.split("## What happens when", 1)[1].split("```python\n", 1)[1].split("```\n", 1)
    exec(source, {})
    assert rest.split("```\n", 2)[1] == capsys.readouterr().out


def test_a_file_and_the_folder_of_its_run_show_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from verbena.cli.run import run

    assert run(FILE, out=str(tmp_path / "run"), capture=False, quiet=True) == 0
    capsys.readouterr()
    assert memory(FILE) == 0
    of_file = capsys.readouterr().out
    assert memory(str(tmp_path / "run")) == 0
    assert capsys.readouterr().out == of_file
    for wanted in ("segment tables", "page table", "keys at consumer0", "who used which key", "MapLocalPage"):
        assert wanted in of_file
    assert memory(FILE, seed=5, as_json=True) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["consumer"]["memory"]["frames"] == 6


def test_a_running_program_shows_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it shows are its tables, as they are at that moment, and no bytes."""
    lab = Lab()
    a, b = two_ends(lab)
    at, mine = b.process.allocate(PAGE), a.process.allocate(PAGE)
    b.process.write(at, b"private matters")
    key = b.bind(at + 5, 13)
    path = tmp_path / "socket"
    with MemoryService(path, lambda: memory_view("live", {"b0": b.ctx}, b.memory)):
        assert path.stat().st_mode & 0o777 == 0o600
        assert ask(path)["adapters"][0]["uses"] == []
        assert a.attempt("write", mine, 13, at + 5, key.rkey) == "SUCCESS"
        assert a.attempt("write", mine, 14, at + 5, key.rkey) == "REM_ACCESS_ERR"
        view = ask(path)
        (use,), (refusal,) = view["adapters"][0]["uses"], view["adapters"][0]["refusals"]
        assert (use["key"], use["length"], use["peer"]) == (key.rkey, 13, "10.0.0.1")
        assert (refusal["reason"], refusal["length"]) == ("key_range", 14)
        assert b"private".hex() not in json.dumps(view)
        assert "private" not in json.dumps(view)
        assert memory(str(path), host="live") == 0
        shown = capsys.readouterr().out
        assert f"{key.rkey:#010x}" in shown
        assert "key range" in shown
        with pytest.raises(SystemLimitError, match="cannot be made"):
            MemoryService(path, dict)
    assert not path.exists()
    assert memory(str(path)) == 2


def test_a_real_process_shows_its_regions_and_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ctx = VirtualNetwork().open_device("10.0.0.1")
    pd = ctx.alloc_pd()
    region = pd.alloc_mr(100, Access.LOCAL_WRITE | Access.REMOTE_READ)
    with MemoryService(tmp_path / "socket", lambda: memory_view("real", {"x0": ctx})):
        assert memory(str(tmp_path / "socket")) == 0
    shown = capsys.readouterr().out
    assert "a real process" in shown
    assert f"{region.rkey:#010x}" in shown


def test_who_does_not_answer_as_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            for words in (b"hello\n", b"[1]\n", b'{"error": "it is closed"}\n'):
                asked, _ = server.accept()
                with asked:
                    asked.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        for what in ("no program that shows its memory", "no view of memory", "it is closed"):
            assert memory(str(path)) == 2
            assert what in capsys.readouterr().err
        thread.join()
    assert memory(str(path)) == 2
    assert "nobody answers" in capsys.readouterr().err


def test_wrong_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "memory.json").write_text("no")
    (tmp_path / "empty").mkdir()
    plain = str(EXAMPLES / "lossy.yaml")
    assert memory(FILE, host="nobody") == 2
    assert "no host nobody; there are: consumer" in capsys.readouterr().err
    for target in (tmp_path, tmp_path / "empty", tmp_path / "missing"):
        assert memory(str(target)) == 2
        assert capsys.readouterr().err.startswith("verbena memory: ")
    assert memory(plain) == 2
    assert "no host with the key memory" in capsys.readouterr().err
