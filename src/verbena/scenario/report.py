"""The run folder: what a run leaves behind.

report.md (to read), report.json (the same for programs), counters.json (of each adapter), ports.json (of the fabric's
ports, if there is one), memory.json (of hosts with modelled memory), capture.pcapng (if wanted), and throughput.svg
where matplotlib is installed (`plot`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verbena.errors import SystemLimitError
from verbena.scenario import plot
from verbena.scenario.fabric_schema import FabricModel
from verbena.scenario.outcome import Outcome, RunResult, duration
from verbena.scenario.schema import Adapter, FabricFile

CAPTURE = "capture.pcapng"
MEMORY = "memory.json"
PICTURE = "throughput.svg"
MOST_HOSTS = 64
MOST_PORTS = 50


def make_folder(wanted: str | None, name: str) -> Path:
    """The run folder: `wanted`, or a new one under runs/.  Raises `SystemLimitError`."""
    path = Path(wanted) if wanted is not None else Path("runs") / name
    try:
        number = 1
        while wanted is None and path.exists():
            number += 1
            path = path.with_name(f"{name}-{number}")
        path.mkdir(parents=True, exist_ok=wanted is not None)
    except OSError as error:
        raise SystemLimitError(f"the run folder {path} cannot be made: {error.strerror or error}") from None
    return path


def write_report(folder: Path, fabric: FabricFile, result: RunResult) -> None:
    """Write everything but the capture, which is there already.  Raises `SystemLimitError`."""
    try:
        (folder / "counters.json").write_text(json.dumps(result.counters, indent=1, sort_keys=True) + "\n")
        (folder / "report.json").write_text(json.dumps(as_data(fabric, result), indent=1) + "\n")
        if result.memory:
            (folder / MEMORY).write_text(json.dumps(result.memory, indent=1) + "\n")
        if result.ports:
            ports = json.dumps(result.ports, indent=1, sort_keys=True)
            (folder / "ports.json").write_text(ports + "\n")
        picture = plot.draw(result, folder / PICTURE)
        (folder / "report.md").write_text("\n".join(_markdown(fabric, result, picture)) + "\n")
    except OSError as error:
        raise SystemLimitError(f"the report cannot be written: {error}") from None


def as_data(fabric: FabricFile, result: RunResult) -> dict[str, Any]:
    """The report as JSON has it; times in nanoseconds."""
    return {
        "name": result.name,
        "time": result.time,
        "seed": result.seed,
        "ok": result.ok,
        "simulated_ns": result.simulated_ns,
        "workloads": [outcome.as_data() for outcome in result.outcomes],
        "capture": None
        if result.captured is None
        else {"file": CAPTURE, "packets": result.captured, "left_out": result.not_captured},
        "warnings": result.warnings,
        "balance": [{"what": what, "left": left, "right": right} for what, left, right in result.balance],
        "fabric": fabric.model_dump(mode="json", by_alias=True),
    }


def drops_by_reason(result: RunResult) -> list[tuple[str, str, int]]:
    """Adapter, reason and number of everything that was dropped or broken on purpose."""
    return [
        (adapter, name, value)
        for adapter, counters in result.counters.items()
        for name, value in sorted(counters.items())
        if value and (name.startswith("drop.") or name in BROKEN)
    ]


BROKEN = ("faults.lost", "faults.duplicated", "faults.reordered", "faults.damaged", "faults.delayed")


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table in Markdown, and an empty one."""
    columns = list(head)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    return [*lines, ""]


def _markdown(fabric: FabricFile, result: RunResult, picture: bool) -> list[str]:
    how = "real time" if result.time == "real" else "virtual time"
    lines = [f"# Run of {result.name}: {'everything right' if result.ok else 'NOT everything right'}", ""]
    lines += [f"In {how}, seed {result.seed}."]
    if result.simulated_ns is not None:
        lines += [f"Simulated time: {duration(result.simulated_ns)}."]
    lines += ["", *(f"**Warning:** {sentence}." for sentence in result.warnings)]
    lines += ["", "## Workloads", ""]
    lines += markdown_table(
        ("workload", "what", "bytes", "time", "rate", "verdict"),
        (
            (
                outcome.name,
                row.what,
                f"{row.bytes:,}" if row.bytes or not at else "",
                duration(row.ns),
                row.rate,
                "" if at else outcome.verdict,
            )
            for outcome in result.outcomes
            for at, row in enumerate(outcome.rows)
        ),
    )
    for outcome in result.outcomes:
        lines += _details(outcome)
    if picture:
        lines += [f"![Throughput and latency]({PICTURE})", ""]
    else:
        lines += ["(With matplotlib installed, a picture would stand here.)", ""]
    lines += ["## The fabric", ""]
    lines += markdown_table(
        ("host", "adapter", "address", "MTU", "acknowledges"),
        (
            (host.name, adapter.name, _place(adapter, result.time), adapter.mtu, adapter.ack_policy)
            for host in fabric.hosts[:MOST_HOSTS]
            for adapter in host.adapters
        ),
    )
    if len(fabric.hosts) > MOST_HOSTS:
        lines += [f"… and {len(fabric.hosts) - MOST_HOSTS:,} more hosts.", ""]
    if fabric.fabric is not None:
        lines += [_joined_by(fabric.fabric), "", "## Packets", ""]
        return lines + _counters(result) + _ports(result) + _capture(result)
    wire = fabric.wire
    faults = ", ".join(f"{name} {value:g}" for name, value in wire.faults.model_dump().items() if value)
    if result.time == "virtual":
        lines += [f"Wire: {wire.rate_bps / 1e9:g} Gb/s, {duration(wire.delay_ns)} of delay."]
    lines += [f"Faults: {faults if wire.faults.any else 'none'}.", "", "## Packets", ""]
    lines += _counters(result)
    return lines + _capture(result)


def _details(outcome: Outcome) -> list[str]:
    """What a workload found beside its rows: tables of facts; of traffic also the single numbers."""
    lines: list[str] = []
    if outcome.kind == "traffic":
        numbers = [(k, _number(v)) for k, v in outcome.facts.items() if isinstance(v, int | float)]
        lines += [f"{outcome.name}:", "", *markdown_table(("", ""), numbers)]
    for name, value in outcome.facts.items():
        if isinstance(value, dict) and value:
            pairs = [(key, _number(each)) for key, each in value.items()]
            lines += [f"{outcome.name}, {name}:", "", *markdown_table(("", ""), pairs)]
        elif isinstance(value, list) and value:
            rows = [[_number(cell) for cell in each.values()] for each in value]
            lines += [f"{outcome.name}, {name}:", "", *markdown_table(value[0], rows)]
    return lines


def _number(value: Any) -> Any:
    """Numbers as a person reads them."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) and abs(value) < 1e6 else value


def _place(adapter: Adapter, time: str) -> str:
    return "on the fabric" if adapter.address is None else adapter.address.at(time)


def _joined_by(model: FabricModel) -> str:
    """A sentence about the fabric."""
    source = model.generate or model.dump or "by hand"
    given = "".join(f" {key}={value}" for key, value in model.parameters.items())
    switching = "cut-through" if model.cut_through else "store and forward"
    return (
        f"Topology: {source}{given}; routing {model.routing}; {model.lanes} data lanes of "
        f"{model.buffer_bytes:,} bytes; switches {model.switch_latency_ns} ns, {switching}."
    )


def _counters(result: RunResult) -> list[str]:
    names = sorted(
        {name for counters in result.counters.values() for name, value in counters.items() if value}
    )
    adapters = list(result.counters)
    lines = markdown_table(
        ("counter", *adapters),
        ((name, *(f"{result.counters[a].get(name, 0):,}" for a in adapters)) for name in names),
    )
    if result.balance:
        lines += ["Every packet is accounted for:" if result.balanced else "PACKETS ARE MISSING:", ""]
        lines += markdown_table(
            ("what", "left", "right"), ((w, f"{a:,}", f"{b:,}") for w, a, b in result.balance)
        )
    return lines


TROUBLE = ("drop", "bit_errors", "flit_", "link_downed", "link_recovered", "replays", "buffer_overrun")


def _ports(result: RunResult) -> list[str]:
    """The fabric's ports at which something was dropped, broken or repaired; all counters are in ports.json."""
    rows = [
        (port, name, f"{value:,}")
        for port, counted in result.ports.items()
        for name, value in counted.items()
        if name.startswith(TROUBLE)
    ]
    if not rows:
        return []
    shown = markdown_table(("port", "counter", ""), rows[:MOST_PORTS])
    more = [f"… and {len(rows) - MOST_PORTS:,} more, in ports.json.", ""] if len(rows) > MOST_PORTS else []
    return ["Ports where something was lost or mended:", "", *shown, *more]


def _capture(result: RunResult) -> list[str]:
    if result.captured is None:
        return ["Nothing was captured."]
    lines = [f"[{CAPTURE}]({CAPTURE}) has {result.captured:,} packets, each as its adapter sent it."]
    if result.not_captured:
        lines += [
            f"It ends there: {result.not_captured:,} more were sent (`capture: packets:` sets the limit)."
        ]
    return [*lines, f"`verbena dump {CAPTURE}` and Wireshark read it."]
