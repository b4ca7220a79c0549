"""The adapter's table of keys: which key opens which bytes to whom.

A region is memory that was registered: a Python buffer, or a range of an address space (`spaces`).  Its bytes have an
I/O virtual address, handed out by the table (not the process's pointer, which never leaves it), a local key for work
requests and a remote key for peers.  Memory windows (`windows`) have a remote key only, and stand in the same table.

Every access is checked here, byte for byte: key, protection domain, queue pair, range, rights, pages (IBA vol. 1,
10.6.3; document 003:882).  `find_local` and `find_remote` are the one door through which the transport reaches memory.
What keys look like, and the records of their use, stand in `entries`.
"""

from __future__ import annotations

import contextlib

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError
from verbena.memory.entries import KeyEntries

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.memory.entries import *
    from cython.cimports.verbena.memory.spaces import *
    from cython.cimports.verbena.wire.kernels import copy
else:
    from verbena._declarations import declarations
    from verbena.memory.entries import *
    from verbena.memory.spaces import *
    from verbena.wire.kernels import copy

    globals().update(declarations(__file__))

FIRST_ADDRESS = 0x1000_0000
ALIGNMENT = 0x1000
KNOWN_RIGHTS = 31


def check_rights(access):
    """Raise `InvalidAttributeError` for rights that are unknown, or do not go together."""
    if access & ~KNOWN_RIGHTS:
        raise InvalidAttributeError(f"unknown access rights {access:#x}: combine members of Access")
    if access & (REMOTE_WRITE | REMOTE_ATOMIC) and not access & LOCAL_WRITE:
        raise InvalidAttributeError(
            "REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE, too (IBA vol. 1, 10.6.3.1)"
        )


class RegionTable(KeyEntries):
    """All the keys of one adapter.  `capacity` regions at most, `windows` windows; `random` makes the keys' secret.

    Addresses are handed out in order from `FIRST_ADDRESS`, so that a run can be repeated to the byte.
    """

    def __init__(self, capacity, random, windows=0):
        super().__init__(capacity, random, windows)
        self._views = {}
        self._next_address = FIRST_ADDRESS
        self.tie_count = 0
        if not cython.compiled:
            self.ties = []

    def __dealloc__(self):
        if cython.compiled:
            free(self.ties)

    # --- regions ------------------------------------------------------------------------------------------

    def register(self, buffer, domain, access, address=None):
        """Register a contiguous buffer; returns (index, address, length, local key, remote key).

        The buffer stays exported (a bytearray cannot be resized) until `deregister`.
        """
        view = self._checked_buffer(buffer, access)
        length = view.nbytes
        address = self._address_for(length, address)
        return self._register(KIND_REGION, domain, access, address, length, view, -1, 0)

    def register_pages(self, space, start, length, domain, access, address=None):
        """Register a range of an address space, whose pages need not be in; returns what `register` does.

        start: its address in the space.  length: bytes; None for all behind `start`.  address: what it is called by
        work requests and peers; by default `start`.
        """
        at: cython.int = space
        self.space_at(at)
        check_rights(access)
        most = (1 << 64) - start if isinstance(start, int) else 0
        if not isinstance(start, int) or start < 0 or most <= 0:
            raise InvalidAttributeError(f"address {start!r}: 0 to 2^64 - 1")
        length = most if length is None else length
        if not isinstance(length, int) or not 0 <= length <= most:
            raise InvalidAttributeError(f"length {length!r}: 0 to {most}, or None for all")
        address = self._address_for(length, start if address is None else address)
        return self._register(KIND_REGION, domain, access, address, length, None, space, start)

    def _checked_buffer(self, buffer, access):
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise InvalidAttributeError(
                "the buffer must be contiguous: register a copy, or a contiguous slice"
            )
        if view.nbytes:
            view = view.cast("B")
        check_rights(access)
        if access & LOCAL_WRITE and view.readonly:
            raise InvalidAttributeError("write rights on a read-only buffer: register a writable one")
        return view

    def _address_for(self, length, address):
        if address is None:
            address = int(self._next_address)
            self._next_address += (length + 2 * ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        elif not 0 <= address <= (1 << 64) - length:
            raise InvalidAttributeError("the region's addresses must fit into 64 bits")
        return address

    def _register(self, kind, domain, access, address, length, view, space, origin):
        if self.count >= self.capacity:
            raise ResourceError(f"all {self.capacity} memory regions of the adapter are in use: close one")
        place: cython.uint = self.new_place()
        r: cython.pointer(Region) = self.entry(place)
        self._serial += 1
        r.serial, r.kind, r.qpn, r.parent, r.windows, r.one_shot = self._serial, kind, 0, 0, 0, False
        r.uses = r.bytes = r.used_ns = r.used_qpn = r.used_peer = r.refusals = 0
        r.space, r.base = -1, None if not cython.compiled else cython.NULL
        self._fill(place, view, domain, access, address, length, space, origin)
        self.count += 1
        return (int(place), address, length, r.local_key, r.remote_key)

    def _fill(self, place: cython.uint, view, domain, access, address, length, space, origin):
        """Give a region its memory, and new keys."""
        r: cython.pointer(Region) = self.entry(place)
        if r.space >= 0:
            self.space_at(r.space).users -= 1
        if space >= 0:
            self.space_at(space).users += 1
        if cython.compiled:
            r.base = cython.NULL
            if view is not None and length:
                r.base = first_byte(view)
        else:
            r.base = view
        r.address, r.last, r.empty, r.origin = address, max(length, 1) - 1, not length, origin
        r.space, r.domain, r.access = space, domain, access
        r.local_key = self.next_key(r, place)
        r.remote_key = self.next_key(r, place)
        r.state = STATE_BOUND
        old = self._views.pop(int(place), None)
        self._views[int(place)] = view
        self._release(old)

    def _release(self, view):
        if view is not None:
            with contextlib.suppress(BufferError):  # looked into by somebody else; it goes with him
                view.release()

    def reregister(self, index, domain, access, buffer=None, address=None):
        """Change a region's domain, rights, and, with a buffer, its memory (IBA vol. 1, 11.2.8.5); its keys are new.

        Returns what `register` does.  Raises `InvalidStateError` while windows are bound to it; nothing was changed.
        """
        place: cython.uint = self._region(index)
        r: cython.pointer(Region) = self.entry(place)
        self._require_free(place)
        check_rights(access)
        if buffer is None:
            view = self._views[index]
            if view is not None and access & LOCAL_WRITE and view.readonly:
                raise InvalidAttributeError("write rights on a read-only buffer: register a writable one")
            r.domain, r.access = domain, access
            r.local_key = self.next_key(r, place)
            r.remote_key = self.next_key(r, place)
            r.state = STATE_BOUND
        else:
            view = self._checked_buffer(buffer, access)
            address = self._address_for(view.nbytes, address)
            self._fill(place, view, domain, access, address, view.nbytes, -1, 0)
        length = 0 if r.empty else int(r.last) + 1
        return (index, int(r.address), length, r.local_key, r.remote_key)

    def _region(self, index):
        """The place of a region, checked."""
        if index not in self._views:
            raise InvalidAttributeError("this memory region is not registered")
        return index

    def _require_free(self, place: cython.uint):
        r: cython.pointer(Region) = self.entry(place)
        if r.windows:
            raise InvalidStateError(
                f"{r.windows} windows are bound to this region: unbind or deallocate them first "
                "(IBA vol. 1, 11.2.8.4)"
            )

    def deregister(self, index):
        """Forget a region: from now on its keys open nothing, and its buffer is free.

        Raises `InvalidStateError` while windows are bound to it.
        """
        place: cython.uint = self._region(index)
        r: cython.pointer(Region) = self.entry(place)
        self._require_free(place)
        r.state = STATE_RETIRED
        if r.space >= 0:
            self.space_at(r.space).users -= 1
            r.space = -1
        if cython.compiled:
            r.base = cython.NULL
        else:
            r.base = None
        self.count -= 1
        self._free.append(int(place))
        self._release(self._views.pop(index))

    # --- reserved keys: a domain's address space ------------------------------------------------------------

    def tie(self, domain, space, virtual=None):
        """Let a protection domain's work requests name any address of a space, by `RESERVED_LKEY`.

        virtual: a second space, of virtual addresses, by `RESERVED_VIRTUAL_LKEY`: for kernel consumers only, who are
        the ones that have it (document 003:856).  Raises `InvalidStateError` when the domain has a space.
        """
        d: cython.uint = domain
        i: cython.uint
        if d < self.tie_count and self.ties[d].effective:
            raise InvalidStateError("this protection domain is tied to an address space already")
        if self.capacity - self.count < (1 if virtual is None else 2):
            raise ResourceError(f"all {self.capacity} memory regions of the adapter are in use: close one")
        for number in (space, virtual):
            if number is not None:
                self.describe_space(number)
        if d >= self.tie_count:
            wanted: cython.uint = max(64, 2 * d)
            if cython.compiled:
                ties = cython.cast(cython.pointer(Tie), calloc(wanted, cython.sizeof(Tie)))
                if not ties:
                    raise MemoryError
                for i in range(self.tie_count):
                    ties[i] = self.ties[i]
                free(self.ties)
                self.ties = ties
            else:
                self.ties += [Tie() for _ in range(wanted - self.tie_count)]
            self.tie_count = wanted
        rights = LOCAL_WRITE | WINDOW_BIND
        whole = 1 << 64
        self.ties[d].effective = self._register(KIND_SPACE, domain, rights, 0, whole, None, space, 0)[0]
        if virtual is not None:
            self.ties[d].virtual = self._register(KIND_SPACE, domain, rights, 0, whole, None, virtual, 0)[0]

    def untie(self, domain):
        """Undo `tie`, if it was done.  Raises `InvalidStateError` while windows are bound in the space."""
        d: cython.uint = domain
        if d >= self.tie_count:
            return
        for place in (self.ties[d].effective, self.ties[d].virtual):
            if place:
                self._require_free(place)
        for place in (self.ties[d].effective, self.ties[d].virtual):
            if place:
                self.deregister(place)
        self.ties[d].effective = self.ties[d].virtual = 0

    def tied(self, domain):
        """The (effective, virtual) address spaces of a domain; None where there is none."""
        d: cython.uint = domain
        if d >= self.tie_count or not self.ties[d].effective:
            return (None, None)
        virtual: cython.uint = self.ties[d].virtual
        return (
            int(self.entry(self.ties[d].effective).space),
            int(self.entry(virtual).space) if virtual else None,
        )

    # --- access -------------------------------------------------------------------------------------------

    def find_local(self, domain, key, address, length, access):
        """The region a work request may use, or nothing and `reason`: key, domain, whole range and rights must fit."""
        r = self.opened_local(domain, key)
        if r and self.within(r, address, length, access):
            if r.space < 0 or not length:
                return r
            # A packet's piece has to be in as a whole; of a longer list, its beginning: each packet asks again.
            need: cython.ulonglong = length if length < LARGEST_PACKET else LARGEST_PACKET
            if self.pages_in(r, address, length, need, (access & LOCAL_WRITE) != 0, key, 0):
                return r
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def find_remote(self, domain, qpn, key, address, length, need, access, psn, first):
        """The region a peer's request may use, or nothing and `reason`.

        domain, qpn: of the queue pair that it came by.  first: is this the operation's first packet?  Then address and
        length are those of the whole operation, of which this packet needs the first `need` bytes.  psn: of that first
        packet, or any of the operation's where it is asked for again: a one-shot key goes on serving only that.
        """
        r = self.opened_remote(domain, qpn, key)
        if r:
            if r.state != STATE_BOUND or (r.one_shot and not first):
                if r.state == STATE_UNBOUND:
                    self.reason = KEY_UNBOUND
                elif (
                    r.state == STATE_USED
                    and (access == REMOTE_READ or not first)
                    and self.claimed(r, qpn, psn, address, length, first)
                ):
                    self.reason = GRANTED
                else:
                    self.reason = KEY_DISABLED
            else:
                self.reason = GRANTED
            if self.reason == GRANTED and self.within(r, address, length, access):
                if r.space < 0:
                    return r
                if self.pages_in(r, address, length, need, access != REMOTE_READ, key, qpn):
                    return r
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def within(self, r, address, length, access):
        """Are the range and the rights those of the region?"""
        if access & ~r.access:
            self.reason = KEY_RIGHTS
            return False
        if (
            address >= r.address
            and not (r.empty and length)
            and (length == 0 or length - 1 <= r.last)
            and (
                address - r.address <= r.last - (length - 1) if length else address - r.address <= r.last + 1
            )
        ):
            return True
        self.reason = KEY_RANGE
        return False

    def pages_in(self, r, address, length, need, write, key, qpn):
        """Are the pages of a range in?"""
        start: cython.ulonglong = address - r.address + r.origin
        first: cython.ulonglong
        self.reason = self.covers(r.space, start, length, need, write, key, qpn)
        if self.reason == PAGE_ABSENT:
            first = self.missing_page << self.spaces[r.space].page_bits
            self.missing_space = r.space
            self.missing_address = address + (first - start) if first > start else address
        return self.reason == GRANTED

    def opened_local(self, domain, key):
        """The region that a local key opens in a domain, or nothing."""
        place: cython.uint = 0
        if key < FIRST_KEY:
            if domain >= 0 and cython.cast(cython.uint, domain) < self.tie_count:
                if key == RESERVED_LKEY:
                    place = self.ties[domain].effective
                elif key == RESERVED_VIRTUAL_LKEY:
                    place = self.ties[domain].virtual
            if place:
                return self.entry(place)
            self.reason = KEY_UNKNOWN
        else:
            place = self.place_of(key >> 8)
            r = self.entry(place)
            if not r or r.state == STATE_NEVER:
                self.reason = KEY_UNKNOWN
            elif r.local_key != key or r.kind == KIND_SPACE:
                self.reason = KEY_STALE
            elif r.state == STATE_RETIRED:
                self.reason = KEY_RETIRED
            elif r.domain != domain:
                self.reason = KEY_DOMAIN
            elif r.kind != KIND_REGION and r.state != STATE_BOUND:
                self.reason = KEY_UNBOUND if r.state == STATE_UNBOUND else KEY_DISABLED
            else:
                return r
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def opened_remote(self, domain, qpn, key):
        """The entry that has a remote key and may be named by this queue pair, in whatever state; or nothing."""
        place: cython.uint = self.place_of(key >> 8)
        r = self.entry(place)
        if not r or r.state == STATE_NEVER:
            self.reason = KEY_UNKNOWN
        elif r.remote_key != key or r.kind == KIND_SPACE:
            self.reason = KEY_STALE
        elif r.state == STATE_RETIRED:
            self.reason = KEY_RETIRED
        elif r.domain != domain and r.kind != KIND_WINDOW_2A:
            self.reason = KEY_DOMAIN
        elif r.qpn and r.qpn != qpn:
            self.reason = KEY_QUEUE_PAIR
        else:
            return r
        if cython.compiled:
            return cython.NULL
        else:
            return None

    def get(self, r, address, to, at, n):
        """Copy n bytes out of a region: what `find_…` granted."""
        if r.space < 0:
            copy(to, at, r.base, address - r.address + r.origin, n)
        else:
            self.space_get(r.space, address - r.address + r.origin, to, at, n)

    def put(self, r, address, source, at, n):
        """Copy n bytes into a region: what `find_…` granted."""
        if r.space < 0:
            copy(r.base, address - r.address + r.origin, source, at, n)
        else:
            self.space_put(r.space, address - r.address + r.origin, source, at, n)

    def release_parent(self, r):
        """A window lets go of the region that it was bound to."""
        if r.parent:
            self.entry(r.parent).windows -= 1
            r.parent = 0
            if r.qpn:
                self.second_bound -= 1

    def forget_queue_pair(self, qpn):
        """A queue pair is gone: what it alone could use is disabled, or the next one of its number might."""
        place: cython.uint
        if not self.second_bound:
            return
        for place in range(1, self._fresh):
            r = self.entry(place)
            if r and r.qpn == qpn and r.state == STATE_BOUND:
                r.state = STATE_DISABLED
                self.release_parent(r)

    def invalidate(self, domain, qpn, key):
        """Close a region or a window to its remote key (IBA vol. 1, 10.6.5, 9.4.1.1.3); False, and `reason`, if it
        may not be.

        A region stays registered and its local key valid; one that was registered by a work request can be registered
        anew, a type 2 window be bound anew.  Type 1 windows, and keys of document 003, are unbound, not invalidated.
        """
        r = self.opened_remote(domain, qpn, key)
        if not r:
            return False
        if r.kind == KIND_WINDOW_1 or r.kind == KIND_RKEY:
            self.reason = KEY_RIGHTS
            return False
        if r.state != STATE_BOUND:
            self.reason = KEY_UNBOUND if r.state == STATE_UNBOUND else KEY_DISABLED
            return False
        if r.windows:
            self.reason = KEY_RIGHTS
            return False
        r.state = STATE_DISABLED
        self.release_parent(r)
        return True

    def check_access(self, access):
        """`check_rights`, for the transport."""
        check_rights(access)
