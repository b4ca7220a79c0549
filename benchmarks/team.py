"""Benchmarks of teams: outage at fail-over, balance, overhead, what offload gains, and what a change of path costs.

`balance` is in virtual time.  `failover_ms` and `overhead` need the right to make namespaces, and are left out without
it: two namespaces joined by veth pairs, a team in each (LACP between them), each in a process of its own.
`offload_gain` and `migrate_ms` take two processes over loopback.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from verbena.runtime.direct import DirectNode
from verbena.runtime.tap import missing_permission
from verbena.runtime.virtual_ethernet import VirtualCard, VirtualSwitch
from verbena.runtime.virtual_time import VirtualTime
from verbena.team.balance import Mode
from verbena.team.config import TeamConfig
from verbena.team.driver import IntermediateDriver
from verbena.team.offload.states import Path as Way
from verbena.team.stack.host import HostStack
from verbena.team.trace import PathTrace

HERE = Path(__file__).parent
MILLISECOND = 1_000_000
PIECE = 1 << 20


def _row(
    name: str, value: float, unit: str, baseline: float | None = None, ratio: float | None = None
) -> dict[str, Any]:
    return {"name": f"team.{name}", "value": value, "unit": unit, "baseline": baseline, "ratio": ratio}


# --- virtual time ------------------------------------------------------------------------------------------------


def _throughput(members: int, flows: int = 24, rate: float = 100e6) -> float:
    """Bits a second that TCP streams get over so many members, to one neighbour with a faster card."""
    net = VirtualTime()
    queue = 30 * MILLISECOND
    switch = VirtualSwitch(net.clock, rate_bps=rate, queue_ns=queue)
    config = TeamConfig(mode=Mode.MONITORED_FLOW)
    driver = IntermediateDriver(net.clock, config, PathTrace(net.clock), bytes.fromhex("020000000100"))
    for i in range(members):
        card = VirtualCard(net.clock, f"nic{i}", bytes((2, 0, 0, 0, 1, i + 1)), rate_bps=rate, queue_ns=queue)
        switch.plug(card)
        driver.add(card)
    fast = VirtualCard(net.clock, "fast", bytes.fromhex("020000000200"), rate_bps=20 * rate, queue_ns=queue)
    switch.plug(fast)
    here, there = HostStack(net.clock, Random(1)), HostStack(net.clock, Random(2))
    interface = here.bind(driver.team.cards[0], "10.0.0.1/24")
    far = there.bind(fast, "10.0.0.2/24")
    count = 0

    def accept(connection: Any, peer: object) -> None:
        def come() -> None:
            nonlocal count
            count += len(connection.read())

        connection.on_change = come

    there.listen(far, 80, accept)
    for _ in range(flows):
        connection = here.connect(interface, ("10.0.0.2", 80))

        def fill(connection: Any = connection) -> None:
            if connection.is_established and connection.room:
                connection.write(bytes(min(connection.room, 65_536)))

        connection.on_change = fill
    net.run_for(300 * MILLISECOND)
    begun = count
    net.run_for(800 * MILLISECOND)
    return (count - begun) * 8 / 0.8


def balance() -> dict[str, Any]:
    """Throughput of four equal members under 24 flows, against four times one."""
    one, four = _throughput(1), _throughput(4)
    return _row("balance", four / 1e6, "Mb/s (virtual)", 4 * one / 1e6, four / (4 * one))


# --- namespaces --------------------------------------------------------------------------------------------------


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class _Pair:
    """Two namespaces, joined by veth pairs ``a0`` - ``b0``, …, and programs that run in them."""

    def __init__(self, links: int) -> None:
        self.names = [f"vbench{os.getpid()}{end}" for end in "ab"]
        self.programs: list[subprocess.Popen[str]] = []
        for name in self.names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        for i in range(links):
            a, b = self.names
            _run(
                "ip", "link", "add", f"a{i}", "netns", a, "type", "veth", "peer", "name", f"b{i}", "netns", b
            )
            for end, name in zip("ab", self.names, strict=True):
                _run("ip", "-n", name, "link", "set", f"{end}{i}", "up")

    def start(self, end: int, *command: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            ["ip", "netns", "exec", self.names[end], sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.programs.append(program)
        return program

    def wait(self, program: subprocess.Popen[str], text: str, times: int = 1) -> None:
        assert program.stdout is not None
        for line in program.stdout:
            times -= text in line
            if not times:
                return
        raise RuntimeError(f"{program.args} ended without {text!r}")

    def close(self) -> None:
        for program in self.programs:
            program.terminate()
        for program in self.programs:
            program.wait(10)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def _teams(links: int) -> Iterator[_Pair]:
    pair = _Pair(links)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number, end in enumerate("ab"):
                file = Path(folder, f"{end}.yaml")
                members = ", ".join(f"{end}{i}" for i in range(links))
                file.write_text(f"members: [{members}]\nlacp: true\nvlans: {{0: 10.10.0.{number + 1}/24}}\n")
                pair.start(
                    number, "-m", "verbena.cli.main", "team", "up", str(file), "-q", "-c", f"{folder}/{end}"
                )
            for program in list(pair.programs):
                pair.wait(program, "-> ACTIVE", links)
            yield pair
    finally:
        pair.close()


def _busiest(pair: _Pair, links: int) -> str:
    """The cable of the first namespace that sends the most frames: the one that carries the probe."""

    def sent() -> list[int]:
        told = subprocess.run(
            ["ip", "-n", pair.names[0], "-s", "-j", "link"], check=True, capture_output=True, text=True
        )
        counts = {each["ifname"]: each["stats64"]["tx"]["packets"] for each in json.loads(told.stdout)}
        return [counts[f"a{i}"] for i in range(links)]

    before = sent()
    time.sleep(0.3)
    found = [after - count for after, count in zip(sent(), before, strict=True)]
    return f"a{found.index(max(found))}"


def failover_ms() -> list[dict[str, Any]]:
    """The longest time without an answer to a probe of 1,000 Hz around the moment that its cable's link goes down.

    Baseline: the same in spans as long before it, with all cables in: what the machine's scheduling costs.
    """
    if missing_permission():
        return []
    found, usual = [], []
    for _ in range(5):
        with _teams(2) as pair:
            sink = pair.start(1, str(HERE / "team_real.py"), "sink", "10.10.0.2")
            pair.wait(sink, "ready")
            probe = pair.start(0, str(HERE / "team_real.py"), "probe", "10.10.0.2", "3")
            pair.wait(probe, "ready")
            time.sleep(1.7)
            _run("ip", "-n", pair.names[0], "link", "set", _busiest(pair, 2), "down")
            assert probe.stdout is not None
            longest, before, _ = map(float, probe.stdout.read().split())
            found.append(longest)
            usual.append(before)
    value, baseline = statistics.median(found), statistics.median(usual)
    return [_row("failover_ms", value, "ms without an answer", baseline, value / baseline)]


def _stream(pair: _Pair) -> float:
    sink = pair.start(1, str(HERE / "team_real.py"), "sink", "10.10.0.2")
    pair.wait(sink, "ready")
    found = []
    for _ in range(3):
        pair.start(0, str(HERE / "team_real.py"), "stream", "10.10.0.2", "1.5").wait()
        assert sink.stdout is not None
        found.append(float(sink.stdout.readline()))
    return statistics.median(found)


def overhead() -> list[dict[str, Any]]:
    """TCP through a team of one member at each end, against the same relay without the team."""
    if missing_permission():
        return []
    bare, team = [], []
    for _ in range(3):
        pair = _Pair(1)
        try:
            for number, end in enumerate("ab"):
                program = pair.start(
                    number, str(HERE / "team_real.py"), "relay", f"{end}0", f"10.10.0.{number + 1}/24"
                )
                pair.wait(program, "ready")
            bare.append(_stream(pair))
        finally:
            pair.close()
        with _teams(1) as pair:
            team.append(_stream(pair))
    baseline, value = statistics.median(bare), statistics.median(team)
    return [_row("overhead", value, "Mb/s", baseline, value / baseline)]


# --- two processes -----------------------------------------------------------------------------------------------


def _receiver(pipe: Connection) -> None:
    with DirectNode("127.0.50.2", "127.0.51.2", ["127.0.52.2"]) as node:
        server = node.create_server(7000)
        pipe.send("ready")
        connection, _ = server.accept()
        while connection.recv(PIECE):
            pass
        connection.close()
        pipe.recv()


def _sending() -> tuple[dict[Way, list[float]], list[int]]:
    """Bytes a second on each path, several times in turn; and the stalls of the moves between, in ns."""
    processes = multiprocessing.get_context("spawn")
    pipe, theirs = processes.Pipe()
    peer = processes.Process(target=_receiver, args=(theirs,))
    peer.start()
    pipe.recv()
    stalls: list[int] = []
    rates: dict[Way, list[float]] = {Way.UPLOAD: [], Way.OFFLOAD: []}
    with DirectNode(
        "127.0.50.1", "127.0.51.1", ["127.0.52.1"], policy=lambda of: of.pinned or of.path
    ) as node:
        connection = node.create_connection(("127.0.50.2", 7000), 10)
        session = connection.session
        assert session is not None
        data = bytes(PIECE)
        for way in (Way.UPLOAD, Way.OFFLOAD) * 5:
            session.stall_ns = 0
            node.pin(session, way)
            while session.path is not way:
                connection.sendall(data)
            stalls.append(session.stall_ns)
            begun, start = session.tx.base, time.perf_counter()
            while time.perf_counter() - start < 0.7:
                connection.sendall(data)
            rates[way].append((session.tx.base - begun) / (time.perf_counter() - start))
        connection.close()
        pipe.send("done")
        peer.join(20)
    return rates, stalls[1:]


def offload_gain() -> list[dict[str, Any]]:
    """Throughput of one stream between two processes, offloaded; baseline: uploaded.  And the stall of a move."""
    rates, stalls = _sending()
    offloaded, uploaded = (statistics.median(rates[way]) / 1e6 for way in (Way.OFFLOAD, Way.UPLOAD))
    return [
        _row("offload_gain", offloaded, "MB/s", uploaded, offloaded / uploaded),
        _row("migrate_ms", statistics.median(stalls) / 1e6, "ms, the median of nine"),
    ]


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "balance": balance,
    "failover_ms": failover_ms,
    "overhead": overhead,
    "offload_gain": offload_gain,
}
