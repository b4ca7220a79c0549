"""A host's memory as a program makes one: the memory manager, with a backing file, for one thread or many."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from verbena.errors import InvalidAttributeError
from verbena.memory.addresses import AddressFormat
from verbena.memory.backing import BackingStore, MemoryBackingStore
from verbena.memory.frames import Replacement
from verbena.memory.manager import VirtualMemoryManager
from verbena.runtime.backing_file import BackingFile


class HostMemory(VirtualMemoryManager):
    """The memory of one host: frames, processes, and where pages go that find no frame.  A context manager.

    frames: how many; page_size: bytes of each, a power of two (4 KiB or more, for adapters).  form: all widths of
    addresses, instead of page_size.  backing_file: a file to be made for pages; deleted in the end.  swap_pages: how
    many pages it holds.  Without a file, pages are kept in this process's memory.  The rest is as for
    `VirtualMemoryManager`.
    """

    def __init__(
        self,
        frames: int = 1024,
        *,
        page_size: int = 4096,
        form: AddressFormat | None = None,
        backing_file: str | Path | None = None,
        swap_pages: int | None = None,
        store: BackingStore | None = None,
        inverted: bool = False,
        replacement: Replacement = "clock",
        page_in_ns: int = 0,
        buffer: Any = None,
        **more: Any,
    ) -> None:
        form = form or _form_of(page_size)
        self._file: BackingFile | None = None
        if backing_file is not None:
            if store is not None:
                raise InvalidAttributeError("give either store or backing_file")
            store = self._file = BackingFile(backing_file, form.page_size, capacity=swap_pages)
        elif store is None:
            store = MemoryBackingStore(swap_pages)
        try:
            super().__init__(
                frames,
                form=form,
                store=store,
                inverted=inverted,
                replacement=replacement,
                page_in_ns=page_in_ns,
                buffer=buffer,
                lock=threading.RLock(),
                **more,
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the backing file, if there is one: pages that are in it are lost."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> HostMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _form_of(page_size: int) -> AddressFormat:
    if not isinstance(page_size, int) or page_size < 64 or page_size & (page_size - 1):
        raise InvalidAttributeError(f"page_size = {page_size!r}: a power of two, 64 or more")
    usual = AddressFormat()
    offset_bits = page_size.bit_length() - 1
    # Segments keep their size, as far as they have a page.
    pages = max(1, usual.page_number_bits + usual.offset_bits - offset_bits)
    return AddressFormat(usual.segment_bits, usual.upper_bits, pages, offset_bits)
