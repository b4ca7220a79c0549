"""`verbena sweep FILE --vary KEY=…`: a parameter study on all cores of this machine, or on a Dask cluster."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from verbena.scenario.study import Point, Results, parse_variation, points, run_point, varied

EXIT_OK, EXIT_FAILED, EXIT_WRONG_USE, EXIT_INTERRUPTED = 0, 1, 2, 130
SHOWN = 40


def sweep(
    file: str,
    *,
    vary: Sequence[str],
    seeds: int = 1,
    out: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> int:
    """Run a study and return the exit status.

    vary: ``KEY=FIRST:LAST:STEP`` or ``KEY=VALUE,…``, all combinations.  seeds: runs of each, with seeds from 0 on.
    out: the folder of the study; what is in it already is not run again.  scheduler: address of a Dask scheduler; by
    default `workers` processes here, as many as there are cores.

    0: every run did what it should; 1: one did not; 2: the command line or the file is wrong.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        text = Path(file).read_text(encoding="utf-8")
        variations = [parse_variation(each) for each in vary]
        wanted = points(variations, seeds)
        varied(text, file, wanted[0])
        varied(text, file, wanted[-1])
        results = Results(Path(out) if out is not None else Path("runs") / f"{Path(file).stem}-sweep", text)
    except (FabricFileError, SystemLimitError) as error:
        return _say(str(error), EXIT_WRONG_USE)
    except (OSError, UnicodeDecodeError) as error:
        return _say(f"verbena sweep: {file} cannot be read: {error}", EXIT_WRONG_USE)
    left = results.missing(wanted)
    if len(left) < len(wanted) and not quiet:
        console.print(f"{len(wanted) - len(left)} of {len(wanted)} runs were done before")
    try:
        with _cluster(scheduler, workers) as client:
            failed = _run(client, text, file, left, results, console, quiet)
        table = results.write_table(wanted)
    except VerbenaError as error:
        return _say(f"verbena sweep: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("verbena sweep: interrupted; the same command goes on from here", EXIT_INTERRUPTED)
    records = list(results.records(wanted))
    _print(console, records, [variation.key for variation in variations])
    console.print(f"results: {table}")
    for sentence in failed:
        print(f"verbena sweep: {sentence}", file=sys.stderr)
    return EXIT_OK if not failed and all(record["ok"] for record in records) else EXIT_FAILED


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


@contextmanager
def _cluster(scheduler: str | None, workers: int | None) -> Iterator[Any]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise SystemLimitError("dask.distributed is not installed: pip install 'verbena[sweep]'") from None
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        if scheduler is not None:
            client = distributed.Client(scheduler, timeout=10)
            cluster = None
        else:
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs="error",
            )
            client = distributed.Client(cluster)
    except (OSError, TimeoutError, ValueError) as error:
        raise SystemLimitError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    try:
        yield client
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _run(
    client: Any, text: str, file: str, left: list[Point], results: Results, console: Console, quiet: bool
) -> list[str]:
    """Run what is left; returns a sentence for each run that failed."""
    distributed: Any = importlib.import_module("distributed")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    futures = {client.submit(run_point, text, file, point, pure=False): point for point in left}
    failed = []
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("runs", total=len(left))
        for future in distributed.as_completed(list(futures)):
            point = futures[future]
            error = future.exception()
            if error is None:
                results.add(point, future.result())
            else:
                given = ", ".join(f"{key}={value}" for key, value in point.values)
                failed.append(f"{given} seed {point.seed}: {error}")
            future.release()
            bar.advance(task)
    return failed


def _print(console: Console, records: list[dict[str, Any]], keys: list[str]) -> None:
    """The mean of each number over the seeds, for each combination of values."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["workload"], *(record[key] for key in keys)), []).append(record)
    shown = ["throughput_gbps", "accepted_load", "latency_mean_ns", "latency_p99_ns"]
    present = [name for name in shown if any(name in record for record in records)]
    table = Table("workload", *keys, "runs", *present)
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
    return f"{sum(numbers) / len(numbers):,.3f}" if numbers else "-"
