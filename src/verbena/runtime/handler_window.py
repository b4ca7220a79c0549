"""How other processes of the same user see a program's completion handlers: a socket that tells of them when asked.

From the first handler on, an adapter in real time listens on a Unix socket in a folder that only its user may enter
(`folder`).  Whoever connects is told once what `adapter.handler_report` says, as JSON, and nothing is read from him.
The thread sleeps until then, so that being visible costs a program nothing.  ``VERBENA_WINDOW=0`` leaves it out.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from verbena.adapter.handler_report import report
from verbena.adapter.handlers import HandlerTable
from verbena.runtime.status_socket import StatusSocket, connected, told

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


def open_window(name: str, table: HandlerTable) -> StatusSocket | None:
    """Let one adapter be seen; None where that cannot be: a program runs all the same."""
    where = folder() if os.environ.get("VERBENA_WINDOW") != "0" else None
    if where is None:
        return None

    def view(_: bytes) -> dict[str, Any]:
        return {"pid": os.getpid(), "adapter": name, **report(table)}

    path = where / f"{os.getpid()}-{next(_numbers)}"
    try:
        path.unlink(missing_ok=True)  # of a process of that number that was killed
        return StatusSocket(path, view, questions=False, name=f"verbena window {name}")
    except OSError as error:
        log.debug("handlers cannot be shown to other processes: %s", error)
        return None


def look(path: Path) -> dict[str, Any] | None:
    """What one adapter tells; None where nobody is there any more, or what comes is not that."""
    try:
        with connected(path, PATIENCE_S) as peer:
            found = told(peer, LARGEST)
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)  # its process was killed
        return None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("handlers"), list) else None


def look_around() -> list[dict[str, Any]]:
    """What all adapters of this user tell, in the order of their processes."""
    where = folder()
    if where is None:
        return []
    named = [p for p in where.iterdir() if p.name.replace("-", "").isdigit()]
    ordered = sorted(named, key=lambda p: [int(part) for part in p.name.split("-")])
    return [seen for path in ordered if (seen := look(path)) is not None]
