"""Page tables (document 003, figure 16): upper virtual bits and page number to a frame.  Plain and inverted.

A plain table has an entry for each virtual page that was mapped, resident or not.  An inverted one has one entry for
each frame, found through hash anchors, so that it grows with the physical memory and not with the virtual (003:837).
Both tell the same of every resident page; of a page that is not, the plain table has an entry that is not valid, and
the inverted one has none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from verbena.errors import InvalidAttributeError
from verbena.memory.protection import Protection


@dataclass(slots=True)
class PageTableEntry:
    """Figure 16: upper virtual bits 542'', physical page number 534'', and other fields.

    valid: the page valid field 556: the page is in that frame.  protection: the page protection field 558.
    referenced, dirty: used, and written, since the memory manager last looked.
    """

    upper: int
    page: int
    frame: int
    valid: bool
    protection: Protection
    referenced: bool = False
    dirty: bool = False

    def snapshot(self) -> PageTableEntry:
        """A copy that later changes do not reach."""
        return replace(self)


class PageTable(ABC):
    """What both forms offer.  `size`: entries that the table has room for at present."""

    @abstractmethod
    def find(self, upper: int, page: int) -> PageTableEntry | None:
        """The page's entry; None (or one that is not valid) when the page is not resident."""

    @abstractmethod
    def set(self, entry: PageTableEntry) -> None:
        """Add the page's entry, or put it in the place of the one that is there."""

    @abstractmethod
    def invalidate(self, upper: int, page: int) -> None:
        """The page has left its frame."""

    @abstractmethod
    def remove(self, upper: int, page: int) -> None:
        """The page is gone from the virtual address space."""

    @abstractmethod
    def entries(self) -> Iterator[PageTableEntry]:
        """All entries, in the order of their addresses."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Entries that the table takes room for."""


class PlainPageTable(PageTable):
    """One entry for each virtual page that was ever mapped and still exists."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], PageTableEntry] = {}

    def find(self, upper: int, page: int) -> PageTableEntry | None:
        return self._entries.get((upper, page))

    def set(self, entry: PageTableEntry) -> None:
        self._entries[entry.upper, entry.page] = entry

    def invalidate(self, upper: int, page: int) -> None:
        if entry := self._entries.get((upper, page)):
            entry.valid = entry.referenced = entry.dirty = False

    def remove(self, upper: int, page: int) -> None:
        self._entries.pop((upper, page), None)

    def entries(self) -> Iterator[PageTableEntry]:
        return iter([self._entries[key] for key in sorted(self._entries)])

    @property
    def size(self) -> int:
        return len(self._entries)


class InvertedPageTable(PageTable):
    """One place for each of `frames` frames; anchors, chosen by a hash of the address, begin chains of places."""

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise InvalidAttributeError(f"frames = {frames}: an inverted page table needs 1 or more")
        self._places: list[PageTableEntry | None] = [None] * frames
        self._next = [-1] * frames
        self._anchors = [-1] * (1 << (2 * frames - 1).bit_length())

    def _anchor(self, upper: int, page: int) -> int:
        # Fibonacci hashing: neighbouring pages, and the same page of several segments, come to different anchors.
        mixed = (upper * 0x9E3779B97F4A7C15 + page * 0xC2B2AE3D27D4EB4F) & (1 << 64) - 1
        return (mixed >> 29) % len(self._anchors)

    def _place(self, upper: int, page: int) -> int:
        at = self._anchors[self._anchor(upper, page)]
        while at >= 0:
            entry = self._places[at]
            assert entry is not None
            if entry.upper == upper and entry.page == page:
                return at
            at = self._next[at]
        return -1

    def find(self, upper: int, page: int) -> PageTableEntry | None:
        at = self._place(upper, page)
        return None if at < 0 else self._places[at]

    def set(self, entry: PageTableEntry) -> None:
        """The entry takes the place of its frame: a page that was said to be there before is not there any more."""
        self._unlink(entry.upper, entry.page)
        if not entry.valid:
            return
        if not 0 <= entry.frame < len(self._places):
            raise InvalidAttributeError(
                f"frame {entry.frame}: the table is for frames 0 to {len(self._places) - 1}"
            )
        before = self._places[entry.frame]
        if before is not None:
            self.invalidate(before.upper, before.page)
        anchor = self._anchor(entry.upper, entry.page)
        self._places[entry.frame] = entry
        self._next[entry.frame] = self._anchors[anchor]
        self._anchors[anchor] = entry.frame

    def invalidate(self, upper: int, page: int) -> None:
        entry = self._unlink(upper, page)
        if entry is not None:
            entry.valid = entry.referenced = entry.dirty = False

    def _unlink(self, upper: int, page: int) -> PageTableEntry | None:
        """Take the page's entry out of its place and chain."""
        at = self._place(upper, page)
        if at < 0:
            return None
        anchor = self._anchor(upper, page)
        if self._anchors[anchor] == at:
            self._anchors[anchor] = self._next[at]
        else:
            before = self._anchors[anchor]
            while self._next[before] != at:
                before = self._next[before]
            self._next[before] = self._next[at]
        entry = self._places[at]
        self._places[at] = None
        self._next[at] = -1
        return entry

    remove = invalidate

    def entries(self) -> Iterator[PageTableEntry]:
        found = [entry for entry in self._places if entry is not None]
        return iter(sorted(found, key=lambda entry: (entry.upper, entry.page)))

    @property
    def size(self) -> int:
        return len(self._places)
