"""`verbena sweep FILE --vary KEY=…`: a parameter study on all cores of this machine, or on a Dask cluster."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from verbena.errors import FabricFileError, SystemLimitError, VerbenaError
from verbena.scenario.load import read_text
from verbena.scenario.study import Point, Results, parse_variation, points, run_point, varied
from verbena.scenario.study_plot import draw_study

EXIT_OK, EXIT_FAILED, EXIT_WRONG_USE, EXIT_INTERRUPTED = 0, 1, 2, 130
SHOWN = 40
AHEAD = 4  # runs that are given to the cluster before one has ended, for each of its threads
WAIT_S = 10
NUMBERS = {  # what the table shows: column, heading, factor, form
    "throughput_gbps": ("Gb/s", 1.0, ",.0f"),
    "accepted_load": ("accepted", 1.0, ".3f"),
    "latency_mean_ns": ("mean, us", 1e-3, ",.2f"),
    "latency_p99_ns": ("99 %, us", 1e-3, ",.2f"),
}


@dataclass
class Study:
    """A study under way: the fabric file's text and path, what is to be run, where the results go."""

    text: str
    path: str
    keys: list[str]
    wanted: list[Point]
    results: Results
    console: Console
    quiet: bool
    failed: list[str] = field(default_factory=list)


def sweep(
    file: str,
    *,
    vary: Sequence[str],
    seeds: int = 1,
    out: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    csv: bool = False,
    quiet: bool = False,
) -> int:
    """Run a study and return the exit status.

    vary: ``KEY=FIRST:LAST:STEP`` or ``KEY=VALUE,…``, all combinations.  seeds: runs of each, with seeds from 0 on.
    out: the folder of the study; what is in it already is not run again.  scheduler: address of a Dask scheduler; by
    default `workers` processes here, as many as there are cores.  csv: write the results as CSV, too.

    0: every run did what it should; 1: one did not; 2: the command line or the file is wrong.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        study = _prepare(file, vary, seeds, out, console, quiet)
        distributed = _distributed()
    except (FabricFileError, SystemLimitError) as error:
        text = str(error)
        return _say(text if text.startswith(file) else f"verbena sweep: {text}", EXIT_WRONG_USE)
    left = study.results.missing(study.wanted)
    if len(left) < len(study.wanted) and not quiet:
        console.print(f"{len(study.wanted) - len(left)} of {len(study.wanted)} runs were done before")
    try:
        if left:
            with _cluster(distributed, scheduler, workers) as client:
                _run(study, distributed, client, left)
        return _finish(study, csv)
    except VerbenaError as error:
        return _say(f"verbena sweep: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        _keep(study, csv)
        return _say("verbena sweep: interrupted; the same command goes on from here", EXIT_INTERRUPTED)


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _prepare(
    file: str, vary: Sequence[str], seeds: int, out: str | None, console: Console, quiet: bool
) -> Study:
    """All that can be wrong before the first run: the file, the keys, the first and last values, the folder."""
    text = read_text(file)
    path = str(Path(file).resolve())
    variations = [parse_variation(each) for each in vary]
    wanted = points(variations, seeds)
    for point in dict.fromkeys((wanted[0], wanted[-1])):
        varied(text, file, point)
    folder = Path(out) if out is not None else Path("runs") / f"{Path(file).stem}-sweep"
    keys = [variation.key for variation in variations]
    return Study(text, path, keys, wanted, Results(folder, text), console, quiet)


# --- the cluster ------------------------------------------------------------------------------------------------


def _distributed() -> Any:
    try:
        importlib.import_module("pyarrow")
        return importlib.import_module("distributed")
    except ImportError as error:
        raise SystemLimitError(f"{error.name} is not installed: pip install 'verbena[sweep]'") from None


@contextmanager
def _cluster(distributed: Any, scheduler: str | None, workers: int | None) -> Iterator[Any]:
    for name in ("distributed", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    cluster = None
    try:
        if scheduler is None:
            with _uninterrupted():
                cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
        client = distributed.Client(cluster or scheduler, timeout=WAIT_S)
    except (OSError, TimeoutError, ValueError) as error:
        where = "on this machine" if scheduler is None else f"at {scheduler}"
        raise SystemLimitError(f"no Dask scheduler answers {where}: {error}") from None
    try:
        yield client
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are started meanwhile are not interrupted from the keyboard: they end when this one says so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(study: Study, distributed: Any, client: Any, left: list[Point]) -> None:
    """Run what is left, and keep each run's results as they come; what fails is noted in `study.failed`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    waiting = iter(left)
    running: dict[Any, Point] = {}

    def submit() -> Any:
        point = next(waiting, None)
        if point is None:
            return None
        future = client.submit(run_point, study.text, study.path, point, pure=False, retries=0)
        running[future] = point
        return future

    threads = sum(client.nthreads().values()) or 1
    first = [future for _ in range(threads * AHEAD) if (future := submit()) is not None]
    ended = distributed.as_completed(first)
    with Progress(*columns, console=study.console, transient=True, disable=study.quiet) as bar:
        task = bar.add_task("runs", total=len(left))
        for future in ended:
            _take(study, future, running.pop(future))
            if (following := submit()) is not None:
                ended.add(following)
            bar.advance(task)


def _take(study: Study, future: Any, point: Point) -> None:
    """Keep what came out of a run."""
    error = future.exception()
    if error is None:
        study.results.add(point, future.result())
    else:
        given = ", ".join(f"{key}={value}" for key, value in point.values)
        study.failed.append(f"{given} seed {point.seed}: {' '.join(str(error).split()) or repr(error)}")
    future.release()


# --- what it found ----------------------------------------------------------------------------------------------


def _keep(study: Study, csv: bool) -> list[dict[str, Any]]:
    """Write table and picture of the runs that were done."""
    records = list(study.results.records(study.wanted))
    if records:
        table = study.results.write_table(study.wanted, csv)
        drawn = draw_study(records, study.keys, table.with_name("study.svg"))
        if not study.quiet:
            study.console.print(f"results: {table}{' and study.svg beside it' if drawn else ''}")
    return records


def _finish(study: Study, csv: bool) -> int:
    records = list(study.results.records(study.wanted))
    if records and not study.quiet:
        _print(study.console, records, study.keys)
    _keep(study, csv)
    for sentence in study.failed:
        print(f"verbena sweep: {sentence}", file=sys.stderr)
    wrong = [record for record in records if not record["ok"]]
    for record in wrong[:SHOWN]:
        given = ", ".join(f"{key}={record[key]}" for key in (*study.keys, "seed"))
        print(f"verbena sweep: {given}: {record['workload']}: {record['verdict']}", file=sys.stderr)
    return EXIT_OK if records and not study.failed and not wrong else EXIT_FAILED


def _print(console: Console, records: list[dict[str, Any]], keys: list[str]) -> None:
    """The mean of each number over the seeds, for each combination of values."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["workload"], *(record[key] for key in keys)), []).append(record)
    present = [name for name in NUMBERS if any(name in record for record in records)]
    table = Table("workload", *keys, "runs", *(NUMBERS[name][0] for name in present))
    for column in table.columns[1:]:
        column.justify = "right"
    for at, (values, members) in enumerate(groups.items()):
        if at == SHOWN:
            table.add_row(f"… {len(groups) - SHOWN} more")
            break
        means = [_mean(members, name) for name in present]
        table.add_row(*(str(value) for value in values), str(len(members)), *means)
    console.print(table)


def _mean(members: list[dict[str, Any]], name: str) -> str:
    numbers = [member[name] for member in members if member.get(name) is not None]
    _, factor, form = NUMBERS[name]
    return f"{factor * sum(numbers) / len(numbers):{form}}" if numbers else "-"
