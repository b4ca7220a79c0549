"""Benchmarks of a LAN with real operating systems on it; the baseline is a bare relay between two TAP devices.

Each end is a network namespace.  The LAN's path is: TAP device, card, adapter, cable, switch, cable, adapter, card, TAP
device, all in one process, every packet of 4,096 bytes with its headers and CRCs.  The relay is a loop that reads a
frame from one device and writes it to the other.  Both leave checksums and segmentation undone (``IFF_VNET_HDR``), so
that TCP sends frames of 64 KiB.  LAN and relay are measured in turns, so that both meet the same machine.

`tcp`: one stream, Gb/s, from iperf3, or where that is not installed from a program of a few lines.  `ping`: median
round trip, microseconds, of echoes one after the other.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from verbena.runtime import namespaces
from verbena.runtime.tap import Tap, missing_permission

ROUNDS = 5
SECONDS = 2
ECHOES = 1000
ADDRESSES = ("10.90.0.1", "10.90.0.2")
FILE = """
name: {name}
hosts:
  - {{name: a, adapters: [{{name: a0}}]}}
  - {{name: b, adapters: [{{name: b0}}]}}
fabric:
  switches: [{{name: s1, ports: 4}}]
  links:
    - {{from: a0, to: s1}}
    - {{from: b0, to: s1}}
lan:
  nodes:
    - {{adapter: a0, namespace: {name}-a, addresses: [10.90.0.1/24]}}
    - {{adapter: b0, namespace: {name}-b, addresses: [10.90.0.2/24]}}
"""
STREAM = """
import socket, sys, time
if sys.argv[1] == "receive":
    with socket.create_server((sys.argv[2], 5201)) as server:
        peer, _ = server.accept()
        begun, got = time.monotonic(), 0
        while part := peer.recv(1 << 20):
            got += len(part)
        peer.sendall(f"{got * 8 / (time.monotonic() - begun):.0f}".encode())
else:
    sock, data = socket.create_connection((sys.argv[2], 5201)), bytes(1 << 18)
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end:
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(100).decode())
"""


def _pass_on(ends: dict[int, tuple[Tap, Tap]]) -> None:
    """The bare relay."""
    poller = select.poll()
    for descriptor in ends:
        poller.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            source, target = ends[descriptor]
            for _ in range(64):
                found = source.read()
                if found is None:
                    break
                target.write(*found)


def relay(name: str) -> None:
    """A process of its own, as the LAN is: two TAP devices, joined until it is killed."""
    one, other = (
        Tap("lan0", namespace=f"{name}-{end}", addresses=[f"{address}/24"])
        for end, address in zip("ab", ADDRESSES, strict=True)
    )
    print("up", flush=True)
    _pass_on({one.fd: (one, other), other.fd: (other, one)})


@contextmanager
def running(command: list[str], ready: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        while (line := process.stdout.readline()) and ready not in line:
            pass
        if not line:
            raise SystemExit(f"{' '.join(command)}: ended before it was up")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@contextmanager
def _relayed(name: str) -> Iterator[str]:
    with ExitStack() as stack:
        for end in "ab":
            namespaces.create(f"{name}-{end}")
            stack.callback(namespaces.remove, f"{name}-{end}")
        stack.enter_context(running([sys.executable, __file__, name], "up"))
        yield name


@contextmanager
def _emulated(name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lan.yaml")
        file.write_text(FILE.format(name=name))
        with running([sys.executable, "-m", "verbena.cli.main", "lan", "up", str(file)], "Ctrl-C ends it"):
            yield name


def inside(name: str, end: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", f"{name}-{end}", *command]


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def stream(name: str) -> float:
    """Gb/s."""
    if shutil.which("iperf3"):
        receiver, sender = ["iperf3", "-s", "-1"], ["iperf3", "-c", ADDRESSES[1], "-t", str(SECONDS), "-J"]
    else:
        receiver = [sys.executable, "-c", STREAM, "receive", ADDRESSES[1]]
        sender = [sys.executable, "-c", STREAM, "send", ADDRESSES[1], str(SECONDS)]
    server = subprocess.Popen(inside(name, "b", *receiver), stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        told = run(inside(name, "a", *sender))
        server.wait(30)
    finally:
        server.kill()
        server.wait()
    bits = json.loads(told)["end"]["sum_received"]["bits_per_second"] if told.startswith("{") else float(told)
    return float(bits) / 1e9


def _round_trip(name: str) -> float:
    """Microseconds."""
    told = run(inside(name, "a", "ping", "-A", "-c", str(ECHOES), ADDRESSES[1]))
    return statistics.median(float(found) for found in re.findall(r"time=([0-9.]+) ms", told)) * 1000


def measured(
    name: str,
    unit: str,
    body: Callable[[str], float],
    up: Callable[[str], AbstractContextManager[str]] = _emulated,
) -> dict[str, Any]:
    """A row: what `up` joins (by default a LAN) beside a bare relay, measured in turns."""
    missing = missing_permission()
    if missing is not None:
        print(f"{name}: not measured: {missing}", file=sys.stderr)
        return {"name": name, "value": 0.0, "unit": unit, "baseline": None, "ratio": None}
    own, base = f"verbena-bench-{os.getpid()}", f"verbena-relay-{os.getpid()}"
    with up(own), _relayed(base):
        for each in (own, base):
            run(inside(each, "a", "ping", "-c", "3", "-i", "0.2", "-W", "5", ADDRESSES[1]))
        found = [(body(own), body(base)) for _ in range(ROUNDS)]
    value, baseline = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(a / b for a, b in found)
    return {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "baseline": round(baseline, 3),
        "ratio": round(ratio, 3),
    }


def tcp() -> dict[str, Any]:
    return measured("lan.tcp", "Gb/s", stream)


def ping() -> dict[str, Any]:
    return measured("lan.ping", "us", _round_trip)


BENCHMARKS = {"tcp": tcp, "ping": ping}

if __name__ == "__main__":
    relay(sys.argv[1])
