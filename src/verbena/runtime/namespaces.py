"""Network namespaces with names, as ``ip netns`` has them, and work that is done inside one.

A name is a file in `FOLDER` on which the namespace is mounted; ``ip netns exec NAME program`` runs a program inside.  A
namespace lives as long as the mount, a process or an interface's descriptor keeps it.  It belongs to a thread, not to
the process: what has to happen inside happens in a thread of its own, which ends afterwards.  The rest of the process
stays where it is, and nothing is forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from verbena.errors import InvalidAttributeError, SystemLimitError

FOLDER = Path("/run/netns")
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED, MNT_DETACH = 4096, 16384, 1 << 20, 2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, function: str, *arguments: Any) -> None:
    """A function of libc; raises `SystemLimitError` with its error."""
    if getattr(_libc, function)(*arguments) < 0:
        number = ctypes.get_errno()
        missing = " (needs CAP_SYS_ADMIN: run it as root)" if number in (errno.EPERM, errno.EACCES) else ""
        raise SystemLimitError(f"{what}: {os.strerror(number)}{missing}")


def checked_name(name: str) -> str:
    """The name; raises `InvalidAttributeError` for one that is no file name for a namespace."""
    if not NAME.fullmatch(name):
        raise InvalidAttributeError(
            f"{name!r} is no namespace's name: letters, digits, '_', '.', ':' and '-', at most 63"
        )
    return name


def path_of(name: str) -> Path:
    return FOLDER / checked_name(name)


def exists(name: str) -> bool:
    return path_of(name).exists()


def in_thread(function: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own; its result, or the exception that it raised."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="verbena namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def inside(name: str | None, function: Callable[[], Result]) -> Result:
    """Call a function inside a namespace; None: where the process is.

    Raises `SystemLimitError` if there is no such namespace, or it may not be entered, and what the function raises.
    """
    if name is None:
        return function()
    path = path_of(name)

    def run() -> Result:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SystemLimitError(f"namespace {name} cannot be had: {error.strerror}") from None
        try:
            _call(f"namespace {name} cannot be entered", "setns", descriptor, CLONE_NEWNET)
        finally:
            os.close(descriptor)
        return function()

    return in_thread(run)


def create(name: str) -> None:
    """Make a namespace.  Raises `SystemLimitError` if it is there already, or the right to make one is missing."""
    path = path_of(name)
    what = f"namespace {name} cannot be made"
    try:
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        _share(what)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError:
        raise SystemLimitError(f"{what}: there is one of that name already") from None
    except OSError as error:
        raise SystemLimitError(f"{what}: {error.strerror} (needs root)") from None

    def run() -> None:
        _call(what, "unshare", CLONE_NEWNET)
        own = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _call(what, "mount", own, os.fsencode(path), b"none", MS_BIND, None)

    try:
        in_thread(run)
    except SystemLimitError:
        path.unlink(missing_ok=True)
        raise


def _share(what: str) -> None:
    """Namespaces shall be seen in other mount namespaces, too, as ``ip netns add`` does it."""
    folder = os.fsencode(FOLDER)
    if _libc.mount(b"", folder, b"none", MS_SHARED | MS_REC, None) == 0:
        return
    if ctypes.get_errno() != errno.EINVAL:
        _call(what, "mount", b"", folder, b"none", MS_SHARED | MS_REC, None)
    _call(what, "mount", folder, folder, b"none", MS_BIND | MS_REC, None)
    _call(what, "mount", b"", folder, b"none", MS_SHARED | MS_REC, None)


def remove(name: str) -> None:
    """Unmake a namespace; nothing happens where there is none."""
    path = path_of(name)
    _libc.umount2(os.fsencode(path), MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
