"""How an adapter's driver follows the memory manager: what is told of segments and pages reaches the adapter at once.

The part of `local_protection` that the memory manager calls (`memory.drivers.MemoryDriver`).  When such a call returns,
nothing that it made stale is cached any more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from verbena.adapter.process_state import CommonState
from verbena.adapter.protection_options import AddressKind, ProtectionOptions
from verbena.adapter.translations import AddressSpaceTable, Translations
from verbena.errors import ResourceError
from verbena.memory.frames import PageKey
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.pages import InvertedPageTable, PageTable, PageTableEntry, PlainPageTable
from verbena.memory.process import Process
from verbena.memory.protection import Protection, allows
from verbena.memory.segments import SegmentTableEntry
from verbena.memory.trace import MemoryVerb


class LocalTables:
    """The tables of one adapter.

    _states: of each process with a protection domain, what its queue pairs have in common.  _by_space: the same, by
    the adapter's address spaces.  _private: the adapter's own page table, or None where it uses the manager's.
    """

    def __init__(
        self,
        memory: VirtualMemoryManager,
        spaces: AddressSpaceTable,
        options: ProtectionOptions,
        name: str,
        lock: AbstractContextManager[Any],
    ) -> None:
        self._memory = memory
        self._form = memory.form
        self._spaces = spaces
        self._options = options
        self._name = name
        self._lock = lock
        self._states: dict[Process, CommonState] = {}
        self._by_space: dict[int, tuple[CommonState, AddressKind]] = {}
        self._private: PageTable | None = None
        if options.page_tables == "private":
            self._private = InvertedPageTable(memory.frame_count) if options.inverted else PlainPageTable()
        self._table = memory.page_table() if self._private is None else self._private
        self._translations = Translations(memory, spaces, self._table)

    def _kick_later(self) -> None:
        """Let the adapter look again, when the memory manager is done with what it is doing."""
        raise NotImplementedError

    # --- segments ------------------------------------------------------------------------------------------

    def segment_table_update(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        """Steps 608 and 610.  See `memory.drivers.MemoryDriver`."""
        state = self._states[process]
        assert state.table is not None
        if entry is None:
            state.table.remove(segment)
        else:
            state.table.set(entry)
        self._memory.trace.note(
            MemoryVerb.UPDATE_QP_STATE,
            process.name,
            f"segment {segment:#x}, for {len(state.queue_pairs)} queue pairs at {self._name}",
        )
        self.forget_segment(process, segment, entry)

    def forget_segment(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        """The adapter follows a changed entry of the table.  See `memory.drivers.MemoryDriver`."""
        with self._lock:
            self._follow(self._states[process], segment, entry)
        self._kick_later()

    def _follow(self, state: CommonState, segment: int, entry: SegmentTableEntry | None) -> None:
        """Let the adapter's range of a segment become what the entry says; what it cached beyond that is forgotten."""
        space = state.spaces[AddressKind.EFFECTIVE]
        first = segment << self._form.page_number_bits
        pages, writable = 0, False
        if entry is not None and entry.valid and allows(entry.protection, False):
            pages, writable = entry.length >> self._form.offset_bits, allows(entry.protection, True)
        known, could_write, upper = state.told.pop(segment, (0, False, -1))
        same = entry is not None and upper == entry.upper and could_write == writable
        keep = min(known, pages) if same else 0
        if known > keep:
            self._translations.forget(space, first + keep, known - keep)
            self._spaces.remove_range(space, first + keep, known - keep)
        if entry is not None and pages:
            state.told[segment] = pages, writable, entry.upper
            try:
                if pages > keep:
                    self._extend(state, entry, keep, pages, writable)
            except ResourceError as error:  # the adapter has no place for it: what is new is refused there
                state.told[segment] = keep, writable, entry.upper
                self._memory.trace.note(MemoryVerb.FAULT_REFUSED, state.process.name, str(error))
        if self._private is not None and upper >= 0 and not self._concerns(upper):
            for page in range(known):
                self._private.remove(upper, page)

    def _extend(
        self, state: CommonState, entry: SegmentTableEntry, begin: int, end: int, writable: bool
    ) -> None:
        """Pages of a segment are new to the adapter."""
        space = state.spaces[AddressKind.EFFECTIVE]
        first = entry.segment << self._form.page_number_bits
        usual, special = self._memory.page_protections(entry.upper)
        self._spaces.add_range(space, first + begin, end - begin, writable and allows(usual, True))
        if not allows(usual, False):
            special = {page: special.get(page, usual) for page in range(begin, end)}
        for page, protection in special.items():
            if begin <= page < end:
                self._spaces.protect_page(
                    space, first + page, writable and allows(protection, True), allows(protection, False)
                )
        for page in self._memory.resident_pages(entry.upper):
            resident = self._memory.page_table().find(entry.upper, page)
            if self._private is not None and resident is not None:
                self._private.set(resident.snapshot())
            if begin <= page < end and self._eager(entry.upper, page):
                self._map(space, first + page, (entry.upper, page), writable)

    def _show_virtual(self, state: CommonState) -> None:
        """A kernel process begins to use virtual addresses: those of pages that are in memory."""
        space = state.spaces.get(AddressKind.VIRTUAL)
        if space is None:
            return
        for upper, page in self._memory.all_resident():
            resident = self._memory.page_table().find(upper, page)
            if self._private is not None and resident is not None:
                self._private.set(resident.snapshot())
            if self._eager(upper, page):
                self._map(space, upper << self._form.page_number_bits | page, (upper, page), True)

    def _eager(self, upper: int, page: int) -> bool:
        """Is a resident page mapped at once?  Where nothing is brought in on demand, and where it stays anyway."""
        return self._options.page_faults == "error" or self._memory.is_pinned(upper, page)

    def page_changed(self, upper: int, page: int, entry: PageTableEntry | None) -> None:
        """See `memory.drivers.MemoryDriver`."""
        key = (upper, page)
        if self._private is not None:
            if entry is not None and self._concerns(upper):
                self._private.set(entry.snapshot())
            elif entry is None:
                self._private.invalidate(upper, page)
        with self._lock:
            if entry is None:
                self._unmap(key)
            else:
                for space, number, writable in self._places(key):
                    if self._eager(upper, page) or self._translations.is_lost((space, number)):
                        self._map(space, number, key, writable)

    def page_dropped(self, upper: int, page: int) -> None:
        """See `memory.drivers.MemoryDriver`."""
        if self._private is not None:
            self._private.remove(upper, page)

    def page_protected(self, upper: int, page: int, protection: Protection) -> None:
        """See `memory.drivers.MemoryDriver`."""
        key = (upper, page)
        if self._private is not None and (known := self._private.find(upper, page)):
            known.protection = protection
        with self._lock:
            for space, number, writable in self._places(key):
                if (key, (space, number)) in self._translations:
                    self._map(space, number, key, writable)
                else:
                    self._spaces.protect_page(
                        space, number, writable and allows(protection, True), allows(protection, False)
                    )
        self._kick_later()

    def memory_freed(self) -> None:
        """See `memory.drivers.MemoryDriver`."""
        with self._lock:
            self._translations.retry()

    def process_ended(self, process: Process) -> None:
        """See `memory.drivers.MemoryDriver`."""
        self._forget_table(self._states[process])

    def _concerns(self, upper: int) -> bool:
        """Does a process of this adapter use a virtual segment?  A kernel process may use all."""
        return any(
            state.process.kernel or (state.table is not None and any(state.table.of_virtual(upper)))
            for state in self._states.values()
        )

    def _places(self, key: PageKey) -> list[tuple[int, int, bool]]:
        """Where a virtual page is in the adapter's spaces: space, page there, may the process write to its segment?"""
        upper, page = key
        found = []
        for state in self._states.values():
            virtual = state.spaces.get(AddressKind.VIRTUAL)
            if virtual is not None and state.table is not None:
                found.append((virtual, upper << self._form.page_number_bits | page, True))
            if state.table is None:
                continue
            for entry in state.table.of_virtual(upper):
                pages, writable, _ = state.told.get(entry.segment, (0, False, 0))
                if page < pages:
                    number = entry.segment << self._form.page_number_bits | page
                    found.append((state.spaces[AddressKind.EFFECTIVE], number, writable))
        return found

    def _map(self, space: int, number: int, key: PageKey, writable: bool) -> bool:
        """MapLocalPage (step 612); False when the page is not resident."""
        frame = self._translations.map((space, number), key, writable)
        if frame is None:
            return False
        self._memory.trace.note(
            MemoryVerb.MAP_LOCAL_PAGE,
            self._by_space[space][0].process.name,
            f"virtual page {key[0]:#x}:{key[1]:#x} -> frame {frame} at {self._name}",
        )
        return True

    def _unmap(self, key: PageKey) -> None:
        for space, _ in self._translations.unmap(key):
            self._memory.trace.note(
                MemoryVerb.UNMAP_LOCAL_PAGE,
                self._by_space[space][0].process.name,
                f"virtual page {key[0]:#x}:{key[1]:#x} at {self._name}",
            )

    def _forget_table(self, state: CommonState) -> None:
        with self._lock:
            for segment in list(state.told):
                self._follow(state, segment, None)
        state.table = None
