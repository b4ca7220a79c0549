"""Snapshots of a host's memory and of what its adapters keep: for who runs the host, never for a consumer.

Everything here is frozen, and a copy: nothing that is reached from a snapshot is a table that somebody uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from verbena.memory.segments import SegmentTableEntry


@dataclass(frozen=True, slots=True)
class PageSnapshot:
    """A virtual page: where it is, and what it may be used for.

    frame: None when it is not resident.  slot: of the backing store, or None.  pins: how often it is pinned.
    """

    upper: int
    page: int
    frame: int | None
    valid: bool
    protection: str
    referenced: bool
    dirty: bool
    pins: int
    slot: int | None


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """A process and its segment table."""

    name: str
    kernel: bool
    segments: tuple[SegmentTableEntry, ...]


@dataclass(frozen=True, slots=True)
class SavedState:
    """Queue pair state 531 of figure 12: what driver and adapter saved for a queue pair.

    sizes: its queues' (send requests, receive requests).  segments: the segment table stored with it.  shared: is that
    the memory manager's own table?  common: identifies the state that it has in common with other queue pairs.
    """

    qp_num: int
    process: str
    service: str
    sizes: tuple[int, int]
    segments: tuple[SegmentTableEntry, ...]
    shared: bool
    common: int


@dataclass(frozen=True, slots=True)
class AdapterSnapshot:
    """An adapter's tables.  page_table: identifies it.  table_size: entries that it takes room for.

    spaces: cached translations of each process: (process, kind of address, pages).  swap_ins: pages that were brought
    in for it.
    """

    name: str
    page_table: int
    private: bool
    table_size: int
    queue_pairs: tuple[SavedState, ...]
    spaces: tuple[tuple[str, str, int], ...]
    swap_ins: int


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """All of a host's memory.  slots: pages in the backing store.  verbs: how many of each were executed."""

    page_size: int
    frames: int
    free_frames: int
    pinned_frames: int
    slots: int
    inverted: bool
    table_size: int
    processes: tuple[ProcessSnapshot, ...]
    pages: tuple[PageSnapshot, ...]
    adapters: tuple[AdapterSnapshot, ...]
    verbs: dict[str, int]

    @property
    def adapter_page_tables(self) -> int:
        """How many page tables the adapters use together: one each, or the manager's own."""
        return len({adapter.page_table for adapter in self.adapters})
