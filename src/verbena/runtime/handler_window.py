"""How other processes of the same user see a program's completion handlers: a socket that tells of them when asked.

From the first handler on, an adapter in real time listens on a Unix socket in a folder that only its user may enter
(`folder`).  Whoever connects is told once what `adapter.handler_report` says, as JSON, and nothing is read from him.
The thread sleeps until then, so that being visible costs a program nothing.  ``VERBENA_WINDOW=0`` leaves it out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import tempfile
import threading
from itertools import count
from pathlib import Path
from typing import Any

from verbena.adapter.handler_report import report
from verbena.adapter.handlers import HandlerTable

log = logging.getLogger("verbena")
PATIENCE_S = 2.0
LARGEST = 16 << 20
_numbers = count()


def folder() -> Path | None:
    """Where the sockets are: of this user alone; None where such a folder cannot be had."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "verbena") if base else Path(tempfile.gettempdir(), f"verbena-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if private else None


class Window:
    """The listening socket of one adapter, and its thread."""

    def __init__(self, name: str, table: HandlerTable, path: Path, listener: socket.socket) -> None:
        self.path = path
        self._name = name
        self._table = table
        self._listener = listener
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"verbena window {name}", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, name: str, table: HandlerTable) -> Window | None:
        """Begin to listen; None where that cannot be: a program runs all the same."""
        where = folder() if os.environ.get("VERBENA_WINDOW") != "0" else None
        if where is None:
            return None
        path = where / f"{os.getpid()}-{next(_numbers)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # of a process of that number that was killed
            listener.bind(str(path))
            listener.listen(4)
        except OSError as error:
            listener.close()
            log.debug("handlers cannot be shown to other processes: %s", error)
            return None
        return cls(name, table, path, listener)

    def _run(self) -> None:
        while not self._ended:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                if not self._ended:
                    peer.settimeout(PATIENCE_S)
                    peer.sendall(self._text())

    def _text(self) -> bytes:
        told = {"pid": os.getpid(), "adapter": self._name, **report(self._table)}
        return json.dumps(told).encode() + b"\n"

    def close(self) -> None:
        """Be seen no more."""
        if self._ended:
            return
        self._ended = True
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept
        if threading.current_thread() is not self._thread:
            self._thread.join(PATIENCE_S)
        self._listener.close()

    def abandon(self) -> None:
        """`close` in the child of a fork: the socket is the parent's."""
        self._ended = True
        self._listener.close()


def look(path: Path) -> dict[str, Any] | None:
    """What one adapter tells; None where nobody is there any more, or what comes is not that."""
    text = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(PATIENCE_S)
        try:
            peer.connect(str(path))
            while len(text) < LARGEST and (part := peer.recv(65_536)):
                text += part
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # its process was killed
            return None
        except OSError:
            return None
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("handlers"), list) else None


def look_around() -> list[dict[str, Any]]:
    """What all adapters of this user tell, in the order of their processes."""
    where = folder()
    if where is None:
        return []
    named = [p for p in where.iterdir() if p.name.replace("-", "").isdigit()]
    ordered = sorted(named, key=lambda p: [int(part) for part in p.name.split("-")])
    return [told for path in ordered if (told := look(path)) is not None]
