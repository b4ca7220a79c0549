"""Prints which tests check which requirement, and the requirements that no test checks yet.

The rows stand in docs/requirements/*.yaml; a test names its rows with ``@pytest.mark.requirement("VRB-01", …)``
on itself, on its class, or for its whole file in ``pytestmark``.  The tests are read, not run.

Exit status 1 if a test names a row that does not exist, else 0.
"""

from __future__ import annotations

import argparse
import ast
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Row:
    """One requirement and the check that shows it."""

    id: str
    group: str
    shall: str
    source: str
    check: str
    mark: str


def load_rows(folder: Path = ROOT / "docs" / "requirements") -> dict[str, Row]:
    """All rows by their id, in the order of the files' names."""
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("*.yaml")):
        data: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        for row_id, fields in data["rows"].items():
            if row_id in rows or not row_id.startswith(data["group"] + "-"):
                raise ValueError(f"{path.name}: {row_id} stands twice or in the wrong file")
            rows[row_id] = Row(row_id, data["group"], **fields)
    return rows


def marks(nodes: list[ast.expr]) -> Iterator[tuple[str, int]]:
    """(row id, line) for every requirement mark among decorators, or in the value of `pytestmark`."""
    for node in nodes:
        if isinstance(node, ast.List | ast.Tuple):
            yield from marks(node.elts)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement":
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.param":
            yield from marks([keyword.value for keyword in node.keywords if keyword.arg == "marks"])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.parametrize":
            yield from marks(node.args[1:])


def tests_in(
    body: list[ast.stmt], outer: list[tuple[str, int]], prefix: str
) -> Iterator[tuple[str, str, int]]:
    """(test, row id, line) for every requirement of every test in the body of a module or class."""
    for node in body:
        if isinstance(node, ast.Assign) and "pytestmark" in [ast.unparse(target) for target in node.targets]:
            outer = outer + list(marks([node.value]))
    for node in body:
        if isinstance(node, ast.ClassDef):
            inner = outer + list(marks(node.decorator_list))
            yield from tests_in(node.body, inner, f"{prefix}::{node.name}")
        elif isinstance(node, Function) and node.name.startswith("test"):
            for row_id, line in outer + list(marks(node.decorator_list)):
                yield f"{prefix}::{node.name}", row_id, line


def collect(folder: Path = ROOT / "tests") -> Iterator[tuple[str, str, int]]:
    """(test, row id, line) over all test files."""
    for path in sorted(folder.rglob("test_*.py")):
        prefix = str(path.relative_to(folder.parent))
        yield from tests_in(ast.parse(path.read_text(encoding="utf-8"), prefix).body, [], prefix)


def print_matrix(rows: dict[str, Row], tests: dict[str, list[str]]) -> None:
    """The rows that have tests, each with them."""
    for row in rows.values():
        if tests[row.id]:
            print(f"{row.id}  {textwrap.shorten(row.shall, 100, placeholder=' …')}")
            for test in tests[row.id]:
                print(f"          {test}")


def print_counts(rows: dict[str, Row], tests: dict[str, list[str]]) -> None:
    """A table of the groups."""
    print(f"{'group':<7}{'rows':>6}{'tested':>8}{'open':>6}")
    for group in [*dict.fromkeys(row.group for row in rows.values()), "all"]:
        members = [row.id for row in rows.values() if group in (row.group, "all")]
        tested = sum(bool(tests[row_id]) for row_id in members)
        print(f"{group:<7}{len(members):>6}{tested:>8}{len(members) - tested:>6}")


def print_missing(rows: dict[str, Row], tests: dict[str, list[str]]) -> None:
    """The rows without a test."""
    for row in rows.values():
        if not tests[row.id]:
            print(f"{row.id}  {row.mark:<8}{textwrap.shorten(row.shall, 100, placeholder=' …')}")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--group", metavar="GROUP", help="only the rows of one group, such as VRB")
    parser.add_argument("--missing", action="store_true", help="only the rows without a test")
    options = parser.parse_args(arguments)

    every = load_rows()
    groups = dict.fromkeys(row.group for row in every.values())
    if options.group and options.group not in groups:
        parser.error(f"there is no group {options.group}; the groups are {', '.join(groups)}")
    tests: dict[str, list[str]] = {row_id: [] for row_id in every}
    unknown = 0
    for test, row_id, line in collect():
        if row_id not in tests:
            print(f"{test.split('::')[0]}:{line}: there is no requirement {row_id}", file=sys.stderr)
            unknown += 1
        elif test not in tests[row_id]:
            tests[row_id].append(test)

    rows = {row.id: row for row in every.values() if options.group in (None, row.group)}
    if not options.missing:
        print_matrix(rows, tests)
        print()
        print_counts(rows, tests)
        print("\nwithout a test:")
    print_missing(rows, tests)
    return 1 if unknown else 0


if __name__ == "__main__":
    signal.signal(
        signal.SIGPIPE, signal.SIG_DFL
    )  # a reader that has seen enough, such as head, ends it quietly
    sys.exit(main())
