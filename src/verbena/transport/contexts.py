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
    from cython.cimports.libc.stdlib import calloc
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
            q.path = q.stripe[0] = value
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
        elif name == "rdd":
            q.rdd = value
        elif name == "remote_ee":
            q.remote_ee = value
        elif name == "reorder_ns":
            q.reorder_ns = value
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
            "remote_ee": q.remote_ee,
            "rdd": q.rdd,
            "reorder_ns": q.reorder_ns,
            "stripes": [q.stripe[i] for i in range(q.stripes)],
        }

    # --- several paths of one connection ------------------------------------------------------------------

    def set_stripes(self, index, paths):
        """Let a connection use these paths beside its first one, all at once; it holds them from now on.

        At most `MAX_STRIPES` - 1 of them, none to use one path only.  Packets may then come in another order than
        they were sent in; the ones that come early are kept for a while (see `reorder`), so that no more may be in
        flight than there is room for at the peer.
        """
        i: cython.int
        at: cython.int = index
        count: cython.int = len(paths)
        q = self.qp_at(at)
        if count and not q.early_requests:
            if cython.compiled:
                q.early_requests = cython.cast(
                    cython.pointer(Early), calloc(REORDER_PACKETS, cython.sizeof(Early))
                )
                q.early_responses = cython.cast(
                    cython.pointer(Early), calloc(REORDER_PACKETS, cython.sizeof(Early))
                )
                if not q.early_requests or not q.early_responses:
                    raise MemoryError
            else:
                q.early_requests = [Early() for _ in range(REORDER_PACKETS)]
                q.early_responses = [Early() for _ in range(REORDER_PACKETS)]
        self.release_stripes(q)
        q.stripe[0] = q.path
        for i in range(count):
            q.stripe[i + 1] = paths[i]
        q.stripes = count + 1 if count else 0
        q.window_max = min(max(self.window_bytes // q.mtu, 8), REORDER_PACKETS if count else 1 << 20)
        q.window = q.window_max

    def release_stripes(self, q):
        """Back to one path."""
        i: cython.int
        self.discard_early(q)
        for i in range(1, q.stripes):
            self.paths[q.stripe[i]].users -= 1  # freed when the room is needed, by `make_path`
        q.stripes = q.stripe_turn = q.stripe_round = 0

    def discard_early(self, q):
        """Forget the packets that came early."""
        i: cython.int
        q.request_gap_ns = q.response_gap_ns = 0
        if q.early_request_count or q.early_response_count:
            for i in range(REORDER_PACKETS):
                q.early_requests[i].live = q.early_responses[i].live = False
            self.counters[DROP_REORDER] += q.early_request_count + q.early_response_count
            q.early_request_count = q.early_response_count = 0

    def turn_stripes(self, q):
        """Packets are sent again: by other paths than before, or one that is dead may get the same ones every time."""
        q.stripe_round = (q.stripe_round + 1) % q.stripes
        q.stripe_turn = q.stripe_round

    def next_path(self, q):
        """The path of the next packet: they take turns, but for those that nothing can leave by."""
        i: cython.uint
        if not q.stripes:
            return q.path
        for i in range(q.stripes):
            q.stripe_turn = (q.stripe_turn + 1) % q.stripes
            if self.is_open(q.stripe[q.stripe_turn]):
                break
        return q.stripe[q.stripe_turn]

    def is_open(self, path):
        """May packets leave by a path now?"""
        return self.paths[path].usable

    def set_path_usable(self, index, usable):
        """Say whether the port that a path leaves by is up: if it is down, packets take the connection's others.

        With no other left they are sent all the same, and lost: retries run out, as with a cable cut.  Paths of
        InfiniBand ports follow their port's state by themselves (see `ports`).
        """
        at: cython.int = index
        self.path_at(at).usable = usable

    def set_source_usable(self, gid, usable):
        """`set_path_usable` for all paths that begin at this GID of the adapter, and for those made later."""
        i: cython.int
        if usable:
            self.unusable.discard(bytes(gid))
        else:
            self.unusable.add(bytes(gid))
        for i in range(self.max_path):
            p = self.paths[i]
            if p:
                if bytes([p.own[k] for k in range(16)]) == gid:
                    p.usable = usable

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
        q.resume_ns = q.deadline_ns = q.delay_ns = 0
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
