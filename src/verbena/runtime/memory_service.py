"""A running program shows its memory: a Unix socket that answers each connection with one line of JSON.

``verbena memory SOCKET`` is who asks.  The socket can be reached by its owner only, and says nothing but what
`memory_view` says: no memory can be read through it, nor anything changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from verbena.errors import SystemLimitError, VerbenaError
from verbena.runtime.status_socket import StatusSocket, connected, told

LARGEST_ANSWER = 1 << 28
PATIENCE_S = 10.0


class MemoryService:
    """Answers in a thread of its own.  A context manager.

    path: of the socket, which must not exist.  view: what to answer; called in that thread.  Raises `SystemLimitError`.
    """

    def __init__(self, path: str | Path, view: Callable[[], dict[str, Any]]) -> None:
        self._view = view
        try:
            self._socket = StatusSocket(Path(path), self._answer, questions=False, name="verbena memory")
        except OSError as error:
            raise SystemLimitError(f"the socket {path} cannot be made: {error.strerror or error}") from None

    def _answer(self, _: bytes) -> dict[str, Any]:
        try:
            return self._view()
        except VerbenaError as error:  # an adapter that is being closed
            return {"error": str(error)}

    def close(self) -> None:
        """Answer no more, and delete the socket."""
        self._socket.close()

    def __enter__(self) -> MemoryService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(path: str | Path) -> dict[str, Any]:
    """What the program behind a socket shows.  Raises `SystemLimitError`."""
    try:
        with connected(Path(path), PATIENCE_S) as asking:
            found = told(asking, LARGEST_ANSWER)
    except OSError as error:
        raise SystemLimitError(f"{path}: nobody answers: {error.strerror or error}") from None
    except ValueError:
        raise SystemLimitError(f"{path}: that is no program that shows its memory") from None
    if not isinstance(found, dict) or "error" in found:
        raise SystemLimitError(
            f"{path}: {found['error'] if isinstance(found, dict) else 'no view of memory'}"
        )
    return found
