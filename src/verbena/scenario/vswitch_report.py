"""Runs a switch file, and writes what happened: lossy against lossless, and where frames are lost.

In virtual time here; `vswitch_real` runs the workloads in real time.

A report folder has ``report.md``, ``report.json``, and with matplotlib ``report.svg``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from random import Random
from typing import Any

from verbena.clock import Clock
from verbena.errors import FabricFileError
from verbena.runtime.virtual_time import VirtualTime
from verbena.scenario.load import parse_model, read_text
from verbena.scenario.report import markdown_table
from verbena.scenario.vswitch_plot import draw
from verbena.scenario.vswitch_schema import PathModel, QueryModel, SwitchFile, switch_problems
from verbena.vswitch.cluster import Cluster
from verbena.vswitch.path import LossRow, Path, loss_table
from verbena.vswitch.path_machine import PathConfig
from verbena.vswitch.workloads import Background, DatagramQueries, PartitionAggregate, Times

PICTURE = "report.svg"


@dataclass
class Side:
    """What one switch did with a workload, all runs together.  Times in ns."""

    queries_ns: list[int] = field(default_factory=list)
    flows_ns: list[int] = field(default_factory=list)
    background_ns: list[int] = field(default_factory=list)
    incomplete: int = 0
    lost: int = 0
    lost_at: dict[str, int] = field(default_factory=dict)
    timeouts: int = 0
    retransmitted: int = 0
    in_time: float = 0.0

    def add_lost(self, found: dict[str, int]) -> None:
        """Frames lost, by place."""
        for place, number in found.items():
            self.lost += number
            self.lost_at[place] = self.lost_at.get(place, 0) + number

    @property
    def mean_ms(self) -> float:
        return Times.mean(self.queries_ns) / 1e6

    def percentile_ms(self, share: float) -> float:
        return Times.percentile(self.queries_ns, share) / 1e6


@dataclass
class Comparison:
    """A workload on a lossy and on a lossless switch."""

    name: str
    model: QueryModel
    lossy: Side
    lossless: Side

    @property
    def speedup(self) -> float | None:
        """Mean completion of a query, lossy over lossless; None: queries were never complete."""
        if self.lossy.incomplete or self.lossless.incomplete:
            return None
        return self.lossy.mean_ms / self.lossless.mean_ms

    @property
    def verdict(self) -> str:
        """A sentence."""
        if self.speedup is None:
            return (
                f"{self.name}: over UDP, queries never complete: {self.lossy.incomplete} lossy, "
                f"{self.lossless.incomplete} lossless"
            )
        more = f" ({self.model.congestion}, minimum retransmission timeout {self.model.min_rto_ms:g} ms)"
        told = "" if self.model.transport == "udp" else more
        return f"{self.name}: {self.speedup:.1f} times sooner without losses{told}"


@dataclass
class Report:
    """All that a switch file asked for."""

    name: str
    seed: int
    losses: list[LossRow]
    comparisons: list[Comparison]
    time: str = "virtual"

    @property
    def when(self) -> str:
        """A sentence."""
        if self.time == "virtual":
            return f"In virtual time, seed {self.seed}."
        return "In real time: the kernel's own TCP and UDP, between network namespaces at a real switch."

    @property
    def ok(self) -> bool:
        """With all controls on, was nothing lost, and did every query end?"""
        whole = all(not row.lost for row in self.losses if not row.off)
        return whole and all(c.lossless.lost == c.lossless.incomplete == 0 for c in self.comparisons)


def load_switch_file(path: str) -> SwitchFile:
    """Read a switch file; raises `FabricFileError` with the lines that are wrong."""
    return parse_model(read_text(path), path, SwitchFile, switch_problems)


RunQuery = Callable[[QueryModel, int, bool], Side]
"""Runs a workload with a seed on a lossless switch, or a lossy one."""


def run_report(
    file: SwitchFile, tell: Callable[[str], None] = lambda _: None, real: RunQuery | None = None
) -> Report:
    """Run everything.  tell: is called with what runs now.  real: runs the workloads, in real time; the path, which is
    there in virtual time only, is then left out.

    Raises `FabricFileError` for a file without workloads in real time, and what `real` raises.
    """
    losses: list[LossRow] = []
    if real is not None and not file.vswitch.workloads:
        raise FabricFileError(f"{file.name}: it has no workloads, and nothing else runs in real time")
    if file.vswitch.path is not None and real is None:
        tell("from socket to socket")
        losses = loss_table(_path_config(file.vswitch.path), _run_path)
    comparisons = []
    for model in file.vswitch.workloads:
        sides = []
        for lossless in (False, True):
            tell(f"{model.name}, {'lossless' if lossless else 'lossy'}")
            sides.append((real or _run_query)(model, file.seed, lossless))
        comparisons.append(Comparison(model.name, model, *sides))
    return Report(file.name, file.seed, losses, comparisons, "virtual" if real is None else "real")


def _path_config(model: PathModel) -> PathConfig:
    return PathConfig(
        machines=model.machines,
        sockets=model.sockets,
        frames=model.frames,
        length=model.bytes,
        send_gap_ns=model.send_gap_ns,
        read_gap_ns=model.read_gap_ns,
        rate_bps=model.rate_gbps * 1e9,
        cable_m=model.cable_m,
    )


def _run_path(build: Callable[[Clock], Path]) -> Path:
    time = VirtualTime()
    path = build(time.clock)
    path.start()
    time.run_until_idle(1_000_000_000)
    return path


def _run_query(model: QueryModel, seed: int, lossless: bool) -> Side:
    side = Side()
    in_time = answers = 0
    for run in range(model.runs):
        time = VirtualTime()
        workers = [f"worker{n}" for n in range(model.workers)]
        rates = dict.fromkeys(workers, model.worker_gbps * 1e9) | {"aggregator": model.rate_gbps * 1e9}
        cluster = Cluster(
            time.clock,
            ["aggregator", *workers],
            rates,
            lossless=lossless,
            buffer_bytes=model.buffer_bytes,
            mark_bytes=model.mark_bytes,
            signal=model.signal,
        )
        work = _work(model, cluster, random_of(model, seed, run), workers)
        background = _background(model, cluster, seed, run)
        work.start()
        if background is not None:
            background.start()
        time.run_until_idle(1_000_000_000)
        times = work.times
        side.queries_ns += times.queries_ns
        side.flows_ns += times.flows_ns
        side.timeouts += times.timeouts
        side.retransmitted += times.retransmitted
        in_time, answers = in_time + times.in_time, answers + times.answers
        side.background_ns += background.times.flows_ns if background else []
        side.add_lost(cluster.lost())
        side.incomplete += work.incomplete if isinstance(work, DatagramQueries) else 0
    side.in_time = in_time / answers
    return side


def random_of(model: QueryModel, seed: int, run: int, what: str = "") -> Random:
    """The stream of one run."""
    return Random(f"{seed} {model.name} {run}{what}")


def _work(
    model: QueryModel, cluster: Cluster, random: Random, workers: list[str]
) -> PartitionAggregate | DatagramQueries:
    incast = model.kind == "incast"
    queries = model.queries_a_run
    deadline_ns, think_ns = int(model.deadline_ms * 1e6), 0 if incast else 50_000
    if model.transport == "udp":
        return DatagramQueries(
            cluster,
            random,
            "aggregator",
            workers,
            response_bytes=model.response_bytes,
            queries=queries,
            deadline_ns=deadline_ns,
            think_ns=think_ns,
        )
    return PartitionAggregate(
        cluster,
        random,
        "aggregator",
        workers,
        response_bytes=model.response_bytes,
        queries=queries,
        deadline_ns=deadline_ns,
        think_ns=think_ns,
        congestion=model.congestion,
        min_rto_ns=int(model.min_rto_ms * 1e6),
        probes=model.tail_loss_probe,
    )


def _background(model: QueryModel, cluster: Cluster, seed: int, run: int) -> Background | None:
    if model.background is None or model.workers < 2:
        return None
    bound_ns = model.workers * model.response_bytes * 8 / model.rate_gbps
    return Background(
        cluster,
        random_of(model, seed, run, " background"),
        [f"worker{n}" for n in range(model.workers)],
        mean_gap_ns=model.background.mean_gap_us * 1_000,
        sizes=model.background.sizes,
        duration_ns=int((bound_ns + 10_000_000) * model.queries),
        congestion=model.congestion,
        min_rto_ns=int(model.min_rto_ms * 1e6),
    )


# --- what is written ----------------------------------------------------------------------------------------------


def loss_lines(losses: list[LossRow]) -> list[tuple[str, ...]]:
    """The table of loss points: what is off, sent, delivered, sends that waited, lost and where."""
    lines: list[tuple[str, ...]] = []
    for row in losses:
        off = "nothing" if not row.off else row.off[0] if len(row.off) == 1 else "everything"
        where = ", ".join(f"{place} {count:,}" for place, count in row.lost.items()) or "-"
        lines.append((off, f"{row.sent:,}", f"{row.delivered:,}", f"{row.blocked:,}", where))
    return lines


LOSS_HEAD = ("control off", "sent", "delivered", "sends that waited", "lost at")
QUERY_HEAD = ("workload", "switch", "mean", "99 %", "in time", "lost", "sent again", "timeouts")


def query_lines(comparisons: list[Comparison]) -> list[tuple[str, ...]]:
    """A line for each workload and switch."""
    lines: list[tuple[str, ...]] = []
    for each in comparisons:
        for name, side in (("lossy", each.lossy), ("lossless", each.lossless)):
            lines.append(
                (
                    each.name if name == "lossy" else "",
                    name,
                    f"{side.mean_ms:.2f} ms" if side.queries_ns else "never",
                    f"{side.percentile_ms(0.99):.2f} ms" if not side.incomplete else "never",
                    f"{side.in_time:.1%}",
                    f"{side.lost:,}",
                    f"{side.retransmitted:,}",
                    f"{side.timeouts:,}",
                )
            )
    return lines


def write_report(report: Report, folder: FilePath) -> bool:
    """Write the folder; True if there is a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = draw(report, folder / PICTURE)
    (folder / "report.json").write_text(json.dumps(as_data(report), indent=2) + "\n")
    lines = [f"# {report.name}", "", report.when, ""]
    if report.losses:
        lines += ["## From socket to socket", "", *markdown_table(LOSS_HEAD, loss_lines(report.losses))]
    if report.comparisons:
        lines += ["## Workloads", "", *markdown_table(QUERY_HEAD, query_lines(report.comparisons))]
        lines += [f"{c.verdict}." for c in report.comparisons]
    if picture:
        lines += ["", f"![Completion times and loss points]({PICTURE})"]
    (folder / "report.md").write_text("\n".join(lines).rstrip() + "\n")
    return picture


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        "name": report.name,
        "seed": report.seed,
        "time": report.time,
        "ok": report.ok,
        "losses": [asdict(row) for row in report.losses],
        "workloads": [
            {
                "name": c.name,
                "settings": c.model.model_dump(mode="json"),
                "speedup": c.speedup,
                "lossy": asdict(c.lossy),
                "lossless": asdict(c.lossless),
            }
            for c in report.comparisons
        ],
    }
