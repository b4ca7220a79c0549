"""A host in real time: the operating system process that `real` starts for each (``python -m verbena.scenario.host``).

It talks with its parent over an inherited socket, in lines of JSON: first comes what to do, then topics for its board;
back go topics, progress, and at the end what was seen, or an error in one sentence.  When the parent is gone, it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from verbena.errors import VerbenaError
from verbena.scenario.board import Board, Value
from verbena.scenario.builder import Stage, open_input
from verbena.scenario.capture import Recorder
from verbena.scenario.schema import FabricFile, FileTransfer

LARGEST_LINE = 1 << 30
PROGRESS_EVERY_S = 0.05


class Reporter:
    """Tells the parent.  A `Watcher` that does not tell every step."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._next = 0.0

    def tell(self, **message: Any) -> None:
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def publish(self, topic: str, value: Value) -> None:
        self.tell(publish=[topic, value])

    def started(self, workload: int, name: str) -> None:
        self._next = 0.0

    def progress(self, workload: int, phase: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now >= self._next or done >= total:
            self._next = now + PROGRESS_EVERY_S
            self.tell(progress=[workload, phase, done, total, unit])

    def finished(self, workload: int) -> None:
        """The parent sees that from the board."""


async def _run(job: dict[str, Any], board: Board, reporter: Reporter) -> None:
    fabric = FabricFile.model_validate_json(json.dumps(job["fabric"]))
    host = job["host"]
    own = {adapter.name for each in fabric.hosts if each.name == host for adapter in each.adapters}
    sends = any(isinstance(w, FileTransfer) and w.source in own for w in fabric.workloads)
    data = open_input(job["input"]) if job["input"] is not None and sends else None
    recorder = None
    if job["capture"] is not None:
        recorder = Recorder(Path(job["capture"]), fabric.capture.packets, job["epoch_ns"])
    try:
        with Stage(
            fabric, [host], board, reporter, real=True, recorder=recorder, data=data, at=job["at"]
        ) as stage:
            reporter.tell(ready=True)
            await board.read("start")
            seen = await stage.run()
            counters, memory = stage.counters(), stage.views
    finally:
        if recorder is not None:
            recorder.close()
    left_out = recorder.left_out if recorder else 0
    reporter.tell(done={"seen": seen, "counters": counters, "left_out": left_out, "memory": memory})


async def _serve(sock: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=sock, limit=LARGEST_LINE)
    reporter = Reporter(writer)
    first = await reader.readline()
    if not first:
        return 1
    job = json.loads(first)
    board = Board(reporter.publish)
    work = asyncio.create_task(_run(job, board, reporter))

    async def listen() -> None:
        while line := await reader.readline():
            board.take(*json.loads(line))
        work.cancel()

    listener = asyncio.create_task(listen())
    status = 0
    try:
        await work
    except asyncio.CancelledError:
        return 1
    except VerbenaError as error:
        reporter.tell(error=str(error))
        status = 1
    except MemoryError:
        reporter.tell(error="there is not enough memory")
        status = 1
    except Exception as error:
        traceback.print_exc()
        reporter.tell(error=f"host {job['host']}: internal error: {type(error).__name__}: {error}")
        status = 1
    await writer.drain()
    listener.cancel()
    writer.close()
    return status


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when a run is over
    # That it runs uncompiled is said once, by the parent.
    logging.getLogger("verbena").addFilter(lambda record: "uncompiled" not in record.getMessage())
    try:
        return asyncio.run(_serve(socket.socket(fileno=int(sys.argv[1]))))
    except (ConnectionError, asyncio.IncompleteReadError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
