"""`verbena run FILE`: builds what a fabric file declares, runs its workloads, says how they ended."""

from __future__ import annotations

import sys
import time as clock
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from verbena import _pure
from verbena.errors import FabricFileError, SystemLimitError, VerbenaError
from verbena.scenario.builder import open_input
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.load import load_fabric
from verbena.scenario.outcome import NoWatcher, RunResult, Watcher, duration
from verbena.scenario.real import run_real
from verbena.scenario.report import CAPTURE, drops_by_reason, make_folder, write_report
from verbena.scenario.schema import FabricFile, FileTransfer
from verbena.scenario.virtual import run_virtual

EXIT_OK, EXIT_FAILED, EXIT_WRONG_USE, EXIT_INTERRUPTED = 0, 1, 2, 130


def run(
    file: str,
    *,
    time: str = "virtual",
    input: str | None = None,
    out: str | None = None,
    seed: int | None = None,
    capture: bool | None = None,
    quiet: bool = False,
) -> int:
    """Run a fabric file and return the exit status.

    time: "real" or "virtual".  input: the file to transfer.  out: the run folder.  seed, capture: instead of what the
    fabric file says.  quiet: only the results.

    0: every workload did what it should; 1: one did not, or the run failed; 2: the fabric file or the input is wrong.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        fabric = _prepare(file, time, input, seed)
    except FabricFileError as error:
        return _say(str(error), EXIT_WRONG_USE)
    except SystemLimitError as error:
        return _say(f"verbena run: {error}", EXIT_WRONG_USE)
    try:
        started = clock.strftime("%Y%m%d-%H%M%S")
        folder = make_folder(out, f"{fabric.name}-{time}-{started}")
        wanted = fabric.capture.enabled if capture is None else capture
        result = _run(file, fabric, time, input, folder, wanted, _watcher(fabric, console, quiet))
        write_report(folder, fabric, result)
    except VerbenaError as error:
        return _say(f"verbena run: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("verbena run: interrupted", EXIT_INTERRUPTED)
    _print(console, result, folder)
    return EXIT_OK if result.ok else EXIT_FAILED


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _prepare(file: str, time: str, input: str | None, seed: int | None) -> FabricFile:
    if time not in ("real", "virtual"):
        raise SystemLimitError(f"--time {time}: real or virtual")
    fabric = load_fabric(file, _warn)
    if not fabric.workloads:
        raise SystemLimitError(f"{file} has no workloads to run; verbena lan up brings its LAN up")
    if time == "real" and any(isinstance(workload, Traffic) for workload in fabric.workloads):
        raise SystemLimitError("--time real: traffic without bytes runs in virtual time only")
    if seed is not None:
        if not 0 <= seed < 1 << 64:
            raise SystemLimitError(f"--seed {seed}: from 0 to 2^64 - 1")
        fabric = fabric.model_copy(update={"seed": seed})
    if input is not None:
        open_input(input)  # to say at once what is wrong with it
        if not any(isinstance(workload, FileTransfer) for workload in fabric.workloads):
            raise SystemLimitError(
                f"--input: {file} has no workload of kind file-transfer that could send it"
            )
    return fabric


def _run(
    file: str,
    fabric: FabricFile,
    time: str,
    input: str | None,
    folder: Path,
    capture: bool,
    watcher: Watching,
) -> RunResult:
    path = folder / CAPTURE if capture else None
    with watcher:
        if time == "virtual":
            data = None if input is None else open_input(input)
            return run_virtual(fabric, watcher, capture=path, data=data, folder=Path(file).parent)
        _pure.say_once()
        return run_real(
            fabric, watcher, folder=folder, capture=path, input_path=input, source=Path(file).parent
        )


# --- while it runs ----------------------------------------------------------------------------------------------


class Watching(Watcher):
    """A watcher that is there only for a while."""

    def __enter__(self) -> Watching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The end of the run."""


class Silent(NoWatcher, Watching):
    """Says nothing."""


@dataclass
class Bars(Watching):
    """Progress bars, for a terminal."""

    console: Console
    _tasks: dict[int, TaskID] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[phase]}"),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=self.console, transient=True)

    def __enter__(self) -> Watching:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, workload: int, name: str) -> None:
        self._names[workload] = name
        self._tasks[workload] = self._bars.add_task(name, total=None, phase="")

    def progress(self, workload: int, phase: str, done: int, total: int, unit: str) -> None:
        self._bars.update(self._tasks[workload], completed=done, total=total, phase=phase)

    def finished(self, workload: int) -> None:
        task = self._tasks[workload]
        self._bars.update(task, completed=1, total=1, phase="")


@dataclass
class Lines(Watching):
    """A line for each workload that begins and each step that ends, where there is no terminal."""

    console: Console
    names: list[str]

    def started(self, workload: int, name: str) -> None:
        self.console.print(f"{name} ...")

    def progress(self, workload: int, phase: str, done: int, total: int, unit: str) -> None:
        if done >= total:
            self.console.print(f"{self.names[workload]}: {phase}, {total:,} {unit}")

    def finished(self, workload: int) -> None:
        """The table says how."""


def _watcher(fabric: FabricFile, console: Console, quiet: bool) -> Watching:
    if quiet:
        return Silent()
    if console.is_terminal:
        return Bars(console)
    return Lines(console, [workload.name for workload in fabric.workloads])


# --- when it has ended ------------------------------------------------------------------------------------------


def _print(console: Console, result: RunResult, folder: Path) -> None:
    how = "real time" if result.time == "real" else f"virtual time, seed {result.seed}"
    table = Table("workload", "what", "bytes", "time", "rate", title=f"{result.name}, {how}")
    for column in table.columns[2:]:
        column.justify = "right"
    for outcome in result.outcomes:
        for at, row in enumerate(outcome.rows):
            name = "" if at else outcome.name
            table.add_row(name, row.what, f"{row.bytes:,}" if row.bytes else "", duration(row.ns), row.rate)
    console.print(table)
    _print_packets(console, result)
    for sentence in result.warnings:
        _warn(sentence)
    for outcome in result.outcomes:
        for sentence in outcome.facts.get("warnings", {}).values():
            _warn(f"{outcome.name}: {sentence}")
    for outcome in result.outcomes:
        console.print(f"{'ok    ' if outcome.ok else 'FAILED'} {outcome.name}: {outcome.verdict}")
    for what, left, right in result.balance:
        if left != right:
            console.print(f"FAILED packets are missing: {what}: {left} is not {right}")
    console.print(f"run folder: {folder}")
    for outcome in result.outcomes:
        for what, value in outcome.facts.get("sha256", {}).items():
            console.print(f"sha256 {what:<9} {value}")


def _print_packets(console: Console, result: RunResult) -> None:
    names = list(result.counters)
    if not names:
        return
    table = Table("packets", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    shown = {"tx.packets": "sent", "rx.packets": "received", "tx.retransmitted": "sent again"}
    reasons = dict.fromkeys(name for _, name, _ in drops_by_reason(result))
    for counter in (*shown, *sorted(reasons)):
        numbers = (f"{result.counters[name].get(counter, 0):,}" for name in names)
        table.add_row(shown.get(counter, counter), *numbers)
    console.print(table)
