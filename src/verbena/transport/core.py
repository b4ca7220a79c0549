"""What requester and responder both do to the tables: reports, completions, bytes in and out.

Nothing here decides anything about the protocol.  Nothing blocks, allocates or knows a socket.  Callers hold the
adapter's lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.notification import Notification

if cython.compiled:
    from cython.cimports.verbena.memory.entries import LOCAL_WRITE
    from cython.cimports.verbena.memory.spaces import PAGE_ABSENT
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import copy
else:
    from verbena.memory.entries import LOCAL_WRITE
    from verbena.memory.spaces import PAGE_ABSENT
    from verbena.transport.tables import *
    from verbena.wire.kernels import copy


class Core(Notification):
    """The tables of one adapter, with what is done to them for each packet and each work request.

    ``with core:`` holds the adapter's lock, which may be taken again by its holder.  Compiled, it is a mutex that
    loops without the interpreter lock take, too; `lock` is what serves instead in plain Python: an `RLock` where
    several threads work, `None` where only one does.
    """

    def __init__(self, *arguments, lock=None):
        super().__init__(*arguments)
        self._lock = lock
        self.rx_slid = self.rx_sl = self.rx_path_bits = 0
        self.rx_number = 1
        self.burst_limit = BURST_PACKETS
        self.parked_head = -1
        self.bad_key = self.bad_address = self.bad_length = 0
        if not cython.compiled:
            self.word = bytearray(8)
        self.renew_lock()

    def renew_lock(self):
        """A lock that nobody holds: for a new adapter, and for the child of a fork, where its holder does not exist."""
        if self._lock is not None:
            self._lock = type(self._lock)()
        if cython.compiled:
            attributes: pthread_mutexattr_t
            pthread_mutexattr_init(cython.address(attributes))
            pthread_mutexattr_settype(cython.address(attributes), PTHREAD_MUTEX_RECURSIVE)
            pthread_mutex_init(cython.address(self.mutex), cython.address(attributes))

    def acquire(self):
        if cython.compiled:
            # A holder may need the interpreter lock to go on: never wait with it.
            if pthread_mutex_trylock(cython.address(self.mutex)) != 0:
                with cython.nogil:
                    pthread_mutex_lock(cython.address(self.mutex))
        elif self._lock is not None:
            self._lock.acquire()

    def release(self):
        if cython.compiled:
            pthread_mutex_unlock(cython.address(self.mutex))
        elif self._lock is not None:
            self._lock.release()

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *_):
        self.release()

    def report(self, kind, a, b):
        """Queue a report for the software above.

        A completion queue has at most two outstanding (it is disarmed), a queue pair a few for each change of its
        state, so that the ring cannot fill while reports are collected; should it all the same, the oldest stay.
        """
        if self.report_tail - self.report_head >= self.report_size:
            return
        self.report_ring[self.report_tail & (self.report_size - 1)].kind = kind
        self.report_ring[self.report_tail & (self.report_size - 1)].a = a
        self.report_ring[self.report_tail & (self.report_size - 1)].b = b
        self.report_tail += 1

    # --- completions --------------------------------------------------------------------------------------

    def push(self, cq, entry, solicited):
        """Add an entry to a completion queue; False when it is full, which is the queue's end.

        Events: blocks 416 to 428 of document 001's figure 4, see `notification`.  Nobody hears of one before the entry
        can be seen (IBA vol. 1, 11.4.2.2), for the adapter's lock is held.
        """
        i: cython.int
        kind: cython.int
        ring = self.cqs[cq]
        if ring.overrun or ring.head - ring.tail >= ring.size:
            self.counters[DROP_CQ_OVERFLOW] += 1
            if not ring.overrun:
                ring.overrun = True
                self.report(REPORT_ASYNC, ASYNC_CQ_ERR, cq)
                for i in range(self.max_qp):
                    other = self.qps[i]
                    if (
                        other
                        and not other.end_to_end
                        and other.state not in (RESET, ERROR)
                        and (other.send_cq == cq or other.recv_cq == cq)
                    ):
                        self.report(REPORT_ASYNC, ASYNC_QP_FATAL, i)
                        self.fail(other)
            return False
        kind = self.wanted(cq, entry, solicited)
        if kind and ring.handler >= 0 and not self.entry_first:
            self.announce(cq, entry, kind)
        c = entry_at(ring, ring.head)
        c.wr_id = entry.wr_id
        c.length = entry.length
        c.immediate = entry.immediate
        c.qpn = entry.qpn
        c.source_qpn = entry.source_qpn
        c.ee = entry.ee
        c.status = entry.status
        c.opcode = entry.opcode
        c.flags = entry.flags
        c.slid = entry.slid
        c.sl = entry.sl
        c.path_bits = entry.path_bits
        c.port = entry.port
        ring.head += 1
        if self.tracing:
            self.step(426, cq, entry.qpn, 0)
        if kind and ring.handler >= 0:
            if self.entry_first:
                self.announce(cq, entry, kind)
        elif kind:
            ring.armed = 0
            self.report(REPORT_CQ, cq, 1)
        if ring.awaited:
            ring.awaited = False
            self.report(REPORT_CQ, cq, 0)
        if self.tracing:
            self.step(428, cq, entry.qpn, self.shutting)
        return True

    def complete_send(self, q, status):
        """End the oldest work request of the send queue.

        An unsignaled one that succeeds leaves no entry, but its place is free (IBA vol. 1, 10.8.2.1: at the latest
        with the next entry; freeing it at once is allowed and spares the consumer a stuck queue).
        """
        if cython.compiled:
            entry: Cqe
        else:
            entry = Cqe()
        if q.end_to_end:
            self.message_over(q, status)
            return
        w = send_at(q, q.sq_una)
        q.sq_una += 1
        w.started = False
        if w.path >= 0:
            # The datagram's hold on its path; a path that nobody holds any more is reclaimed by `make_path`.
            self.paths[w.path].users -= 1
            w.path = -1
        if status == SUCCESS and not q.all_signaled and not w.flags & SIGNALED:
            return
        entry.wr_id = w.wr_id
        entry.length = w.length
        entry.immediate = 0
        entry.qpn = q.qpn
        entry.source_qpn = q.destination
        entry.ee = loan_at(q, q.sq_una - 1).number if q.service == RD else 0
        entry.status = status
        entry.flags = 0
        entry.slid = entry.sl = entry.path_bits = entry.port = 0
        if w.operation == WR_RDMA_READ:
            entry.opcode = WC_RDMA_READ
        elif w.operation == WR_ATOMIC_CMP_AND_SWP:
            entry.opcode = WC_COMP_SWAP
        elif w.operation == WR_ATOMIC_FETCH_AND_ADD:
            entry.opcode = WC_FETCH_ADD
        elif w.operation == WR_RDMA_WRITE or w.operation == WR_RDMA_WRITE_WITH_IMM:
            entry.opcode = WC_RDMA_WRITE
        elif w.operation == WR_DELAY:
            entry.opcode = WC_DELAY
        elif w.operation == WR_BIND_MW:
            entry.opcode = WC_BIND_MW
        elif w.operation == WR_LOCAL_INV:
            entry.opcode = WC_LOCAL_INV
        elif w.operation == WR_REG_MR:
            entry.opcode = WC_REG_MR
        else:
            entry.opcode = WC_SEND
        self.push(q.send_cq, cython.address(entry) if cython.compiled else entry, False)

    def complete_recv(self, q, status, opcode, length, flags, immediate, source_qpn, solicited):
        """End the receive request that the queue pair holds (`take_receive`)."""
        if cython.compiled:
            entry: Cqe
        else:
            entry = Cqe()
        q.recv_taken = False
        entry.wr_id = q.recv_wr_id
        entry.length = length
        entry.immediate = immediate
        entry.qpn = q.recv_qpn
        entry.source_qpn = source_qpn
        entry.ee = q.qpn if q.end_to_end else 0
        entry.status = status
        entry.opcode = opcode
        entry.flags = flags
        entry.slid = entry.sl = entry.path_bits = entry.port = 0
        if status == SUCCESS:
            entry.slid, entry.sl = self.rx_slid, self.rx_sl
            entry.path_bits, entry.port = self.rx_path_bits, self.rx_number
        self.push(q.recv_cq, cython.address(entry) if cython.compiled else entry, solicited)

    def take_receive(self, q):
        """Take the oldest receive request for the message that begins; False when there is none."""
        i: cython.uint
        at: cython.uint
        if q.recv_taken:
            return True
        queue = self.recv_queues[q.recv_queue]
        if queue.head == queue.tail:
            return False
        w = recv_at(queue, queue.tail)
        at = (queue.tail & queue.mask) * queue.max_sge
        for i in range(w.sges):
            q.recv_sge[i].address = queue.sge[at + i].address
            q.recv_sge[i].length = queue.sge[at + i].length
            q.recv_sge[i].key = queue.sge[at + i].key
        q.recv_sges = w.sges
        q.recv_wr_id = w.wr_id
        q.recv_length = w.length
        q.recv_taken = True
        queue.tail += 1
        if queue.limit and queue.head - queue.tail < queue.limit:
            queue.limit = 0
            self.report(REPORT_ASYNC, ASYNC_SRQ_LIMIT_REACHED, q.recv_queue)
        return True

    def arm_limit(self, index, limit):
        """Ask a shared receive queue for a report when fewer than `limit` requests are left (at once, if they are)."""
        at: cython.int = index
        queue = self.queue_at(at)
        queue.limit = limit
        if limit and queue.head - queue.tail < queue.limit:
            queue.limit = 0
            self.report(REPORT_ASYNC, ASYNC_SRQ_LIMIT_REACHED, at)

    def migrate(self, q):
        """Go on by the alternate path; False when the queue pair has none that is armed (see `native`)."""
        return False

    def violation(self, q, b, at, trap):
        """A packet showed a wrong key: report it to management (see `native`)."""

    def fail(self, q):
        """Move a queue pair to the error state and flush it (IBA vol. 1, 10.3.1.8)."""
        if q.end_to_end:
            self.fail_context(q, INV_EEC_STATE_ERR)
            return
        if q.state == ERROR:
            return
        q.state = ERROR
        q.deadline_ns = 0
        q.resume_ns = 0
        q.answers_head = q.answers_tail
        q.ack_due = False
        q.open = NOTHING_OPEN
        q.rd_outstanding = 0
        self.discard_early(q)
        self.flush(q)
        if self.recv_queues[q.recv_queue].shared:
            self.report(REPORT_ASYNC, ASYNC_QP_LAST_WQE_REACHED, q.index)

    def fail_qp(self, index):
        """`fail`, for callers in Python."""
        at: cython.int = index
        self.fail(self.qp_at(at))

    def drain(self, index):
        """`drained`, for callers in Python."""
        at: cython.int = index
        self.drained(self.qp_at(at))

    def drained(self, q):
        """Report that a send queue in SQD is drained: no request that was begun is open (IBA vol. 1, 10.3.1.5)."""
        if q.draining and not q.lent and (q.sq_una == q.sq_head or not send_at(q, q.sq_una).started):
            q.draining = False
            self.report(REPORT_ASYNC, ASYNC_SQ_DRAINED, q.index)

    def resume(self, index):
        """Let a queue pair send that may again."""
        at: cython.int = index
        self.enlist(self.qp_at(at))

    def flush(self, q):
        """Complete all that is posted as flushed; a shared receive queue keeps what no queue pair has taken."""
        queue = self.recv_queues[q.recv_queue]
        self.flush_send(q)
        if q.service == RD:
            self.give_back(q, True)
        if q.recv_taken:
            self.complete_recv(q, WR_FLUSH_ERR, WC_RECV, 0, 0, 0, 0, False)
        if not queue.shared:
            while self.take_receive(q):
                self.complete_recv(q, WR_FLUSH_ERR, WC_RECV, 0, 0, 0, 0, False)

    def flush_send(self, q):
        """Complete all that is posted to the send queue as flushed."""
        if q.service == RD:
            self.recall(q)
        q.delay_ns = 0
        while q.sq_una != q.sq_head:
            self.complete_send(q, WR_FLUSH_ERR)
        q.sq_next = q.sq_una
        q.next_packet = 0

    def hold_back(self, q, w, now):
        """A DELAY request, the next of the send queue: is it over (document 003:497)?

        It begins when all before it has completed, so that what follows keeps its distance even where packets had to
        be sent again.
        """
        if q.sq_una != q.sq_next or (q.state == SQD and not w.started):
            return False
        if not w.started:
            w.started = True
            q.delay_ns = now + w.compare_add
        if q.delay_ns > now:
            self.schedule(q, q.delay_ns)
            return False
        q.delay_ns = 0
        q.sq_next += 1
        self.complete_send(q, SUCCESS)
        self.drained(q)
        return True

    # --- end-to-end contexts: `lending` knows how -----------------------------------------------------------

    def message_over(self, c, status):
        """A context has executed the message that it was lent."""

    def message_failed(self, c, status):
        """The message could not be executed."""

    def message_not_ready(self, c, until):
        """The message's destination has no receive request for it, and asks for patience."""

    def fail_context(self, c, status):
        """The context moves to the error state."""

    def recall(self, q):
        """A queue pair takes back what it has lent."""

    def give_back(self, q, told):
        """A queue pair takes back the receive request that a context fills; `told`: it completes as flushed."""

    # --- pages that are not there --------------------------------------------------------------------------

    def park(self, q):
        """A page that the queue pair needs is awaited: it sends no requests until `pages_came`."""
        if not q.parked:
            q.parked = True
            q.parked_next = self.parked_head
            self.parked_head = q.index
        self.report(REPORT_FAULT, 0, 0)

    def pages_came(self):
        """Pages were brought in, or cannot be: who waits for one tries again.  True if somebody does."""
        at: cython.int
        waited: cython.bint = self.parked_head >= 0
        while self.parked_head >= 0:
            at = self.parked_head
            self.parked_head = self.qps[at].parked_next
            self.qps[at].parked = False
            self.enlist(self.qps[at])
        return waited

    def forget(self, q):
        at: cython.int = self.parked_head
        if q.parked:
            q.parked = False
            if at == q.index:
                self.parked_head = q.parked_next
            else:
                while self.qps[at].parked_next != q.index:
                    at = self.qps[at].parked_next
                self.qps[at].parked_next = q.parked_next
        Notification.forget(self, q)

    def denied(self, q, key, address, length, access):
        """Count a peer's access that was not granted; a page that was missing is reported (document 003:882)."""
        self.regions.deny(True, key, address, length, q.recv_qpn, access)
        if self.regions.reason == PAGE_ABSENT:
            self.report(REPORT_FAULT, 0, 0)

    def denied_here(self, q, access):
        """The same for a piece of local memory, the one that `can_gather`, `gather` or `scatter` has met last."""
        self.regions.deny(False, self.bad_key, self.bad_address, self.bad_length, q.recv_qpn, access)
        if self.regions.reason == PAGE_ABSENT:
            self.report(REPORT_FAULT, 0, 0)

    # --- bytes --------------------------------------------------------------------------------------------

    def can_gather(self, q, place, access):
        """May every byte of a send request's list be used so (`access`: 0 to read, LOCAL_WRITE)?"""
        at: cython.uint = (place & q.sq_mask) * q.max_send_sge
        w = send_at(q, place)
        if w.flags & INLINE:
            return True
        return self.check_list(q.send_domain, q.sge, at, w.sges, access)

    def check_list(self, domain, sge, first, sges, access):
        """May every byte of a list be used so?"""
        i: cython.uint
        for i in range(first, first + sges):
            if sge[i].length and not self.regions.find_local(
                domain, sge[i].key, sge[i].address, sge[i].length, access
            ):
                self.bad_key, self.bad_address, self.bad_length = sge[i].key, sge[i].address, sge[i].length
                return False
        return True

    def gather(self, q, place, offset, to, at, n):
        """Copy n bytes of a send request, from `offset` of the message on; False when a list entry may not be read."""
        i: cython.uint
        part: cython.ulonglong
        first: cython.uint = (place & q.sq_mask) * q.max_send_sge
        w = send_at(q, place)
        if w.flags & INLINE:
            copy(to, at, q.inline_data, (place & q.sq_mask) * q.max_inline + offset, n)
            return True
        for i in range(w.sges):
            if n == 0:
                return True
            if offset >= q.sge[first + i].length:
                offset -= q.sge[first + i].length
                continue
            part = q.sge[first + i].length - offset
            if part > n:
                part = n
            r = self.regions.find_local(
                q.send_domain, q.sge[first + i].key, q.sge[first + i].address + offset, part, 0
            )
            if not r:
                self.bad_key, self.bad_length = q.sge[first + i].key, part
                self.bad_address = q.sge[first + i].address + offset
                return False
            self.regions.get(r, q.sge[first + i].address + offset, to, at, part)
            at += part
            n -= part
            offset = 0
        return n == 0

    def can_scatter(self, domain, sge, first, sges, offset, n):
        """May n bytes be written into a list of buffers, from `offset` of the list on?"""
        i: cython.uint
        part: cython.ulonglong
        for i in range(first, first + sges):
            if n == 0:
                return True
            if offset >= sge[i].length:
                offset -= sge[i].length
                continue
            part = sge[i].length - offset
            if part > n:
                part = n
            if not self.regions.find_local(domain, sge[i].key, sge[i].address + offset, part, LOCAL_WRITE):
                self.bad_key, self.bad_address, self.bad_length = sge[i].key, sge[i].address + offset, part
                return False
            n -= part
            offset = 0
        return n == 0

    def scatter(self, domain, sge, first, sges, offset, source, at, n):
        """Copy n bytes into a list of buffers, from `offset` of the list on.

        False when one of them may not be written: then none was.
        """
        i: cython.uint
        part: cython.ulonglong
        checked: cython.bint = False
        for i in range(first, first + sges):
            if n == 0:
                return True
            if offset >= sge[i].length:
                offset -= sge[i].length
                continue
            part = sge[i].length - offset
            if part > n:
                part = n
            if part < n and not checked:
                if not self.can_scatter(domain, sge, i, first + sges - i, offset, n):
                    return False
                checked = True
            r = self.regions.find_local(domain, sge[i].key, sge[i].address + offset, part, LOCAL_WRITE)
            if not r:
                self.bad_key, self.bad_address, self.bad_length = sge[i].key, sge[i].address + offset, part
                return False
            self.regions.put(r, sge[i].address + offset, source, at, part)
            at += part
            n -= part
            offset = 0
        return n == 0


def send_at(q, place):
    """The send request at a place of the ring."""
    if cython.compiled:
        return cython.address(q.sq[place & q.sq_mask])
    else:
        return q.sq[place & q.sq_mask]


def recv_at(queue, place):
    """The receive request at a place of the ring."""
    if cython.compiled:
        return cython.address(queue.ring[place & queue.mask])
    else:
        return queue.ring[place & queue.mask]


def entry_at(ring, place):
    """The completion entry at a place of the ring."""
    if cython.compiled:
        return cython.address(ring.ring[place & ring.mask])
    else:
        return ring.ring[place & ring.mask]


def answer_at(q, place):
    """The waiting answer at a place of the ring."""
    if cython.compiled:
        return cython.address(q.answers[place & (q.answers_size - 1)])
    else:
        return q.answers[place & (q.answers_size - 1)]


def loan_at(q, place):
    """What belongs to the send request at a place of the ring, on a reliable-datagram queue pair."""
    if cython.compiled:
        return cython.address(q.loans[place & q.sq_mask])
    else:
        return q.loans[place & q.sq_mask]
