"""A run in virtual time: all hosts in this process, nothing by chance, every packet accounted for at the end."""

from __future__ import annotations

from pathlib import Path

from verbena.runtime.fabric import Fabric
from verbena.runtime.virtual import VirtualNetwork
from verbena.scenario.board import Board
from verbena.scenario.builder import Data, Stage
from verbena.scenario.capture import Recorder
from verbena.scenario.fabric_run import fabric_balance, port_counters, settle
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.outcome import Outcome, RunResult, Watcher
from verbena.scenario.programs import judge
from verbena.scenario.schema import FabricFile
from verbena.scenario.simulation import simulate


def run_virtual(
    fabric: FabricFile,
    watcher: Watcher,
    *,
    capture: Path | None,
    data: Data | None,
    folder: Path = Path(),
) -> RunResult:
    """Run a fabric file's workloads.  capture: the file that packets are written to.  folder: where the file is."""
    if all(isinstance(spec, Traffic) for spec in fabric.workloads):
        outcomes, balance = _traffic(fabric, watcher, folder)
        result = _result(fabric, outcomes)
        result.balance = balance
        return result
    recorder = None if capture is None else Recorder(capture, fabric.capture.packets)
    hosts = [host.name for host in fabric.hosts]
    try:
        with Stage(
            fabric, hosts, Board(), watcher, real=False, recorder=recorder, data=data, folder=folder
        ) as stage:
            assert stage.net is not None
            played = stage.net.run(stage.run())
            simulated = stage.net.now
            if isinstance(stage.net, Fabric):
                settle(stage.net)
                balance = fabric_balance(stage.net)
            else:
                stage.net.run_until_idle()
                balance = _balance(stage, stage.net)
            outcomes, more = _traffic(fabric, watcher, folder)
            for number, spec in enumerate(fabric.workloads):
                if not isinstance(spec, Traffic):
                    outcomes[number] = judge(spec, played.pop(0))
            result = _result(fabric, outcomes)
            result.counters = stage.counters()
            result.captured = None if recorder is None else recorder.written
            result.not_captured = 0 if recorder is None else recorder.left_out
            result.simulated_ns = simulated
            result.balance = [*balance, *more]
            result.warnings = stage.warnings
            result.memory = stage.views
            if isinstance(stage.net, Fabric):
                result.ports = port_counters(stage.net)
            return result
    finally:
        if recorder is not None:
            recorder.close()


Balance = list[tuple[str, int, int]]


def _traffic(fabric: FabricFile, watcher: Watcher, folder: Path) -> tuple[dict[int, Outcome], Balance]:
    """The outcomes of the traffic workloads, by their numbers, and their balances; each runs in a fabric of its own."""
    found = {}
    balance: Balance = []
    for number, spec in enumerate(fabric.workloads):
        if isinstance(spec, Traffic):
            assert fabric.fabric is not None
            watcher.started(number, spec.name)
            topology = build_topology(fabric, folder)
            found[number], lines = simulate(
                topology, fabric.fabric, spec, fabric.seed, watcher, number, folder
            )
            balance += lines
            watcher.finished(number)
    return found, balance


def _result(fabric: FabricFile, outcomes: dict[int, Outcome]) -> RunResult:
    ordered = [outcomes[number] for number in sorted(outcomes)]
    return RunResult(fabric.name, "virtual", fabric.seed, ordered, counters={})


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
