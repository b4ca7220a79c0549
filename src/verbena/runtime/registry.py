"""What is up on this machine: a file and a socket for each, so that other processes can ask, and clean up.

The file names the process and the namespaces that it has made, before it makes them, so that they can be removed even
if the process was killed; the socket, which only the process itself listens at, tells whether it still lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from verbena.errors import NotFound, SystemLimitError
from verbena.runtime import namespaces, status_socket
from verbena.runtime.status_socket import StatusSocket

FOLDER = Path(os.environ.get("VERBENA_RUN", "/run/verbena"))
PATIENCE_S = 30.0
QUESTION_S = 5.0
LARGEST = 64 << 20
Status = dict[str, Any]


class Registry:
    """All of one kind.  command: its group of commands, which its files are named after.  what: as a sentence says it.

    early: the status of one that is still coming up.
    """

    def __init__(self, command: str, what: str, early: Status) -> None:
        self.command, self.what, self.early = command, what, early

    def file_of(self, name: str) -> Path:
        return FOLDER / f"{self.command}-{namespaces.checked_name(name)}.json"

    def socket_of(self, name: str) -> Path:
        return FOLDER / f"{self.command}-{namespaces.checked_name(name)}.sock"

    def names(self) -> list[str]:
        """Those that are up, or have left something."""
        begin = f"{self.command}-"
        return sorted(path.name[len(begin) : -5] for path in FOLDER.glob(f"{begin}*.json"))

    def connected(self, name: str) -> socket.socket | None:
        """A connection to the process; None if it is not there."""
        try:
            return status_socket.connected(self.socket_of(name), QUESTION_S)
        except OSError:
            return None

    def ask(self, name: str) -> Status:
        """What it tells of itself.  Raises `NotFound` if its process is gone, `SystemLimitError` if it is silent."""
        sock = self.connected(name)
        if sock is None:
            raise NotFound(
                f"the process of {self.what} {name} is gone: "
                f"verbena {self.command} down {name} removes what it has left"
            )
        with sock:
            try:
                sock.sendall(b"status\n")
                told: Status = status_socket.told(sock, LARGEST)
            except (OSError, ValueError):
                raise SystemLimitError(
                    f"{self.what} {name} does not answer within {QUESTION_S:g} seconds"
                ) from None
        return told

    def end(self, name: str) -> list[str]:
        """Have it taken down, and wait for it; returns what had to be removed because its process was gone.

        Raises `SystemLimitError` if it does not end in time.
        """
        sock = self.connected(name)
        if sock is None:
            return self.clean(name)
        with sock:
            with contextlib.suppress(OSError):
                sock.sendall(b"down\n")
            limit = time.monotonic() + PATIENCE_S
            while self.file_of(name).exists():
                if time.monotonic() > limit:
                    raise SystemLimitError(f"{self.what} {name} has not ended within {PATIENCE_S:g} seconds")
                time.sleep(0.02)
        return []

    def clean(self, name: str) -> list[str]:
        """Remove what a process that is gone has left; returns the namespaces."""
        removed = []
        try:
            made = json.loads(self.file_of(name).read_text())["namespaces"]
        except (OSError, ValueError, KeyError):
            made = []
        for each in made:
            if namespaces.exists(each):
                namespaces.remove(each)
                removed.append(each)
        self.socket_of(name).unlink(missing_ok=True)
        self.file_of(name).unlink(missing_ok=True)
        return removed

    def chosen(self, name: str | None) -> str:
        """The one that is meant; None: the only one.  Raises `NotFound`, `SystemLimitError`."""
        known = self.names()
        if name is not None:
            if name not in known:
                raise NotFound(
                    f"no {self.what} {name} is up" + (f": up are {', '.join(known)}" if known else "")
                )
            return name
        if not known:
            raise NotFound(f"no {self.what} is up")
        if len(known) > 1:
            raise SystemLimitError(f"several are up, name one {self.what}: {', '.join(known)}")
        return known[0]


LANS = Registry(
    "lan",
    "LAN",
    {"subnet_managers": [], "config": {"mtu": 0, "service": "", "policy": "not up yet"}, "members": []},
)
SWITCHES = Registry(
    "vswitch", "virtual switch", {"ports": [], "gone": [], "losses": {}, "kernel_losses": {}, "config": {}}
)


class Registration:
    """The file and the socket of one of a kind, of the process that has it.  A context manager.

    down: is called, from another thread, when somebody wants it to end.  Raises `SystemLimitError` if one of that name
    is up; what a dead one has left is removed first.
    """

    def __init__(self, registry: Registry, name: str, down: Callable[[], None]) -> None:
        self.registry = registry
        self.name = name
        self._down = down
        self._status: Callable[[], Status] = lambda: registry.early
        self._namespaces: list[str] = []
        self._lock = threading.Lock()
        try:
            FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._socket = self._listen()
            self._write()
        except OSError as error:
            raise SystemLimitError(
                f"{error.filename or FOLDER} cannot be written: {error.strerror or error} (run it as root)"
            ) from None

    def _listen(self) -> StatusSocket:
        registry, name = self.registry, self.name
        sock = registry.connected(name)
        if sock is not None:
            sock.close()
            raise SystemLimitError(
                f"a {registry.what} {name} is up already: verbena {registry.command} down {name} ends it"
            )
        registry.clean(name)
        thread = f"verbena {registry.command} status"
        return StatusSocket(registry.socket_of(name), self._told, questions=True, name=thread)

    def _write(self) -> None:
        path = self.registry.file_of(self.name)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"pid": os.getpid(), "namespaces": self._namespaces}))
        draft.replace(path)

    def note(self, namespace: str) -> None:
        """A namespace will be made: remember that it has to be removed."""
        with self._lock:
            self._namespaces.append(namespace)
            self._write()

    def answer(self, status: Callable[[], Status]) -> None:
        """From now on, tell this to who asks."""
        self._status = status

    def cleared(self) -> None:
        """Everything has been removed."""
        with self._lock:
            self._namespaces.clear()

    def _told(self, question: bytes) -> Status | None:
        if question == b"status":
            return self._status()
        if question == b"down":
            self._down()
        return None

    def close(self) -> None:
        """It is up no longer."""
        self._socket.close()
        if self._namespaces:
            self.registry.clean(self.name)
        self.registry.file_of(self.name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
