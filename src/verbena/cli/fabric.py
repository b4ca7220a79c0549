"""`verbena fabric`: the switches, routers and subnet managers of a fabric, for hosts that join from other processes."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from verbena.fabric.generators import generate_from
from verbena.runtime.listen import FabricServer, status
from verbena.runtime.real_fabric import parse_address
from verbena.scenario.fabric_real import make_server
from verbena.scenario.load import load_fabric

EVERY_S = 1.0


def _made(file: str | None, generate: str | None, address: tuple[str, int]) -> FabricServer:
    if generate is not None:
        return FabricServer(generate_from(generate), address)
    assert file is not None
    return make_server(load_fabric(file), Path(file).parent, address)


def fabric(
    file: str | None,
    *,
    generate: str | None,
    listen: str,
    quiet: bool,
    capture: Path | None,
    ports: list[str],
) -> int:
    """Run a fabric until interrupted; returns the exit status.

    file: a fabric file, or generate: a shape.  listen: where hosts join, such as ``127.0.0.1:18600``.  quiet: say no
    status.  capture: a pcapng file of what passes these ports; without any, all ports with a cable that are here.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with _made(file, generate, parse_address(listen)) as server:
        if capture is not None:
            here = (port for port in server.topology.at if port.node in server.nodes)
            server.capture(capture, ports or sorted(here, key=str))
        server.start()
        nodes = server.topology
        print(
            f"listening at {server.address[0]}:{server.address[1]}: {len(nodes.switches)} switches, "
            f"{len(nodes.hosts)} hosts that may join",
            flush=True,
        )
        if any(nodes.hosts):
            print("hosts: " + ", ".join(host.name for host in nodes.hosts[:16]), flush=True)
        terminal = sys.stdout.isatty()
        before = ""
        while not ended.wait(EVERY_S):
            line = status(server)
            if quiet or (line == before and not terminal):
                continue
            before = line
            print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", flush=True)
        if terminal and not quiet:
            print()
    return 0
