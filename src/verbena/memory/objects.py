"""Memory objects: pieces of a host's virtual address space, and the processes that map them.

An object takes one virtual segment, or several when it is longer than a segment can be.  It knows what each of its
pages may be used for, and where in the backing store those are that were put out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from verbena.memory.addresses import AddressFormat
from verbena.memory.frames import PageKey
from verbena.memory.protection import Protection

if TYPE_CHECKING:
    from verbena.memory.process import Process


@dataclass(slots=True)
class Mapping:
    """A process's view of an object: its first effective segment id there, and what the process may do at most."""

    process: Process
    first: int
    protection: Protection
    valid: bool = True


@dataclass(slots=True)
class MemoryObject:
    """length: bytes, whole pages.  uppers: the upper virtual bits of its segments, in order."""

    form: AddressFormat
    length: int
    protection: Protection
    uppers: list[int]
    owner: Process | None
    mappings: list[Mapping] = field(default_factory=list)
    page_protection: dict[PageKey, Protection] = field(default_factory=dict)
    slots: dict[PageKey, int] = field(default_factory=dict)
    pins: dict[PageKey, set[int]] = field(default_factory=dict)  # who holds a page in its frame

    def segments(self, length: int | None = None) -> int:
        """How many segments a length (by default, its own) takes."""
        return -(-(self.length if length is None else length) // self.form.segment_size)

    def segment_length(self, index: int) -> int:
        """Bytes of one of its segments."""
        return min(self.form.segment_size, self.length - index * self.form.segment_size)

    def key(self, number: int) -> PageKey:
        """The virtual page with a number, counted from the object's beginning."""
        index, page = divmod(number, self.form.segment_pages)
        return self.uppers[index], page

    def keys(self, first: int, count: int) -> list[PageKey]:
        """Several pages."""
        return [self.key(number) for number in range(first, first + count)]

    def protection_of(self, key: PageKey) -> Protection:
        """The page's own protection."""
        return self.page_protection.get(key, self.protection)

    def mapping_of(self, process: Process, segment: int) -> Mapping | None:
        """The process's mapping that an effective segment id belongs to."""
        for mapping in self.mappings:
            if mapping.process is process and 0 <= segment - mapping.first < len(self.uppers):
                return mapping
        return None
