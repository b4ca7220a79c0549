"""What may stand in a switch file: the ports that `verbena vswitch up` makes, and the path and the workloads that
`verbena vswitch report` runs in virtual time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from verbena.scenario.schema_types import Name, Path, Size, Strict
from verbena.scenario.vswitch_ports import LiveModel, live_problems
from verbena.vswitch.link import KINDS as SIGNALS

Signal = Literal["onoff", "rate", "pfc", "pause", "pcie", "ib"]
assert set(Signal.__args__) == set(SIGNALS)  # type: ignore[attr-defined]

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Gap = Annotated[int, Field(ge=1, le=10**12)]
Rate = Annotated[float, Field(gt=0, le=10_000)]


class PathModel(Strict):
    """From socket to socket: the table of loss points.  bytes: of a frame."""

    machines: Annotated[int, Field(ge=1, le=30)] = 3
    sockets: Annotated[int, Field(ge=1, le=100)] = 1
    frames: Count = 600
    bytes: Annotated[int, Size, Field(ge=60, le=1514)] = 1000
    send_gap_ns: Gap = 1_000
    read_gap_ns: Gap = 5_000
    rate_gbps: Rate = 10.0
    cable_m: Annotated[float, Field(ge=0, le=2_000)] = 20.0


class BackgroundModel(Strict):
    """Flows between the workers meanwhile: exponential gaps, sizes drawn from a list."""

    mean_gap_us: Annotated[int, Field(ge=1, le=10**9)] = 5_000
    sizes: Annotated[
        tuple[Annotated[int, Size, Field(ge=1, le=1 << 30)], ...], Field(min_length=1, strict=False)
    ] = (
        20_000,
        200_000,
    )


class QueryModel(Strict):
    """Workers answer an aggregator.  kind incast: all at once, one query.

    rate_gbps: of the aggregator's port; worker_gbps: of the others.  buffer_bytes: of each output.  mark_bytes: outputs
    mark above it (DCTCP); 0: never.  signal: what stops the workers when the switch is lossless.  runs: with another
    seed each.
    """

    kind: Literal["partition-aggregate", "incast"]
    name: Name
    workers: Annotated[int, Field(ge=1, le=63)] = 16
    response_bytes: Annotated[int, Size, Field(ge=1, le=1 << 28)] = 65_536
    queries: Annotated[int, Field(ge=1, le=10_000)] = 20
    deadline_ms: Annotated[float, Field(gt=0, le=1e6)] = 100.0
    rate_gbps: Rate = 1.0
    worker_gbps: Rate = 10.0
    buffer_bytes: Annotated[int, Size, Field(ge=6_088, le=1 << 30)] = 65_536
    mark_bytes: Annotated[int, Size, Field(ge=0, le=1 << 30)] = 0
    transport: Literal["tcp", "udp"] = "tcp"
    congestion: Literal["reno", "cubic", "dctcp"] = "cubic"
    min_rto_ms: Annotated[float, Field(gt=0, le=60_000)] = 200.0
    tail_loss_probe: bool = True
    signal: Signal = "pfc"
    background: BackgroundModel | None = None
    runs: Annotated[int, Field(ge=1, le=100)] = 1

    @property
    def queries_a_run(self) -> int:
        return 1 if self.kind == "incast" else self.queries

    @property
    def asked(self) -> int:
        """Queries, in all runs."""
        return self.queries_a_run * self.runs


class SwitchSection(Strict):
    """The section ``vswitch``."""

    live: LiveModel | None = None
    path: PathModel | None = None
    workloads: Annotated[tuple[QueryModel, ...], Field(max_length=32, strict=False)] = ()


class SwitchFile(Strict):
    """A switch file."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    vswitch: SwitchSection


def switch_problems(file: SwitchFile) -> Iterable[tuple[Path, str]]:
    """What does not fit together in a switch file."""
    return () if file.vswitch.live is None else live_problems(file.name, file.vswitch.live)
