"""A fabric file's fabric in real time: the process that has its switches, routers and subnet managers.

`make_server` builds it; ``python -m verbena.scenario.fabric_real`` is what `real` starts beside the hosts' processes.
It talks with its parent as those do (`host`): first comes what to do, ``{"listening": [address, port]}`` goes back when
the fabric is up, then ``["start", true]`` makes the file's changes happen from now on, and at the end of the connection
it ends.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from verbena.errors import VerbenaError
from verbena.fabric.assembly import FabricOptions
from verbena.runtime.listen import FabricServer
from verbena.runtime.real_fabric import REAL_OPTIONS
from verbena.scenario.fabric_run import manager_config, schedule_changes
from verbena.scenario.fabric_schema import FabricModel
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.schema import FabricFile
from verbena.scenario.simulation import options_of


def real_options(model: FabricModel) -> FabricOptions:
    """The file's elements, with buffers that suit links between processes."""
    made = options_of(model)
    return replace(made, buffer_bytes=max(made.buffer_bytes, REAL_OPTIONS.buffer_bytes))


def make_server(
    fabric: FabricFile, folder: Path = Path(), address: tuple[str, int] = ("127.0.0.1", 0)
) -> FabricServer:
    """The fabric of a file, listening, not yet started.  Raises `VerbenaError`.

    The subnet managers run on switches: a file's `managers` are hosts, which are in processes of their own.
    """
    model = fabric.fabric
    assert model is not None
    return FabricServer(
        build_topology(fabric, folder),
        address,
        options=real_options(model),
        config=manager_config(model),
    )


def _serve(sock: socket.socket) -> int:
    lines = sock.makefile("rb")

    def tell(**message: Any) -> None:
        sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    first = lines.readline()
    if not first:
        return 1
    try:
        job = json.loads(first)
        fabric = FabricFile.model_validate_json(json.dumps(job["fabric"]))
        with make_server(fabric, Path(job["folder"])) as server:
            server.start()
            tell(listening=list(server.address))
            while line := lines.readline():
                if json.loads(line)[0] == "start":
                    with server.loop.held():
                        schedule_changes(server, fabric)
    except VerbenaError as error:
        tell(error=str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        tell(error=f"the fabric's process: internal error: {type(error).__name__}: {error}")
        return 1
    return 0


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when a run is over
    # That it runs uncompiled is said once, by the parent.
    logging.getLogger("verbena").addFilter(lambda record: "uncompiled" not in record.getMessage())
    try:
        return _serve(socket.socket(fileno=int(sys.argv[1])))
    except ConnectionError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
