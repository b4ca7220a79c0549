"""End-to-end contexts as objects: made, counted, freed.  What they do is in `lending` and `datagrams`.

A context is kept as a queue pair is, in the same table, behind them; its number is never that of one.  Callers hold the
adapter's lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.core import Core

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.transport.core import loan_at
    from cython.cimports.verbena.transport.tables import *
else:
    from verbena.transport.core import loan_at
    from verbena.transport.tables import *


class EndToEnd(Core):
    """The tables of one adapter, with its end-to-end contexts."""

    def lend(self, index, rdd):
        """Make a queue pair, just created, one of reliable datagrams, of a domain."""
        at: cython.int = index
        q = self.qp_at(at)
        if cython.compiled:
            q.loans = cython.cast(cython.pointer(Loan), calloc(q.sq_mask + 1, cython.sizeof(Loan)))
            q.tails = cython.cast(
                cython.pointer(uint32_t), calloc(max(1, self.max_qp - self.first_ee), cython.sizeof(uint32_t))
            )
            if not q.loans or not q.tails:
                raise MemoryError
        else:
            q.loans = [Loan() for _ in range(q.sq_mask + 1)]
            q.tails = [0] * (self.max_qp - self.first_ee)
        q.rdd = rdd

    def make_ee(self, rdd, max_inline):
        """An end-to-end context in RESET; returns (index, number)."""
        at: cython.int = self._slot(self._free_ee, "end-to-end contexts", self.max_qp - self.first_ee)
        generation = self._generations.get(at, 0)
        self._generations[at] = (generation + 1) & 0xFF
        inline: cython.uint = max(1, max_inline)
        if cython.compiled:
            c = cython.cast(cython.pointer(QueuePair), calloc(1, cython.sizeof(QueuePair)))
            if not c:
                raise MemoryError
            c.sq = cython.cast(cython.pointer(SendWqe), calloc(1, cython.sizeof(SendWqe)))
            c.sge = cython.cast(cython.pointer(Sge), calloc(MAX_SGE, cython.sizeof(Sge)))
            c.inline_data = cython.cast(cython.pointer(uint8_t), calloc(1, inline))
            if not c.sq or not c.sge or not c.inline_data:
                free(c.sq)
                free(c.sge)
                free(c.inline_data)
                free(c)
                raise MemoryError
        else:
            c = QueuePair()
            c.sq, c.sge = [SendWqe()], [Sge() for _ in range(MAX_SGE)]
            c.recv_sge = [Sge() for _ in range(MAX_SGE)]
            c.inline_data = bytearray(inline)
        c.index, c.qpn = at, at | generation << 16
        c.service, c.reliable, c.end_to_end, c.rdd = RD, True, True, rdd
        c.sq_size, c.max_send_sge, c.max_inline = 1, MAX_SGE, inline
        c.path = c.send_cq = c.recv_cq = c.recv_queue = c.lender = c.line_qp = c.holder = -1
        c.alt_path = c.held_next = c.parked_next = -1
        c.established = c.live = True
        c.sq[0].path = -1
        self.qps[at] = c
        return (at, c.qpn)

    def free_ee(self, index):
        """Free an end-to-end context; what waits for it ends with INV_EEC_STATE_ERR."""
        self.clear_ee(index)
        self.free_context(index)
        self._free_ee.insert(0, index)

    def clear_ee(self, index):
        """An end-to-end context goes back to RESET."""
        at: cython.int = index
        i: cython.uint
        c = self.qp_at(at)
        if c.state != RESET:
            self.fail_context(c, INV_EEC_STATE_ERR)
        self.forget(c)
        c.state = RESET
        c.msn = 0
        c.draining = False
        for i in range(c.atomics_size):
            c.atomics[i].live = False
        if c.path >= 0:
            self.free_path(c.path)
            c.path = -1

    def count_contexts(self):
        """How many queue pairs of each service there are, by its number, and how many end-to-end contexts."""
        i: cython.int
        services = {}
        contexts = 0
        for i in range(self.max_qp):
            q = self.qps[i]
            if q and q.end_to_end:
                contexts += 1
            elif q:
                services[int(q.service)] = services.get(int(q.service), 0) + 1
        return (services, contexts)

    def context_line(self, index):
        """How many queue pairs wait for an end-to-end context, and whether it executes a message."""
        at: cython.int = index
        waiting = 0
        c = self.qp_at(at)
        other: cython.int = c.line_qp
        place: cython.uint = c.line_place
        while other >= 0:
            waiting += 1
            loan = loan_at(self.qps[other], place)
            other, place = loan.next_qp, loan.next_place
        return (waiting, c.sq_una != c.sq_head)
