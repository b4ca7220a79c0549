"""Work requests going in, completion entries coming out.

The classes here are the ones that a program posts and polls.  Compiled, they are C structs with Python attributes, so
that posting and polling cost little; a value that does not fit its field is refused when it is set.
"""

from __future__ import annotations

from operator import index

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import (
    CompletionError,
    CompletionStatus,
    InvalidAttributeError,
    InvalidStateError,
    QueueFullError,
)
from verbena.transport.kinds import CompletionFlags, CompletionOpcode, QPState, QPType, WROpcode
from verbena.transport.lending import Lending
from verbena.transport.local import BindInfo, FastRegistration, WindowHandle

if cython.compiled:
    from cython.cimports.verbena.transport.core import entry_at, loan_at, recv_at, send_at
    from cython.cimports.verbena.transport.local import (
        BindInfo,
        FastRegistration,
        WindowHandle,
        is_local,
        put_bind,
        put_registration,
    )
    from cython.cimports.verbena.transport.tables import *
else:
    from verbena._declarations import declarations
    from verbena.transport.core import entry_at, loan_at, recv_at, send_at
    from verbena.transport.local import is_local, put_bind, put_registration
    from verbena.transport.tables import *

    globals().update(declarations(__file__))

STATUS = {int(s): s for s in CompletionStatus}
OPCODE = {int(o): o for o in CompletionOpcode}


SGE_FIELDS = (("addr", 64), ("length", 64), ("lkey", 32))
REQUEST_FIELDS = (
    ("wr_id", 64),
    ("opcode", 31),
    ("flags", 31),
    ("imm_data", 32),
    ("remote_addr", 64),
    ("rkey", 32),
    ("compare_add", 64),
    ("swap", 64),
    ("invalidate_rkey", 32),
    ("remote_qpn", 32),
    ("remote_qkey", 32),
    ("delay_ns", LONGEST_DELAY_BITS),
)
RECV_FIELDS = (("wr_id", 64),)


def whole(value):
    """The value as an int; raises TypeError for what is none (a C field would cut off a fraction)."""
    return value if isinstance(value, int) else index(value)


def _misfit(fields, values):
    """Which of the values (by name) does not fit its field, and why; None if all do."""
    for name, bits in fields:
        value = values[name]
        try:
            if not 0 <= index(value) < 1 << bits:
                return f"{name} = {value} does not fit into {bits} unsigned bits"
        except TypeError:
            return f"{name} must be an integer, not {value!r}"
    return None


def _check_fields(fields, values):
    """What the compiled fields do by their type."""
    if _misfit(fields, values):
        raise OverflowError


class ScatterGatherEntry:
    """A piece of registered local memory: `length` bytes at I/O virtual address `addr`, opened by `lkey`."""

    def __init__(self, addr=0, length=0, lkey=0):
        try:
            if not cython.compiled:
                _check_fields(SGE_FIELDS, locals())
            self.addr = whole(addr)
            self.length = whole(length)
            self.lkey = whole(lkey)
        except (OverflowError, TypeError):
            what = _misfit(SGE_FIELDS, locals())
            raise InvalidAttributeError(f"scatter/gather entry: {what}") from None

    def __repr__(self):
        return f"ScatterGatherEntry(addr={self.addr:#x}, length={self.length}, lkey={self.lkey:#x})"


class WorkRequest:
    """What is posted to a send queue (IBA vol. 1, 11.4.1.1).

    wr_id: the program's own number, comes back in the completion.  opcode: a `WROpcode`.  sg_list: the local buffers,
    as `ScatterGatherEntry`s; gathered for SEND and RDMA WRITE, scattered into for RDMA READ and atomics (8 bytes).
    flags: `SendFlags`.  imm_data: 32 bits for …_WITH_IMM.  remote_addr, rkey: for RDMA and atomics.  compare_add: what
    COMPARE_SWAP expects or FETCH_ADD adds; swap: the new value.  invalidate_rkey: for SEND_WITH_INV and LOCAL_INV.
    mw, bind: the window and `BindInfo` of BIND_MW; bind: the `FastRegistration` of REG_MR.  ah, remote_qpn,
    remote_qkey: the destination of a datagram.  ee: on a reliable-datagram queue pair the `EndToEndContext` (or its
    number) by which the message goes to remote_qpn.  delay_ns: how long DELAY holds up what follows it, less than
    2^56.

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
        ee=None,
        delay_ns=0,
        mw=None,
        bind=None,
    ):
        try:
            if not cython.compiled:
                _check_fields(REQUEST_FIELDS, locals())
            self.wr_id = whole(wr_id)
            self.opcode = whole(opcode)
            self.flags = whole(flags)
            self.imm_data = whole(imm_data)
            self.remote_addr = whole(remote_addr)
            self.rkey = whole(rkey)
            self.compare_add = whole(compare_add)
            self.swap = whole(swap)
            self.invalidate_rkey = whole(invalidate_rkey)
            self.remote_qpn = whole(remote_qpn)
            self.remote_qkey = whole(remote_qkey)
            self.delay_ns = whole(delay_ns)
        except (OverflowError, TypeError):
            what = _misfit(REQUEST_FIELDS, locals())
            raise InvalidAttributeError(f"work request: {what}") from None
        self.sg_list = sg_list
        self.ah = ah
        self.ee = ee
        self.mw = mw
        self.bind = bind

    def __repr__(self):
        return f"WorkRequest(wr_id={self.wr_id}, opcode={self.opcode}, sg_list={self.sg_list!r})"


class RecvRequest:
    """What is posted to a receive queue: the buffers that the next message is scattered into."""

    def __init__(self, wr_id=0, sg_list=()):
        try:
            if not cython.compiled:
                _check_fields(RECV_FIELDS, locals())
            self.wr_id = whole(wr_id)
        except (OverflowError, TypeError):
            what = _misfit(RECV_FIELDS, locals())
            raise InvalidAttributeError(f"receive request: {what}") from None
        self.sg_list = sg_list

    def __repr__(self):
        return f"RecvRequest(wr_id={self.wr_id}, sg_list={self.sg_list!r})"


class CompletionQueueEntry:
    """How a work request ended (IBA vol. 1, 11.4.2.1).

    wr_id, status (a `CompletionStatus`), opcode (a `CompletionOpcode`), byte_len (bytes received or read), qp_num,
    src_qp (the sender, for datagrams), ee_num (the end-to-end context, for reliable datagrams), imm_data (or None),
    invalidated_rkey (or None), flags.  Of what was received: port (the number of the port), and, on native InfiniBand,
    slid, sl and path_bits (the low bits of the destination LID) as the packet had them (of a message that came by
    several paths, one of its packets).
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


class Work(Lending):
    """The queues' upper ends: post and poll."""

    def post_send(self, index, request):
        """Post one send request.  Raises a `VerbError`, and then nothing was posted."""
        at: cython.int = index
        if not isinstance(request, WorkRequest):
            raise InvalidAttributeError(f"a send queue takes a WorkRequest, not a {type(request).__name__}")
        self.acquire()
        try:
            self._send(self.qp_at(at), request)
        finally:
            self.release()

    def post_recv(self, index, request):
        """Post one receive request to a queue pair's own receive queue."""
        at: cython.int = index
        self.acquire()
        try:
            q = self.qp_at(at)
            if self.recv_queues[q.recv_queue].shared:
                raise InvalidStateError("this queue pair receives from a shared receive queue: post there")
            if q.state == RESET:
                raise InvalidStateError(
                    "a queue pair in RESET takes no receive requests: move it to INIT first"
                )
            self._may_post(q)
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
            if self.shutting:
                raise InvalidStateError("the adapter shuts down: it takes no more requests")
            self._receive(self.queue_at(at), request)
        finally:
            self.release()

    def put_list(self, sge, at, entries, limit):
        """Copy a scatter/gather list into its place of a ring; returns its bytes, and leaves `listed` entries."""
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
        self.listed = count
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
        w.sges = self.listed
        queue.head += 1
        return True

    def _send(self, q, request):
        total: cython.ulonglong
        operation: cython.int = request.opcode
        if q.state < RTS:
            raise InvalidStateError(
                f"the queue pair is in {QPState(q.state).name}, and sending needs RTS: connect it first"
            )
        self._may_post(q)
        if q.sq_head - q.sq_una >= q.sq_size:
            raise QueueFullError(f"the send queue holds its {q.sq_size} requests: wait for completions")
        if not allowed(q.service, operation):
            raise InvalidAttributeError(_not_allowed(q.service, operation))
        if request.flags & ~ALL_FLAGS:
            raise InvalidAttributeError(f"unknown flags {request.flags:#x}: combine members of SendFlags")
        at: cython.uint = (q.sq_head & q.sq_mask) * q.max_send_sge
        total = self.put_list(q.sge, at, request.sg_list, q.max_send_sge)
        if operation == WR_DELAY:
            _check_delay(request)
        if total > MAX_MESSAGE:
            raise InvalidAttributeError(f"{total} bytes in one message: at most 2^31 - 1")
        w = send_at(q, q.sq_head)
        w.path = -1
        w.operation = operation
        local: cython.bint = operation == WR_DELAY or is_local(w)
        if q.service == UD and not local:
            if total > q.mtu:
                raise InvalidAttributeError(
                    f"a datagram holds at most the path MTU of {q.mtu} bytes, not {total}"
                )
            self.aim(q, w, request)
            w.remote_qpn = request.remote_qpn
            # A Q_Key with its top bit set stands for the queue pair's own (IBA vol. 1, 10.2.5).
            w.remote_qkey = q.qkey if request.remote_qkey >> 31 and q.qpn != 1 else request.remote_qkey
        elif q.service == RD:
            self.name_context(q, w, request)
        elif q.service == RAW_IPV6 or q.service == RAW_ETHERTYPE:
            _check_raw(q.service, total, q.mtu)
            self.aim(q, w, request)
        if (q.state == RTS or q.state == SQD) and not local:
            self.may_post(q, w.path if q.service >= UD else q.path)
        if operation == WR_ATOMIC_CMP_AND_SWP or operation == WR_ATOMIC_FETCH_AND_ADD:
            if total != 8:
                raise InvalidAttributeError(
                    f"an atomic returns 8 bytes: the local buffer must have 8, not {total}"
                )
        w.wr_id = request.wr_id
        w.length = total
        w.sges = self.listed
        w.operation = operation
        w.flags = request.flags
        w.immediate = request.invalidate_rkey if operation == WR_SEND_WITH_INV else request.imm_data
        w.remote_address = request.remote_addr
        w.remote_key = request.rkey
        w.compare_add = request.delay_ns if operation == WR_DELAY else request.compare_add
        w.swap = request.swap
        w.started = w.refused = False
        if local and operation != WR_DELAY:
            self.put_local(q, w, request)
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

    def _may_post(self, q):
        """The request is received (block 412), unless the adapter shuts down (block 428)."""
        if self.shutting and (q.qpn & 0xFFFF) > 1:  # management goes on to the end
            raise InvalidStateError("the adapter shuts down: it takes no more requests")
        if self.tracing:
            self.step(412, q.send_cq, q.qpn, 0)
        return True

    def put_local(self, q, w, request):
        """What the adapter does by itself: see `local`."""
        if request.sg_list or request.flags & INLINE:
            raise InvalidAttributeError(
                f"{WROpcode(request.opcode).name} moves no data: leave sg_list empty, and flags without INLINE"
            )
        if request.opcode == WR_LOCAL_INV:
            w.immediate = request.invalidate_rkey
        elif request.opcode == WR_BIND_MW:
            if not isinstance(request.mw, WindowHandle) or not isinstance(request.bind, BindInfo):
                raise InvalidAttributeError(
                    "BIND_MW needs a window and what to bind it to: mw=, bind=BindInfo(…)"
                )
            put_bind(self, q, w, request.mw, request.bind)
        else:
            if not isinstance(request.bind, FastRegistration):
                raise InvalidAttributeError("REG_MR needs what to register: bind=FastRegistration(…)")
            put_registration(self, q, w, request.bind)
        return True

    def may_post(self, q, path):
        """Raise unless requests may be posted for this path now (see `ports`); -1 for reliable datagrams."""
        return True

    def name_context(self, q, w, request):
        """What a reliable-datagram request is addressed to; whether there is such a context shows when it begins."""
        loan = loan_at(q, q.sq_head)
        loan.state = LOAN_IDLE
        loan.number = 0
        loan.rnr_left = q.rnr_retry
        if request.opcode == WR_DELAY or is_local(w):
            return True
        number = getattr(request.ee, "ee_num", request.ee)
        if number is None:
            raise InvalidAttributeError(
                "a reliable datagram needs a destination: ee, remote_qpn and remote_qkey"
            )
        if not isinstance(number, int) or not 0 <= number <= 0xFFFFFF:
            raise InvalidAttributeError(f"ee = {request.ee!r}: an EndToEndContext, or its number of 24 bits")
        if request.remote_qpn > 0xFFFFFF:
            raise InvalidAttributeError(f"remote_qpn = {request.remote_qpn:#x}: 24 bits at most")
        loan.number = number
        w.remote_qpn = request.remote_qpn
        w.remote_qkey = q.qkey if request.remote_qkey >> 31 else request.remote_qkey
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
        self.path_at(to.path)
        w.path = to.path
        return True

    def poll(self, index, most):
        """At most `most` completion entries, oldest first, taken off the queue."""
        at: cython.int = index
        left: cython.longlong = most
        result = []
        self.acquire()
        ring = self.cqs[at]  # closed in the meantime, it has no entries
        while left > 0 and ring and ring.tail != ring.head:
            c = entry_at(ring, ring.tail)
            entry: CompletionQueueEntry = CompletionQueueEntry.__new__(CompletionQueueEntry)
            entry.wr_id = c.wr_id
            entry.byte_len = c.length
            entry.qp_num = c.qpn
            entry.src_qp = c.source_qpn
            entry.slid = c.slid
            entry.sl = c.sl
            entry.path_bits = c.path_bits
            entry.port = c.port
            entry.ee_num = c.ee
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
        ring = self.cq_at(at)
        return (ring.head - ring.tail) & 0xFFFFFFFF

    def has_entries(self, index):
        """Has a completion queue entries, or was it closed?  Either ends a wait."""
        at: cython.int = index
        ring = self.cqs[at]
        return not ring or ring.head != ring.tail

    def arm(self, index, level):
        """Ask for an event with the next entry that is one of `level` (`kinds.Notify`); a wider request stays."""
        at: cython.int = index
        asked: cython.int = level
        ring = self.cq_at(at)
        if ring.armed < asked:
            ring.armed = asked
        if self.tracing:
            self.step(414, at, 0, asked)

    def await_entry(self, index):
        """Ask for a report of the next entry, whatever it is: somebody waits, which is no event of the program's."""
        at: cython.int = index
        self.cq_at(at).awaited = True

    def unfinished(self, index):
        """Send requests that have not completed."""
        at: cython.int = index
        q = self.qp_at(at)
        return (q.sq_head - q.sq_una) & 0xFFFFFFFF

    def consumed(self, index):
        """Entries polled so far, modulo 2^32; of a closed queue 0."""
        at: cython.int = index
        ring = self.cqs[at]
        return ring.tail if ring else 0


def allowed(service, operation):
    """Does the service carry the operation (IBA vol. 1, table 36)?

    DELAY, BIND_MW, LOCAL_INV and REG_MR send nothing, so that all have them but raw datagrams, which have nothing but
    SEND.
    """
    if service == RAW_IPV6 or service == RAW_ETHERTYPE:
        return operation == WR_SEND
    if (
        operation == WR_DELAY
        or operation == WR_BIND_MW
        or operation == WR_LOCAL_INV
        or operation == WR_REG_MR
    ):
        return True
    if service == RD:
        return 0 <= operation <= WR_ATOMIC_FETCH_AND_ADD
    if service == RC:
        return 0 <= operation <= WR_ATOMIC_FETCH_AND_ADD or operation == WR_SEND_WITH_INV
    if service == UC:
        return 0 <= operation <= WR_SEND_WITH_IMM
    return operation == WR_SEND or operation == WR_SEND_WITH_IMM


def _check_raw(service, length, mtu):
    """Raise `InvalidAttributeError` unless a raw packet may have that many bytes behind the LRH."""
    if length > mtu:
        raise InvalidAttributeError(f"a raw packet holds at most the port's MTU of {mtu} bytes, not {length}")
    if service == RAW_ETHERTYPE and (length < 12 or length & 3):  # no packet is shorter: IBA vol. 1, 7.7.8
        raise InvalidAttributeError(
            f"{length} bytes: a raw packet of an EtherType is its raw header and whole 4-byte words, 12 bytes or more"
        )
    if service == RAW_IPV6 and length < 40:
        raise InvalidAttributeError(f"{length} bytes: a raw IPv6 packet begins with its header of 40 bytes")


def _check_delay(request):
    if request.sg_list or request.flags & INLINE:
        raise InvalidAttributeError("DELAY moves no data: leave sg_list empty, and flags without INLINE")
    if request.delay_ns >> LONGEST_DELAY_BITS:
        raise InvalidAttributeError(f"delay_ns = {request.delay_ns}: less than 2^{LONGEST_DELAY_BITS}")


def _not_allowed(service, operation):
    try:
        name = WROpcode(operation).name
    except ValueError:
        return f"unknown opcode {operation}: use a member of WROpcode"
    fitting = ", ".join(o.name for o in WROpcode if allowed(service, o))
    return f"{QPType(service).name} does not carry {name}: it has {fitting}"
