"""Address spaces: the processes of a host, and their segment tables (document 003, "Memory Management").

The part of the virtual memory manager that makes and changes segment table entries; `manager` adds pages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

from verbena.errors import InvalidAttributeError, ResourceError, SegmentFault
from verbena.memory.addresses import AddressFormat, EffectiveAddress
from verbena.memory.frames import PageKey
from verbena.memory.objects import Mapping, MemoryObject
from verbena.memory.process import Process
from verbena.memory.protection import Protection, known_protection
from verbena.memory.segments import SegmentTable, SegmentTableEntry

FIRST_UPPER = 0x100  # no effective address is its own virtual address


class AddressSpaces:
    """Processes, the objects that they map, and a segment table for each.  `form`: the widths of addresses."""

    def __init__(self, form: AddressFormat, lock: AbstractContextManager[Any]) -> None:
        self.form = form
        self.kernel_calls = 0
        self._lock = lock
        self._tables: dict[Process, SegmentTable] = {}
        self._objects: dict[int, MemoryObject] = {}
        self._lowest_upper = min(FIRST_UPPER, 1 << form.upper_bits - 1)
        self._next_upper = self._lowest_upper
        self._next_segment: dict[Process, int] = {}
        self._barred: set[Process] = set()

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """One call of the kernel."""
        with self._lock:
            self.kernel_calls += 1
            yield

    def _segment_changed(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        """An entry was added, changed or (None) deleted."""
        raise NotImplementedError

    def _process_ended(self, process: Process) -> None:
        """A process is gone."""
        raise NotImplementedError

    def _drop(self, owner: MemoryObject, keys: list[PageKey]) -> None:
        """Pages are gone from the virtual address space."""
        raise NotImplementedError

    # --- processes ----------------------------------------------------------------------------------------

    def create_process(self, name: str, *, kernel: bool = False, adapters: bool = True) -> Process:
        """A new process with an empty segment table.  adapters: may it use channel adapters?"""
        if not isinstance(name, str) or not name:
            raise InvalidAttributeError(f"name = {name!r}: a process has a name")
        with self._call():
            if any(known.name == name for known in self._tables):
                raise InvalidAttributeError(f"there is a process {name} already: choose another name")
            process = self._make_process(name, kernel)
            self._tables[process] = SegmentTable()
            self._next_segment[process] = 1
            if not adapters:
                self._barred.add(process)
            return process

    def end_process(self, process: Process) -> None:
        """The process is gone, and its memory with it, but for what others share."""
        with self._call():
            table = self._table(process)
            for first in [e.segment for e in table.entries()]:
                if table.find(first) is not None:
                    self._unmap(*self._mapping(process, first))
            del self._tables[process], self._next_segment[process]
            self._barred.discard(process)
            self._process_ended(process)

    @property
    def processes(self) -> tuple[Process, ...]:
        """All processes."""
        return tuple(self._tables)

    def _make_process(self, name: str, kernel: bool) -> Process:
        raise NotImplementedError

    def _table(self, process: Process) -> SegmentTable:
        table = self._tables.get(process) if isinstance(process, Process) else None
        if table is None:
            raise InvalidAttributeError(f"{process!r} is no process of this host")
        return table

    # --- segments -----------------------------------------------------------------------------------------

    def allocate(self, process: Process, length: int, protection: Protection = Protection.READ_WRITE) -> int:
        """See `Process.allocate`."""
        protection = known_protection(protection)
        length = self._whole_pages(length)
        with self._call():
            self._table(process)
            made = MemoryObject(self.form, length, protection, [], process)
            count = made.segments()
            first = self._free_segments(process, count)
            made.uppers = self._free_uppers(count)
            for upper in made.uppers:
                self._objects[upper] = made
            return self._map(made, Mapping(process, first, protection))

    def share(
        self,
        address: int,
        owner: Process,
        to: Process,
        protection: Protection = Protection.READ_WRITE,
    ) -> int:
        """Let another process map memory of `owner`, too; returns its effective address there.

        protection: what the other may do at most, and no more than `owner` may.  Raises `InvalidAttributeError`,
        `ResourceError`.
        """
        protection = known_protection(protection)
        with self._call():
            shared, mapping = self._whole(owner, address)
            self._table(to)
            if protection & ~mapping.protection:
                raise InvalidAttributeError(f"{owner.name} may not do that itself: share with less")
            first = self._free_segments(to, len(shared.uppers))
            return self._map(shared, Mapping(to, first, protection))

    def resize(self, process: Process, address: int, length: int) -> None:
        """See `Process.resize`.  All who share the memory see it grow and shrink."""
        length = self._whole_pages(length)
        with self._call():
            resized, _ = self._owned(process, address)
            before, count = resized.length, resized.segments(length)
            added = count - len(resized.uppers)
            if added > 0:
                for mapping in resized.mappings:
                    self._require_free(mapping, len(resized.uppers), added)
                uppers = self._free_uppers(added)
                resized.uppers += uppers
                self._objects.update(dict.fromkeys(uppers, resized))
            gone = resized.keys(length // self.form.page_size, max(0, before - length) // self.form.page_size)
            resized.length = length
            first_changed = min(before, length) // self.form.segment_size
            for mapping in resized.mappings:
                for index in range(first_changed, len(resized.uppers)):
                    self._write_entry(resized, mapping, index)
            self._drop(resized, gone)
            for upper in resized.uppers[count:]:
                del self._objects[upper]
            del resized.uppers[count:]

    def free(self, process: Process, address: int) -> None:
        """See `Process.free`."""
        with self._call():
            self._unmap(*self._whole(process, address))

    def set_segment(
        self,
        process: Process,
        address: int,
        *,
        valid: bool | None = None,
        protection: Protection | None = None,
    ) -> None:
        """Withdraw or give back a process's view of memory (the segment valid bit 546), or change what it may do."""
        with self._call():
            changed, mapping = self._whole(process, address)
            mapping.valid = mapping.valid if valid is None else bool(valid)
            if protection is not None:
                mapping.protection = known_protection(protection)
            for index in range(len(changed.uppers)):
                self._write_entry(changed, mapping, index)

    def _map(self, made: MemoryObject, mapping: Mapping) -> int:
        made.mappings.append(mapping)
        for index in range(len(made.uppers)):
            self._write_entry(made, mapping, index)
        return self.form.encode(EffectiveAddress(mapping.first, 0))

    def _unmap(self, shared: MemoryObject, mapping: Mapping) -> None:
        shared.mappings.remove(mapping)
        for index in range(len(shared.uppers)):
            self._delete_entry(mapping.process, mapping.first + index)
        if shared.owner is mapping.process:
            shared.owner = None
        if not shared.mappings:
            self._drop(shared, shared.keys(0, shared.length // self.form.page_size))
            for upper in shared.uppers:
                del self._objects[upper]

    def _write_entry(self, made: MemoryObject, mapping: Mapping, index: int) -> None:
        """Add or change the entry of one segment of a mapping, or delete it when nothing is left of the segment."""
        length = made.segment_length(index)
        segment = mapping.first + index
        if length <= 0:
            self._delete_entry(mapping.process, segment)
            return
        entry = SegmentTableEntry(segment, made.uppers[index], mapping.valid, length, mapping.protection)
        table = self._tables[mapping.process]
        if table.find(segment) != entry:
            table.set(entry)
            self._segment_changed(mapping.process, segment, entry)

    def _delete_entry(self, process: Process, segment: int) -> None:
        self._tables[process].remove(segment)
        self._segment_changed(process, segment, None)

    def _free_segments(self, process: Process, count: int) -> int:
        """The first of as many free segment ids in a row; ids that were used are used again as late as possible."""
        table, limit = self._tables[process], 1 << self.form.segment_bits
        start = self._next_segment[process]
        for first in chain(range(start, limit - count + 1), range(1, min(start, limit - count + 1))):
            if all(table.find(first + i) is None for i in range(count)):
                self._next_segment[process] = first + count
                return first
        raise ResourceError(
            f"{process.name} has no {count} free effective segments in a row: free some memory"
        )

    def _require_free(self, mapping: Mapping, after: int, count: int) -> None:
        table = self._tables[mapping.process]
        first = mapping.first + after
        taken = first + count > 1 << self.form.segment_bits or any(
            table.find(first + i) is not None for i in range(count)
        )
        if taken:
            raise ResourceError(
                f"the memory cannot grow: the segment behind it is taken in {mapping.process.name}; allocate anew"
            )
        self._next_segment[mapping.process] = max(self._next_segment[mapping.process], first + count)

    def _free_uppers(self, count: int) -> list[int]:
        """Upper bits that no segment has, in ascending order, used again as late as possible."""
        limit = 1 << self.form.upper_bits
        if len(self._objects) + count > limit - self._lowest_upper:
            raise ResourceError("the virtual address space is used up: free some memory")
        found: list[int] = []
        while len(found) < count:
            if self._next_upper >= limit:
                self._next_upper = self._lowest_upper
            if self._next_upper not in self._objects and self._next_upper not in found:
                found.append(self._next_upper)
            self._next_upper += 1
        return found

    def _whole_pages(self, length: int) -> int:
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise InvalidAttributeError(f"length = {length!r}: 1 byte or more")
        most = self.form.segment_size << self.form.segment_bits
        if length > most:
            raise InvalidAttributeError(f"length = {length}: an address space has {most} bytes")
        return self.form.pages_of(length) << self.form.offset_bits

    def _mapping(self, process: Process, segment: int) -> tuple[MemoryObject, Mapping]:
        entry = self._table(process).find(segment)
        if entry is not None:
            found = self._objects[entry.upper]
            mapping = found.mapping_of(process, segment)
            assert mapping is not None
            return found, mapping
        raise SegmentFault(f"effective segment {segment:#x} is not valid in {process.name}")

    def _whole(self, process: Process, address: int) -> tuple[MemoryObject, Mapping]:
        """The memory that begins at an address; raises `InvalidAttributeError` when none does."""
        place = self.form.effective(address)
        entry = self._table(process).find(place.segment)
        if entry is not None and not place.page and not place.offset:
            found, mapping = self._mapping(process, place.segment)
            if mapping.first == place.segment:
                return found, mapping
        raise InvalidAttributeError(f"no memory of {process.name} begins at {address:#x}")

    def _owned(self, process: Process, address: int) -> tuple[MemoryObject, Mapping]:
        found, mapping = self._whole(process, address)
        if found.owner is not process:
            raise InvalidAttributeError(
                f"only the process that allocated it may do that, and {process.name} did not"
            )
        return found, mapping
