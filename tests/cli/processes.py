"""Commands as real processes: how the tests start, pair and end them."""

from __future__ import annotations

import itertools
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Loopback addresses of their own, so that the tests meet no adapter that happens to run on 127.0.0.1.
_blocks = itertools.count(1)
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr."""
        lines = [line for line in self.err.splitlines() if "running uncompiled" not in line]
        assert len(lines) == 1, self.err
        return lines[0]


def two_addresses() -> tuple[str, str]:
    """Two loopback addresses that nothing else uses."""
    block = next(_blocks)
    base = f"127.{64 + os.getpid() % 64}.{block % 256}"
    return f"{base}.1", f"{base}.2"


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def command(*arguments: object) -> list[str]:
    """The command line of `verbena`."""
    return [sys.executable, "-m", "verbena.cli.main", *map(str, arguments)]


def start(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A command that runs beside the test."""
    return subprocess.Popen(
        [*prefix, *command(*arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], so_far: str = "") -> Ended:
    """Wait for its end."""
    out, err = process.communicate(timeout=LIMIT_S)
    return Ended(process.returncode, so_far + out, err)


def verbena(*arguments: object, prefix: tuple[str, ...] = ()) -> Ended:
    """Run a command to its end."""
    return end(start(*arguments, prefix=prefix))


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What it prints, until this text has come."""
    assert process.stdout is not None
    printed = ""
    deadline = time.monotonic() + LIMIT_S
    while text not in printed:
        assert select.select([process.stdout], [], [], deadline - time.monotonic())[0], printed
        part = os.read(process.stdout.fileno(), 4096).decode()
        assert part, f"ended after {printed!r}: {process.communicate()[1]}"
        printed += part
    return printed


@contextmanager
def server(*arguments: object, prefix: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that waits for a client; killed at the end if it still runs."""
    process = start(*arguments, prefix=prefix)
    try:
        yield process, read_until(process, "waiting for a client")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
