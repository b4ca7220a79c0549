"""Which LANs are up on this machine: a file and a socket for each, so that other processes can ask, and clean up.

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
from verbena.runtime import namespaces

FOLDER = Path(os.environ.get("VERBENA_RUN", "/run/verbena"))
PATIENCE_S = 30.0
QUESTION_S = 5.0
LARGEST = 64 << 20


def _file(name: str) -> Path:
    return FOLDER / f"lan-{namespaces.checked_name(name)}.json"


def _socket(name: str) -> Path:
    return FOLDER / f"lan-{namespaces.checked_name(name)}.sock"


def names() -> list[str]:
    """The LANs that are up, or have left something."""
    return sorted(path.name[4:-5] for path in FOLDER.glob("lan-*.json"))


def _connected(name: str) -> socket.socket | None:
    """A connection to the process of a LAN; None if it is not there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(QUESTION_S)
    try:
        sock.connect(str(_socket(name)))
    except OSError:
        sock.close()
        return None
    return sock


def ask(name: str) -> dict[str, Any]:
    """What a LAN tells of itself.  Raises `NotFound` if its process is gone, `SystemLimitError` if it is silent."""
    sock = _connected(name)
    if sock is None:
        raise NotFound(f"the process of LAN {name} is gone: verbena lan down {name} removes what it has left")
    with sock:
        try:
            sock.sendall(b"status\n")
            told: dict[str, Any] = json.loads(_all(sock))
        except (OSError, ValueError):
            raise SystemLimitError(f"LAN {name} does not answer within {QUESTION_S:g} seconds") from None
    return told


def _all(sock: socket.socket) -> bytes:
    parts, size = [], 0
    while (part := sock.recv(1 << 16)) and size < LARGEST:
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def end(name: str) -> list[str]:
    """Have a LAN taken down, and wait for it; returns what had to be removed because its process was gone.

    Raises `SystemLimitError` if it does not end in time.
    """
    sock = _connected(name)
    if sock is None:
        return clean(name)
    with sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"down\n")
        limit = time.monotonic() + PATIENCE_S
        while _file(name).exists():
            if time.monotonic() > limit:
                raise SystemLimitError(f"LAN {name} has not ended within {PATIENCE_S:g} seconds")
            time.sleep(0.02)
    return []


def clean(name: str) -> list[str]:
    """Remove what a process that is gone has left; returns the namespaces."""
    removed = []
    try:
        made = json.loads(_file(name).read_text())["namespaces"]
    except (OSError, ValueError, KeyError):
        made = []
    for each in made:
        if namespaces.exists(each):
            namespaces.remove(each)
            removed.append(each)
    _socket(name).unlink(missing_ok=True)
    _file(name).unlink(missing_ok=True)
    return removed


class Registration:
    """One LAN's file and socket, of the process that has it.  A context manager.

    down: is called, from another thread, when somebody wants it to end.  Raises `SystemLimitError` if a LAN of that
    name is up; what a dead one has left is removed first.
    """

    def __init__(self, name: str, down: Callable[[], None]) -> None:
        self.name = name
        self._down = down
        self._status: Callable[[], dict[str, Any]] = lambda: {
            "subnet_managers": [],
            "config": {"mtu": 0, "service": "", "policy": "not up yet"},
            "members": [],
        }
        self._namespaces: list[str] = []
        self._lock = threading.Lock()
        try:
            FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._listener = self._listen()
            self._write()
        except OSError as error:
            raise SystemLimitError(
                f"{error.filename or FOLDER} cannot be written: {error.strerror} (run it as root)"
            ) from None
        self._thread = threading.Thread(target=self._serve, name="verbena lan status", daemon=True)
        self._thread.start()

    def _listen(self) -> socket.socket:
        sock = _connected(self.name)
        if sock is not None:
            sock.close()
            raise SystemLimitError(f"a LAN {self.name} is up already: verbena lan down {self.name} ends it")
        clean(self.name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        path = _socket(self.name)
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(8)
        return listener

    def _write(self) -> None:
        path = _file(self.name)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"pid": os.getpid(), "namespaces": self._namespaces}))
        draft.replace(path)

    def note(self, namespace: str) -> None:
        """A namespace will be made: remember that it has to be removed."""
        with self._lock:
            self._namespaces.append(namespace)
            self._write()

    def answer(self, status: Callable[[], dict[str, Any]]) -> None:
        """From now on, tell this to who asks."""
        self._status = status

    def cleared(self) -> None:
        """Everything has been removed."""
        with self._lock:
            self._namespaces.clear()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError, ValueError):
                sock.settimeout(QUESTION_S)
                line = sock.recv(64)
                if line == b"status\n":
                    sock.sendall(json.dumps(self._status()).encode())
                elif line == b"down\n":
                    self._down()

    def close(self) -> None:
        """It is up no longer."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        if self._namespaces:
            clean(self.name)
        _socket(self.name).unlink(missing_ok=True)
        _file(self.name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
