"""An adapter's address spaces, as plain as can be: what the driver of local protection is tested against by itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PlainPage:
    view: memoryview | None
    writable: bool
    readable: bool


@dataclass
class PlainSpace:
    page_bits: int
    on_demand: bool
    ranges: dict[int, bool] = field(default_factory=dict)  # page -> writable
    pages: dict[int, PlainPage] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    everything: bool = (
        False  # all pages belong to it: a kernel's virtual addresses, which are not written out
    )


class Refused(Exception):
    """The adapter would have refused."""


class PlainSpaces:
    """Implements `adapter.translations.AddressSpaceTable`; `fault` is called for pages that are out."""

    def __init__(self) -> None:
        self.spaces: dict[int, PlainSpace] = {}
        self.next = 0
        self.fault = lambda space, page, write: None

    def make_space(self, page_bits: int = 12, on_demand: bool = False, ahead: int = 64) -> int:
        self.next += 1
        self.spaces[self.next] = PlainSpace(page_bits, on_demand)
        return self.next

    def free_space(self, space: int) -> None:
        del self.spaces[space]

    def add_range(self, space: int, first: int, pages: int, writable: bool = True) -> None:
        if pages >= 1 << 14:
            self.spaces[space].everything = True
        else:
            self.spaces[space].ranges |= dict.fromkeys(range(first, first + pages), writable)

    def remove_range(self, space: int, first: int, pages: int) -> None:
        s = self.spaces[space]
        for page in range(first, first + pages):
            s.ranges.pop(page, None)
            s.pages.pop(page, None)
            s.lost.discard(page)

    def set_page(
        self, space: int, page: int, frame: memoryview, writable: bool = True, readable: bool = True
    ) -> None:
        self.spaces[space].pages[page] = PlainPage(frame, writable, readable)
        self.spaces[space].lost.discard(page)

    def clear_page(self, space: int, page: int) -> None:
        s = self.spaces[space]
        s.lost.discard(page)
        entry = s.pages.setdefault(page, PlainPage(None, s.ranges.get(page, True), True))
        entry.view = None

    def drop_page(self, space: int, page: int) -> None:
        self.spaces[space].pages.pop(page, None)
        self.spaces[space].lost.discard(page)

    def fail_page(self, space: int, page: int) -> None:
        self.clear_page(space, page)
        self.spaces[space].lost.add(page)

    def protect_page(self, space: int, page: int, writable: bool, readable: bool = True) -> None:
        if page not in self.spaces[space].pages:
            self.clear_page(space, page)
        entry = self.spaces[space].pages[page]
        entry.writable, entry.readable = writable, readable

    # --- the adapter's side -------------------------------------------------------------------------------

    def frame(self, space: int, page: int, write: bool) -> memoryview:
        """The frame of a page, after a fault if need be; raises `Refused`."""
        s = self.spaces[space]
        for _ in range(2):
            entry = s.pages.get(page)
            if entry is None and page not in s.ranges and not s.everything:
                raise Refused("segment invalid")
            writable = s.ranges.get(page, True) if entry is None else entry.writable
            if (write and not writable) or (entry is not None and not entry.readable):
                raise Refused("protected")
            if entry is not None and entry.view is not None:
                return entry.view
            if page in s.lost or not s.on_demand:
                break
            self.fault(space, page, write)
        raise Refused("absent")

    def read(self, space: int, address: int, length: int) -> bytes:
        return bytes(self.byte(space, address + i, False)[0] for i in range(length))

    def write(self, space: int, address: int, data: bytes) -> None:
        for i, value in enumerate(data):
            self.byte(space, address + i, True)[0] = value

    def byte(self, space: int, address: int, write: bool) -> memoryview:
        bits = self.spaces[space].page_bits
        offset = address & ((1 << bits) - 1)
        return self.frame(space, address >> bits, write)[offset : offset + 1]
