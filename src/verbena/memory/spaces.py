"""Address spaces as the adapter sees them: which page of which space is in which frame, and who may write to it.

A space is one process's translation, from its addresses to the frames of physical memory (document 003:740-768), kept
as the adapter needs it: one table of pages, looked up for every packet.  Whoever manages the host's memory makes it and
keeps it current (`set_page`, `clear_page`, …); no process has a way to it.  A page of a space is one of:

* *in*: it has a frame, and a protection: read, or read and write, or neither;
* *out*: it belongs to the space and has no frame now.  In a space that pages on demand, an access asks the host for it
  (`take_faults`) and has to wait; in another it is refused;
* *lost*: out, and the host said that it cannot bring it in: refused;
* nothing at all: unless a range (segment) of the space covers it, which makes it out, the address is invalid.

Nothing is placed and nothing read before all pages of an access are known to be there (`covers`).  Pages have
2^page_bits bytes, 4 KiB or more.  Callers hold the adapter's lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.wire.kernels import copy
else:
    from verbena._declarations import declarations
    from verbena.wire.kernels import copy

    globals().update(declarations(__file__))

REASONS = (
    "granted",
    "key_unknown",
    "key_stale",
    "key_retired",
    "key_unbound",
    "key_disabled",
    "key_domain",
    "key_queue_pair",
    "key_range",
    "key_rights",
    "queue_pair_rights",
    "segment_invalid",
    "page_absent",
    "page_protected",
)
SMALLEST_PAGE, LARGEST_PAGE = 12, 40
SMALLEST_TABLE = 16
MOST_RANGES = 4096


class Spaces:
    """The address spaces of one adapter; at most `max_spaces`."""

    def __init__(self, max_spaces=65_536):
        self.max_spaces = max_spaces
        self._space_frames = {}
        self._free_spaces = list(range(64 if max_spaces > 64 else max_spaces))
        self._free_spaces.reverse()
        if cython.compiled:
            self.spaces = cython.cast(
                cython.pointer(cython.pointer(Space)),
                calloc(max_spaces, cython.sizeof(cython.pointer(Space))),
            )
            self.faults = cython.cast(cython.pointer(Fault), calloc(MOST_FAULTS, cython.sizeof(Fault)))
            if not self.spaces or not self.faults:
                raise MemoryError
        else:
            self.spaces = {}
            self.faults = [Fault() for _ in range(MOST_FAULTS)]
            self.fault_count = self.faults_raised = self.faults_dropped = self.pages_resolved = 0
            self.missing_page = 0

    def __dealloc__(self):
        i: cython.int
        if cython.compiled:
            if self.spaces:
                for i in range(self.max_spaces):
                    if self.spaces[i]:
                        free(self.spaces[i].pages)
                        free(self.spaces[i].ranges)
                        free(self.spaces[i])
            free(self.spaces)
            free(self.faults)

    # --- making and freeing -------------------------------------------------------------------------------

    def make_space(self, page_bits=12, on_demand=False, ahead=AHEAD_PAGES):
        """A new space without pages; returns its number.

        page_bits: pages have 2^page_bits bytes, 12 to 40.  on_demand: what is out is brought in by the host while the
        peer waits; else an access to it is refused.  ahead: of a long access, so many pages (1 to 64) have to be in
        before it begins; no more than the host has room for.  Raises `InvalidAttributeError`, `ResourceError`.
        """
        i: cython.int
        if not isinstance(page_bits, int) or not SMALLEST_PAGE <= page_bits <= LARGEST_PAGE:
            raise InvalidAttributeError(f"page_bits = {page_bits!r}: {SMALLEST_PAGE} to {LARGEST_PAGE}")
        if not isinstance(ahead, int) or not 1 <= ahead <= AHEAD_PAGES:
            raise InvalidAttributeError(f"ahead = {ahead!r}: 1 to {AHEAD_PAGES} pages")
        if not self._free_spaces:
            at: cython.int = len(self._space_frames)
            if at >= self.max_spaces:
                raise ResourceError(
                    f"all {self.max_spaces} address spaces of the adapter are in use: free one"
                )
            self._free_spaces.append(int(at))
        if cython.compiled:
            s = cython.cast(cython.pointer(Space), calloc(1, cython.sizeof(Space)))
            if not s:
                raise MemoryError
            s.pages = cython.cast(cython.pointer(Page), calloc(SMALLEST_TABLE, cython.sizeof(Page)))
            if not s.pages:
                free(s)
                raise MemoryError
        else:
            s = Space()
            s.pages = [Page() for _ in range(SMALLEST_TABLE)]
            s.ranges = []
        s.page_bits, s.mask, s.on_demand = page_bits, SMALLEST_TABLE - 1, on_demand
        s.ahead = ahead
        number = self._free_spaces.pop()
        i = number
        self.spaces[i] = s
        self._space_frames[number] = {}
        return number

    def free_space(self, space):
        """Forget a space.  Raises `InvalidStateError` while regions, keys or protection domains use it."""
        at: cython.int = space
        s = self.space_at(at)
        if s.users:
            raise InvalidStateError(
                f"{s.users} regions, keys and protection domains still use this address space: close them first"
            )
        everything: cython.ulonglong = 1
        self.answered(at, 0, everything << 60)
        if cython.compiled:
            free(s.pages)
            free(s.ranges)
            free(s)
            self.spaces[at] = cython.NULL
        else:
            del self.spaces[at]
        del self._space_frames[space]
        self._free_spaces.insert(0, space)

    def space_at(self, at):
        if cython.compiled:
            known = 0 <= at < self.max_spaces and self.spaces[at] != cython.NULL
        else:
            known = at in self.spaces
        if not known:
            raise InvalidAttributeError(f"address space {at} does not exist")
        return self.spaces[at]

    def set_on_demand(self, space, on_demand):
        """Choose what becomes of an access to a page that is out: wait for the host, or refusal."""
        at: cython.int = space
        self.space_at(at).on_demand = on_demand

    # --- pages --------------------------------------------------------------------------------------------

    def set_page(self, space, page, frame, writable=True, readable=True):
        """A page is in: `frame` is a buffer of its bytes.  One that was in moves; who waited for it may go on.

        page: its number, the address divided by the page's size.  frame: writable, also where peers may only read.
        """
        self.set_pages(space, page, frame, writable, readable, 1)

    def set_pages(self, space, page, buffer, writable=True, readable=True, count=0):
        """Consecutive pages are in, all in one buffer of so many bytes; `count` 0: as many as it has."""
        at: cython.int = space
        i: cython.ulonglong
        s = self.space_at(at)
        size: cython.ulonglong = 1
        size = size << s.page_bits
        view = memoryview(buffer)
        if not view.c_contiguous or view.readonly:
            raise InvalidAttributeError("a frame is a contiguous, writable buffer")
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        pages: cython.ulonglong = count or view.nbytes // size
        first: cython.ulonglong = self._number(space, page, pages)
        if view.nbytes != pages * size or not pages:
            raise InvalidAttributeError(f"{view.nbytes} bytes: frames of this space have {size} each")
        frames = self._space_frames[space]
        if cython.compiled:
            base: cython.pointer(cython.uchar) = first_byte(view)
        for i in range(pages):
            p = self.page_for(s, first + i)
            if cython.compiled:
                p.frame = base + i * size
            else:
                p.frame = view[i * size : (i + 1) * size]
            p.state, p.writable, p.readable = PAGE_IN, writable, readable
            frames[first + i] = view
        self.answered(at, first, pages)

    def _number(self, space, page, count):
        """Check the number of the first of some pages."""
        at: cython.int = space
        bits: object = self.space_at(at).page_bits
        last = 0x1_0000_0000_0000_0000 >> bits
        if not isinstance(page, int) or page < 0 or page + count > last:
            raise InvalidAttributeError(f"page {page!r}: the space has pages 0 to {last - 1:#x}")
        return page

    def clear_page(self, space, page):
        """A page is out: its frame is not used any more.  Its protection stays."""
        self._take_out(space, page, PAGE_OUT)

    def fail_page(self, space, page):
        """The host cannot bring a page in: who waits for it is refused, and so is who asks later."""
        at: cython.int = space
        number: cython.ulonglong = self._number(space, page, 1)
        self._take_out(space, page, PAGE_LOST)
        self.answered(at, number, 1)

    def _take_out(self, space, page, state):
        at: cython.int = space
        number: cython.ulonglong = self._number(space, page, 1)
        s = self.space_at(at)
        known: cython.bint = True if self.page_at(s, number) else False
        p = self.page_for(s, number)
        if not known:
            covering = self.range_of(s, number)
            p.readable = True
            p.writable = covering.writable if covering else True
        p.state = state
        if cython.compiled:
            p.frame = cython.NULL
        else:
            p.frame = None
        self._space_frames[space].pop(page, None)

    def protect_page(self, space, page, writable, readable=True):
        """Change the protection of a page, in or out.  Raises `InvalidAttributeError` when the space has none such."""
        at: cython.int = space
        number: cython.ulonglong = self._number(space, page, 1)
        s = self.space_at(at)
        p = self.page_at(s, number)
        if not p:
            if not self.range_of(s, number):
                raise InvalidAttributeError(f"page {page:#x} is no part of this address space")
            self.clear_page(space, page)
            p = self.page_at(s, number)
        p.writable, p.readable = writable, readable

    def drop_page(self, space, page):
        """Forget a page's entry: without a range around it, its addresses are invalid from now on."""
        at: cython.int = space
        number: cython.ulonglong = self._number(space, page, 1)
        s = self.space_at(at)
        p = self.page_at(s, number)
        if p:
            p.state = PAGE_GONE
            s.live_pages -= 1
            self._space_frames[space].pop(page, None)
        self.answered(at, number, 1)

    def page(self, space, page):
        """(is it in, readable, writable) of a page; None where the space has no entry for it."""
        at: cython.int = space
        number: cython.ulonglong = self._number(space, page, 1)
        p = self.page_at(self.space_at(at), number)
        if not p:
            return None
        return (p.state == PAGE_IN, bool(p.readable), bool(p.writable))

    def describe_space(self, space):
        """What a space is and holds."""
        at: cython.int = space
        s = self.space_at(at)
        return {
            "page_bits": s.page_bits,
            "on_demand": bool(s.on_demand),
            "pages": s.live_pages,
            "pages_in": len(self._space_frames[space]),
            "users": s.users,
            "ranges": [
                (s.ranges[i].first, s.ranges[i].pages, bool(s.ranges[i].writable))
                for i in range(s.range_count)
            ],
        }

    # --- ranges -------------------------------------------------------------------------------------------

    def add_range(self, space, first, pages, writable=True):
        """Pages that belong to the space from now on: out, as long as they are not set."""
        at: cython.int = space
        i: cython.uint
        if not isinstance(pages, int) or pages < 1:
            raise InvalidAttributeError(f"pages = {pages!r}: 1 or more")
        low: cython.ulonglong = self._number(space, first, pages)
        s = self.space_at(at)
        for i in range(s.range_count):  # a segment that grows stays one range
            if s.ranges[i].first + s.ranges[i].pages == low and s.ranges[i].writable == bool(writable):
                s.ranges[i].pages += pages
                return
        if s.range_count >= MOST_RANGES:
            raise ResourceError(f"an address space has {MOST_RANGES} ranges at most: remove one")
        if cython.compiled:
            ranges = cython.cast(cython.pointer(Range), calloc(s.range_count + 1, cython.sizeof(Range)))
            if not ranges:
                raise MemoryError
            for i in range(s.range_count):
                ranges[i] = s.ranges[i]
            free(s.ranges)
            s.ranges = ranges
        else:
            s.ranges.append(Range())
        i = s.range_count
        s.ranges[i].first, s.ranges[i].pages, s.ranges[i].writable = low, pages, writable
        s.range_count += 1

    def remove_range(self, space, first, pages):
        """These pages are no part of the space any more: their entries, and what ranges say of them, are forgotten."""
        at: cython.int = space
        i: cython.uint
        if not isinstance(pages, int) or pages < 1:
            raise InvalidAttributeError(f"pages = {pages!r}: 1 or more")
        self._number(space, first, pages)
        s = self.space_at(at)
        rest = []
        for i in range(s.range_count):
            begin = int(s.ranges[i].first)
            end = begin + int(s.ranges[i].pages)
            writable = bool(s.ranges[i].writable)
            if begin < first:
                rest.append((begin, min(end, first) - begin, writable))
            if end > first + pages:
                high = max(begin, first + pages)
                rest.append((high, end - high, writable))
        s.range_count = 0
        if not cython.compiled:
            s.ranges = []
        for begin, count, writable in rest:
            self.add_range(space, begin, count, writable)
        self._drop_between(space, first, pages)
        self.answered(at, first, pages)

    def _drop_between(self, space, first, pages):
        at: cython.int = space
        i: cython.ulonglong
        low: cython.ulonglong = first
        count: cython.ulonglong = pages
        s = self.space_at(at)
        frames = self._space_frames[space]
        for i in range(s.mask + 1):
            if cython.compiled:
                p = cython.address(s.pages[i])
            else:
                p = s.pages[i]
            if p.state != NO_PAGE and p.state != PAGE_GONE and p.number >= low and p.number - low < count:
                p.state = PAGE_GONE
                s.live_pages -= 1
                frames.pop(p.number, None)

    # --- the table ----------------------------------------------------------------------------------------

    def page_at(self, s, number):
        """A page's entry, or nothing."""
        at: cython.ulonglong = (number ^ (number >> 16)) & s.mask
        while s.pages[at].state != NO_PAGE:
            if s.pages[at].number == number and s.pages[at].state != PAGE_GONE:
                if cython.compiled:
                    return cython.address(s.pages[at])
                else:
                    return s.pages[at]
            at = (at + 1) & s.mask
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def page_for(self, s, number):
        """A page's entry, made if there is none."""
        p = self.page_at(s, number)
        if p:
            return p
        if (s.used + 1) * 4 > (s.mask + 1) * 3:
            self.grow(s)
        at: cython.ulonglong = (number ^ (number >> 16)) & s.mask
        while s.pages[at].state != NO_PAGE:
            at = (at + 1) & s.mask
        s.used += 1
        s.live_pages += 1
        s.pages[at].number = number
        if cython.compiled:
            return cython.address(s.pages[at])
        else:
            return s.pages[at]

    def grow(self, s):
        """A new table, without forgotten pages, at most three eighths full."""
        i: cython.ulonglong
        at: cython.ulonglong
        old_mask: cython.ulonglong = s.mask
        size: cython.ulonglong = SMALLEST_TABLE
        while size * 3 < (s.live_pages + 1) * 8:
            size = size * 2
        old = s.pages
        if cython.compiled:
            pages = cython.cast(cython.pointer(Page), calloc(size, cython.sizeof(Page)))
            if not pages:
                raise MemoryError
        else:
            pages = [Page() for _ in range(size)]
        for i in range(old_mask + 1):
            if old[i].state == NO_PAGE or old[i].state == PAGE_GONE:
                continue
            at = (old[i].number ^ (old[i].number >> 16)) & (size - 1)
            while pages[at].state != NO_PAGE:
                at = (at + 1) & (size - 1)
            pages[at] = old[i]
        if cython.compiled:
            free(old)
        s.pages, s.mask, s.used = pages, size - 1, s.live_pages
        return True

    def range_of(self, s, number):
        """The range that a page lies in, or nothing."""
        i: cython.uint
        for i in range(s.range_count):
            if number >= s.ranges[i].first and number - s.ranges[i].first < s.ranges[i].pages:
                if cython.compiled:
                    return cython.address(s.ranges[i])
                else:
                    return s.ranges[i]
        if cython.compiled:
            return cython.NULL
        else:
            return None

    # --- access -------------------------------------------------------------------------------------------

    def page_reason(self, s, number, write):
        """May a page be read, or written to?  GRANTED, PAGE_AWAITED where it is out, or why not."""
        p = self.page_at(s, number)
        if p:
            if not p.readable or (write and not p.writable):
                return PAGE_PROTECTED
            if p.state == PAGE_IN:
                return GRANTED
            return PAGE_ABSENT if p.state == PAGE_LOST else PAGE_AWAITED
        r = self.range_of(s, number)
        if not r:
            return SEGMENT_INVALID
        return PAGE_PROTECTED if write and not r.writable else PAGE_AWAITED

    def covers(self, space, address, length, need, write, key, qpn):
        """May all pages of a range be used now?  GRANTED, PAGE_AWAITED, or why not.

        length: 1 or more bytes.  The first `need` of them have to be in, and the space's `ahead` pages from the first
        on; what is missing of these in a space that pages on demand is asked for, unless something else is refused.
        key, qpn: on whose behalf.
        """
        reason: cython.int
        missing: cython.bint = False
        s = self.spaces[space]
        number: cython.ulonglong = address >> s.page_bits
        last: cython.ulonglong = (address + (length - 1)) >> s.page_bits
        near: cython.ulonglong = (address + (need - 1)) >> s.page_bits if need else number
        first: cython.ulonglong = number
        if last - number >= s.ahead:
            near = max(near, number + s.ahead - 1)
        else:
            near = last
        while True:
            reason = self.page_reason(s, number, write)
            if reason == PAGE_AWAITED:
                if not missing:
                    missing = True
                    self.missing_page = number
            elif reason != GRANTED:
                self.missing_page = number
                return reason
            if number == last:
                break
            number += 1
        if not missing:
            return GRANTED
        if not s.on_demand:
            return PAGE_ABSENT
        if self.missing_page > near:
            return GRANTED
        number = max(first, self.missing_page)
        while number <= near:
            if self.page_reason(s, number, write) == PAGE_AWAITED:
                self.ask(space, number, write, key, qpn)
            number += 1
        return PAGE_AWAITED

    def authority(self, space, address, length, write):
        """May a key be bound to a range (document 003:868)?  GRANTED, or why not; its pages need not be in.

        Of a long range within a segment, only the segment is looked at: what a page forbids is refused when it is used.
        """
        reason: cython.int
        s = self.spaces[space]
        number: cython.ulonglong = address >> s.page_bits
        last: cython.ulonglong = (address + (length - 1)) >> s.page_bits
        whole: cython.bint = last - number < 8 * AHEAD_PAGES
        while True:
            r = self.range_of(s, number)
            if r and not whole:
                if write and not r.writable:
                    return PAGE_PROTECTED
                if last - r.first < r.pages:
                    return GRANTED
                number = r.first + r.pages
                continue
            reason = self.page_reason(s, number, write)
            if reason == SEGMENT_INVALID or reason == PAGE_PROTECTED:
                return reason
            if number == last:
                return GRANTED
            number += 1

    def ask(self, space, page, write, key, qpn):
        """Ask the host for a page, once."""
        i: cython.uint
        for i in range(self.fault_count):
            if self.faults[i].space == space and self.faults[i].page == page:
                if write and not self.faults[i].write:
                    self.faults[i].write = True
                return
        if self.fault_count >= MOST_FAULTS:
            self.faults_dropped += 1  # asked for again when the access is tried again
            return
        i = self.fault_count
        self.faults[i].space, self.faults[i].page, self.faults[i].write = space, page, write
        self.faults[i].key, self.faults[i].qpn, self.faults[i].told = key, qpn, False
        self.fault_count += 1
        self.faults_raised += 1

    def answered(self, space, first, pages):
        """Nobody waits for these pages any more."""
        i: cython.uint
        kept: cython.uint = 0
        for i in range(self.fault_count):
            if (
                self.faults[i].space == space
                and self.faults[i].page >= first
                and self.faults[i].page - first < pages
            ):
                self.pages_resolved += 1
                continue
            if kept != i:
                self.faults[kept].space, self.faults[kept].page = self.faults[i].space, self.faults[i].page
                self.faults[kept].key, self.faults[kept].qpn = self.faults[i].key, self.faults[i].qpn
                self.faults[kept].write, self.faults[kept].told = self.faults[i].write, self.faults[i].told
            kept += 1
        self.fault_count = kept

    def take_faults(self):
        """The pages that the host shall bring in and was not told of: (space, page, to write?, key, queue pair)."""
        i: cython.uint
        result = []
        for i in range(self.fault_count):
            if not self.faults[i].told:
                self.faults[i].told = True
                f = self.faults[i]
                result.append((f.space, f.page, bool(f.write), f.key, f.qpn))
        return result

    def pending_faults(self):
        """How many pages are waited for."""
        return self.fault_count

    def space_get(self, space, address, to, at, n):
        """Copy n bytes out of pages that are in (`covers`)."""
        part: cython.size_t
        where: cython.ulonglong
        s = self.spaces[space]
        size: cython.ulonglong = 1
        size = size << s.page_bits
        while n:
            where = address & (size - 1)
            part = min(n, size - where)
            copy(to, at, self.page_at(s, address >> s.page_bits).frame, where, part)
            address += part
            at += part
            n -= part

    def space_put(self, space, address, source, at, n):
        """Copy n bytes into pages that are in (`covers`)."""
        part: cython.size_t
        where: cython.ulonglong
        s = self.spaces[space]
        size: cython.ulonglong = 1
        size = size << s.page_bits
        while n:
            where = address & (size - 1)
            part = min(n, size - where)
            copy(self.page_at(s, address >> s.page_bits).frame, where, source, at, part)
            address += part
            at += part
            n -= part
