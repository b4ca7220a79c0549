"""What the virtual memory manager and the drivers of channel adapters say to one another (figure 17, document 003)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from verbena.memory.pages import PageTableEntry
from verbena.memory.process import Process
from verbena.memory.protection import Protection
from verbena.memory.report import AdapterSnapshot, SavedState
from verbena.memory.segments import SegmentTable, SegmentTableEntry
from verbena.memory.trace import MemoryVerb, VerbTrace


class MemoryDriver(Protocol):
    """An adapter's driver, as the memory manager sees it.  When a call returns, the adapter follows it."""

    def segment_table_update(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        """The verb SegmentTableUpdate (step 608): an entry was added, changed, or (None) deleted."""

    def forget_segment(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        """The same was changed in the table that driver and manager share: what the adapter cached of it is stale."""

    def page_changed(self, upper: int, page: int, entry: PageTableEntry | None) -> None:
        """A page came into a frame (entry), or (None) left it."""

    def page_dropped(self, upper: int, page: int) -> None:
        """A page is gone from the virtual address space."""

    def page_protected(self, upper: int, page: int, protection: Protection) -> None:
        """A page's protection changed, be it in a frame or not."""

    def memory_freed(self) -> None:
        """There may be room again: what could not be brought in may be tried anew."""

    def process_ended(self, process: Process) -> None:
        """The process is gone; its table was emptied before."""

    def report(self) -> AdapterSnapshot:
        """The adapter's tables, for who runs the host."""

    def saved_state(self, number: int) -> SavedState | None:
        """What is saved for a queue pair, for who runs the host."""


@dataclass(frozen=True, slots=True)
class LocalPage:
    """What MapLocalPage answers (step 612): the frame, its bytes, and what may be done to them."""

    frame: int
    view: memoryview
    protection: Protection


class Drivers:
    """Who has to be told of what."""

    def __init__(self, trace: VerbTrace) -> None:
        self._trace = trace
        self._attached: list[MemoryDriver] = []
        self._shared: dict[tuple[Process, int], bool] = {}
        self._registered: dict[Process, list[MemoryDriver]] = {}

    @property
    def attached(self) -> tuple[MemoryDriver, ...]:
        return tuple(self._attached)

    def attach(self, driver: MemoryDriver) -> None:
        """A driver wants to hear of pages."""
        if driver not in self._attached:
            self._attached.append(driver)

    def detach(self, driver: MemoryDriver) -> None:
        """A driver is gone."""
        if driver in self._attached:
            self._attached.remove(driver)
        for process in list(self._registered):
            self.unregister(process, driver)

    def register(
        self, process: Process, driver: MemoryDriver, table: SegmentTable, shared: bool
    ) -> SegmentTable:
        """Step 604: the process's table (shared: the very one), with all its changes from now on."""
        self._trace.note(
            MemoryVerb.FETCH_SEGMENT_TABLE,
            process.name,
            f"{len(table)} entries{', pointer to the table' if shared else ''}",
        )
        self._registered.setdefault(process, []).append(driver)
        self._shared[process, id(driver)] = shared
        self._trace.note(MemoryVerb.REGISTER_DRIVER, process.name, "for changes of its segments and pages")
        return table if shared else table.copy()

    def unregister(self, process: Process, driver: MemoryDriver) -> None:
        """The driver has no queue pair of the process any more."""
        drivers = self._registered.get(process, [])
        if driver not in drivers:
            return
        drivers.remove(driver)
        del self._shared[process, id(driver)]
        if not drivers:
            del self._registered[process]
        self._trace.note(MemoryVerb.UNREGISTER_DRIVER, process.name)

    def registered(self, process: Process) -> int:
        """How many drivers hear of a process's segments."""
        return len(self._registered.get(process, ()))

    def tell_segment(self, process: Process, segment: int, entry: SegmentTableEntry | None) -> None:
        """Steps 608 and 610; with a shared table there is no verb to execute."""
        for driver in tuple(self._registered.get(process, ())):
            if self._shared[process, id(driver)]:
                driver.forget_segment(process, segment, entry)
                continue
            what = "deleted" if entry is None else f"{entry.length} bytes, {_rights(entry)}"
            self._trace.note(MemoryVerb.SEGMENT_TABLE_UPDATE, process.name, f"segment {segment:#x}: {what}")
            driver.segment_table_update(process, segment, entry)

    def tell_page(self, upper: int, page: int, entry: PageTableEntry | None) -> None:
        for driver in tuple(self._attached):
            driver.page_changed(upper, page, entry)

    def tell_dropped(self, upper: int, page: int) -> None:
        for driver in tuple(self._attached):
            driver.page_dropped(upper, page)

    def tell_protection(self, upper: int, page: int, protection: Protection) -> None:
        for driver in tuple(self._attached):
            driver.page_protected(upper, page, protection)

    def tell_freed(self) -> None:
        for driver in tuple(self._attached):
            driver.memory_freed()

    def tell_end(self, process: Process) -> None:
        for driver in tuple(self._registered.get(process, ())):
            driver.process_ended(process)
            self.unregister(process, driver)


def _rights(entry: SegmentTableEntry) -> str:
    return (entry.protection.name or "").lower() if entry.valid else "not valid"
