"""The virtual memory manager (VMM 518 of figure 12, document 003): processes, their segment tables, the page table.

It alone makes and changes entries; drivers of adapters that asked for a process's table are told of every change
(``SegmentTableUpdate``), and of every change of pages.  What a driver does with it is `adapter.local_protection`.

Its methods are the kernel's: whoever holds the manager runs the host.  A process gets a `Process`, and an adapter's
driver is handed the manager when it is attached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from verbena.clock import Clock
from verbena.errors import (
    AddressFault,
    InvalidAttributeError,
    PageFault,
    PrivilegeError,
    ProtectionFault,
    SegmentFault,
)
from verbena.memory.addresses import AddressFormat, PhysicalAddress
from verbena.memory.backing import BackingStore, MemoryBackingStore
from verbena.memory.drivers import Drivers, LocalPage, MemoryDriver
from verbena.memory.frames import Frames, PageKey, Replacement
from verbena.memory.objects import MemoryObject
from verbena.memory.pages import InvertedPageTable, PageTable, PlainPageTable
from verbena.memory.paging import Pager
from verbena.memory.pinning import Pinning
from verbena.memory.process import Process
from verbena.memory.protection import Protection, allows, known_protection
from verbena.memory.report import MemorySnapshot, PageSnapshot, ProcessSnapshot, SavedState
from verbena.memory.segments import SegmentTable, SegmentTableEntry
from verbena.memory.trace import MemoryVerb, VerbTrace


class VirtualMemoryManager(Pinning):
    """A host's memory.

    frames: of physical memory.  form: the widths of addresses, and so the page size.  store: where pages go that find
    no frame; by default in this process's memory, without a limit.  inverted: take an inverted page table.
    replacement: which page goes, "clock" or "lru".  page_in_ns: how long an adapter waits for a page that is brought in
    for it.  clock: for the times in the trace; by default that of the first adapter that is attached.  lock: held
    during each call, re-entrant, where several threads use the host's memory.  buffer: the physical memory, if it is
    not to be made: any writable buffer of the program, which the frames then are.
    """

    def __init__(
        self,
        frames: int = 1024,
        *,
        form: AddressFormat | None = None,
        store: BackingStore | None = None,
        inverted: bool = False,
        replacement: Replacement = "clock",
        page_in_ns: int = 0,
        clock: Clock | None = None,
        lock: AbstractContextManager[Any] | None = None,
        buffer: Any = None,
    ) -> None:
        super().__init__(form or AddressFormat(), nullcontext() if lock is None else lock)
        if not isinstance(page_in_ns, int) or page_in_ns < 0:
            raise InvalidAttributeError(f"page_in_ns = {page_in_ns!r}: nanoseconds, 0 or more")
        self.clock = clock
        self.trace = VerbTrace(lambda: 0 if self.clock is None else self.clock.now())
        self.inverted = inverted
        self.page_in_ns = page_in_ns
        self._drivers = Drivers(self.trace)
        self._frames = Frames(frames, self.form.page_size, replacement, buffer)
        table: PageTable = InvertedPageTable(frames) if inverted else PlainPageTable()
        self._pager = Pager(
            self._frames,
            table,
            MemoryBackingStore() if store is None else store,
            self._objects,
            self.trace,
            self._drivers.tell_page,
        )

    def _make_process(self, name: str, kernel: bool) -> Process:
        return Process(self, name, kernel)

    def _segment_changed(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        self._drivers.tell_segment(process, segment, entry)

    def _process_ended(self, process: Process) -> None:
        self._drivers.tell_end(process)
        self._unpin_all(process)
        self._drivers.tell_freed()

    def _drop(self, owner: MemoryObject, keys: list[PageKey]) -> None:
        for key in keys:
            self._pager.drop(owner, key)
            self._drivers.tell_dropped(*key)
        self._drivers.tell_freed()

    # --- loads and stores ---------------------------------------------------------------------------------

    def _pieces(
        self, process: Process, address: int, length: int, write: bool
    ) -> Iterator[tuple[PageKey, int, int]]:
        """The pages of a range of effective addresses: of each the virtual page, offset and length."""
        table = self._table(process)
        while length > 0:
            place = self.form.effective(address)
            virtual, _ = table.translate(self.form, place, write)
            key = (virtual.upper, virtual.page)
            if not allows(self._objects[key[0]].protection_of(key), write):
                raise ProtectionFault(
                    f"page {place.page:#x} of segment {place.segment:#x} may not be {'written' if write else 'read'}"
                )
            part = min(length, self.form.page_size - place.offset)
            yield key, place.offset, part
            address += part
            length -= part

    def load(self, process: Process, address: int, length: int) -> bytes:
        """See `Process.read`."""
        if not isinstance(length, int) or length < 0:
            raise InvalidAttributeError(f"length = {length!r}: a number of bytes, 0 or more")
        with self._lock:
            found = []
            for key, offset, part in list(self._pieces(process, address, length, False)):
                entry = self._pager.bring_in(key)
                self._pager.touch(entry, False)
                found.append(bytes(self._frames.view(entry.frame)[offset : offset + part]))
            return b"".join(found)

    def store(self, process: Process, address: int, data: bytes | bytearray | memoryview) -> None:
        """See `Process.write`."""
        source = memoryview(data).cast("B")
        with self._lock:
            at = 0
            for key, offset, part in list(self._pieces(process, address, len(source), True)):
                entry = self._pager.bring_in(key)
                self._pager.touch(entry, True)
                self._frames.view(entry.frame)[offset : offset + part] = source[at : at + part]
                at += part

    # --- pages --------------------------------------------------------------------------------------------

    def protect(self, process: Process, address: int, length: int, protection: Protection) -> None:
        """See `Process.protect`."""
        protection = known_protection(protection)
        if address & (self.form.page_size - 1) or length <= 0:
            raise InvalidAttributeError(
                "page protection is of whole pages: begin at a page, take 1 byte or more"
            )
        with self._call():
            pages = list(self._pages(process, address, length))
            if any(owner.owner is not process for owner, _ in pages):
                raise InvalidAttributeError(
                    f"only the process that allocated it may do that, and {process.name} did not"
                )
            for owner, key in pages:
                self._pager.protect(owner, key, protection)
                self._drivers.tell_protection(*key, protection)
                self.trace.note(
                    MemoryVerb.PAGE_PROTECTION, process.name, f"{_page(key)} is {_word(protection)}"
                )

    def page_out(self, process: Process, address: int, length: int = 1) -> None:
        """Put the pages of a range out of memory.

        Raises `BackingStoreError` (those before it are out), `InvalidAttributeError` for a pinned page.
        """
        with self._call():
            for _, key in list(self._pages(process, address, length)):
                self._pager.put_out(key)

    def page_in(self, process: Process, address: int, length: int = 1) -> None:
        """Bring the pages of a range into memory.  Raises `PageFault`."""
        with self._call():
            for _, key in list(self._pages(process, address, length)):
                self._pager.bring_in(key)

    def resident(self, process: Process, address: int) -> bool:
        """Is the page of an effective address in memory?"""
        with self._lock:
            ((_, key),) = self._pages(process, address, 1)
            return self._pager.resident(key) is not None

    def _owner_of(self, key: PageKey) -> MemoryObject:
        owner = self._objects.get(key[0])
        if (
            owner is None
            or key[1] >= owner.segment_length(owner.uppers.index(key[0])) >> self.form.offset_bits
        ):
            raise PageFault(f"{_page(key)} does not exist")
        return owner

    def check_authority(self, process: Process, address: int, length: int, write: bool) -> None:
        """Raise `InvalidAttributeError` unless a process may use all of a range of its effective addresses."""
        with self._call():
            try:
                for _ in self._pieces(process, address, length, write):
                    pass
            except AddressFault as fault:
                raise InvalidAttributeError(f"invalid parameter: {fault}") from None

    def _pages(self, process: Process, address: int, length: int) -> Iterator[tuple[MemoryObject, PageKey]]:
        """The virtual pages of a range, whatever their protection.  Raises `SegmentFault`."""
        table = self._table(process)
        if not isinstance(length, int) or length < 1:
            raise InvalidAttributeError(f"length = {length!r}: 1 byte or more")
        for number in range(
            address >> self.form.offset_bits, (address + length - 1 >> self.form.offset_bits) + 1
        ):
            place = self.form.effective(number << self.form.offset_bits)
            entry = table.find(place.segment)
            if entry is None or not entry.valid or place.page << self.form.offset_bits >= entry.length:
                raise SegmentFault(
                    f"{number << self.form.offset_bits:#x} is in no valid segment of {process.name}"
                )
            yield self._objects[entry.upper], (entry.upper, place.page)

    # --- kernel processes ---------------------------------------------------------------------------------

    def virtual_address(self, process: Process, address: int) -> int:
        """See `Process.virtual_address`."""
        self._require_kernel(process)
        with self._call():
            virtual, _ = self._table(process).translate(self.form, self.form.effective(address))
            return self.form.encode(virtual)

    def physical_address(self, process: Process, virtual: int, *, write: bool = False) -> int:
        """See `Process.physical_address`."""
        self._require_kernel(process)
        with self._call():
            place = self.form.virtual(virtual)
            entry = self._pager.resident((place.upper, place.page))
            if entry is None:
                raise PageFault(f"virtual page {place.upper:#x}:{place.page:#x} is not in memory")
            if not allows(entry.protection, write):
                raise ProtectionFault(f"{_page((place.upper, place.page))} is {_word(entry.protection)}")
            if not self._frames.pins(entry.frame):
                raise InvalidAttributeError(
                    "pin the page first: its physical address holds only while it is pinned"
                )
            self._pager.touch(entry, write)
            self.trace.note(
                MemoryVerb.TRANSLATE_FOR_KERNEL, process.name, f"{virtual:#x} -> frame {entry.frame}"
            )
            return self.form.encode(PhysicalAddress(entry.frame, place.offset))

    def _require_kernel(self, process: Process) -> None:
        self._table(process)
        if not process.kernel:
            raise PrivilegeError(
                f"{process.name} is a user process: it has effective addresses, not virtual or physical ones"
            )

    # --- drivers of adapters ------------------------------------------------------------------------------

    def attach_driver(self, driver: MemoryDriver, clock: Clock) -> None:
        """An adapter's driver wants to hear of pages from now on."""
        with self._call():
            if self.clock is None:
                self.clock = clock
            self._drivers.attach(driver)

    def detach_driver(self, driver: MemoryDriver) -> None:
        with self._call():
            self._drivers.detach(driver)

    def register_driver(self, process: Process, driver: MemoryDriver, *, shared: bool) -> SegmentTable:
        """Step 604: a process's segment table (a copy; shared: the very one), and all its changes from now on.

        Raises `InvalidAttributeError` for a process that is not of this host, or has ended, and `PrivilegeError` for
        one that may not use adapters.
        """
        with self._call():
            table = self._table(process)
            if process in self._barred:
                raise PrivilegeError(
                    f"{process.name} may not use channel adapters: the host does not allow it"
                )
            return self._drivers.register(process, driver, table, shared)

    def unregister_driver(self, process: Process, driver: MemoryDriver) -> None:
        with self._call():
            self._drivers.unregister(process, driver)

    def page_table(self) -> PageTable:
        """The very page table, for drivers that share it."""
        return self._pager.table

    def map_local_page(self, upper: int, page: int, write: bool) -> LocalPage | None:
        """Step 612, the manager's part: the frame of a resident page; None when it is not resident.

        write: the adapter may write to it from now on, so that its bytes have to be kept when it goes.
        """
        with self._lock:
            entry = self._pager.resident((upper, page))
            if entry is None:
                return None
            self._pager.touch(entry, write)
            return LocalPage(entry.frame, self._frames.view(entry.frame), entry.protection)

    def swap_in(self, upper: int, page: int) -> None:
        """Bring a page in for an adapter (document 003:833).  Raises `PageFault`."""
        with self._call():
            self._owner_of((upper, page))
            self._pager.bring_in((upper, page))

    def resident_pages(self, upper: int) -> list[int]:
        """The pages of a virtual segment that are in memory."""
        with self._lock:
            return self._pager.resident_pages(upper)

    def all_resident(self) -> list[PageKey]:
        """All pages that are in memory."""
        with self._lock:
            return [(e.upper, e.page) for e in self._pager.table.entries() if e.valid]

    def page_protections(self, upper: int) -> tuple[Protection, dict[int, Protection]]:
        """What the pages of a virtual segment may be used for: all but some, and these."""
        owner = self._objects[upper]
        special = {key[1]: value for key, value in owner.page_protection.items() if key[0] == upper}
        return owner.protection, special

    def is_pinned(self, upper: int, page: int) -> bool:
        """Is a page kept in its frame?"""
        owner = self._objects.get(upper)
        return owner is not None and bool(owner.pins.get((upper, page)))

    def held(self) -> AbstractContextManager[Any]:
        """Nothing of the memory changes while this is entered, but by who entered it."""
        return self._lock

    @property
    def frame_count(self) -> int:
        """How many frames there are."""
        return self._frames.count

    @property
    def free_frames(self) -> int:
        """How many of them hold nothing."""
        return self._frames.free

    def frame_view(self, frame: int) -> memoryview:
        """A frame's bytes, for an adapter that kernel processes give physical addresses."""
        return self._frames.view(frame)

    # --- for who runs the host ----------------------------------------------------------------------------

    def saved_state(self, qp_num: int, adapter: str | None = None) -> SavedState:
        """What driver and adapter saved for a queue pair: a copy.  adapter: its name, where several have that number.

        Raises `InvalidAttributeError` when no queue pair of this host's processes has that number.
        """
        with self._lock:
            for driver in self._drivers.attached:
                if adapter in (None, driver.report().name) and (state := driver.saved_state(qp_num)):
                    return state
        raise InvalidAttributeError(f"no queue pair {qp_num:#x} of this host's processes is open")

    def snapshot(self) -> MemorySnapshot:
        """All tables of the host and of its adapters, as they are now."""
        with self._lock:
            return MemorySnapshot(
                page_size=self.form.page_size,
                frames=self._frames.count,
                free_frames=self._frames.free,
                pinned_frames=self._frames.pinned,
                slots=self._pager.store.used,
                inverted=self.inverted,
                table_size=self._pager.table.size,
                processes=tuple(
                    ProcessSnapshot(process.name, process.kernel, table.entries())
                    for process, table in self._tables.items()
                ),
                pages=tuple(self._page_snapshots()),
                adapters=tuple(driver.report() for driver in self._drivers.attached),
                verbs=self.trace.counts(),
            )

    def _page_snapshots(self) -> Iterator[PageSnapshot]:
        entries = {(entry.upper, entry.page): entry for entry in self._pager.table.entries()}
        known = set(entries)
        for owner in self._objects.values():
            known |= set(owner.slots)
        for key in sorted(known):
            entry, owner = entries.get(key), self._objects[key[0]]
            valid = entry is not None and entry.valid
            yield PageSnapshot(
                *key,
                frame=entry.frame if entry is not None and valid else None,
                valid=valid,
                protection=_word(owner.protection_of(key)),
                referenced=entry is not None and entry.referenced,
                dirty=entry is not None and entry.dirty,
                pins=len(owner.pins.get(key, ())),
                slot=owner.slots.get(key),
            )


def _page(key: PageKey) -> str:
    return f"virtual page {key[0]:#x}:{key[1]:#x}"


def _word(protection: Protection) -> str:
    return {0: "none", 1: "read", 3: "read-write"}[int(protection)]
