"""A run in real time: an operating system process for each host, and this one, which watches them.

Where a file has a `fabric`, one more process has its switches, routers and subnet managers (`fabric_real`), and only
the hosts that a workload names are started.

The processes exchange packets only over their sockets; what they tell one another beside that (the board) goes through
here.  When one dies, the others are ended, and the run fails with a sentence that says which, and how.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from verbena.errors import VerbenaError
from verbena.scenario.builder import working_hosts
from verbena.scenario.capture import merge
from verbena.scenario.fabric_schema import Traffic
from verbena.scenario.outcome import RunResult, Watcher
from verbena.scenario.programs import judge
from verbena.scenario.schema import FabricFile

END_WITHIN_S = 3.0


class HostProcess:
    """One host's process, seen from its parent; or, with another module, the process of the fabric between them."""

    def __init__(self, name: str, folder: Path, module: str = "host") -> None:
        self.title = f"host {name}" if module == "host" else name
        self.log = folder / (f"host-{name}.log" if module == "host" else f"{module}.log")
        self.name = name
        self.done: dict[str, Any] | None = None
        self._pending = b""
        self.sock, theirs = socket.socketpair()
        with self.log.open("wb") as log, theirs:
            command = [sys.executable, "-m", f"verbena.scenario.{module}", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def tell(self, message: Any) -> None:
        with suppress(OSError):  # it is gone: reading from it says so
            self.sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def messages(self) -> list[dict[str, Any]] | None:
        """What it told since the last time; None when it has nothing more to tell."""
        try:
            data = self.sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def fate(self) -> str:
        """How it ended, as a sentence."""
        try:
            status = self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            return f"{self.title} (process {self.process.pid}) closed its connection and hangs"
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{self.title} (process {self.process.pid}) {how} before its work was done"

    def end(self) -> None:
        """Make sure that it is gone."""
        self.sock.close()  # it ends when it sees that
        if self.done is None:
            self.process.terminate()
        try:
            self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.log.exists() and not self.log.stat().st_size:
            self.log.unlink()


class Parent:
    """Starts the processes, carries their boards' topics, and waits for the end."""

    def __init__(self, fabric: FabricFile, watcher: Watcher, folder: Path, source: Path) -> None:
        self._fabric = fabric
        self._source = source
        self._watcher = watcher
        self._folder = folder
        self.hosts: list[HostProcess] = []
        self.between: list[HostProcess] = []
        self._ready = 0
        self._ended: dict[int, int] = {}

    def run(self, capture: bool, input_path: str | None) -> None:
        """To the end of all workloads; raises `VerbenaError` when a host fails."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        try:
            at = self._start_fabric() if self._fabric.fabric is not None else ""
            for name in working_hosts(self._fabric):
                self.hosts.append(HostProcess(name, self._folder))
                part = str(self.part(self.hosts[-1])) if capture else None
                job = {"host": name, "input": input_path, "capture": part, "epoch_ns": epoch_ns, "at": at}
                self.hosts[-1].tell(job | {"fabric": self._data()})
            self._watch()
        finally:
            for process in [*self.hosts, *self.between]:
                process.end()

    def _data(self) -> dict[str, Any]:
        return self._fabric.model_dump(mode="json", by_alias=True)

    def _start_fabric(self) -> str:
        """Start the process with the switches; returns where it listens, when it is up."""
        process = HostProcess("the fabric", self._folder, "fabric_real")
        self.between.append(process)
        process.tell({"fabric": self._data(), "folder": str(self._source)})
        while (messages := process.messages()) is not None:
            for message in messages:
                if "error" in message:
                    raise VerbenaError(message["error"])
                host, port = message["listening"]
                return f"{host}:{port}"
        raise VerbenaError(process.fate())

    def part(self, process: HostProcess) -> Path:
        return self._folder / f"capture-{process.name}.part"

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process in [*self.hosts, *self.between]:
                selector.register(process.sock, selectors.EVENT_READ, process)
            while any(process.done is None for process in self.hosts):
                for key, _ in selector.select():
                    process = key.data
                    messages = process.messages()
                    if messages is None:
                        if process.done is None:
                            raise VerbenaError(process.fate())
                        selector.unregister(process.sock)
                    for message in messages or ():
                        self._heard(process, message)

    def _heard(self, process: HostProcess, message: dict[str, Any]) -> None:
        if "error" in message:
            raise VerbenaError(message["error"])
        if "progress" in message:
            self._watcher.progress(*message["progress"])
        elif "publish" in message:
            topic, value = message["publish"]
            self._note(topic)
            for other in self.hosts:
                if other is not process:
                    other.tell([topic, value])
        elif "ready" in message:
            self._ready += 1
            if self._ready == len(self.hosts):
                self._watcher.started(0, self._fabric.workloads[0].name)
                for each in [*self.between, *self.hosts]:
                    each.tell(["start", True])
        elif "done" in message:
            process.done = message["done"]

    def _note(self, topic: str) -> None:
        """The end of a workload at one host: the last one tells that the next begins."""
        number, _, what = topic.partition("/")
        if not what.startswith("end "):
            return
        at = int(number)
        self._ended[at] = self._ended.get(at, 0) + 1
        if self._ended[at] == len(self.hosts):
            self._watcher.finished(at)
            if at + 1 < len(self._fabric.workloads):
                self._watcher.started(at + 1, self._fabric.workloads[at + 1].name)


def run_real(
    fabric: FabricFile,
    watcher: Watcher,
    *,
    folder: Path,
    capture: Path | None,
    input_path: str | None,
    source: Path = Path(),
) -> RunResult:
    """Run a fabric file's workloads.  capture: the file that packets are written to.  source: the folder that the file
    is in.  Raises `VerbenaError`.
    """
    parent = Parent(fabric, watcher, folder, source)
    captured = None
    try:
        parent.run(capture is not None, input_path)
    finally:
        if capture is not None:
            parts = [path for path in map(parent.part, parent.hosts) if path.exists() and path.stat().st_size]
            captured = merge(parts, capture)
            for path in map(parent.part, parent.hosts):
                path.unlink(missing_ok=True)
    done = [process.done for process in parent.hosts if process.done is not None]
    seen = [
        {role: value for each in done for role, value in each["seen"][at].items()}
        for at in range(len(fabric.workloads))
    ]
    return RunResult(
        name=fabric.name,
        time="real",
        seed=fabric.seed,
        outcomes=[
            judge(spec, each)
            for spec, each in zip(fabric.workloads, seen, strict=True)
            if not isinstance(spec, Traffic)
        ],
        counters={name: values for each in done for name, values in each["counters"].items()},
        captured=captured,
        not_captured=sum(each["left_out"] for each in done),
        memory={host: view for each in done for host, view in each["memory"].items()},
    )
