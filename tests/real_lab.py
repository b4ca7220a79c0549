"""Fabrics of real processes for the tests: hosts as programs of their own, and a relay that loses datagrams."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from verbena import FabricServer, LinkTimes, Topology

LIMIT_S = 60.0
PROGRAM = Path(__file__).with_name("real_host.py")


class RemoteHost:
    """A host in another process: `host.write(size=8)` calls the method of that name there (`real_host.Program`)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._pending = b""

    def ask(self, do: str, **arguments: Any) -> None:
        """Begin a call; `answer` waits for its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def line(self, limit: float = LIMIT_S) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        end = time.monotonic() + limit
        while b"\n" not in self._pending:
            if not select.select([self.process.stdout], (), (), max(0.0, end - time.monotonic()))[0]:
                raise AssertionError("the host says nothing")
            part = self.process.stdout.read1(65_536)  # type: ignore[attr-defined]
            assert part, self.process.communicate()[1].decode()
            self._pending += part
        first, self._pending = self._pending.split(b"\n", 1)
        found: dict[str, Any] = json.loads(first)
        return found

    def answer(self, limit: float = LIMIT_S) -> Any:
        said = self.line(limit)
        if "error" in said:
            raise RemoteError(said["error"])
        return said["result"]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.ask(name, **arguments)
            return self.answer()

        return call

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class RemoteError(Exception):
    """A host's program raised a Verbena error; the message has its name, and its sentence."""


@contextlib.contextmanager
def hosts(*names: str, at: str) -> Iterator[list[RemoteHost]]:
    """Hosts in processes of their own, opened."""
    made = [RemoteHost() for _ in names]
    try:
        for name, host in zip(names, made, strict=True):
            host.ask("open", name=name, at=at)
        for host in made:
            assert host.answer()["state"] == "ACTIVE"
        yield made
    finally:
        for host in made:
            host.end()


def pair(a: RemoteHost, b: RemoteHost, service: str = "RC", timeout: int = 18) -> tuple[Any, Any]:
    """Connect a queue pair of each by hand; returns what each told the other."""
    ends = (a.make(service=service), b.make(service=service))
    a.connect(there=ends[1], timeout=timeout)
    b.connect(there=ends[0], timeout=timeout)
    return ends


def star(count: int = 2, switches: int = 1) -> Topology:
    """Hosts h1, h2, … in turn on switches s1, s2, …, each of which has two cables to the next."""
    topology = Topology()
    for i in range(switches):
        topology.add_switch(f"s{i + 1}", count + 4)
    for i in range(count):
        topology.add_host(f"h{i + 1}")
        topology.connect(f"h{i + 1}", f"s{i % switches + 1}")
    for i in range(switches - 1):
        for _ in range(2):
            topology.connect(f"s{i + 1}", f"s{i + 2}")
    return topology


@contextlib.contextmanager
def served(topology: Topology | None = None, times: LinkTimes | None = None) -> Iterator[FabricServer]:
    """A fabric in this process, that hosts join."""
    with FabricServer(topology or star(), times=times) as server:
        server.start()
        yield server


def address(server: FabricServer) -> str:
    return f"{server.address[0]}:{server.address[1]}"


class Relay:
    """Stands between a fabric and its hosts, and mistreats the datagrams of their links.

    fate(random): delays of a datagram's copies, in seconds: none = lost, two = doubled.  A different delay for each one
    lets them overtake each other.
    """

    def __init__(self, to: tuple[str, int], fate: Callable[[Random], list[float]], seed: int) -> None:
        self.to = to
        self.counts = {"passed": 0, "lost": 0, "doubled": 0, "delayed": 0}
        self._fate = fate
        self._random = Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.at = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._guard = threading.Lock()
        self._ended = False
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._introduce, args=(here,), daemon=True).start()

    def _introduce(self, here: socket.socket) -> None:
        """Pass hello and welcome on, with the relay's own ports in them."""
        there = socket.create_connection(self.to)
        host, fabric = self._udp(), self._udp()
        self._sockets += [here, there, host, fabric]
        hello = json.loads(here.makefile("rb").readline())
        to_host = ("127.0.0.1", hello["port"])
        hello["port"] = fabric.getsockname()[1]
        there.sendall(json.dumps(hello).encode() + b"\n")
        welcome = json.loads(there.makefile("rb").readline())
        to_fabric = ("127.0.0.1", welcome["port"])
        welcome["port"] = host.getsockname()[1]
        here.sendall(json.dumps(welcome).encode() + b"\n")
        threading.Thread(target=self._carry, args=(host, fabric, to_fabric), daemon=True).start()
        threading.Thread(target=self._carry, args=(fabric, host, to_host), daemon=True).start()
        threading.Thread(target=self._until, args=(here, there), daemon=True).start()
        self._until(there, here)

    @staticmethod
    def _udp() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return made

    @staticmethod
    def _until(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while one.recv(4096):
                pass
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)

    def _carry(self, source: socket.socket, out: socket.socket, to: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            while True:
                datagram = source.recv(65_536)
                with self._guard:
                    delays = self._fate(self._random)
                    self.counts["passed" if delays else "lost"] += 1
                    self.counts["doubled"] += len(delays) > 1
                    self.counts["delayed"] += any(delays)
                for delay in delays:
                    if delay:
                        timer = threading.Timer(delay, self._late, (out, datagram, to))
                        timer.daemon = True
                        timer.start()
                    else:
                        out.sendto(datagram, to)

    @staticmethod
    def _late(out: socket.socket, datagram: bytes, to: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            out.sendto(datagram, to)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
