"""The adapter's table of keys: which key opens which bytes to whom.

A region is memory that was registered: a Python buffer, or a range of an address space (`spaces`).  Its bytes have an
I/O virtual address, handed out by the table (not the process's pointer, which never leaves it), a local key for work
requests and a remote key for peers.  Memory windows (`windows`) have a remote key only, and stand in the same table.

Every access is checked here, byte for byte: key, protection domain, queue pair, range, rights, pages (IBA vol. 1,
10.6.3; document 003:882).  `find_local` and `find_remote` are the one door through which the transport reaches memory.
What they do not grant is counted by its reason (`deny`), and the newest refusals are remembered.

A key has an index of 24 bits and a tag of 8.  Indices are scattered over all 2^24 by a secret permutation, and tags are
drawn, for each index, in a secret order that gives each of the 256 once before one comes again: a key tells nothing of
another, and one that is stale opens nothing, until the index has been used 256 times (128 for regions, which take two).
This keeps accidents and guesses out, 1 in 2^32 for each live key and guess; it is no cryptography.
"""

from __future__ import annotations

import contextlib
from collections import deque

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError
from verbena.memory.spaces import REASONS, Spaces

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.memory.spaces import *
    from cython.cimports.verbena.wire.kernels import copy
else:
    from verbena._declarations import declarations
    from verbena.memory.spaces import *
    from verbena.wire.kernels import copy

    globals().update(declarations(__file__))

FIRST_ADDRESS = 0x1000_0000
ALIGNMENT = 0x1000
KNOWN_RIGHTS = 31
KINDS = ("region", "fast region", "space", "window 1", "window 2A", "window 2B", "rkey")
STATES = ("never", "retired", "unbound", "bound", "disabled", "used")
REUSED_LATE = 4096  # indices that wait before the first of them is used again


def check_rights(access):
    """Raise `InvalidAttributeError` for rights that are unknown, or do not go together."""
    if access & ~KNOWN_RIGHTS:
        raise InvalidAttributeError(f"unknown access rights {access:#x}: combine members of Access")
    if access & (REMOTE_WRITE | REMOTE_ATOMIC) and not access & LOCAL_WRITE:
        raise InvalidAttributeError(
            "REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE, too (IBA vol. 1, 10.6.3.1)"
        )


class RegionTable(Spaces):
    """All the keys of one adapter.  `capacity` regions at most, `windows` windows; `random` makes the keys' secret.

    Addresses are handed out in order from `FIRST_ADDRESS`, so that a run can be repeated to the byte.
    """

    def __init__(self, capacity, random, windows=0):
        i: cython.int
        super().__init__()
        if capacity + windows >= 1 << 24:
            raise InvalidAttributeError(f"{capacity + windows} regions and windows: less than 2^24")
        self.capacity = capacity
        self.window_capacity = windows
        self.places = capacity + windows + 1  # one index, that of the reserved keys, is left out
        self.count = self.window_count = 0
        self._views = {}
        self._free = deque()
        self._fresh = 1
        self._serial = 0
        self._next_address = FIRST_ADDRESS
        self._secret = random.getrandbits(62)
        self.now = self.reason = self.refusal_count = self.granted_uses = 0
        self.tie_count = self.errors_seen = self.second_bound = 0
        self.missing_space, self.missing_address = -1, 0
        if cython.compiled:
            self.chunks = cython.cast(
                cython.pointer(cython.pointer(Region)),
                calloc(self.places // CHUNK + 1, cython.sizeof(cython.pointer(Region))),
            )
            self.refused_remote = cython.cast(cython.pointer(uint64_t), calloc(REASON_COUNT, 8))
            self.refused_local = cython.cast(cython.pointer(uint64_t), calloc(REASON_COUNT, 8))
            self.refusal_ring = cython.cast(
                cython.pointer(Refusal), calloc(MOST_REFUSALS, cython.sizeof(Refusal))
            )
            self.use_ring = cython.cast(cython.pointer(Use), calloc(MOST_USES, cython.sizeof(Use)))
            if not (self.chunks and self.refused_remote and self.refused_local):
                raise MemoryError
            if not self.refusal_ring or not self.use_ring:
                raise MemoryError
        else:
            self.chunks, self.ties, self.rounds = {}, [], [0] * 4
            self.refused_remote, self.refused_local = [0] * REASON_COUNT, [0] * REASON_COUNT
            self.refusal_ring = [Refusal() for _ in range(MOST_REFUSALS)]
            self.use_ring = [Use() for _ in range(MOST_USES)]
        secret = int(self._secret)
        for i in range(4):
            secret = (secret * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            self.rounds[i] = secret >> 33 | 1

    def __dealloc__(self):
        i: cython.uint
        if cython.compiled:
            if self.chunks:
                for i in range(self.places // CHUNK + 1):
                    if i < SLAB or i % SLAB == 0:
                        free(self.chunks[i])
            free(self.chunks)
            free(self.ties)
            free(self.refused_remote)
            free(self.refused_local)
            free(self.refusal_ring)
            free(self.use_ring)

    # --- keys ---------------------------------------------------------------------------------------------

    def hide(self, place):
        """The index, of 24 bits, that stands in the keys of a place of the table."""
        left: cython.ulonglong = place >> 12
        right: cython.ulonglong = place & 0xFFF
        left ^= ((right + 1) * self.rounds[0] >> 19) & 0xFFF
        right ^= ((left + 1) * self.rounds[1] >> 19) & 0xFFF
        left ^= ((right + 1) * self.rounds[2] >> 19) & 0xFFF
        right ^= ((left + 1) * self.rounds[3] >> 19) & 0xFFF
        return left << 12 | right

    def place_of(self, index):
        """The place that an index of keys belongs to: what `hide` does, undone."""
        left: cython.ulonglong = index >> 12
        right: cython.ulonglong = index & 0xFFF
        right ^= ((left + 1) * self.rounds[3] >> 19) & 0xFFF
        left ^= ((right + 1) * self.rounds[2] >> 19) & 0xFFF
        right ^= ((left + 1) * self.rounds[1] >> 19) & 0xFFF
        left ^= ((right + 1) * self.rounds[0] >> 19) & 0xFFF
        return left << 12 | right

    def tag_of(self, place, generation):
        """The generation-th tag of a place; of 256 in a row, none twice."""
        i: cython.int
        mixed: cython.ulonglong = (place + 1) * self.rounds[1]
        tag: cython.uint = generation & 0xFF
        mixed ^= self._secret
        mixed ^= mixed >> 29
        mixed = (mixed & 0xFFFFFFF) * self.rounds[3]
        for i in range(4):
            tag = (tag * ((cython.cast(cython.uint, mixed >> (i * 8)) & 0x7F) * 2 + 1)) & 0xFF
            tag = (tag + (cython.cast(cython.uint, mixed >> (i * 8 + 13)) & 0xFF)) & 0xFF
            tag ^= tag >> 3
        return tag

    def next_key(self, r, place):
        """Draw a new key for a place."""
        r.generation += 1
        return self.hide(place) << 8 | self.tag_of(place, r.generation)

    def entry(self, place):
        """The entry of a place, or nothing."""
        if cython.compiled:
            if place >= self.places + 1 or not self.chunks[place // CHUNK]:
                return cython.NULL
            return cython.address(self.chunks[place // CHUNK][place % CHUNK])
        else:
            return self.chunks.get(place)

    def expect(self, key):
        """A peer will show this key soon: have its entry on its way from memory, where many are live."""
        if cython.compiled:
            r = self.entry(self.place_of(key >> 8))
            if r:
                verbena_expect(r)
                verbena_expect(cython.address(r.uses))

    def new_place(self):
        """A place for a new key, in state RETIRED; the caller has checked that there is one."""
        place: cython.uint
        if self._free and (len(self._free) > REUSED_LATE or self._fresh > self.places):
            place = self._free.popleft()
            return place
        if self.hide(self._fresh) == 0:
            self._fresh += 1
        place = self._fresh
        self._fresh += 1
        if cython.compiled:
            if not self.chunks[place // CHUNK]:
                self.new_chunk(place // CHUNK)
        else:
            self.chunks[place] = Region()
        r: cython.pointer(Region) = self.entry(place)
        r.generation = (self.rounds[0] * place >> 7) & 0xFF  # where the order of its tags begins
        return place

    def new_chunk(self, chunk):
        """Memory for the entries of a chunk, or of a slab of them."""
        i: cython.uint
        count: cython.uint = 1 if chunk < SLAB else SLAB
        first: cython.uint = chunk if chunk < SLAB else chunk // SLAB * SLAB
        if cython.compiled:
            made = cython.cast(
                cython.pointer(Region),
                zeroed(LINE if chunk < SLAB else HUGE_PAGE, count * CHUNK * cython.sizeof(Region)),
            )
            if not made:
                raise MemoryError
            for i in range(count):
                if first + i <= self.places // CHUNK:
                    self.chunks[first + i] = made + i * CHUNK
        return True

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

    def use(self, r, qpn, peer, gid, psn, packets, address, length, access, more):
        """An operation is granted: note who used the key; a one-shot key is disabled for all others (003:884).

        peer, gid: who asks.  packets: what it has, with numbers from `psn` on.  more: may the same operation go on in
        another request?
        """
        at: cython.uint = self.granted_uses % MOST_USES
        if cython.compiled:
            u = cython.address(self.use_ring[at])
        else:
            u = self.use_ring[at]
        u.when, u.address, u.length, u.key = self.now, address, length, r.remote_key
        u.qpn, u.peer, u.access = qpn, peer, access
        copy(u.gid, 0, gid, 0, 16)
        r.uses += 1
        r.bytes += length
        r.used_qpn = qpn
        r.used_peer = peer
        r.used_ns = self.now
        self.granted_uses += 1
        if r.one_shot:
            if r.state != STATE_USED:
                r.state = STATE_USED
                r.claim_first = psn
                r.claim_begin = address
            r.claim_last = (psn + packets - 1) & 0xFFFFFF
            r.claim_length = cython.cast(cython.uint, address + length - r.claim_begin)
            r.claim_more = more

    def claimed(self, r, qpn, psn, address, length, begins):
        """Is this of the one operation that has used a one-shot key: a part of it, or that part asked for again?

        begins: it is a request that was not there before.  A long READ has several, all but the last of the same
        length (`requester.read_chunk`), and goes on where it ended so far; `use` extends the operation.
        """
        end: cython.ulonglong = r.claim_begin + r.claim_length
        if r.used_qpn != qpn:
            return False
        if begins:
            return r.claim_more != 0 and psn == ((r.claim_last + 1) & 0xFFFFFF) and address == end
        return (
            ((psn - r.claim_first) & 0xFFFFFF) <= ((r.claim_last - r.claim_first) & 0xFFFFFF)
            and address >= r.claim_begin
            and address <= end
            and length <= end - address
        )

    def deny(self, remote, key, address, length, qpn, access):
        """Count the access that was just refused, under its reason, and remember it."""
        at: cython.uint = self.refusal_count % MOST_REFUSALS
        if remote:
            self.refused_remote[self.reason] += 1
        else:
            self.refused_local[self.reason] += 1
        self.refusal_count += 1
        self.refusal_ring[at].when = self.now
        self.refusal_ring[at].address = address
        self.refusal_ring[at].length = length
        self.refusal_ring[at].key = key
        self.refusal_ring[at].qpn = qpn
        self.refusal_ring[at].access = access
        self.refusal_ring[at].reason = self.reason
        self.refusal_ring[at].remote = remote
        if self.reason == PAGE_ABSENT:
            self.refusal_ring[at].space = self.missing_space
            self.refusal_ring[at].page = self.missing_page
            self.refusal_ring[at].missing = self.missing_address
        r = self.entry(self.place_of(key >> 8))
        if r and (r.remote_key if remote else r.local_key) == key:
            r.refusals += 1

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

    # --- what people look at ------------------------------------------------------------------------------

    def read_counters(self):
        """Accesses granted, refused and waited for, by name."""
        i: cython.int
        result = {"memory.uses": int(self.granted_uses)}
        for i in range(1, REASON_COUNT):
            result["memory.refused." + REASONS[i]] = int(self.refused_remote[i])
        for i in range(1, REASON_COUNT):
            result["memory.local_refused." + REASONS[i]] = int(self.refused_local[i])
        result["memory.faults"] = int(self.faults_raised)
        result["memory.faults_resolved"] = int(self.pages_resolved)
        result["memory.faults_dropped"] = int(self.faults_dropped)
        return result

    def refusals(self):
        """The newest refusals, oldest first: (when, remote?, reason, key, address, length, queue pair, access)."""
        i: cython.ulonglong
        begin: cython.ulonglong = 0
        result = []
        if self.refusal_count > MOST_REFUSALS:
            begin = self.refusal_count - MOST_REFUSALS
        for i in range(begin, self.refusal_count):
            f = self.refusal_ring[i % MOST_REFUSALS]
            result.append(
                (f.when, bool(f.remote), REASONS[f.reason], f.key, f.address, f.length, f.qpn, f.access)
            )
        return result

    def uses(self):
        """The newest uses, oldest first: (when, key, address, length, queue pair, the peer's, its GID, access)."""
        i: cython.ulonglong
        begin: cython.ulonglong = 0
        result = []
        if self.granted_uses > MOST_USES:
            begin = self.granted_uses - MOST_USES
        for i in range(begin, self.granted_uses):
            u = self.use_ring[i % MOST_USES]
            gid = bytes([u.gid[k] for k in range(16)])
            result.append((u.when, u.key, u.address, u.length, u.qpn, u.peer, gid, u.access))
        return result

    def page_errors(self):
        """Refusals for want of a page since the last call; the newest, if many.

        Of each: (key, address of the first byte that is missing, queue pair, remote?, space, page).
        """
        i: cython.ulonglong
        result = []
        if self.refusal_count - self.errors_seen > MOST_REFUSALS:
            self.errors_seen = self.refusal_count - MOST_REFUSALS
        for i in range(self.errors_seen, self.refusal_count):
            f = self.refusal_ring[i % MOST_REFUSALS]
            if f.reason == PAGE_ABSENT:
                result.append((f.key, f.missing, f.qpn, bool(f.remote), f.space, f.page))
        self.errors_seen = self.refusal_count
        return result

    def check_access(self, access):
        """`check_rights`, for the transport."""
        check_rights(access)

    def list_keys(self):
        """What each key opens, and who used it last, as dictionaries; those that are retired are left out."""
        place: cython.uint
        result = []
        for place in range(1, self._fresh):
            r = self.entry(place)
            if r and r.state > STATE_RETIRED:
                result.append(self.describe(place))
        return result

    def describe(self, index):
        """One entry of `list_keys`."""
        place: cython.uint = index
        r = self.entry(place)
        bound: cython.bint = r.state > STATE_UNBOUND and not r.empty
        return {
            "index": index,
            "kind": KINDS[r.kind],
            "state": STATES[r.state],
            "local_key": r.local_key,
            "remote_key": r.remote_key,
            "domain": r.domain,
            "address": int(r.address),
            "length": int(r.last) + 1 if bound else 0,
            "access": r.access,
            "space": None if r.space < 0 else r.space,
            "qp_num": r.qpn or None,
            "one_shot": bool(r.one_shot),
            "parent": int(r.parent) or None,
            "windows": r.windows,
            "uses": r.uses,
            "bytes": r.bytes,
            "refusals": r.refusals,
            "last_used_ns": r.used_ns,
            "last_qp": r.used_qpn,
            "last_peer_qp": r.used_peer,
        }
