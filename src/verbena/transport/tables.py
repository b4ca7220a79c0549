"""What the transport keeps: the tables of one adapter, made and freed.

`Tables` owns queue-pair contexts, receive queues, completion rings, paths and counters: C structs (declared in
``tables.pxd``) when compiled, small classes with the same fields otherwise.  Everything here happens once per object;
what happens once per packet is in `core`, `requester` and `responder`.  Callers hold the adapter's lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import ClosedError, InvalidAttributeError, ResourceError

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free
    from cython.cimports.verbena.wire.kernels import prefix
else:
    from verbena._declarations import declarations
    from verbena.wire.kernels import prefix

    globals().update(declarations(__file__))

COUNTERS = (
    "tx.packets",
    "tx.bytes",
    "rx.packets",
    "rx.bytes",
    "rx.accepted",
    "rx.duplicate",
    "rx.out_of_sequence",
    "tx.retransmitted",
    "tx.acks",
    "tx.naks",
    "tx.rnr_naks",
    "rx.naks",
    "rx.rnr_naks",
    "timeouts",
    "rx.ident_solved",
    "rx.congestion_notification",
    "reads.withdrawn",
    "looped.packets",
    "drop.short",
    "drop.length",
    "drop.version",
    "drop.opcode",
    "drop.icrc",
    "drop.ident",
    "drop.no_qp",
    "drop.qp_state",
    "drop.service",
    "drop.pkey",
    "drop.qkey",
    "drop.source",
    "drop.stale_response",
    "drop.no_receive",
    "drop.too_long",
    "drop.protection",
    "drop.invalid_request",
    "drop.message_broken",
    "drop.no_atomic_result",
    "drop.answers_full",
    "drop.cq_overflow",
    "drop.tx_no_route",
    "drop.rx_socket",
    "rx.replicated",
    "path.migrations",
    "tx.held",
    "drop.link_version",
    "drop.link_length",
    "drop.port_state",
    "drop.vl15",
    "drop.dlid",
    "drop.raw",
    "drop.grh_version",
    "drop.grh_header",
    "drop.grh_length",
    "drop.dgid",
    "drop.wrong_port",
    "drop.multicast",
    "drop.tx_port_down",
    "drop.no_protocol",
    "drop.ip_header",
    "drop.no_ee",
    "drop.rdd",
    "drop.reorder",
    "rx.reordered",
    "reorder.overflow",
    "reorder.expired",
    "tx.resyncs",
    "drop.page_awaited",
)


def _places(wanted: int) -> int:
    """The ring for that many entries: a power of two, so that indices may wrap."""
    return 1 << max(0, wanted - 1).bit_length()


class _Growing(dict):
    """Uncompiled, an array of structs whose places are made when they are first used."""

    def __init__(self, kind):
        super().__init__()
        self._kind = kind

    def __missing__(self, place):
        self[place] = self._kind()
        return self[place]


class Tables:
    """The tables of one channel adapter.  `window_bytes` bounds what one queue pair has in flight."""

    def __init__(
        self, regions, own_gid, udp_port, max_qp, max_cq, max_recv_queue, max_path, window_bytes, max_ee=0
    ):
        i: cython.int
        self.regions = regions
        self.max_qp, self.max_cq, self.max_recv_queue, self.max_path = (
            max_qp + max_ee,
            max_cq,
            max_recv_queue,
            max_path,
        )
        self.first_ee = max_qp  # end-to-end contexts stand behind the queue pairs
        self.udp_port = udp_port
        self.window_bytes = window_bytes
        self.icrc_checked = True
        self._generations = {}
        self.unusable = set()
        # Indices are handed out upwards and come back to the end of the line, so that a number is reused late.
        self._free_qp, self._free_cq = None, None
        self.ready_size = _places(max_qp + max_ee + 2)
        self.report_size = _places(8 * (max_qp + max_ee + max_cq) + 64)
        self._allocate()
        for i in range(16):
            self.own_gid[i] = self.rx_own[i] = own_gid[i]

    def _allocate(self):
        if cython.compiled:
            self.qps = cython.cast(
                cython.pointer(cython.pointer(QueuePair)), calloc(self.max_qp, cython.sizeof(cython.p_void))
            )
            self.recv_queues = cython.cast(
                cython.pointer(cython.pointer(RecvQueue)),
                calloc(self.max_recv_queue, cython.sizeof(cython.p_void)),
            )
            self.cqs = cython.cast(
                cython.pointer(cython.pointer(CompletionRing)),
                calloc(self.max_cq, cython.sizeof(cython.p_void)),
            )
            self.paths = cython.cast(
                cython.pointer(cython.pointer(Path)), calloc(self.max_path, cython.sizeof(cython.p_void))
            )
            self.counters = cython.cast(cython.pointer(uint64_t), calloc(COUNTER_COUNT, 8))
            self.ready = cython.cast(cython.pointer(int32_t), calloc(self.ready_size, 4))
            self.due = cython.cast(cython.pointer(Due), calloc(self.max_qp, cython.sizeof(Due)))
            self.report_ring = cython.cast(
                cython.pointer(Report), calloc(self.report_size, cython.sizeof(Report))
            )
            self.flows = cython.cast(cython.pointer(Flow), calloc(FLOWS, cython.sizeof(Flow)))
            if not (self.qps and self.recv_queues and self.cqs and self.paths and self.counters):
                raise MemoryError
            if not (self.ready and self.due and self.report_ring and self.flows):
                raise MemoryError
        else:
            self.qps = [None] * self.max_qp
            self.recv_queues = [None] * self.max_recv_queue
            self.cqs = [None] * self.max_cq
            self.paths = [None] * self.max_path
            self.counters = [0] * COUNTER_COUNT
            self.own_gid, self.rx_own = bytearray(16), bytearray(16)
            self.ready = [0] * self.ready_size
            self.ready_head = self.ready_tail = self.due_count = self.report_head = self.report_tail = 0
            self.due = _Growing(Due)
            self.report_ring = _Growing(Report)
            self.flows = [Flow() for _ in range(FLOWS)]
        self._free_qp = [*range(16, self.first_ee)]
        self._free_qp.reverse()
        self._free_ee = [*range(self.first_ee, self.max_qp)]
        self._free_ee.reverse()
        self._free_queue = [*range(self.max_recv_queue)]
        self._free_queue.reverse()
        self._free_cq = [*range(self.max_cq)]
        self._free_cq.reverse()
        self._free_path = [*range(self.max_path)]
        self._free_path.reverse()

    def __dealloc__(self):
        i: cython.int
        if not cython.compiled:
            return
        if self.qps:
            for i in range(self.max_qp):
                if self.qps[i]:
                    free(self.qps[i].sq)
                    free(self.qps[i].sge)
                    free(self.qps[i].inline_data)
                    free(self.qps[i].answers)
                    free(self.qps[i].atomics)
                    free(self.qps[i].loans)
                    free(self.qps[i].tails)
                    free(self.qps[i].early_requests)
                    free(self.qps[i].early_responses)
                    free(self.qps[i])
        if self.recv_queues:
            for i in range(self.max_recv_queue):
                if self.recv_queues[i]:
                    free(self.recv_queues[i].ring)
                    free(self.recv_queues[i].sge)
                    free(self.recv_queues[i])
        if self.cqs:
            for i in range(self.max_cq):
                if self.cqs[i]:
                    free(self.cqs[i].ring)
                    free(self.cqs[i])
        if self.paths:
            for i in range(self.max_path):
                free(self.paths[i])
        free(self.qps)
        free(self.recv_queues)
        free(self.cqs)
        free(self.paths)
        free(self.counters)
        free(self.ready)
        free(self.due)
        free(self.report_ring)
        free(self.flows)

    # --- what callers in Python name by its index: it may have been closed since they looked ----------------

    def qp_at(self, at):
        if not 0 <= at < self.max_qp or not self.qps[at]:
            raise ClosedError("this queue pair was closed in the meantime")
        return self.qps[at]

    def queue_at(self, at):
        if not 0 <= at < self.max_recv_queue or not self.recv_queues[at]:
            raise ClosedError("this receive queue was closed in the meantime")
        return self.recv_queues[at]

    def cq_at(self, at):
        if not 0 <= at < self.max_cq or not self.cqs[at]:
            raise ClosedError("this completion queue was closed in the meantime")
        return self.cqs[at]

    def path_at(self, at):
        if not 0 <= at < self.max_path or not self.paths[at]:
            raise ClosedError("this path was closed in the meantime")
        return self.paths[at]

    # --- making and freeing -------------------------------------------------------------------------------

    def _slot(self, free_list, what, limit):
        if not free_list:
            raise ResourceError(f"all {limit} {what} of the adapter are in use: close one")
        return free_list.pop()

    def make_cq(self, depth):
        """A completion ring for `depth` entries; returns its index."""
        at: cython.int = self._slot(self._free_cq, "completion queues", self.max_cq)
        places: cython.uint = _places(depth)
        if cython.compiled:
            ring = cython.cast(cython.pointer(CompletionRing), calloc(1, cython.sizeof(CompletionRing)))
            if not ring:
                raise MemoryError
            ring.ring = cython.cast(cython.pointer(Cqe), calloc(places, cython.sizeof(Cqe)))
            if not ring.ring:
                free(ring)
                raise MemoryError
        else:
            ring = CompletionRing()
            ring.ring = [Cqe() for _ in range(places)]
        ring.size, ring.mask, ring.live = depth, places - 1, True
        ring.handler = ring.next_event = -1
        self.cqs[at] = ring
        return at

    def resize_cq(self, index, depth):
        """Give a completion queue another depth; its entries stay, in their order.

        Raises `InvalidAttributeError` when more entries wait than would fit.
        """
        at: cython.int = index
        i: cython.uint
        places: cython.uint = _places(depth)
        ring = self.cq_at(at)
        waiting = (ring.head - ring.tail) & 0xFFFFFFFF
        if waiting > depth:
            raise InvalidAttributeError(
                f"depth = {depth}: {waiting} entries wait to be polled, poll them first"
            )
        if cython.compiled:
            made = cython.cast(cython.pointer(Cqe), calloc(places, cython.sizeof(Cqe)))
            if not made:
                raise MemoryError
        else:
            made = [Cqe() for _ in range(places)]
        i = ring.tail
        while i != ring.head:
            made[i & (places - 1)] = ring.ring[i & ring.mask]
            i += 1
        if cython.compiled:
            free(ring.ring)
        ring.ring = made
        ring.size, ring.mask = depth, places - 1

    def free_cq(self, index):
        at: cython.int = index
        ring = self.cq_at(at)
        if cython.compiled:
            free(ring.ring)
            free(ring)
            self.cqs[at] = cython.NULL
        else:
            self.cqs[at] = None
        self._free_cq.insert(0, index)

    def make_recv_queue(self, size, max_sge, domain, shared):
        """A receive queue of `size` work requests; returns its index."""
        at: cython.int = self._slot(self._free_queue, "receive queues", self.max_recv_queue)
        places: cython.uint = _places(size)
        sges: cython.uint = max(1, max_sge)
        if cython.compiled:
            queue = cython.cast(cython.pointer(RecvQueue), calloc(1, cython.sizeof(RecvQueue)))
            if not queue:
                raise MemoryError
            queue.ring = cython.cast(cython.pointer(RecvWqe), calloc(places, cython.sizeof(RecvWqe)))
            queue.sge = cython.cast(cython.pointer(Sge), calloc(places * sges, cython.sizeof(Sge)))
            if not queue.ring or not queue.sge:
                free(queue.ring)
                free(queue.sge)
                free(queue)
                raise MemoryError
        else:
            queue = RecvQueue()
            queue.ring = [RecvWqe() for _ in range(places)]
            queue.sge = [Sge() for _ in range(places * sges)]
        queue.size, queue.mask, queue.max_sge = size, places - 1, sges
        queue.domain, queue.shared, queue.live = domain, shared, True
        self.recv_queues[at] = queue
        return at

    def free_recv_queue(self, index):
        at: cython.int = index
        queue = self.queue_at(at)
        if cython.compiled:
            free(queue.ring)
            free(queue.sge)
            free(queue)
            self.recv_queues[at] = cython.NULL
        else:
            self.recv_queues[at] = None
        self._free_queue.insert(0, index)

    def make_qp(
        self, service, domain, send_cq, recv_cq, recv_queue, sq_size, max_send_sge, max_inline, fixed=0
    ):
        """A queue-pair context in RESET; returns (index, number).  `fixed` asks for that number (QP1)."""
        at: cython.int = fixed
        to_send, to_receive = self.cq_at(send_cq), self.cq_at(recv_cq)
        self.queue_at(recv_queue)
        if fixed:
            if self.qps[at]:
                raise ResourceError(f"queue pair {fixed} exists already: an adapter has one")
        else:
            at = self._slot(self._free_qp, "queue pairs", self.max_qp)
        generation = self._generations.get(at, 0)
        self._generations[at] = (generation + 1) & 0xFF
        places: cython.uint = _places(sq_size)
        sges: cython.uint = max(1, max_send_sge)
        if cython.compiled:
            q = cython.cast(cython.pointer(QueuePair), calloc(1, cython.sizeof(QueuePair)))
            if not q:
                raise MemoryError
            q.sq = cython.cast(cython.pointer(SendWqe), calloc(places, cython.sizeof(SendWqe)))
            q.sge = cython.cast(cython.pointer(Sge), calloc(places * sges, cython.sizeof(Sge)))
            if max_inline:
                q.inline_data = cython.cast(cython.pointer(uint8_t), calloc(places, max_inline))
            if not q.sq or not q.sge or (max_inline and not q.inline_data):
                free(q.sq)
                free(q.sge)
                free(q)
                raise MemoryError
        else:
            q = QueuePair()
            q.sq = [SendWqe() for _ in range(places)]
            q.sge = [Sge() for _ in range(places * sges)]
            q.recv_sge = [Sge() for _ in range(MAX_SGE)]
            q.inline_data = bytearray(places * max_inline)
        q.index, q.qpn = at, fixed or (at | generation << 16)
        q.service, q.domain, q.send_cq, q.recv_cq = service, domain, send_cq, recv_cq
        q.recv_queue, q.sq_size, q.sq_mask = recv_queue, sq_size, places - 1
        q.max_send_sge, q.max_inline, q.path, q.live = sges, max_inline, -1, True
        q.alt_path, q.held_next, q.parked_next = -1, -1, -1
        q.send_domain, q.recv_qpn, q.reliable, q.lender, q.holder = domain, q.qpn, service == RC, -1, -1
        self.qps[at] = q
        to_send.users += 1
        to_receive.users += 1
        return (at, q.qpn)

    def forget(self, q):
        """Take a queue pair out of the timer heap and the line of senders (`core` knows how)."""

    def free_qp(self, index):
        at: cython.int = index
        q = self.qp_at(at)
        self.cqs[q.send_cq].users -= 1
        self.cqs[q.recv_cq].users -= 1
        if q.path >= 0:
            self.free_path(q.path)
        if q.alt_path >= 0:
            self.free_path(q.alt_path)
        self.forget(q)
        self.regions.forget_queue_pair(q.qpn)
        self.free_context(at)
        if index >= 16:
            self._free_qp.insert(0, index)

    def free_context(self, at):
        """Free the memory of a queue pair or end-to-end context that nothing refers to any more."""
        q = self.qps[at]
        if cython.compiled:
            free(q.sq)
            free(q.sge)
            free(q.inline_data)
            free(q.answers)
            free(q.atomics)
            free(q.loans)
            free(q.tails)
            free(q.early_requests)
            free(q.early_responses)
            free(q)
            self.qps[at] = cython.NULL
        else:
            self.qps[at] = None

    def set_responder(self, index, max_dest_rd_atomic):
        """Give a queue pair its responder resources: places for answers that wait, results kept for replay."""
        at: cython.int = index
        q = self.qp_at(at)
        n: cython.uint = max(1, max_dest_rd_atomic)
        # One place for each READ and atomic and as many for repeated ones; where every packet is acknowledged by
        # itself, also one for each packet of a burst, and room to spare.
        places: cython.uint = _places(2 * n + (2 * BURST_PACKETS if q.ack_each else 0))
        i: cython.uint
        place: cython.uint
        # Drained of its own requests, a queue pair may still have to answer the peer's: what there is, is kept.
        kept: cython.uint = min(n, q.atomics_size)
        if q.answers_head != q.answers_tail:
            places = max(places, q.answers_size)
        if cython.compiled:
            answers = cython.cast(cython.pointer(Answer), calloc(places, cython.sizeof(Answer)))
            atomics = cython.cast(cython.pointer(AtomicResult), calloc(n, cython.sizeof(AtomicResult)))
            if not answers or not atomics:
                free(answers)
                free(atomics)
                raise MemoryError
        else:
            answers = [Answer() for _ in range(places)]
            atomics = [AtomicResult() for _ in range(n)]
        place = q.answers_head
        while place != q.answers_tail:
            answers[place & (places - 1)] = q.answers[place & (q.answers_size - 1)]
            place += 1
        for i in range(kept):  # the newest, in their order
            atomics[i] = q.atomics[(q.atomics_next + q.atomics_size - kept + i) % q.atomics_size]
        if cython.compiled:
            free(q.answers)
            free(q.atomics)
        q.answers, q.atomics = answers, atomics
        q.answers_size, q.atomics_size, q.atomics_next = places, n, kept % n

    def make_path(self, gid, hop_limit, traffic_class, flow_label, own_gid=None):
        """A path to a GID, from a GID of this adapter; returns its index.

        Count its users with `hold_path` and `free_path`.
        """
        i: cython.int
        if not self._free_path:
            self._reclaim_paths()
        at: cython.int = self._slot(self._free_path, "paths", self.max_path)
        if cython.compiled:
            p = cython.cast(cython.pointer(Path), calloc(1, cython.sizeof(Path)))
            if not p:
                raise MemoryError
        else:
            p = Path()
        for i in range(16):
            p.remote[i] = gid[i]
            p.own[i] = self.own_gid[i] if own_gid is None else own_gid[i]
        p.is_ip4 = gid[:12] == b"\0" * 10 + b"\xff\xff"
        p.loopback = gid == bytes([p.own[i] for i in range(16)])
        p.hop_limit, p.traffic_class, p.flow_label = hop_limit, traffic_class, flow_label
        p.users, p.live = 1, True
        p.usable = bytes([p.own[i] for i in range(16)]) not in self.unusable
        if cython.compiled:
            prefix(p.prefix, p.is_ip4, p.own, p.remote, self.udp_port, self.udp_port)
        else:
            p.prefix = bytearray(64)
            prefix(p.prefix, p.is_ip4, p.own, p.remote, self.udp_port, self.udp_port)
        self.paths[at] = p
        return at

    def hold_path(self, index):
        at: cython.int = index
        self.path_at(at).users += 1

    def free_path(self, index):
        at: cython.int = index
        path = self.path_at(at)
        path.users -= 1
        if not path.users:
            self._drop_path(at)

    def _reclaim_paths(self):
        """Free the paths of address handles that were closed before their last datagram had left."""
        i: cython.int
        for i in range(self.max_path):
            if self.paths[i] and not self.paths[i].users:
                self._drop_path(i)

    def _drop_path(self, at: cython.int):
        if cython.compiled:
            free(self.paths[at])
            self.paths[at] = cython.NULL
        else:
            self.paths[at] = None
        self._free_path.insert(0, int(at))
