"""Parameter studies: the same fabric file many times, with other values and other seeds.

A study is a list of points: values for some of the file's keys, and a seed.  Each point's run stands by itself, and
gives a flat record of numbers; the records are kept one by one as they come (`Results`), so that an interrupted study
goes on where it stopped, and become one Parquet file at the end.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from verbena.errors import FabricFileError, SystemLimitError
from verbena.scenario.load import parse_data, parse_fabric
from verbena.scenario.outcome import NoWatcher
from verbena.scenario.schema import FabricFile
from verbena.scenario.virtual import run_virtual

MOST_POINTS = 1_000_000
Value = int | float | str | bool
FIXED = ("seed", "workload", "ok", "verdict")  # columns of the results that are there anyway


@dataclass(frozen=True, slots=True)
class Variation:
    """A key of the fabric file and the values that it takes, one after the other.

    key: dotted, list items by number or by their `name`: ``workloads.uniform.flows.0.load``; or a last part alone,
    ``load``: every key of that name.
    """

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a study."""

    values: tuple[tuple[str, Value], ...]
    seed: int

    @property
    def name(self) -> str:
        """A file name that is the same for the same point."""
        text = json.dumps([self.values, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def parse_variation(text: str) -> Variation:
    """From ``load=0.1:0.9:0.1`` (first:last:step) or ``fabric.lanes=1,2,4``.  Raises `FabricFileError`."""
    key, equals, listed = text.partition("=")
    if not equals or not key.strip() or not listed.strip():
        raise FabricFileError(f"--vary {text}: write KEY=FIRST:LAST:STEP or KEY=VALUE,VALUE,…")
    if ":" in listed:
        return Variation(key.strip(), _span(text, listed))
    return Variation(key.strip(), tuple(_value(text, part) for part in listed.split(",")))


def _value(text: str, part: str) -> Value:
    """A value as a fabric file would have it."""
    try:
        value = parse_data(f"value: {part}")["value"]
    except FabricFileError:
        value = None
    if not isinstance(value, int | float | str | bool):
        raise FabricFileError(f"--vary {text}: {part or 'nothing'} is neither a number nor a word")
    return value


def _span(text: str, listed: str) -> tuple[Value, ...]:
    try:
        first, last, step = (_number(part) for part in listed.split(":"))
        if not step > 0 or not last >= first or math.isinf(last - first):
            raise ValueError
    except ValueError:
        raise FabricFileError(
            f"--vary {text}: a span is FIRST:LAST:STEP, with LAST at least FIRST, and STEP above 0"
        ) from None
    count = int((last - first) / step * (1 + 1e-12) + 1e-9) + 1
    if count > MOST_POINTS:
        raise FabricFileError(f"--vary {text}: {count:,} values; at most {MOST_POINTS:,}")
    values = (first + i * step for i in range(count))
    return tuple(n if isinstance(n, int) else round(n, 12) for n in values)


def _number(part: str) -> int | float:
    try:
        return int(part)
    except ValueError:
        return float(part)


def points(variations: Sequence[Variation], seeds: int, first_seed: int = 0) -> list[Point]:
    """All combinations of values, each with so many seeds."""
    names = [variation.key for variation in variations]
    for name in names:
        if names.count(name) > 1 or name in FIXED:
            raise FabricFileError(f"--vary {name}: vary each key once, and seeds by --seeds")
    total = seeds
    for variation in variations:
        total *= len(variation.values)
    if total > MOST_POINTS:
        raise FabricFileError(f"{total:,} runs: at most {MOST_POINTS:,}")
    keys = [variation.key for variation in variations]
    return [
        Point(tuple(zip(keys, values, strict=True)), seed)
        for values in itertools.product(*(variation.values for variation in variations))
        for seed in range(first_seed, first_seed + seeds)
    ]


# --- setting values ---------------------------------------------------------------------------------------------


def varied(text: str, path: str, point: Point) -> FabricFile:
    """The fabric file with a point's values in it.  Raises `FabricFileError`: also for a key that is nowhere."""
    data = parse_data(text, path)
    for key, value in point.values:
        if not _set(data, key, value):
            raise FabricFileError(
                f"--vary {key}: {path} has no such key; a dotted one is set even if it is not there"
            )
    data["seed"] = point.seed
    changed = yaml.safe_dump(data, sort_keys=False)
    try:
        return parse_fabric(changed, path)
    except FabricFileError as error:
        given = ", ".join(f"{key}={value}" for key, value in point.values)
        raise FabricFileError(f"with {given}: {str(error).splitlines()[0].split(': ', 1)[-1]}") from None


def _set(data: Any, key: str, value: Value) -> bool:
    parts = key.split(".")
    if len(parts) == 1:
        return _set_everywhere(data, key, value)
    for part in parts[:-1]:
        data = _child(data, part)
        if data is None:
            return False
    if isinstance(data, dict):
        data[parts[-1]] = value
        return True
    return False


def _child(data: Any, part: str) -> Any:
    if isinstance(data, dict):
        return data.get(part)
    if isinstance(data, list):
        if part.isdigit():
            return data[int(part)] if int(part) < len(data) else None
        return next((item for item in data if isinstance(item, dict) and item.get("name") == part), None)
    return None


def _set_everywhere(data: Any, key: str, value: Value) -> bool:
    found = False
    if isinstance(data, dict):
        if key in data and not isinstance(data[key], dict | list):
            data[key] = value
            found = True
        data = list(data.values())
    for item in data if isinstance(data, list) else ():
        found |= _set_everywhere(item, key, value)
    return found


# --- running ----------------------------------------------------------------------------------------------------


def run_point(text: str, path: str, point: Point) -> list[dict[str, Any]]:
    """Run a point in virtual time: a record for each workload, of its values, its seed and its numbers."""
    fabric = varied(text, path, point)
    result = run_virtual(fabric, NoWatcher(), capture=None, data=None, folder=Path(path).parent)
    records = []
    for outcome in result.outcomes:
        numbers = {key: v for key, v in outcome.facts.items() if isinstance(v, int | float | bool)}
        records.append(
            {
                **dict(point.values),
                "seed": point.seed,
                "workload": outcome.name,
                "ok": outcome.ok and result.balanced,
                "verdict": outcome.verdict,
                **numbers,
            }
        )
    return records


class Results:
    """What a study has found so far, in a folder: a file for each point, written whole or not at all."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self._parts = folder / "points"
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            copy = folder / "fabric.yaml"
            if copy.exists() and copy.read_text(encoding="utf-8") != text:
                raise SystemLimitError(
                    f"{folder} holds a study of another fabric file: choose another folder with --out"
                )
            copy.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SystemLimitError(f"{folder} cannot be written: {error.strerror or error}") from None

    def _part(self, point: Point) -> Path:
        return self._parts / f"{point.name}.json"

    def missing(self, wanted: Sequence[Point]) -> list[Point]:
        """The points that have not been run."""
        return [point for point in wanted if not self._part(point).exists()]

    def add(self, point: Point, records: list[dict[str, Any]]) -> None:
        """Keep a point's records."""
        path = self._part(point)
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(records))
        os.replace(draft, path)

    def records(self, wanted: Sequence[Point]) -> Iterator[dict[str, Any]]:
        """All records of these points, in their order."""
        for point in wanted:
            path = self._part(point)
            if path.exists():
                yield from json.loads(path.read_text())

    def write_table(self, wanted: Sequence[Point], text: bool = False) -> Path:
        """Write the records as Parquet (text: as CSV too), a column for each key; returns the Parquet file."""
        arrow, parquet = _arrow()
        columns = columns_of(list(self.records(wanted)))
        path = self.folder / "results.parquet"
        draft = path.with_suffix(".tmp")
        parquet.write_table(arrow.table(columns), draft)
        os.replace(draft, path)
        if text:
            with (self.folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
        return path


def _arrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise SystemLimitError("pyarrow is not installed: pip install 'verbena[sweep]'") from None


def columns_of(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Records by column, each of one type: numbers, or else text; None where a record has no such key."""
    found: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record.get(key) for record in records]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        found[key] = values
    return found
