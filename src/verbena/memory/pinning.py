"""Pages that are kept in their frames: for a process that asks for it, and for the ranges that adapters register.

The part of the virtual memory manager that pins.  Each pin has a token, so that undoing one leaves the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from verbena.errors import InvalidAttributeError, PageFault
from verbena.memory.address_spaces import AddressSpaces
from verbena.memory.addresses import AddressFormat
from verbena.memory.drivers import Drivers
from verbena.memory.frames import PageKey
from verbena.memory.objects import MemoryObject
from verbena.memory.paging import Pager
from verbena.memory.process import Process

Pinned = tuple[MemoryObject, tuple[PageKey, ...], int]


class Pinning(AddressSpaces):
    """Who has pinned what."""

    _pager: Pager
    _drivers: Drivers

    def __init__(self, form: AddressFormat, lock: AbstractContextManager[Any]) -> None:
        super().__init__(form, lock)
        self._last_pin = 0
        self._process_pins: dict[tuple[Process, PageKey], list[tuple[MemoryObject, int]]] = {}

    def _pages(self, process: Process, address: int, length: int) -> Iterator[tuple[MemoryObject, PageKey]]:
        raise NotImplementedError

    def _owner_of(self, key: PageKey) -> MemoryObject:
        raise NotImplementedError

    def _require_kernel(self, process: Process) -> None:
        raise NotImplementedError

    def pin(self, process: Process, address: int, length: int) -> None:
        """See `Process.pin`."""
        for owner, keys, token in self.pin_pages(process, address, length):
            for key in keys:
                self._process_pins.setdefault((process, key), []).append((owner, token))

    def unpin(self, process: Process, address: int, length: int) -> None:
        """See `Process.unpin`."""
        with self._call():
            pages = list(self._pages(process, address, length))
            for _, key in pages:
                if not self._process_pins.get((process, key)):
                    raise InvalidAttributeError(f"{process.name} has not pinned all of that")
            for _, key in pages:
                owner, token = self._process_pins[process, key].pop()
                self._pager.unpin(owner, key, token)
            self._drivers.tell_freed()

    def pin_pages(self, process: Process, address: int, length: int) -> list[Pinned]:
        """Keep pages in memory; returns what `unpin_pages` takes.  Raises `PageFault`; then none is pinned."""
        with self._call():
            self._last_pin += 1
            made: list[Pinned] = []
            try:
                for owner, key in list(self._pages(process, address, length)):
                    self._pager.pin(owner, key, self._last_pin)
                    made.append((owner, (key,), self._last_pin))
                    self._drivers.tell_page(*key, self._pager.resident(key))
            except PageFault:
                self.unpin_pages(made)
                raise
            return made

    def pin_virtual(self, process: Process, virtual: int, length: int) -> list[Pinned]:
        """The same for a range of virtual addresses, of a kernel process."""
        self._require_kernel(process)
        with self._call():
            self._last_pin += 1
            made: list[Pinned] = []
            last = virtual + length - 1 >> self.form.offset_bits
            try:
                for number in range(virtual >> self.form.offset_bits, last + 1):
                    place = self.form.virtual(number << self.form.offset_bits)
                    key = (place.upper, place.page)
                    owner = self._owner_of(key)
                    self._pager.pin(owner, key, self._last_pin)
                    made.append((owner, (key,), self._last_pin))
                    self._drivers.tell_page(*key, self._pager.resident(key))
            except (PageFault, InvalidAttributeError):
                self.unpin_pages(made)
                raise
            return made

    def unpin_pages(self, pinned: list[Pinned]) -> None:
        """Undo one `pin_pages`; pages that are gone are no matter."""
        with self._lock:
            for owner, keys, token in pinned:
                for key in keys:
                    self._pager.unpin(owner, key, token)
            self._drivers.tell_freed()

    def _unpin_all(self, process: Process) -> None:
        """The process is gone."""
        for place in [place for place in self._process_pins if place[0] is process]:
            for owner, token in self._process_pins.pop(place):
                self._pager.unpin(owner, place[1], token)
