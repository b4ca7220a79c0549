"""Paging: which virtual pages are in physical memory, and how they come and go.

A page is untouched (it reads as zeros), in a frame, or in a slot of the backing store.  A page that is in a frame and
was not written since it came keeps its slot, and leaves without being written again.  Before a frame is emptied or
given to another page, everyone who may have its translation is told, and has forgotten it when the call returns: what
is written to the store is the page's last state.
"""

from __future__ import annotations

from collections.abc import Callable

from verbena.errors import BackingStoreError, BackingStoreFullError, InvalidAttributeError, PageFault
from verbena.memory.backing import BackingStore
from verbena.memory.frames import Frames, PageKey
from verbena.memory.objects import MemoryObject
from verbena.memory.pages import PageTable, PageTableEntry
from verbena.memory.protection import Protection
from verbena.memory.trace import MemoryVerb, VerbTrace


class Pager:
    """Moves pages between frames and the backing store.

    objects: of each upper virtual bits in use, the memory object.  changed: called with a page's upper bits, number and
    entry (None when it is not resident) at each change that a translation depends on.
    """

    def __init__(
        self,
        frames: Frames,
        table: PageTable,
        store: BackingStore,
        objects: dict[int, MemoryObject],
        trace: VerbTrace,
        changed: Callable[[int, int, PageTableEntry | None], None],
    ) -> None:
        self.frames = frames
        self.table = table
        self.store = store
        self._objects = objects
        self._trace = trace
        self._changed = changed
        self._resident: dict[int, set[int]] = {}
        self.failures = 0

    def resident(self, key: PageKey) -> PageTableEntry | None:
        """The entry of a page that is in a frame."""
        entry = self.table.find(*key)
        return entry if entry is not None and entry.valid else None

    def resident_pages(self, upper: int) -> list[int]:
        """The pages of a virtual segment that are in frames."""
        return sorted(self._resident.get(upper, ()))

    def bring_in(self, key: PageKey) -> PageTableEntry:
        """The page's entry, after it was brought in if need be.  Raises `PageFault` when that is impossible."""
        entry = self.resident(key)
        if entry is not None:
            return entry
        owner = self._objects[key[0]]
        frame = self._empty_frame(key)
        slot = owner.slots.get(key)
        if slot is not None:
            try:
                page = self.store.read(slot)
                if len(page) != self.frames.page_size:
                    raise BackingStoreError(f"slot {slot} holds {len(page)} bytes, and no page")
            except BackingStoreError as error:
                self.failures += 1
                self.frames.give_back(frame)
                raise PageFault(f"{_name(key)} cannot be brought in: {error}") from error
            self.frames.view(frame)[:] = page
        entry = PageTableEntry(*key, frame, True, owner.protection_of(key), referenced=True)
        self.table.set(entry)
        self._resident.setdefault(key[0], set()).add(key[1])
        self._trace.note(
            MemoryVerb.PAGE_IN,
            "",
            f"{_name(key)} -> frame {frame}{'' if slot is None else ', from the store'}",
        )
        self._changed(*key, entry)
        return entry

    def _empty_frame(self, key: PageKey) -> int:
        frame = self.frames.take(key)
        if frame is not None:
            return frame
        reason = "every frame is pinned"
        for victim in self.frames.victims(self._second_chance):
            owner = self.frames.owner(victim)
            assert owner is not None
            try:
                self.put_out(owner)
            except BackingStoreError as error:
                reason = str(error)
                continue
            frame = self.frames.take(key)
            assert frame is not None
            return frame
        self.failures += 1
        raise PageFault(f"{_name(key)} cannot be brought in: no frame is free, and {reason}")

    def _second_chance(self, frame: int) -> bool:
        owner = self.frames.owner(frame)
        entry = None if owner is None else self.resident(owner)
        if entry is None or not entry.referenced:
            return False
        entry.referenced = False
        return True

    def put_out(self, key: PageKey) -> None:
        """Move a resident page out of its frame.

        Raises `BackingStoreError`, and `InvalidAttributeError` for a pinned page; then it stays where it is.
        """
        entry = self.resident(key)
        if entry is None:
            return
        if self.frames.pins(entry.frame):
            raise InvalidAttributeError(f"{_name(key)} is pinned: it stays in its frame until it is unpinned")
        self._changed(*key, None)  # from here on nobody writes to it
        owner, frame = self._objects[key[0]], entry.frame
        if entry.dirty:
            try:
                self._keep(owner, key, frame)
            except BackingStoreError:
                self.failures += 1
                self._changed(*key, entry)
                raise
        self.table.invalidate(*key)
        self._leave(key)
        self.frames.give_back(frame)
        self._trace.note(MemoryVerb.PAGE_OUT, "", f"{_name(key)} <- frame {frame}")

    def _leave(self, key: PageKey) -> None:
        pages = self._resident[key[0]]
        pages.discard(key[1])
        if not pages:
            del self._resident[key[0]]

    def _keep(self, owner: MemoryObject, key: PageKey, frame: int) -> None:
        slot = owner.slots.get(key)
        if slot is not None:
            self.store.write(slot, self.frames.view(frame))
            return
        slot = self._free_slot()
        try:
            self.store.write(slot, self.frames.view(frame))
        except BackingStoreError:
            self.store.release(slot)
            raise
        owner.slots[key] = slot

    def _free_slot(self) -> int:
        """A slot; of a full store, that of a page which is in memory, too."""
        try:
            return self.store.allocate()
        except BackingStoreFullError:
            for entry in self.table.entries():
                slots = self._objects[entry.upper].slots
                if entry.valid and (entry.upper, entry.page) in slots:
                    entry.dirty = True
                    return slots.pop((entry.upper, entry.page))
            raise

    def drop(self, owner: MemoryObject, key: PageKey) -> None:
        """The page is gone from the virtual address space, with all that it held."""
        self._changed(*key, None)
        entry = self.resident(key)
        if entry is not None:
            for _ in range(self.frames.pins(entry.frame)):
                self.frames.unpin(entry.frame)
            self._leave(key)
            self.frames.give_back(entry.frame)
        self.table.remove(*key)
        slot = owner.slots.pop(key, None)
        if slot is not None:
            self.store.release(slot)
        owner.page_protection.pop(key, None)
        owner.pins.pop(key, None)

    def protect(self, owner: MemoryObject, key: PageKey, protection: Protection) -> None:
        """Change what a page may be used for."""
        owner.page_protection[key] = protection
        entry = self.resident(key)
        if entry is not None:
            entry.protection = protection

    def touch(self, entry: PageTableEntry, write: bool) -> None:
        """The page is used; `write`: its bytes may change from now on."""
        entry.referenced = True
        entry.dirty = entry.dirty or write
        self.frames.use(entry.frame)

    def pin(self, owner: MemoryObject, key: PageKey, token: int) -> None:
        """Bring the page in, and keep it in its frame until `unpin` with the same token.  Raises `PageFault`."""
        self.frames.pin(self.bring_in(key).frame)
        owner.pins.setdefault(key, set()).add(token)

    def unpin(self, owner: MemoryObject, key: PageKey, token: int) -> None:
        """Take a pin off; nothing happens if the page is gone, and the pin with it."""
        tokens = owner.pins.get(key, set())
        if token not in tokens:
            return
        entry = self.resident(key)
        assert entry is not None
        self.frames.unpin(entry.frame)
        tokens.discard(token)
        if not tokens:
            del owner.pins[key]


def _name(key: PageKey) -> str:
    return f"virtual page {key[0]:#x}:{key[1]:#x}"
