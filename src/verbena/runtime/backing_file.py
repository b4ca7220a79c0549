"""A backing store on a real file: where pages of a host's memory go that find no frame.

The file holds slots of one page each, and grows as slots are used, up to `capacity`.  What the operating system refuses
(no space, a bad disk, a file that somebody cut off) is a `BackingStoreError`: the page stays where it was, or cannot be
brought in.
"""

from __future__ import annotations

import os
from pathlib import Path

from verbena.errors import BackingStoreError, BackingStoreFullError, InvalidAttributeError, SystemLimitError


class BackingFile:
    """Implements `memory.backing.BackingStore`.  A context manager: closing it deletes the file.

    path: a file that is made, and must not exist.  page_size: bytes of a slot.  capacity: pages, None for as many as
    the disk holds.  keep: leave the file where it is when it is closed.

    Raises `SystemLimitError` when the file cannot be made.
    """

    def __init__(
        self, path: str | Path, page_size: int = 4096, *, capacity: int | None = None, keep: bool = False
    ) -> None:
        if not isinstance(page_size, int) or page_size < 1:
            raise InvalidAttributeError(f"page_size = {page_size!r}: 1 byte or more")
        if capacity is not None and (not isinstance(capacity, int) or capacity < 0):
            raise InvalidAttributeError(f"capacity = {capacity!r}: a number of pages, or None")
        self.path = Path(path)
        self.page_size = page_size
        self.capacity = capacity
        self._keep = keep
        self._free: list[int] = []
        self._used: set[int] = set()
        self._next = 0
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SystemLimitError(f"backing file {self.path} cannot be made: {error.strerror}") from None

    def allocate(self) -> int:
        if self._free:
            slot = self._free.pop()
        elif self.capacity is not None and self._next >= self.capacity:
            raise BackingStoreFullError(f"all {self.capacity} pages of {self.path.name} are in use")
        else:
            slot, self._next = self._next, self._next + 1
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        self._known(slot)
        self._used.discard(slot)
        self._free.append(slot)

    def write(self, slot: int, page: bytes | memoryview) -> None:
        self._known(slot)
        rest, at = memoryview(page).cast("B"), slot * self.page_size
        if len(rest) != self.page_size:
            raise BackingStoreError(f"{len(rest)} bytes are no page of {self.page_size}")
        while rest:
            try:
                done = os.pwrite(self._file, rest, at)
            except OSError as error:
                raise BackingStoreError(f"{self.path.name} cannot be written: {error.strerror}") from None
            rest, at = rest[done:], at + done

    def read(self, slot: int) -> bytes:
        self._known(slot)
        found = b""
        while len(found) < self.page_size:
            try:
                more = os.pread(self._file, self.page_size - len(found), slot * self.page_size + len(found))
            except OSError as error:
                raise BackingStoreError(f"{self.path.name} cannot be read: {error.strerror}") from None
            if not more:
                raise BackingStoreError(f"{self.path.name} ends within the page of slot {slot}")
            found += more
        return found

    def _known(self, slot: int) -> None:
        if slot not in self._used:
            raise BackingStoreError(f"slot {slot} of {self.path.name} is not in use")

    @property
    def used(self) -> int:
        return len(self._used)

    def close(self) -> None:
        """Close the file, and delete it."""
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        self._used.clear()
        if not self._keep:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> BackingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
