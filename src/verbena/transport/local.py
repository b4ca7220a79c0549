"""Work requests that the adapter executes by itself: bind, local invalidate, fast registration.

They send nothing, have no packet numbers, and take effect when the send queue comes to them: after what stands before
them was sent, before what stands behind them is begun (document 003:485, 495; IBA vol. 1, 10.8.3.3).  A local
invalidate, and any of them with FENCE, waits until all before it have completed.  They complete in the order of the
queue.  One that the table of keys does not grant changes nothing; it ends with MW_BIND_ERR when it is the oldest, and
the queue with it.
"""

from __future__ import annotations

from operator import index as whole_number

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import ClosedError, InvalidAttributeError

if cython.compiled:
    from cython.cimports.verbena.memory.entries import (
        KIND_RKEY,
        KIND_WINDOW_1,
        REMOTE_RIGHTS,
        RESERVED_LKEY,
        RESERVED_VIRTUAL_LKEY,
        ZERO_BASED,
    )
    from cython.cimports.verbena.memory.spaces import GRANTED
    from cython.cimports.verbena.transport.core import send_at
    from cython.cimports.verbena.transport.tables import *
else:
    from verbena.memory.entries import (
        KIND_RKEY,
        KIND_WINDOW_1,
        REMOTE_RIGHTS,
        RESERVED_LKEY,
        RESERVED_VIRTUAL_LKEY,
        ZERO_BASED,
    )
    from verbena.memory.spaces import GRANTED
    from verbena.transport.core import send_at
    from verbena.transport.tables import *


class WindowHandle:
    """What a bind needs to know of a window; extended by `verbs.windows.MemoryWindow`.

    table: that it stands in, at `index`, with the serial number of its allocation.  rkey: its remote key, as the last
    bind posted leaves it.
    """

    def __init__(self, table, index, serial, domain, kind, rkey):
        self.table = table
        self.index = index
        self.serial = serial
        self.domain = domain
        self.kind = kind
        self.rkey = rkey
        self.freed = False


def _unsigned(name, value, bits):
    try:
        number = whole_number(value)
    except TypeError:
        raise InvalidAttributeError(f"{name} must be an integer, not {value!r}") from None
    if not 0 <= number < 1 << bits:
        raise InvalidAttributeError(f"{name} = {value} does not fit into {bits} unsigned bits")
    return number


class BindInfo:
    """What a window is to be bound to (IBA vol. 1, 11.2.8.11): `length` bytes at `address`, for these remote rights.

    mr: the region that the range lies in, registered with WINDOW_BIND; None for the address space of the protection
    domain.  virtual: the address is a virtual one, for kernel consumers (document 003:856).  access: REMOTE_READ,
    REMOTE_WRITE, REMOTE_ATOMIC, and ZERO_BASED, by which peers count the window's bytes from 0.  length 0, address 0:
    unbind.  rkey: the key of a type 2 window from now on; its upper 24 bits are the window's.  By default, and for the
    others, each bind draws one, so that holders of the old one are locked out.  renew: False leaves a key of document
    003 as it is.
    """

    def __init__(self, mr=None, address=0, length=0, access=0, virtual=False, rkey=None, renew=True):
        self.mr = mr
        self.address = _unsigned("address", address, 64)
        self.length = _unsigned("length", length, 64)
        self.access = _unsigned("access", access, 16)
        self.virtual = virtual
        self.renew = renew
        self.rkey = None if rkey is None else _unsigned("rkey", rkey, 32)
        if mr is not None and virtual:
            raise InvalidAttributeError("a virtual address is bound without a region: leave mr out")
        if self.access & ~(REMOTE_RIGHTS | ZERO_BASED):
            raise InvalidAttributeError(
                f"access {self.access:#x}: a window has REMOTE_READ, REMOTE_WRITE, REMOTE_ATOMIC, ZERO_BASED only"
            )
        if not self.length and self.address:
            raise InvalidAttributeError("to unbind, give address 0 and length 0; to bind, 1 byte or more")
        self.parent_key = RESERVED_LKEY
        if mr is not None:
            self.parent_key = mr.lkey
        elif virtual:
            self.parent_key = RESERVED_VIRTUAL_LKEY


class FastRegistration:
    """What REG_MR registers (IBA vol. 1, 10.6.4.2): a list of pages, the first `offset` bytes of which are left out.

    mr: a region of `alloc_fast_reg_mr`.  pages: writable buffers of the region's page size, in order.  length: bytes,
    by default all.  iova: the address of the first.  rkey: the region's key from now on, local and remote, with the
    same upper 24 bits; by default the next one.
    """

    def __init__(self, mr, pages, length=None, iova=0, access=1, offset=0, rkey=None):
        self.mr = mr
        self.pages = list(pages)
        size = sum(memoryview(p).nbytes for p in self.pages)
        self.offset = _unsigned("offset", offset, 64)
        length = size - offset if length is None else length
        self.length = _unsigned("length", length, 64)
        self.iova = _unsigned("iova", iova, 64)
        self.access = _unsigned("access", access, 16)
        self.rkey = None if rkey is None else _unsigned("rkey", rkey, 32)
        if not self.length or offset + length > size:
            raise InvalidAttributeError(f"{offset} + {length} bytes: the page list has {size}")
        if self.iova > (1 << 64) - length:
            raise InvalidAttributeError("the region's addresses must fit into 64 bits")


def is_local(w):
    """Is it one of these?"""
    return w.operation == WR_BIND_MW or w.operation == WR_LOCAL_INV or w.operation == WR_REG_MR


def perform(e, q, w):
    """Execute one; SUCCESS, or MW_BIND_ERR, and then nothing was changed."""
    reason: cython.int
    if w.operation == WR_BIND_MW:
        reason = e.regions.bind(
            q.domain,
            q.qpn,
            w.remote_qpn,
            w.remote_qkey,
            w.immediate,
            w.remote_key,
            w.remote_address,
            w.compare_add,
            cython.cast(cython.uint, w.swap),
        )
    elif w.operation == WR_LOCAL_INV:
        reason = e.regions.invalidate_local(q.domain, q.qpn, w.immediate)
    else:
        reason = e.regions.register_fast(
            q.domain,
            w.remote_qpn,
            w.remote_qkey,
            w.immediate,
            cython.cast(cython.int, w.remote_key),
            w.swap >> 8,
            w.remote_address,
            w.compare_add,
            cython.cast(cython.uint, w.swap & 0xFF),
        )
    return SUCCESS if reason == GRANTED else MW_BIND_ERR


def step_local(e, q, w):
    """The next of the send queue is one of these: execute it.  False when it has to wait, or has failed."""
    if not w.started:
        if w.refused or q.state == SQD:
            return False
        if (w.flags & FENCE or w.operation == WR_LOCAL_INV) and q.sq_una != q.sq_next:
            return False
        if perform(e, q, w) != SUCCESS:
            w.refused = True
            return False
        w.started = True
        w.first_psn = q.send_psn
        w.packets = 0
    q.sq_next += 1
    q.next_packet = 0
    if q.sq_una + 1 == q.sq_next:
        e.complete_send(q, SUCCESS)
        e.drained(q)
    return True


def settle_local(e, q):
    """What was executed and is now the oldest completes."""
    while q.sq_una != q.sq_head:
        w = send_at(q, q.sq_una)
        if not is_local(w) or not w.started:
            return
        if q.sq_next == q.sq_una:
            q.sq_next += 1
            q.next_packet = 0
        e.complete_send(q, SUCCESS)


# --- posting --------------------------------------------------------------------------------------------------


def put_bind(e, q, w, window, what):
    """Fill the place of a bind in the send queue; raises `InvalidAttributeError` for what can never be right."""
    key: cython.uint = window.rkey
    if window.table is not e.regions or window.domain != q.domain:
        raise InvalidAttributeError(
            "the memory window belongs to another protection domain: use one of the queue pair's"
        )
    if window.freed:
        raise ClosedError("this memory window was deallocated")
    if what.length and what.mr is None:
        tied = e.regions.tied(q.domain)
        if tied[0] is None:
            raise InvalidAttributeError(
                "the protection domain has no address space: name the region that the range lies in, mr="
            )
        if what.virtual and tied[1] is None:
            raise InvalidAttributeError(
                "invalid parameter: only kernel consumers bind virtual addresses (document 003:856)"
            )
    if window.kind == KIND_WINDOW_1 or (window.kind == KIND_RKEY and what.renew and what.length):
        key = e.regions.draw_key(window.index)
    elif window.kind != KIND_RKEY:
        if not what.length:
            raise InvalidAttributeError("a type 2 window is not unbound, but invalidated: LOCAL_INV")
        key = (key & 0xFFFFFF00) | ((key + 1) & 0xFF)
    if what.rkey is not None and what.rkey != key:
        if window.kind == KIND_WINDOW_1 or window.kind == KIND_RKEY or (what.rkey ^ window.rkey) >> 8:
            raise InvalidAttributeError(
                "the consumer chooses the last eight bits of a type 2 window's key only"
            )
        key = what.rkey
    w.remote_qpn, w.remote_qkey = window.index, window.serial
    w.remote_key, w.remote_address = what.parent_key, what.address
    w.compare_add, w.swap, w.immediate = what.length, what.access, key
    window.rkey = key
    return True


def put_registration(e, q, w, what):
    """Fill the place of a fast registration."""
    mr = what.mr
    if getattr(mr, "table", None) is not e.regions or mr.pd.number != q.domain:
        raise InvalidAttributeError("REG_MR needs a region of alloc_fast_reg_mr of the queue pair's domain")
    e.regions.check_access(what.access)
    key: cython.uint = (mr.rkey & 0xFFFFFF00) | ((mr.rkey + 1) & 0xFF)
    if what.rkey is not None:
        if (what.rkey ^ mr.rkey) >> 8:
            raise InvalidAttributeError("the consumer chooses the last eight bits of the key only")
        key = what.rkey
    space, serial = e.regions.prepare_pages(mr.index, what.pages)
    w.remote_qpn, w.remote_qkey, w.immediate = mr.index, serial, key
    w.remote_key, w.remote_address = space, what.iova
    w.compare_add = what.length
    w.swap = what.offset << 8 | what.access
    mr.posted(what, int(key))
    return True
