"""Entries of keys: what an adapter keeps of each key, which numbers keys have, and who used them or was refused.

A key has an index of 24 bits and a tag of 8.  Indices are scattered over all 2^24 by a secret permutation, and tags are
drawn, for each index, in a secret order that gives each of the 256 once before one comes again: a key tells nothing of
another, and one that is stale opens nothing, until the index has been used 256 times (128 for regions, which take two).
This keeps accidents and guesses out, 1 in 2^32 for each live key and guess; it is no cryptography.

What is not granted is counted by its reason (`deny`); the newest refusals, and the newest uses, are remembered.
"""

from __future__ import annotations

from collections import deque

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError
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

KINDS = ("region", "fast region", "space", "window 1", "window 2A", "window 2B", "rkey")
STATES = ("never", "retired", "unbound", "bound", "disabled", "used")
REUSED_LATE = 4096  # indices that wait before the first of them is used again


class KeyEntries(Spaces):
    """The entries of one adapter: at most `capacity` regions and `windows` windows; `random` makes the keys' secret."""

    def __init__(self, capacity, random, windows=0):
        i: cython.int
        super().__init__()
        if capacity + windows >= 1 << 24:
            raise InvalidAttributeError(f"{capacity + windows} regions and windows: less than 2^24")
        self.capacity = capacity
        self.window_capacity = windows
        self.places = capacity + windows + 1  # one index, that of the reserved keys, is left out
        self.count = self.window_count = 0
        self._free = deque()
        self._fresh = 1
        self._serial = 0
        self._secret = random.getrandbits(62)
        self.now = self.reason = self.refusal_count = self.granted_uses = 0
        self.errors_seen = self.second_bound = 0
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
            self.chunks, self.rounds = {}, [0] * 4
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
            free(self.refused_remote)
            free(self.refused_local)
            free(self.refusal_ring)
            free(self.use_ring)

    # --- keys -------------------------------------------------------------------------------------------------

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

    # --- uses and refusals ------------------------------------------------------------------------------------

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

    # --- what people look at ----------------------------------------------------------------------------------

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
