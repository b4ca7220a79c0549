"""Memory windows: keys that a consumer binds to a range and takes back, without a call into the driver.

A window is an entry of the adapter's table with a remote key only.  Making and freeing one is a call (`alloc_window`,
`free_window`); binding, unbinding, invalidating and fast registration are work requests: `bind`, `invalidate_local` and
`register_fast` run without the interpreter when the send queue comes to them, and return GRANTED, or why not; then
nothing was changed.  `kernel_calls` counts the calls that are not work requests.

Kinds (IBA vol. 1, 10.6.7.2): type 1, of a protection domain, which gets a new key with each bind; type 2A, of the
queue pair that bound it, and 2B, of that queue pair and domain, whose last eight bits the consumer chooses and which
has to be invalidated before it is bound anew; and the remote key of document 003 (863-884), which is bound as often as
its owner likes, to one range at a time, and may be one-shot.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, ResourceError
from verbena.memory.entries import KINDS
from verbena.memory.spaces import REASONS
from verbena.memory.table import RegionTable

if cython.compiled:
    from cython.cimports.verbena.memory.entries import *
    from cython.cimports.verbena.memory.spaces import *
    from cython.cimports.verbena.memory.table import *
else:
    from verbena.memory.entries import *
    from verbena.memory.spaces import *
    from verbena.memory.table import *


class WindowTable(RegionTable):
    """All the keys of one adapter, windows included."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.binds = self.unbinds = self.bind_errors = self.invalidates = 0
        self.fast_registrations = self.kernel_calls = 0
        self._lists = {}

    # --- windows ------------------------------------------------------------------------------------------

    def alloc_window(self, domain, kind, one_shot=False):
        """A new window, unbound; returns (index, serial number, remote key).  Raises `ResourceError`."""
        if self.window_count >= self.window_capacity:
            raise ResourceError(
                f"all {self.window_capacity} memory windows of the adapter are in use: free one"
            )
        if kind not in (KIND_WINDOW_1, KIND_WINDOW_2A, KIND_WINDOW_2B, KIND_RKEY):
            raise InvalidAttributeError(f"{KINDS[kind]}: no kind of window")
        self.kernel_calls += 1
        place: cython.uint = self.new_place()
        r: cython.pointer(Region) = self.entry(place)
        self._serial += 1
        r.serial, r.kind, r.domain, r.one_shot, r.state = self._serial, kind, domain, one_shot, STATE_UNBOUND
        r.qpn = r.parent = r.windows = r.access = r.local_key = 0
        r.uses = r.bytes = r.used_ns = r.used_qpn = r.used_peer = r.refusals = 0
        r.address = r.last = r.origin = 0
        r.empty, r.space = True, -1
        r.base = None if not cython.compiled else cython.NULL
        r.remote_key = self.next_key(r, place)
        self.window_count += 1
        return (int(place), r.serial, r.remote_key)

    def free_window(self, index, serial):
        """Retire a window (DeallocateRKey); one that is bound is unbound by it."""
        place: cython.uint = index
        r: cython.pointer(Region) = self.entry(place)
        if not r or r.state <= STATE_RETIRED or r.serial != serial:
            raise InvalidAttributeError("this memory window was freed already")
        self.kernel_calls += 1
        self.release_parent(r)
        r.state = STATE_RETIRED
        r.space = -1
        if cython.compiled:
            r.base = cython.NULL
        else:
            r.base = None
        self.window_count -= 1
        self._free.append(int(place))

    def draw_key(self, index):
        """The key that a window's next bind gives it, if that succeeds."""
        place: cython.uint = index
        return self.next_key(self.entry(place), place)

    def remote_key(self, index):
        """The remote key that an entry has now."""
        place: cython.uint = index
        return self.entry(place).remote_key

    def window(self, index):
        """(state, address, length, access) of a window, as in `describe`."""
        found = self.describe(index)
        return (found["state"], found["address"], found["length"], found["access"])

    def bind(self, domain, qpn, place, serial, new_key, parent_key, address, length, access):
        """Execute a bind (length 1 or more) or an unbind (address and length 0).

        new_key: what the window's key is from now on.  parent_key: the local key of the region, or the reserved one of
        the domain's address space.  access: remote rights, and ZERO_BASED.
        """
        reason: cython.int = KEY_RETIRED
        r = self.entry(place)
        if r and r.serial == serial and r.state > STATE_RETIRED:
            reason = KEY_DOMAIN
            if r.domain == domain:
                reason = self.bind_window(r, domain, qpn, new_key, parent_key, address, length, access)
        if reason != GRANTED:
            self.bind_errors += 1
        elif length:
            self.binds += 1
        else:
            self.unbinds += 1
        return reason

    def bind_window(self, r, domain, qpn, new_key, parent_key, address, length, access):
        reason: cython.int
        second: cython.bint = r.kind == KIND_WINDOW_2A or r.kind == KIND_WINDOW_2B
        if second and (r.state == STATE_BOUND or length == 0):
            return KEY_RIGHTS
        if length == 0:
            if address:
                return KEY_RANGE
            self.release_parent(r)
            r.state, r.empty, r.remote_key, r.space = STATE_UNBOUND, True, new_key, -1
            return GRANTED
        reason = self.authorized(domain, parent_key, address, length, access)
        if reason != GRANTED:
            return reason
        p = self.opened_local(domain, parent_key)
        self.release_parent(r)
        r.parent = self.place_of(parent_key >> 8)
        if parent_key == RESERVED_LKEY:
            r.parent = self.ties[domain].effective
        elif parent_key == RESERVED_VIRTUAL_LKEY:
            r.parent = self.ties[domain].virtual
        p.windows += 1
        r.base, r.space, r.origin = p.base, p.space, address - p.address + p.origin
        r.address, r.last, r.empty = (0 if access & ZERO_BASED else address), length - 1, False
        r.access, r.remote_key, r.qpn = access & REMOTE_RIGHTS, new_key, (qpn if second else 0)
        if second:
            self.second_bound += 1
        r.claim_more, r.state = False, STATE_BOUND
        return GRANTED

    def authorized(self, domain, parent_key, address, length, access):
        """May somebody of the domain give these rights to a range (document 003:868; IBA vol. 1, 10.6.7.2.5)?"""
        p = self.opened_local(domain, parent_key)
        if not p:
            return self.reason
        if not p.access & WINDOW_BIND or (
            access & (REMOTE_WRITE | REMOTE_ATOMIC) and not p.access & LOCAL_WRITE
        ):
            return KEY_RIGHTS
        if not self.within(p, address, length, 0):
            return KEY_RANGE
        if p.space >= 0:
            return self.authority(
                p.space,
                address - p.address + p.origin,
                length,
                (access & (REMOTE_WRITE | REMOTE_ATOMIC)) != 0,
            )
        return GRANTED

    def may_bind(self, domain, parent_key, address, length, access):
        """What `authorized` says now, as the reason's number; 0 = granted."""
        return self.authorized(domain, parent_key, address, length, access)

    def authority_of(self, space, address, length, access):
        """Why a range of a space may not be registered with these rights, as the reason's number; 0 = it may."""
        at: cython.int = space
        self.space_at(at)
        if not 0 <= address < address + length <= 1 << 64:
            return SEGMENT_INVALID
        return self.authority(
            at, address, length, (access & (LOCAL_WRITE | REMOTE_WRITE | REMOTE_ATOMIC)) != 0
        )

    def reason_name(self, reason):
        """The name of a reason's number."""
        return REASONS[reason]

    def invalidate_local(self, domain, qpn, key):
        """Execute a local invalidate (IBA vol. 1, 10.6.5); returns GRANTED, or why not."""
        if self.invalidate(domain, qpn, key):
            self.invalidates += 1
            return GRANTED
        self.bind_errors += 1
        return self.reason

    # --- fast registration --------------------------------------------------------------------------------

    def alloc_fast_region(self, domain, page_bits, max_pages):
        """A region without memory, for REG_MR; returns what `register` does.  Its local and remote key are one."""
        view = memoryview(bytearray())
        found = self._register(KIND_FAST_REGION, domain, 0, 0, 0, view, -1, 0)
        place: cython.uint = found[0]
        r: cython.pointer(Region) = self.entry(place)
        r.local_key = r.remote_key
        r.state = STATE_UNBOUND
        self._lists[found[0]] = (page_bits, max_pages, [])
        return (*found[:3], r.local_key, r.remote_key)

    def prepare_pages(self, index, frames):
        """Make a page list for REG_MR; returns (its space, the region's serial number).  Lists used up are freed."""
        if index not in self._lists:
            raise InvalidAttributeError("REG_MR needs a region of alloc_fast_reg_mr")
        page_bits, max_pages, lists = self._lists[index]
        place: cython.uint = index
        r: cython.pointer(Region) = self.entry(place)
        if not 1 <= len(frames) <= max_pages:
            raise InvalidAttributeError(f"{len(frames)} pages: this region takes 1 to {max_pages}")
        if r.space in lists:  # what was prepared before the list in use will not be used any more
            for old in lists[: lists.index(r.space)]:
                self.free_space(old)
            del lists[: lists.index(r.space)]
        space = self.make_space(page_bits)
        try:
            for number, frame in enumerate(frames):
                self.set_page(space, number, frame)
        except Exception:
            self.free_space(space)
            raise
        lists.append(space)
        return (space, r.serial)

    def register_fast(self, domain, place, serial, new_key, space, origin, address, length, access):
        """Execute a fast registration (IBA vol. 1, 10.6.4.2): a list of pages becomes the region's memory."""
        reason: cython.int = GRANTED
        r = self.entry(place)
        if not r or r.serial != serial or r.state <= STATE_RETIRED:
            reason = KEY_RETIRED
        elif r.domain != domain:
            reason = KEY_DOMAIN
        elif r.state == STATE_BOUND or r.windows:
            reason = KEY_RIGHTS
        else:
            if r.space >= 0:
                self.spaces[r.space].users -= 1
            self.spaces[space].users += 1
            r.space, r.origin, r.address, r.last, r.empty = space, origin, address, length - 1, False
            r.access, r.local_key, r.remote_key, r.state = access, new_key, new_key, STATE_BOUND
            self.fast_registrations += 1
        if reason != GRANTED:
            self.bind_errors += 1
        return reason

    def deregister(self, index):
        RegionTable.deregister(self, index)
        self.kernel_calls += 1
        for space in self._lists.pop(index, (0, 0, ()))[2]:
            self.free_space(space)

    def _register(self, *arguments):
        self.kernel_calls += 1
        return RegionTable._register(self, *arguments)

    def reregister(self, *arguments):
        self.kernel_calls += 1
        return RegionTable.reregister(self, *arguments)

    def read_counters(self):
        return RegionTable.read_counters(self) | {
            "memory.binds": int(self.binds),
            "memory.unbinds": int(self.unbinds),
            "memory.bind_errors": int(self.bind_errors),
            "memory.invalidates": int(self.invalidates),
            "memory.fast_registrations": int(self.fast_registrations),
            "memory.kernel_calls": int(self.kernel_calls),
        }

    def check_window_rights(self, access):
        """Raise `InvalidAttributeError` for rights that a window cannot have."""
        if access & ~(REMOTE_RIGHTS | ZERO_BASED):
            raise InvalidAttributeError(
                f"access {access:#x}: a window has REMOTE_READ, REMOTE_WRITE, REMOTE_ATOMIC and ZERO_BASED only"
            )
