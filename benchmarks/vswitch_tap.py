"""Benchmarks of the virtual switch's TAP ports, each end in a network namespace.

`tap_tcp`: one stream through a switch, frames uncut (``IFF_VNET_HDR``), Gb/s; the baseline is a bare relay between two
TAP devices, a loop that reads a frame from one and writes it to the other, measured in turns with it (`lan_tap`).

`loss_tap`: three programs send UDP as fast as they can, frames of 64 and then of 1,470 bytes, to a program with a
shared-memory card that reads all it gets.  Lost is what was sent and did not come, wherever; beside it what the kernel
says that it dropped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from endpoint import row
from lan_tap import inside, measured, run, running, stream

from verbena.runtime.shm_port import open_card
from verbena.runtime.tap import missing_permission

FRAMES = 300_000
"""Of each of three producers, and of each size."""
QUIET_S = 3.0
UDP_HEADERS = 42
CARD = "02:00:00:00:00:09"
PAIR = """
name: {name}
vswitch:
  live:
    offload: true
    ports:
      - {{name: a, kind: tap, interface: lan0, namespace: {name}-a, addresses: [10.90.0.1/24]}}
      - {{name: b, kind: tap, interface: lan0, namespace: {name}-b, addresses: [10.90.0.2/24]}}
"""
FOUR = """
name: {name}
vswitch:
  live:
    ports:
      - {{name: p1, kind: tap, interface: lan0, namespace: {name}-1, addresses: [10.90.0.1/24]}}
      - {{name: p2, kind: tap, interface: lan0, namespace: {name}-2, addresses: [10.90.0.2/24]}}
      - {{name: p3, kind: tap, interface: lan0, namespace: {name}-3, addresses: [10.90.0.3/24]}}
      - {{name: reader, kind: card, listen: {folder}/card.sock, macs: ["{card}"]}}
"""
SEND = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("10.90.0.9", 9000))
data = bytes(int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    sock.send(data)
"""


@contextmanager
def _up(name: str, text: str = PAIR) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "switch.yaml")
        file.write_text(text.format(name=name, folder=folder, card=CARD))
        with running(
            [sys.executable, "-m", "verbena.cli.main", "vswitch", "up", str(file)], "Ctrl-C ends it"
        ):
            yield folder if text is FOUR else name


def tap_tcp() -> dict[str, Any]:
    return measured("vswitch.tap_tcp", "Gb/s", stream, _up)


def _kernel(name: str) -> int:
    """Frames that the kernel says it dropped."""
    told = json.loads(run([sys.executable, "-m", "verbena.cli.main", "vswitch", "status", name, "--json"]))
    return sum(told["kernel_losses"].values())


def loss_tap() -> list[dict[str, Any]]:
    missing = missing_permission()
    if missing is not None:
        print(f"vswitch.loss_tap: not measured: {missing}", file=sys.stderr)
        return []
    name = f"verbena-bench-{os.getpid()}"
    came = 0
    with _up(name, FOUR) as folder:
        card = open_card(f"{folder}/card.sock")
        for n in "123":
            neighbour = ["ip", "neigh", "add", "10.90.0.9", "lladdr", CARD, "dev", "lan0"]
            run(inside(name, n, *neighbour))
        before = _kernel(name)
        for size in (64, 1470):
            command = [sys.executable, "-c", SEND, str(size - UDP_HEADERS), str(FRAMES)]
            producers = [subprocess.Popen(inside(name, n, *command)) for n in "123"]
            while card.wait_frames(QUIET_S) or any(each.poll() is None for each in producers):
                came += sum(len(frame) == size for frame in card.receive_many(4096))
        lost_by_kernel = _kernel(name) - before
        card.close()
    sent = 6 * FRAMES
    return [
        row("vswitch.loss_tap", sent - came, "frames", sent),
        row("vswitch.loss_tap_kernel", lost_by_kernel, "frames, by its statistics", sent),
    ]


BENCHMARKS: dict[str, Callable[[], Any]] = {"tap_tcp": tap_tcp, "loss_tap": loss_tap}
