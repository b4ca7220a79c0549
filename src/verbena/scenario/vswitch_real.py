"""A switch file's workloads in real time: a network namespace for the aggregator and each worker, joined by the TAP
ports of a real switch, which is a process of its own, as `verbena vswitch up` makes it.

**Lossless**: the aggregator's output has the thresholds that the same workload has in virtual time, and producers are
paced.  **Lossy**: a plain queue of the same size, which drops.  Both ways no more than `rate_gbps` goes out to the
aggregator.  What is lost is counted wherever it happens: in the switch, in the kernel's devices, in the sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from verbena.errors import SystemLimitError, VerbenaError
from verbena.runtime.registry import SWITCHES
from verbena.runtime.socket_loop import SocketLoop, Station
from verbena.runtime.socket_work import BackgroundFlows, TcpQueries, UdpQueries
from verbena.runtime.tap import missing_permission
from verbena.scenario.vswitch_report import Side, random_of
from verbena.scenario.vswitch_schema import QueryModel
from verbena.vswitch.cluster import MAX_FRAME

INTERFACE = "eth0"
UP = "Ctrl-C ends it"
QUERY_LIMIT_NS = 60_000_000_000
"""Longer than the kernel's timers double within a query that goes on at all."""
LEAST_PATIENCE_NS, DEADLINES = 1_000_000_000, 10
"""A query over UDP is given up after so many deadlines, but not sooner than that."""
USUAL_RTO_MS = 200.0
END_WITHIN_S = 30.0
TROUBLE = {"TcpExt.TCPTimeouts": "timeouts", "Tcp.RetransSegs": "retransmitted"}


def problem(model: QueryModel) -> str | None:
    """What of a workload cannot be done in real time; None: all of it can."""
    if model.mark_bytes:
        return f"{model.name}: mark_bytes: frames are marked in virtual time only"
    return None


def run_query(model: QueryModel, seed: int, lossless: bool) -> Side:
    """All runs of a workload at one switch.

    Raises `SystemLimitError` where the system does not let it, `VerbenaError` when a query does not end.
    """
    told = problem(model) or missing_permission()
    if told is not None:
        raise SystemLimitError(told)
    name = f"verbena-work-{os.getpid()}"
    stations = [Station("aggregator", f"{name}-0", "10.74.0.1")]
    stations += [
        Station(f"worker{n}", f"{name}-{n}", f"10.74.0.{n + 1}") for n in range(1, model.workers + 1)
    ]
    side = Side()
    with _up(name, switch_file(name, model, stations, lossless)):
        for station in stations:
            _prepare(station, model)
        # What is dropped while the devices come up is not the workload's.
        before = SWITCHES.ask(name)["kernel_losses"]
        in_time = answers = 0
        for run in range(model.runs):
            counted = _run(model, seed, run, stations, side)
            in_time, answers = in_time + counted[0], answers + counted[1]
        side.in_time = in_time / answers
        for station in stations:
            counters = station.counters()
            for key, attribute in TROUBLE.items():
                setattr(side, attribute, getattr(side, attribute) + counters[key])
            dropped = counters["Udp.RcvbufErrors"]
            side.add_lost({f"socket of {station.name}": dropped} if dropped else {})
        status = SWITCHES.ask(name)
        side.add_lost(status["losses"])
        for place, number in status["kernel_losses"].items():
            dropped = number - before.get(place, 0)
            side.add_lost({f"kernel, {place}": dropped} if dropped else {})
    return side


def _run(model: QueryModel, seed: int, run: int, stations: Sequence[Station], side: Side) -> tuple[int, int]:
    """One run; (answers in time, answers)."""
    with contextlib.closing(SocketLoop()) as loop:
        work = _work(model, loop, stations)
        flows = _background(model, loop, stations, seed, run)
        work.start()
        if flows is not None:
            flows.start()
        try:
            loop.run(lambda: work.done, QUERY_LIMIT_NS * model.queries)
            if flows is not None:
                flows.stop()
                loop.run(lambda: not flows.open, QUERY_LIMIT_NS)
        except TimeoutError:
            raise VerbenaError(f"{model.name}: the queries do not end") from None
        side.queries_ns += work.times.queries_ns
        side.flows_ns += work.times.flows_ns
        side.background_ns += flows.times.flows_ns if flows is not None else []
        side.incomplete += work.incomplete
        return work.times.in_time, work.times.answers


def _work(model: QueryModel, loop: SocketLoop, stations: Sequence[Station]) -> TcpQueries | UdpQueries:
    more = {
        "response_bytes": model.response_bytes,
        "queries": model.queries_a_run,
        "deadline_ns": int(model.deadline_ms * 1e6),
    }
    if model.transport == "udp":
        give_up_ns = max(LEAST_PATIENCE_NS, DEADLINES * more["deadline_ns"])
        return UdpQueries(loop, stations[0], stations[1:], give_up_ns=give_up_ns, **more)
    return TcpQueries(loop, stations[0], stations[1:], congestion=model.congestion, **more)


def _background(
    model: QueryModel, loop: SocketLoop, stations: Sequence[Station], seed: int, run: int
) -> BackgroundFlows | None:
    if model.background is None or model.workers < 2:
        return None
    return BackgroundFlows(
        loop,
        random_of(model, seed, run, " background"),
        stations[1:],
        mean_gap_ns=model.background.mean_gap_us * 1_000,
        sizes=model.background.sizes,
        congestion=model.congestion,
    )


def _prepare(station: Station, model: QueryModel) -> None:
    """What the workload says of TCP, set in a station's network."""
    if not model.tail_loss_probe:
        station.set("ipv4.tcp_early_retrans", "0")
    if model.min_rto_ms != USUAL_RTO_MS:
        route = ["route", "change", "10.74.0.0/24", "dev", INTERFACE, "src", station.address]
        command = ["ip", "-n", station.namespace, *route, "rto_min", f"{model.min_rto_ms:g}ms"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise SystemLimitError("min_rto_ms needs the program ip (package iproute2)") from None
        if done.returncode:
            raise SystemLimitError(f"min_rto_ms cannot be {model.min_rto_ms:g}: {done.stderr.strip()}")


# --- the switch -----------------------------------------------------------------------------------------------------


def switch_file(name: str, model: QueryModel, stations: Sequence[Station], lossless: bool) -> dict[str, Any]:
    """What `verbena vswitch up` gets: thresholds as `vswitch.cluster.Cluster` has them."""
    room = model.buffer_bytes
    frames = room // 60 + 2
    # One more frame may come when the queue is just below its mark.
    high = room - MAX_FRAME if lossless else room
    output = {"low": frames, "high": frames + 1, "room": frames + 1}
    output |= {"low_bytes": high // 2, "high_bytes": high, "room_bytes": room}
    ports = [
        {
            "name": station.name,
            "kind": "tap",
            "interface": INTERFACE,
            "namespace": station.namespace,
            "addresses": [f"{station.address}/24"],
            "paced": lossless,
            "output": output,
            "rate_gbps": model.worker_gbps if number else model.rate_gbps,
        }
        for number, station in enumerate(stations)
    ]
    return {"name": name, "vswitch": {"live": {"lossless": [0] if lossless else [], "ports": ports}}}


@contextlib.contextmanager
def _up(name: str, file: dict[str, Any]) -> Iterator[None]:
    """A switch in a process of its own while the context lasts; afterwards nothing of it is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "switch.json")  # JSON is YAML
        path.write_text(json.dumps(file))
        command = [sys.executable, "-m", "verbena.cli.main", "vswitch", "up", str(path)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _wait_until_up(process)
            yield
        finally:
            process.terminate()
            try:
                process.communicate(timeout=END_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                SWITCHES.end(name)


def _wait_until_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    while UP not in (line := process.stdout.readline()):
        if not line:
            raise SystemLimitError(f"the switch does not come up: {process.stderr.read().strip()}")
