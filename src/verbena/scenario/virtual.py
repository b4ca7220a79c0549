"""A run in virtual time: all hosts in this process, nothing by chance, every packet accounted for at the end."""

from __future__ import annotations

from pathlib import Path

from verbena.runtime.virtual import VirtualNetwork
from verbena.scenario.board import Board
from verbena.scenario.builder import Data, Stage
from verbena.scenario.capture import Recorder
from verbena.scenario.outcome import RunResult, Watcher
from verbena.scenario.programs import judge
from verbena.scenario.schema import FabricFile


def run_virtual(
    fabric: FabricFile, watcher: Watcher, *, capture: Path | None, data: Data | None
) -> RunResult:
    """Run a fabric file's workloads.  capture: the file that packets are written to."""
    recorder = None if capture is None else Recorder(capture, fabric.capture.packets)
    hosts = [host.name for host in fabric.hosts]
    try:
        with Stage(fabric, hosts, Board(), watcher, real=False, recorder=recorder, data=data) as stage:
            assert stage.net is not None
            seen = stage.net.run(stage.run())
            simulated = stage.net.now
            stage.net.run_until_idle()
            return RunResult(
                name=fabric.name,
                time="virtual",
                seed=fabric.seed,
                outcomes=[judge(spec, each) for spec, each in zip(fabric.workloads, seen, strict=True)],
                counters=stage.counters(),
                captured=None if recorder is None else recorder.written,
                not_captured=0 if recorder is None else recorder.left_out,
                simulated_ns=simulated,
                balance=_balance(stage, stage.net),
            )
    finally:
        if recorder is not None:
            recorder.close()


def _balance(stage: Stage, net: VirtualNetwork) -> list[tuple[str, int, int]]:
    """What went in and what came out, from adapter to adapter: each pair of numbers must be equal."""
    counters = stage.counters().values()
    wires = net.wires.values()
    lines = [("adapters sent = ", sum(c["tx.packets"] for c in counters), sum(wire.sent for wire in wires))]
    if stage.injectors:
        does = [injector.counters for injector in stage.injectors.values()]
        into = sum(c["sent"] + c["duplicated"] for c in does)
        out = sum(c["passed"] + c["lost"] for c in does) + sum(i.held for i in stage.injectors.values())
        sent = sum(c["sent"] for c in does)
        passed = sum(c["passed"] for c in does)
        lines = [
            ("adapters sent = faults took in", lines[0][1], sent),
            ("faults took in + doubled = passed + lost", into, out),
            ("faults passed = wires took in", passed, lines[0][2]),
        ]
    else:
        lines = [("adapters sent = wires took in", lines[0][1], lines[0][2])]
    delivered = sum(wire.delivered for wire in wires)
    lines.append(
        (
            "wires took in = delivered + unreachable",
            sum(w.sent for w in wires),
            delivered + sum(w.unreachable for w in wires),
        )
    )
    lines.append(("wires delivered = adapters received", delivered, sum(c["rx.packets"] for c in counters)))
    return lines
