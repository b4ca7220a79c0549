"""The examples run; the guides show them, and what they print, as they are; README's output is what is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scenario.fabrics import NET
from verbena.scenario.load import parse_fabric

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
GUIDE = ROOT / "docs" / "verbs.md"
# Those that have a page of their own.
PAGES = {
    "io_node": ROOT / "docs" / "io-node.md",
    "ring_buffer": ROOT / "docs" / "memory.md",
    "remote_keys": ROOT / "docs" / "memory-keys.md",
    "fabric": ROOT / "docs" / "fabric.md",
    "handlers": ROOT / "docs" / "completion-handlers.md",
    "lan": ROOT / "docs" / "lan.md",
    "fabric_processes": ROOT / "docs" / "fabric-real-time.md",
    "team": ROOT / "docs" / "teaming.md",
    "machines": ROOT / "docs" / "teaming.md",
    "vswitch": ROOT / "docs" / "vswitch.md",
}
REAL: dict[str, list[str]] = {"two_adapters": [f"{NET}.11", f"{NET}.12"], "fabric_processes": []}


LONG = ("fabric", "machines")


def parameters() -> list[object]:
    """The examples; a long one takes a minute uncompiled, and other tests run the same both ways."""
    return [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.loopback] * (path.stem in REAL) + [pytest.mark.compiled] * (path.stem in LONG),
        )
        for path in SCRIPTS
    ]


@pytest.mark.parametrize("path", parameters())
def test_an_example_prints_what_the_guide_shows(path: Path) -> None:
    command = [sys.executable, str(path), *REAL.get(path.stem, [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    guide = PAGES.get(path.stem, GUIDE).read_text()
    source = path.read_text().split('"""', 2)[2].strip()
    assert f"```python\n{source}\n```" in guide, f"the guide shows another {path.name}"
    assert f"```\n{done.stdout.rstrip()}\n```" in guide, f"{path.name} prints something else: {done.stdout}"


def test_the_guide_names_every_example() -> None:
    for path in SCRIPTS:
        assert f"(../examples/{path.name})" in PAGES.get(path.stem, GUIDE).read_text()
    for page in PAGES.values():
        assert f"({page.name})" in GUIDE.read_text()


def test_the_snippet_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    snippet, rest = readme.split("```python\n", 1)[1].split("```\n", 1)
    expected = rest.split("```\n", 2)[1]
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == expected


def test_the_small_file_of_the_fabric_file_page() -> None:
    """The page's small file is right."""
    page = (ROOT / "docs" / "fabric-file.md").read_text()
    text = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    assert parse_fabric(text).name == "small"
