"""The translations that an adapter has cached: which virtual page stands at which pages of its address spaces.

What is cached is always right: before a page leaves its frame, `unmap` takes out all that is cached of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from verbena.memory.frames import PageKey
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.pages import PageTable
from verbena.memory.protection import allows

Place = tuple[int, int]  # an address space of the adapter, and a page of it


class AddressSpaceTable(Protocol):
    """What the driver asks of the adapter: `memory.spaces.Spaces`."""

    def make_space(self, page_bits: int = 12, on_demand: bool = False, ahead: int = 64) -> int: ...
    def free_space(self, space: int) -> None: ...
    def add_range(self, space: int, first: int, pages: int, writable: bool = True) -> None: ...
    def remove_range(self, space: int, first: int, pages: int) -> None: ...
    def set_page(
        self, space: int, page: int, frame: memoryview, writable: bool = True, readable: bool = True
    ) -> None: ...
    def clear_page(self, space: int, page: int) -> None: ...
    def fail_page(self, space: int, page: int) -> None: ...
    def drop_page(self, space: int, page: int) -> None: ...
    def protect_page(self, space: int, page: int, writable: bool, readable: bool = True) -> None: ...


class Translations:
    """The pages of an adapter's address spaces.

    table: the page table that the adapter uses.  Callers hold the lock of the adapter, and that of the memory.
    """

    def __init__(self, memory: VirtualMemoryManager, spaces: AddressSpaceTable, table: PageTable) -> None:
        self._memory = memory
        self._spaces = spaces
        self._table = table
        self._cached: dict[PageKey, set[Place]] = {}
        self._lost: set[Place] = set()

    def __contains__(self, item: tuple[PageKey, Place]) -> bool:
        """Is a virtual page cached at a place?"""
        key, place = item
        return place in self._cached.get(key, ())

    def is_lost(self, place: Place) -> bool:
        """Was it refused because it could not be brought in?"""
        return place in self._lost

    def map(self, place: Place, key: PageKey, writable: bool) -> int | None:
        """MapLocalPage (step 612): the adapter gets a page's translation.

        writable: as far as the segment goes.  Returns the frame, or None when the page is not resident.
        """
        known = self._table.find(*key)
        if known is None or not known.valid:
            return None
        writable = writable and allows(known.protection, True)
        local = self._memory.map_local_page(*key, writable)
        if local is None:
            return None
        self._spaces.set_page(*place, local.view, writable, allows(known.protection, False))
        self._cached.setdefault(key, set()).add(place)
        self._lost.discard(place)
        return local.frame

    def unmap(self, key: PageKey) -> Iterator[Place]:
        """The page leaves its frame: it is out, wherever it was cached."""
        for place in sorted(self._cached.pop(key, ())):
            self._spaces.clear_page(*place)
            yield place

    def fail(self, place: Place) -> None:
        """A page cannot be brought in: who waits for it is refused."""
        self._lost.add(place)
        self._spaces.fail_page(*place)

    def retry(self) -> None:
        """What could not be brought in may be asked for again."""
        for place in self._lost:
            self._spaces.clear_page(*place)
        self._lost.clear()

    def forget(self, space: int, first: int, pages: int) -> None:
        """Pages of a space are about to vanish from it."""

        def gone(place: Place) -> bool:
            return place[0] == space and first <= place[1] < first + pages

        for key in list(self._cached):
            self._cached[key] = {place for place in self._cached[key] if not gone(place)}
            if not self._cached[key]:
                del self._cached[key]
        self._lost = {place for place in self._lost if not gone(place)}

    def count(self, space: int) -> int:
        """How many pages of a space are cached."""
        return sum(place[0] == space for places in self._cached.values() for place in places)
