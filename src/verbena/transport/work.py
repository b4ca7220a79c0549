"""Work requests going in, completion entries coming out.

The classes here are the ones that a program posts and polls.  Compiled, they are C structs with Python attributes, so
that posting and polling cost little; a value that does not fit its field is refused when it is set.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import (
    ClosedError,
    CompletionError,
    CompletionStatus,
    InvalidAttributeError,
    InvalidStateError,
    QueueFullError,
)
from verbena.transport.core import Core
from verbena.transport.kinds import CompletionFlags, CompletionOpcode, QPState, QPType, WROpcode

if cython.compiled:
    from cython.cimports.verbena.transport.core import entry_at, recv_at, send_at
    from cython.cimports.verbena.transport.tables import *
else:
    from verbena._declarations import declarations
    from verbena.transport.core import entry_at, recv_at, send_at
    from verbena.transport.tables import *

    globals().update(declarations(__file__))

STATUS = {int(s): s for s in CompletionStatus}
OPCODE = {int(o): o for o in CompletionOpcode}


def _fits(value, bits, name):
    """What the compiled fields do by their type."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an integer")
    if not 0 <= value < 1 << bits:
        raise OverflowError(f"{name} = {value} does not fit into {bits} unsigned bits")


class ScatterGatherEntry:
    """A piece of registered local memory: `length` bytes at I/O virtual address `addr`, opened by `lkey`."""

    def __init__(self, addr=0, length=0, lkey=0):
        try:
            if not cython.compiled:
                _fits(addr, 64, "addr")
                _fits(length, 64, "length")
                _fits(lkey, 32, "lkey")
            self.addr = addr
            self.length = length
            self.lkey = lkey
        except (OverflowError, TypeError) as error:
            raise InvalidAttributeError(f"scatter/gather entry: {error}") from None

    def __repr__(self):
        return f"ScatterGatherEntry(addr={self.addr:#x}, length={self.length}, lkey={self.lkey:#x})"


class WorkRequest:
    """What is posted to a send queue (IBA vol. 1, 11.4.1.1).

    wr_id: the program's own number, comes back in the completion.  opcode: a `WROpcode`.  sg_list: the local buffers,
    as `ScatterGatherEntry`s; gathered for SEND and RDMA WRITE, scattered into for RDMA READ and atomics (8 bytes).
    flags: `SendFlags`.  imm_data: 32 bits for …_WITH_IMM.  remote_addr, rkey: for RDMA and atomics.  compare_add: what
    COMPARE_SWAP expects or FETCH_ADD adds; swap: the new value.  invalidate_rkey: for SEND_WITH_INV.  ah, remote_qpn,
    remote_qkey: the destination of a datagram.

    Raises `InvalidAttributeError` for a value that does not fit its field.
    """

    def __init__(
        self,
        wr_id=0,
        opcode=2,
        sg_list=(),
        flags=2,
        imm_data=0,
        remote_addr=0,
        rkey=0,
        compare_add=0,
        swap=0,
        invalidate_rkey=0,
        ah=None,
        remote_qpn=0,
        remote_qkey=0,
    ):
        try:
            if not cython.compiled:
                for name, bits in (("wr_id", 64), ("opcode", 31), ("flags", 31), ("imm_data", 32)):
                    _fits(locals()[name], bits, name)
                for name in ("remote_addr", "compare_add", "swap"):
                    _fits(locals()[name], 64, name)
                for name in ("rkey", "invalidate_rkey", "remote_qpn", "remote_qkey"):
                    _fits(locals()[name], 32, name)
            self.wr_id = wr_id
            self.opcode = opcode
            self.sg_list = sg_list
            self.flags = flags
            self.imm_data = imm_data
            self.remote_addr = remote_addr
            self.rkey = rkey
            self.compare_add = compare_add
            self.swap = swap
            self.invalidate_rkey = invalidate_rkey
            self.ah = ah
            self.remote_qpn = remote_qpn
            self.remote_qkey = remote_qkey
        except (OverflowError, TypeError) as error:
            raise InvalidAttributeError(f"work request: {error}") from None

    def __repr__(self):
        return f"WorkRequest(wr_id={self.wr_id}, opcode={self.opcode}, sg_list={list(self.sg_list)!r})"


class RecvRequest:
    """What is posted to a receive queue: the buffers that the next message is scattered into."""

    def __init__(self, wr_id=0, sg_list=()):
        try:
            if not cython.compiled:
                _fits(wr_id, 64, "wr_id")
            self.wr_id = wr_id
            self.sg_list = sg_list
        except (OverflowError, TypeError) as error:
            raise InvalidAttributeError(f"receive request: {error}") from None

    def __repr__(self):
        return f"RecvRequest(wr_id={self.wr_id}, sg_list={list(self.sg_list)!r})"


class CompletionQueueEntry:
    """How a work request ended (IBA vol. 1, 11.4.2.1).

    wr_id, status (a `CompletionStatus`), opcode (a `CompletionOpcode`), byte_len (bytes received or read), qp_num,
    src_qp (the sender, for datagrams), imm_data (or None), invalidated_rkey (or None), flags.
    """

    @property
    def status(self):
        return STATUS[self._status]

    @property
    def opcode(self):
        return OPCODE[self._opcode]

    @property
    def flags(self):
        return CompletionFlags(self._flags)

    @property
    def imm_data(self):
        return self._immediate if self._flags & WC_WITH_IMM else None

    @property
    def invalidated_rkey(self):
        return self._immediate if self._flags & WC_WITH_INV else None

    @property
    def ok(self):
        """Did it succeed?"""
        return self._status == SUCCESS

    def raise_for_status(self):
        """Raise `CompletionError` unless the status is SUCCESS; returns the entry itself."""
        if self._status != SUCCESS:
            raise CompletionError(
                f"work request {self.wr_id} of queue pair {self.qp_num:#x} ended with {self.status.name}",
                self,
            )
        return self

    def __repr__(self):
        return (
            f"CompletionQueueEntry(wr_id={self.wr_id}, status={self.status.name}, opcode={self.opcode.name}, "
            f"byte_len={self.byte_len}, qp_num={self.qp_num:#x})"
        )


class Destination:
    """Where a datagram goes: a path of an adapter's tables, for the queue pairs of one protection domain.

    Extended by `verbs.memory.AddressHandle`.  path: -1 when it is closed.
    """

    def __init__(self, tables, path, domain):
        self.tables = tables
        self.path = path
        self.domain = domain


class Work(Core):
    """The queues' upper ends: post and poll."""

    def post_send(self, index, request):
        """Post one send request.  Raises a `VerbError`, and then nothing was posted."""
        at: cython.int = index
        if not isinstance(request, WorkRequest):
            raise InvalidAttributeError(f"a send queue takes a WorkRequest, not a {type(request).__name__}")
        self.acquire()
        try:
            if not self.qps[at]:
                raise ClosedError("this queue pair was closed while it was posted to")
            self._send(self.qps[at], request)
        finally:
            self.release()

    def post_recv(self, index, request):
        """Post one receive request to a queue pair's own receive queue."""
        at: cython.int = index
        self.acquire()
        try:
            q = self.qps[at]
            if not q:
                raise ClosedError("this queue pair was closed while it was posted to")
            if self.recv_queues[q.recv_queue].shared:
                raise InvalidStateError("this queue pair receives from a shared receive queue: post there")
            if q.state == RESET:
                raise InvalidStateError(
                    "a queue pair in RESET takes no receive requests: move it to INIT first"
                )
            self._receive(self.recv_queues[q.recv_queue], request)
            if q.state == ERROR:
                self.flush(q)
        finally:
            self.release()

    def post_shared(self, index, request):
        """Post one receive request to a shared receive queue."""
        at: cython.int = index
        self.acquire()
        try:
            if not self.recv_queues[at]:
                raise ClosedError("this receive queue was closed while it was posted to")
            self._receive(self.recv_queues[at], request)
        finally:
            self.release()

    def put_list(self, sge, at, entries, limit):
        """Copy a scatter/gather list into its place of a ring; returns its bytes."""
        i: cython.uint
        count: cython.uint
        total: cython.ulonglong = 0
        if not isinstance(entries, (list, tuple)):
            raise InvalidAttributeError(
                f"sg_list must be a list of ScatterGatherEntry, not a {type(entries).__name__}"
            )
        count = len(entries)
        if count > limit:
            raise InvalidAttributeError(f"{count} entries in sg_list: the queue was created for {limit}")
        for i in range(count):
            if not isinstance(entries[i], ScatterGatherEntry):
                raise InvalidAttributeError(
                    f"sg_list must hold ScatterGatherEntry, not a {type(entries[i]).__name__}: see MemoryRegion.sge"
                )
            entry: ScatterGatherEntry = entries[i]
            if entry.length >> 32:
                raise InvalidAttributeError(f"{entry.length} bytes in one entry of sg_list: at most 2^32 - 1")
            sge[at + i].address = entry.addr
            sge[at + i].length = entry.length
            sge[at + i].key = entry.lkey
            total += entry.length
        return total

    def _receive(self, queue, request):
        total: cython.ulonglong
        if not isinstance(request, RecvRequest):
            raise InvalidAttributeError(
                f"a receive queue takes a RecvRequest, not a {type(request).__name__}"
            )
        if queue.head - queue.tail >= queue.size:
            raise QueueFullError(f"the receive queue holds its {queue.size} requests: wait for completions")
        at: cython.uint = (queue.head & queue.mask) * queue.max_sge
        total = self.put_list(queue.sge, at, request.sg_list, queue.max_sge)
        w = recv_at(queue, queue.head)
        w.wr_id = request.wr_id
        w.length = total
        w.sges = len(request.sg_list)
        queue.head += 1
        return True

    def _send(self, q, request):
        total: cython.ulonglong
        operation: cython.int = request.opcode
        if q.state < RTS:
            raise InvalidStateError(
                f"the queue pair is in {QPState(q.state).name}, and sending needs RTS: connect it first"
            )
        if q.sq_head - q.sq_una >= q.sq_size:
            raise QueueFullError(f"the send queue holds its {q.sq_size} requests: wait for completions")
        if not allowed(q.service, operation):
            raise InvalidAttributeError(_not_allowed(q.service, operation))
        if request.flags & ~ALL_FLAGS:
            raise InvalidAttributeError(f"unknown flags {request.flags:#x}: combine members of SendFlags")
        at: cython.uint = (q.sq_head & q.sq_mask) * q.max_send_sge
        total = self.put_list(q.sge, at, request.sg_list, q.max_send_sge)
        if total > MAX_MESSAGE:
            raise InvalidAttributeError(f"{total} bytes in one message: at most 2^31 - 1")
        w = send_at(q, q.sq_head)
        w.path = -1
        if q.service == UD:
            if total > q.mtu:
                raise InvalidAttributeError(
                    f"a datagram holds at most the path MTU of {q.mtu} bytes, not {total}"
                )
            self.aim(q, w, request)
            w.remote_qpn = request.remote_qpn
            # A Q_Key with its top bit set stands for the queue pair's own (IBA vol. 1, 10.2.5).
            w.remote_qkey = q.qkey if request.remote_qkey >> 31 and q.qpn != 1 else request.remote_qkey
        if operation == WR_ATOMIC_CMP_AND_SWP or operation == WR_ATOMIC_FETCH_AND_ADD:
            if total != 8:
                raise InvalidAttributeError(
                    f"an atomic returns 8 bytes: the local buffer must have 8, not {total}"
                )
        w.wr_id = request.wr_id
        w.length = total
        w.sges = len(request.sg_list)
        w.operation = operation
        w.flags = request.flags
        w.immediate = request.invalidate_rkey if operation == WR_SEND_WITH_INV else request.imm_data
        w.remote_address = request.remote_addr
        w.remote_key = request.rkey
        w.compare_add = request.compare_add
        w.swap = request.swap
        w.started = False
        if w.flags & INLINE:
            if total > q.max_inline:
                raise InvalidAttributeError(
                    f"{total} bytes inline, and the queue pair was created for max_inline={q.max_inline}"
                )
            if (
                operation == WR_RDMA_READ
                or operation == WR_ATOMIC_CMP_AND_SWP
                or operation == WR_ATOMIC_FETCH_AND_ADD
            ):
                raise InvalidAttributeError("INLINE is for data that is sent: not for READ and atomics")
            w.flags = w.flags & ~INLINE
            if not self.gather(q, q.sq_head, 0, q.inline_data, (q.sq_head & q.sq_mask) * q.max_inline, total):
                raise InvalidAttributeError("an inline buffer is not readable by its local key")
            w.flags = w.flags | INLINE
        if w.path >= 0:
            self.paths[w.path].users += 1
        q.sq_head += 1
        if q.state == ERROR or q.state == SQE:
            self.flush_send(q)
        else:
            self.enlist(q)
        return True

    def aim(self, q, w, request):
        """Give a datagram the path of its address handle."""
        if request.ah is None:
            raise InvalidAttributeError("a datagram needs a destination: ah, remote_qpn and remote_qkey")
        if not isinstance(request.ah, Destination):
            raise InvalidAttributeError(f"ah must be an AddressHandle, not a {type(request.ah).__name__}")
        to: Destination = request.ah
        if to.path < 0:
            raise InvalidAttributeError("the address handle is closed: create a new one")
        if to.tables is not self or to.domain != q.domain:
            raise InvalidAttributeError(
                "the address handle belongs to another protection domain: create one in the queue pair's"
            )
        if request.remote_qpn > 0xFFFFFF:
            raise InvalidAttributeError(f"remote_qpn = {request.remote_qpn:#x}: 24 bits at most")
        w.path = to.path
        return True

    def poll(self, index, most):
        """At most `most` completion entries, oldest first, taken off the queue."""
        at: cython.int = index
        left: cython.int = most
        result = []
        self.acquire()
        ring = self.cqs[at]
        while left > 0 and ring and ring.tail != ring.head:
            c = entry_at(ring, ring.tail)
            entry: CompletionQueueEntry = CompletionQueueEntry.__new__(CompletionQueueEntry)
            entry.wr_id = c.wr_id
            entry.byte_len = c.length
            entry.qp_num = c.qpn
            entry.src_qp = c.source_qpn
            entry._immediate = c.immediate
            entry._status = c.status
            entry._opcode = c.opcode
            entry._flags = c.flags
            ring.tail += 1
            left -= 1
            result.append(entry)
        self.release()
        return result

    def pending(self, index):
        """Completion entries that wait to be polled."""
        at: cython.int = index
        ring = self.cqs[at]
        return (ring.head - ring.tail) & 0xFFFFFFFF if ring else 0

    def arm(self, index, solicited_only):
        """Ask for a report of the next entry (of the next solicited one or error)."""
        at: cython.int = index
        if self.cqs[at].armed < 2:
            self.cqs[at].armed = 1 if solicited_only else 2


def allowed(service, operation):
    """Does the service carry the operation (IBA vol. 1, table 36)?"""
    if service == RC:
        return 0 <= operation <= WR_ATOMIC_FETCH_AND_ADD or operation == WR_SEND_WITH_INV
    if service == UC:
        return 0 <= operation <= WR_SEND_WITH_IMM
    return operation == WR_SEND or operation == WR_SEND_WITH_IMM


def _not_allowed(service, operation):
    try:
        name = WROpcode(operation).name
    except ValueError:
        return f"unknown opcode {operation}: use a member of WROpcode"
    fitting = ", ".join(o.name for o in WROpcode if allowed(service, o))
    return f"{QPType(service).name} does not carry {name}: it has {fitting}"
