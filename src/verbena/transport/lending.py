"""Reliable datagrams, the sending side: queue pairs lend their messages to end-to-end contexts.

An end-to-end context (document 003:542; IBA vol. 1, 9.7.8) is what two nodes keep of each other: packet numbers,
acknowledgements, timers.  Here it is a reliable connection whose send queue has one place.  The queue pairs of its
reliable datagram domain stand in its line; it takes up the request of the first, executes it as a connection would,
hands the result back, and turns to the next queue pair: one message at a time, in turns.  So `requester` and
`completer` serve it as they are, and only what is before and after a message is different:

* ``offer``: a queue pair's requests enter the lines of the contexts that they name.  For one context they stay in
  order; several contexts may execute messages of one queue pair at once.  They complete in the order of the queue.
* ``take_up``, ``message_over``: the context's send queue is filled, and has been executed.
* ``message_failed``: the queue pair's send queue stops (SQE); the context goes on with the others, unless its peer does
  not answer at all, or answers what makes no sense: then it fails, with all that waits for it.
* ``message_not_ready``: the receiver asks for patience.  The queue pair waits; the context does not.

A message that is given up on the way leaves packets behind whose numbers the receiver waits for.  RESYNC (9.7.8.4) has
it skip them: numbers are never used for another message, so that no straggler is taken for a part of it.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.end_to_end import EndToEnd

if cython.compiled:
    from cython.cimports.verbena.transport.core import loan_at, send_at
    from cython.cimports.verbena.transport.local import is_local, perform
    from cython.cimports.verbena.transport.requester import is_read_or_atomic
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import copy
else:
    from verbena.transport.core import loan_at, send_at
    from verbena.transport.local import is_local, perform
    from verbena.transport.requester import is_read_or_atomic
    from verbena.transport.tables import *
    from verbena.wire.kernels import copy


class Lending(EndToEnd):
    """The tables of one adapter, with its end-to-end contexts at work."""

    # --- the lines ----------------------------------------------------------------------------------------

    def offer(self, q, now):
        """Let the requests of a queue pair that may begin wait for their contexts."""
        problem: cython.int
        if q.resume_ns:
            return
        while q.sq_next != q.sq_head:
            w = send_at(q, q.sq_next)
            loan = loan_at(q, q.sq_next)
            if q.state != RTS and not (q.state == SQD and w.operation == WR_DELAY):
                return
            if loan.state == LOAN_OVER and loan.status != SUCCESS:
                return  # nothing begins behind one that has failed
            if loan.state != LOAN_IDLE:
                q.sq_next += 1
                continue
            if w.operation == WR_DELAY:
                if not self.hold_back(q, w, now):
                    return
                continue
            if w.flags & FENCE and q.rd_outstanding:
                return
            if is_local(w):
                if w.operation == WR_LOCAL_INV and q.sq_una != q.sq_next:
                    return
                if perform(self, q, w) != SUCCESS:
                    self.lost(q, q.sq_next, MW_BIND_ERR)
                    return
                loan.state = LOAN_OVER
                loan.status = SUCCESS
                q.sq_next += 1
                self.settle(q)
                continue
            problem = self.fitting(q, w, loan)
            if problem != SUCCESS:
                self.lost(q, q.sq_next, problem)
                return
            self.wait_in_line(q, q.sq_next)
            q.sq_next += 1

    def fitting(self, q, w, loan):
        """SUCCESS, or what is wrong with the context that a request names (IBA vol. 1, 11.6.2)."""
        at: cython.uint = loan.number & 0xFFFF
        if at < cython.cast(cython.uint, self.first_ee) or at >= cython.cast(cython.uint, self.max_qp):
            return INV_EECN_ERR
        c = self.qps[at]
        if not c or c.qpn != loan.number:
            return INV_EECN_ERR
        if c.rdd != q.rdd:
            return LOC_RDD_VIOL_ERR
        if c.state != RTS and c.state != SQD:
            return INV_EEC_STATE_ERR
        loan.context = at
        return SUCCESS

    def wait_in_line(self, q, place):
        """A queue pair stands in a context's line once; its further requests for it stand behind its first one."""
        loan = loan_at(q, place)
        slot: cython.uint = loan.context - self.first_ee
        loan.state = LOAN_WAITING
        loan.followed = False
        if is_read_or_atomic(send_at(q, place)):
            q.rd_outstanding += 1
        if q.tails[slot]:
            before = loan_at(q, q.tails[slot] - 1)
            before.follower = place
            before.followed = True
        else:
            self.join(self.qps[loan.context], q, place)
        q.tails[slot] = (place & q.sq_mask) + 1

    def join(self, c, q, place):
        """To the end of the line."""
        loan = loan_at(q, place)
        loan.next_qp = -1
        if c.line_qp < 0:
            c.line_qp = q.index
            c.line_place = place
        else:
            last = loan_at(self.qps[c.last_qp], c.last_place)
            last.next_qp = q.index
            last.next_place = place
        c.last_qp = q.index
        c.last_place = place
        self.enlist(c)

    def leave(self, c, q):
        """Out of the line, wherever the queue pair stands in it."""
        before_qp: cython.int = -1
        before_place: cython.uint = 0
        at: cython.int = c.line_qp
        place: cython.uint = c.line_place
        while at >= 0:
            loan = loan_at(self.qps[at], place)
            if at == q.index:
                if before_qp < 0:
                    c.line_qp = loan.next_qp
                    c.line_place = loan.next_place
                else:
                    before = loan_at(self.qps[before_qp], before_place)
                    before.next_qp = loan.next_qp
                    before.next_place = loan.next_place
                if loan.next_qp < 0:
                    c.last_qp = before_qp
                    c.last_place = before_place
                return
            before_qp = at
            before_place = place
            at = loan.next_qp
            place = loan.next_place

    def withdraw(self, q):
        """Take the requests of a queue pair that wait out of all lines."""
        slot: cython.uint
        place: cython.uint = q.sq_una
        while place != q.sq_head:
            loan = loan_at(q, place)
            if loan.state == LOAN_WAITING:
                slot = loan.context - self.first_ee
                if q.tails[slot]:
                    self.leave(self.qps[loan.context], q)
                    q.tails[slot] = 0
                loan.state = LOAN_IDLE
                if is_read_or_atomic(send_at(q, place)) and q.rd_outstanding:
                    q.rd_outstanding -= 1
            place += 1
        q.sq_next = q.sq_una

    # --- a message's way through a context ------------------------------------------------------------------

    def take_up(self, c):
        """Fill the context's send queue with the request of the first queue pair in line, if it is empty."""
        i: cython.uint
        place: cython.uint = c.line_place
        first: cython.uint
        if c.sq_una != c.sq_head or c.line_qp < 0 or c.state != RTS:
            return
        q = self.qps[c.line_qp]
        loan = loan_at(q, place)
        c.line_qp = loan.next_qp
        c.line_place = loan.next_place
        if loan.followed:
            self.join(c, q, loan.follower)
        else:
            q.tails[loan.context - self.first_ee] = 0
        loan.state = LOAN_LENT
        q.lent += 1
        w = send_at(q, place)
        mine = send_at(c, c.sq_head)
        mine.wr_id, mine.length, mine.remote_address = w.wr_id, w.length, w.remote_address
        mine.compare_add, mine.swap, mine.remote_key = w.compare_add, w.swap, w.remote_key
        mine.immediate, mine.remote_qpn, mine.remote_qkey = w.immediate, w.remote_qpn, w.remote_qkey
        mine.operation, mine.flags, mine.sges, mine.path = w.operation, w.flags & ~FENCE, w.sges, -1
        mine.started = False
        first = (place & q.sq_mask) * q.max_send_sge
        for i in range(w.sges):
            c.sge[i].address = q.sge[first + i].address
            c.sge[i].length = q.sge[first + i].length
            c.sge[i].key = q.sge[first + i].key
        if w.flags & INLINE:
            copy(c.inline_data, 0, q.inline_data, (place & q.sq_mask) * q.max_inline, w.length)
        c.lender, c.lent_place, c.lent_qpn, c.send_domain = q.index, place, q.qpn, q.domain
        c.sq_next = c.sq_head
        c.sq_head += 1

    def message_over(self, c, status):
        """The context's request, a message or a RESYNC, is executed: the next one's turn."""
        lender: cython.int = c.lender
        place: cython.uint = c.lent_place
        c.sq_una += 1
        c.lender = -1
        self.enlist(c)
        if lender >= 0:
            q = self.qps[lender]
            loan = loan_at(q, place)
            loan.state = LOAN_OVER
            loan.status = status
            q.lent -= 1
            if is_read_or_atomic(send_at(q, place)) and q.rd_outstanding:
                q.rd_outstanding -= 1
            self.settle(q)

    def empty(self, c):
        """Nothing is being executed any more; who had lent it, has to be told by the caller."""
        if c.lender >= 0:
            self.qps[c.lender].lent -= 1
        c.lender = -1
        c.sq_una = c.sq_next = c.sq_head
        c.next_packet = c.rd_outstanding = c.window_credit = 0
        c.gone_back = False
        c.deadline_ns = 0

    def give_up(self, c):
        """Stop the message that is executed; if the receiver may have seen some of it, it has to skip the rest."""
        w = send_at(c, c.sq_una)
        sent: cython.bint = w.started and c.max_psn != w.first_psn
        qpn: cython.uint = w.remote_qpn
        key: cython.uint = w.remote_qkey
        self.empty(c)
        self.discard_early(c)
        c.retries_left = c.retry_count
        if sent:
            c.una_psn = c.send_psn = c.max_psn
            w = send_at(c, c.sq_head)
            w.operation, w.flags, w.sges, w.path, w.length = WR_RESYNC, 0, 0, -1, 0
            w.remote_qpn, w.remote_qkey = qpn, key
            w.started, w.first_psn, w.packets = True, c.max_psn, 1
            c.sq_head += 1
            self.counters[TX_RESYNCS] += 1
        self.enlist(c)

    def message_failed(self, c, status):
        """What the context executes failed.  A peer that does not answer, or wrongly, is the end of the context."""
        lender: cython.int = c.lender
        place: cython.uint = c.lent_place
        if lender < 0 or status == RETRY_EXC_ERR or status == BAD_RESP_ERR:
            self.fail_context(c, status)
            return
        self.give_up(c)
        self.lost(self.qps[lender], place, status)

    def message_not_ready(self, c, until):
        """The receiver asks to wait: the queue pair does; the context sees to the others (IBA vol. 1, 9.7.5.2.8)."""
        if c.lender < 0:
            return
        q = self.qps[c.lender]
        loan = loan_at(q, c.lent_place)
        if loan.rnr_left == 0:
            self.message_failed(c, RNR_RETRY_EXC_ERR)
            return
        if q.rnr_retry != 7:
            loan.rnr_left -= 1
        if is_read_or_atomic(send_at(q, c.lent_place)) and q.rd_outstanding:
            q.rd_outstanding -= 1
        self.give_up(c)
        loan.state = LOAN_IDLE
        self.withdraw(q)
        if until > q.resume_ns:
            q.resume_ns = until
        self.schedule(q, q.resume_ns)

    def fail_context(self, c, status):
        """To the error state: what it executes ends with `status`, what waits for it with INV_EEC_STATE_ERR."""
        lender: cython.int = c.lender
        place: cython.uint = c.lent_place
        if c.state == ERROR:
            return
        c.state = ERROR
        c.answers_head = c.answers_tail
        c.ack_due = False
        c.nak_sent = False
        c.open = NOTHING_OPEN
        self.empty(c)
        self.discard_early(c)
        if c.recv_taken:
            self.complete_recv(c, REM_ABORT_ERR, WC_RECV, c.received, 0, 0, c.recv_source, False)
        c.holder = -1
        if lender >= 0:
            self.lost(self.qps[lender], place, status)
        while c.line_qp >= 0:
            self.lost(self.qps[c.line_qp], c.line_place, INV_EEC_STATE_ERR)

    # --- back at the queue pair -----------------------------------------------------------------------------

    def lost(self, q, place, status):
        """A request failed: nothing behind it begins any more, and when it is the oldest, the send queue stops."""
        loan = loan_at(q, place)
        self.withdraw(q)
        loan.state = LOAN_OVER
        loan.status = status
        self.settle(q)

    def settle(self, q):
        """Complete what is over, in the order of the queue (IBA vol. 1, 10.8.2.1)."""
        status: cython.int
        while q.sq_una != q.sq_head:
            loan = loan_at(q, q.sq_una)
            if loan.state != LOAN_OVER:
                break
            status = loan.status
            loan.state = LOAN_IDLE
            if q.sq_next == q.sq_una:
                q.sq_next += 1
            self.complete_send(q, status)
            if status != SUCCESS:
                if q.state == RTS or q.state == SQD:
                    q.state = SQE
                self.flush_send(q)
                return
        self.drained(q)
        if q.sq_next != q.sq_head:
            self.enlist(q)

    def recall(self, q):
        """Nothing that the queue pair has posted is to be executed any more."""
        place: cython.uint = q.sq_una
        self.withdraw(q)
        while place != q.sq_head:
            loan = loan_at(q, place)
            if loan.state == LOAN_LENT:
                self.give_up(self.qps[loan.context])
            loan.state = LOAN_IDLE
            place += 1
        q.rd_outstanding = 0
        q.resume_ns = 0

    def give_back(self, q, told):
        """The queue pair receives no more: contexts that are in the middle of a message for it refuse the rest."""
        i: cython.int
        for i in range(self.first_ee, self.max_qp):
            c = self.qps[i]
            if not c or c.holder != q.index:
                continue
            if c.recv_taken and told:
                self.complete_recv(c, WR_FLUSH_ERR, WC_RECV, 0, 0, 0, 0, False)
            c.recv_taken = False
            c.holder = -1
            if c.open == SEND_OPEN or c.open == WRITE_OPEN:
                c.open = REFUSED
                c.refusal = AETH_NAK | NAK_INVALID_RD_REQUEST

    def forget(self, q):
        if q.stripes:
            self.release_stripes(q)
        if q.service == RD and not q.end_to_end:
            self.recall(q)
            self.give_back(q, False)
        EndToEnd.forget(self, q)

    def drain(self, index):
        """A queue pair, or an end-to-end context, begins nothing new; reported when what had begun is over."""
        at: cython.int = index
        q = self.qp_at(at)
        if q.service == RD and not q.end_to_end:
            self.withdraw(q)
        EndToEnd.drain(self, index)
