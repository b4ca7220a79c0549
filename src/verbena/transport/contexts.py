"""Queue-pair contexts as software sees them: attributes, states, depths.

What is allowed when, `adapter.states` knows; here it is only done.  Callers hold the adapter's lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.transport.tables import Tables

if cython.compiled:
    from cython.cimports.verbena.transport.tables import *
else:
    from verbena.transport.tables import *


class Contexts(Tables):
    """The tables of one adapter, with the software's view of its queue pairs."""

    def set_attribute(self, index, name, value):
        """Set one attribute of a queue pair, by the name of its field in `QueuePair`."""
        at: cython.int = index
        q = self.qp_at(at)
        if name == "destination":
            q.destination = value
        elif name == "path":
            if q.path >= 0:
                self.free_path(q.path)
            q.path = value
        elif name == "alt_path":
            if q.alt_path >= 0:
                self.free_path(q.alt_path)
            q.alt_path = value
        elif name == "alt_pkey":
            q.alt_pkey = value
        elif name == "alt_timeout_ns":
            q.alt_timeout_ns = value
        elif name == "mig_state":
            q.mig_state, q.mig_refused = value, False
        elif name == "port":
            q.port = value
        elif name == "mtu":
            q.mtu = value
            q.window_max = min(max(self.window_bytes // value, 8), 1 << 20)
            q.window = q.window_max
        elif name == "qkey":
            q.qkey = value
        elif name == "access":
            q.access = value
        elif name == "pkey":
            q.pkey = value
        elif name == "timeout_ns":
            q.timeout_ns = value
        elif name == "min_rnr_code":
            q.min_rnr_code = value
        elif name == "retry_count":
            q.retry_count = q.retries_left = value
        elif name == "rnr_retry":
            q.rnr_retry = q.rnr_left = value
        elif name == "max_rd_atomic":
            q.max_rd_atomic = value
        elif name == "max_dest_rd_atomic":
            q.max_dest_rd_atomic = value
        elif name == "expected_psn":
            q.expected_psn = value
        elif name == "send_psn":
            q.send_psn = q.una_psn = q.max_psn = value
        elif name == "all_signaled":
            q.all_signaled = value
        elif name == "ack_each":
            q.ack_each = value
        else:
            raise KeyError(name)

    def get_state(self, index):
        at: cython.int = index
        return self.qp_at(at).state

    def attributes(self, index):
        """What a queue pair is set to, and where it stands."""
        at: cython.int = index
        q = self.qp_at(at)
        return {
            "destination": q.destination,
            "mtu": q.mtu,
            "qkey": q.qkey,
            "access": q.access,
            "pkey": q.pkey,
            "timeout_ns": q.timeout_ns,
            "min_rnr_code": q.min_rnr_code,
            "retry_count": q.retry_count,
            "rnr_retry": q.rnr_retry,
            "max_rd_atomic": q.max_rd_atomic,
            "max_dest_rd_atomic": q.max_dest_rd_atomic,
            "expected_psn": q.expected_psn,
            "send_psn": q.send_psn,
            "unacknowledged_psn": q.una_psn,
            "window": q.window,
            "path": q.path,
            "alt_path": q.alt_path,
            "alt_pkey": q.alt_pkey,
            "alt_timeout_ns": q.alt_timeout_ns,
            "mig_state": q.mig_state,
            "port": q.port,
        }

    def set_state(self, index, state):
        """Move a queue pair to a state other than ERROR and RESET; SQD begins to drain."""
        at: cython.int = index
        q = self.qp_at(at)
        q.state = state
        q.draining = state == SQD

    def clear(self, index):
        """Back to RESET: everything posted is forgotten, without completions (IBA vol. 1, 10.3.1.2)."""
        i: cython.uint
        at: cython.int = index
        q = self.qp_at(at)
        queue = self.recv_queues[q.recv_queue]
        self.forget(q)
        q.state = RESET
        if not queue.shared:
            queue.tail = queue.head
        while q.sq_una != q.sq_head:
            at = q.sq_una & q.sq_mask
            if q.sq[at].path >= 0:
                self.paths[q.sq[at].path].users -= 1
                q.sq[at].path = -1
            q.sq_una += 1
        q.sq_next = q.sq_head
        q.next_packet = q.rd_outstanding = q.window_credit = q.msn = q.open = 0
        q.gone_back = q.draining = q.recv_taken = q.nak_sent = q.ack_due = q.established = False
        q.resume_ns = q.deadline_ns = 0
        q.answers_head = q.answers_tail
        for i in range(q.atomics_size):
            q.atomics[i].live = False
        if q.path >= 0:
            self.free_path(q.path)
            q.path = -1
        if q.alt_path >= 0:
            self.free_path(q.alt_path)
            q.alt_path = -1
        q.mig_state, q.mig_refused = MIG_MIGRATED, False

    def queue_depth(self, index):
        """Receive requests that wait in a queue."""
        at: cython.int = index
        queue = self.queue_at(at)
        return (queue.head - queue.tail) & 0xFFFFFFFF

    def recv_queue_of(self, index):
        at: cython.int = index
        return self.qp_at(at).recv_queue

    def cq_users(self, index):
        at: cython.int = index
        return self.cq_at(at).users

    def cq_overrun(self, index):
        at: cython.int = index
        return bool(self.cq_at(at).overrun)
