"""Segment tables (document 003, figure 14): which virtual segment each effective segment id of a process stands for.

The virtual memory manager alone makes and changes entries.  A table is unique to a process; the adapter's driver keeps
a copy of it with the state of the process's queue pairs, or a pointer to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from verbena.errors import ProtectionFault, SegmentFault
from verbena.memory.addresses import AddressFormat, EffectiveAddress, VirtualAddress
from verbena.memory.protection import Protection, allows


@dataclass(frozen=True, slots=True)
class SegmentTableEntry:
    """Figure 14: effective segment id 532', upper bits of the virtual address 542, and other fields.

    valid: the segment valid bit 546.  length: bytes of the segment, whole pages.  protection: what this process may do
    at most; the page's own protection may allow less.
    """

    segment: int
    upper: int
    valid: bool
    length: int
    protection: Protection


class SegmentTable:
    """The entries of one process, by effective segment id."""

    def __init__(self, entries: tuple[SegmentTableEntry, ...] = ()) -> None:
        self._entries = {entry.segment: entry for entry in entries}

    def set(self, entry: SegmentTableEntry) -> None:
        """Add an entry, or put it in the place of the one with its id."""
        self._entries[entry.segment] = entry

    def remove(self, segment: int) -> None:
        """Delete an entry, if it is there."""
        self._entries.pop(segment, None)

    def find(self, segment: int) -> SegmentTableEntry | None:
        """The entry with an id, valid or not."""
        return self._entries.get(segment)

    def entries(self) -> tuple[SegmentTableEntry, ...]:
        """All entries, by id: a snapshot."""
        return tuple(self._entries[segment] for segment in sorted(self._entries))

    def of_virtual(self, upper: int) -> Iterator[SegmentTableEntry]:
        """The valid entries that stand for a virtual segment (a process may have several)."""
        return (entry for entry in self.entries() if entry.upper == upper and entry.valid)

    def copy(self) -> SegmentTable:
        """Another table with the same entries."""
        return SegmentTable(self.entries())

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SegmentTable) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def translate(
        self, form: AddressFormat, address: EffectiveAddress, write: bool = False
    ) -> tuple[VirtualAddress, SegmentTableEntry]:
        """Step 606 of figure 17: the virtual address, with page number and offset as they were, and the entry used.

        Raises `SegmentFault` when there is no valid entry, or the address is beyond the segment's end, and
        `ProtectionFault` when the entry does not allow this kind of access.
        """
        entry = self._entries.get(address.segment)
        if entry is None or not entry.valid:
            raise SegmentFault(f"effective segment {address.segment:#x} is not valid in this process")
        if address.page << form.offset_bits >= entry.length:
            raise SegmentFault(
                f"page {address.page:#x} is beyond the {entry.length} bytes of segment {address.segment:#x}"
            )
        if not allows(entry.protection, write):
            raise ProtectionFault(
                f"segment {address.segment:#x} may not be {'written' if write else 'read'} by this process"
            )
        return VirtualAddress(entry.upper, address.page, address.offset), entry
