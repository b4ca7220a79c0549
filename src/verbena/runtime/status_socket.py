"""A Unix socket at which a running program tells of itself: who connects gets one line of JSON.

The thread behind it sleeps until somebody connects, so that being visible costs a program nothing.  Only the
program's own user can connect.  Who asks and then falls silent, or does not take the answer, holds up the next one
for `PATIENCE_S` at most.
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

PATIENCE_S = 5.0
LONGEST_QUESTION = 4096


class StatusSocket:
    """Answers in a thread of its own.

    path: of the socket, which must not exist.  answer: is called in that thread with the line that was asked, without
    its end, and returns what is told (None: nothing).  questions: False tells at once, with b"" as the question, and
    reads nothing.  Raises `OSError`.
    """

    def __init__(
        self, path: Path, answer: Callable[[bytes], Any], *, questions: bool, name: str = "verbena status"
    ) -> None:
        self.path = path
        self._answer = answer
        self._questions = questions
        self._ended = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(self._listener.fileno(), 0o600)  # the mode that `bind` gives to the file, on Linux
            self._listener.bind(str(path))
            self._listener.listen(8)
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError, ValueError):
                peer.settimeout(PATIENCE_S)
                if not self._ended:
                    self._tell(peer)

    def _tell(self, peer: socket.socket) -> None:
        line = b""
        if self._questions:
            with peer.makefile("rb") as asked:
                line = asked.readline(LONGEST_QUESTION).rstrip(b"\n")
        told = self._answer(line)
        if told is not None:
            peer.sendall(json.dumps(told, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Answer no more, and delete the socket."""
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


def connected(path: Path, patience_s: float) -> socket.socket:
    """A connection to a program.  Raises `OSError`: `ConnectionRefusedError` where its process was killed."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    peer.settimeout(patience_s)
    try:
        peer.connect(str(path))
    except OSError:
        peer.close()
        raise
    return peer


def told(peer: socket.socket, largest: int) -> Any:
    """The answer that comes; largest: in bytes.  Raises `OSError`, and `ValueError` if it is too long, or no JSON."""
    parts, size = [], 0
    while part := peer.recv(1 << 16):
        parts.append(part)
        size += len(part)
        if size > largest:
            raise ValueError("the answer is too long")
    return json.loads(b"".join(parts))
