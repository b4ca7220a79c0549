"""A running program shows its memory: a Unix socket that answers each connection with one line of JSON.

``verbena memory SOCKET`` is who asks.  The socket can be reached by its owner only, and says nothing but what
`memory_view` says: no memory can be read through it, nor anything changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verbena.errors import SystemLimitError, VerbenaError

LARGEST_ANSWER = 1 << 28
PATIENCE_S = 10.0


class MemoryService:
    """Answers in a thread of its own.  A context manager.

    path: of the socket, which must not exist.  view: what to answer; called in that thread.  Raises `SystemLimitError`.
    """

    def __init__(self, path: str | Path, view: Callable[[], dict[str, Any]]) -> None:
        self.path = Path(path)
        self._view = view
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        os.fchmod(self._socket.fileno(), 0o600)  # the mode that `bind` gives to the file, on Linux
        try:
            self._socket.bind(str(self.path))
        except OSError as error:
            self._socket.close()
            raise SystemLimitError(
                f"the socket {self.path} cannot be made: {error.strerror or error}"
            ) from None
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, name="verbena memory", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                asked, _ = self._socket.accept()
            except OSError:
                return
            with asked, contextlib.suppress(OSError):
                asked.settimeout(PATIENCE_S)
                asked.sendall(json.dumps(self._answer(), separators=(",", ":")).encode() + b"\n")

    def _answer(self) -> dict[str, Any]:
        try:
            return self._view()
        except VerbenaError as error:  # an adapter that is being closed
            return {"error": str(error)}

    def close(self) -> None:
        """Answer no more, and delete the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> MemoryService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(path: str | Path) -> dict[str, Any]:
    """What the program behind a socket shows.  Raises `SystemLimitError`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
            asking.settimeout(PATIENCE_S)
            asking.connect(str(path))
            answer = b""
            while more := asking.recv(1 << 16):
                answer += more
                if len(answer) > LARGEST_ANSWER:
                    raise SystemLimitError(f"{path}: the answer is too long")
    except OSError as error:
        raise SystemLimitError(f"{path}: nobody answers: {error.strerror or error}") from None
    try:
        found = json.loads(answer)
    except ValueError:
        raise SystemLimitError(f"{path}: that is no program that shows its memory") from None
    if not isinstance(found, dict) or "error" in found:
        raise SystemLimitError(
            f"{path}: {found['error'] if isinstance(found, dict) else 'no view of memory'}"
        )
    return found
