"""Where pages go that leave the physical memory: slots of one page each.

`BackingStore` is what the memory manager asks for; `MemoryBackingStore` keeps the pages in this process.  One on a real
file is `runtime.backing_file.BackingFile`.
"""

from __future__ import annotations

from typing import Protocol

from verbena.errors import BackingStoreError, BackingStoreFullError


class BackingStore(Protocol):
    """Slots of one page; whatever goes wrong is a `BackingStoreError`."""

    def allocate(self) -> int:
        """A slot that was free; raises `BackingStoreFullError` when there is none."""

    def release(self, slot: int) -> None:
        """The slot is free again."""

    def write(self, slot: int, page: bytes | memoryview) -> None:
        """Keep a page."""

    def read(self, slot: int) -> bytes:
        """The page that was kept last."""

    @property
    def used(self) -> int:
        """Slots that are not free."""


class MemoryBackingStore:
    """A backing store in memory.  capacity: pages that it holds; None for any number."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._pages: dict[int, bytes] = {}
        self._free: list[int] = []
        self._next = 0

    def allocate(self) -> int:
        if self._free:
            slot = self._free.pop()
        elif self.capacity is not None and self._next >= self.capacity:
            raise BackingStoreFullError(f"all {self.capacity} pages of the backing store are in use")
        else:
            slot, self._next = self._next, self._next + 1
        self._pages[slot] = b""
        return slot

    def release(self, slot: int) -> None:
        self._known(slot)
        del self._pages[slot]
        self._free.append(slot)

    def write(self, slot: int, page: bytes | memoryview) -> None:
        self._known(slot)
        self._pages[slot] = bytes(page)

    def read(self, slot: int) -> bytes:
        self._known(slot)
        return self._pages[slot]

    def _known(self, slot: int) -> None:
        if slot not in self._pages:
            raise BackingStoreError(f"slot {slot} of the backing store is not in use")

    @property
    def used(self) -> int:
        return len(self._pages)
