"""What the fabric simulator keeps: nodes, ports, lanes, queues, packets and events, made and freed.

`Tables` owns them: C structs (declared in ``tables.pxd``) when compiled, small classes with the same fields otherwise.
They are cut, in lines of the processor's cache, from a few large slabs that are never moved (a pointer stays valid)
and for which huge pages are asked; nothing is allocated for a packet once the pools have reached the fabric's working
size, nor for the bytes of one that is as long as most are where there is much to be carried.  A fabric that needs more
memory than the system has ends the process, as running out of memory elsewhere does.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError

if cython.compiled:
    from cython.cimports.libc.stdlib import calloc, free, malloc, realloc
else:
    from verbena._declarations import declarations

    globals().update(declarations(__file__))
    NOTHING = NO_EVENT = NO_BATCH = NO_PACKET = NO_QUEUE = NO_PORT = NO_SOURCE = NO_FLIT = NO_LANE = (
        NO_ARBITER
    ) = NO_LINK = None
    NO_BYTES = None

BYTE_PS = 8_000_000_000_000


class Tables:
    """All the objects of one fabric."""

    def __init__(self, flits):
        self.flits = flits
        self.inside = 0
        self.next_id = 1
        self.now_ps = 0
        self.node_count = self.port_count = self.source_count = 0
        self.node_room = self.port_room = self.source_room = 0
        self.slab_count = self.slab_left = 0
        if not cython.compiled:
            self.nodes, self.ports, self.sources = [], [], []
            self.free_packets = self.all_packets = self.free_flits = self.free_queues = None

    def __dealloc__(self):
        i: cython.int
        v: cython.int
        if not cython.compiled:
            return
        while (
            self.all_packets
        ):  # packets not in use have no bytes (their field is cleared when they are freed)
            free(self.all_packets.data)
            self.all_packets = self.all_packets.older
        while self.kept_bytes:
            kept = self.kept_bytes
            self.kept_bytes = cython.cast(cython.pointer(cython.pointer(uint8_t)), kept)[0]
            free(kept)
        for i in range(self.port_count):
            for v in range(LANES):
                if self.ports[i].lane[v]:
                    free(self.ports[i].lane[v].voq)
            if self.ports[i].link:
                free(self.ports[i].link.out)
                free(self.ports[i].link)
            free(self.ports[i].arbiter)
            free(self.ports[i].pkeys)
        for i in range(self.node_count):
            if self.nodes[i].tables:
                for v in range(256):
                    free(self.nodes[i].tables[v])
            free(self.nodes[i].tables)
            free(self.nodes[i].table_sizes)
            free(self.nodes[i].lft)
            free(self.nodes[i].mft)
            free(self.nodes[i].port)
        free(self.nodes)
        free(self.ports)
        free(self.sources)
        for i in range(self.slab_count):
            free(self.slabs[i])
        free(self.slabs)

    # --- pools --------------------------------------------------------------------------------------------

    def take(self, size):
        """Zeroed memory that begins a cache line; it is given back with the fabric."""
        room: cython.size_t
        skip: cython.size_t
        whole: cython.size_t = (size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
        if cython.compiled:
            if cython.cast(cython.size_t, self.slab_left) < whole:
                room = FIRST_SLAB
                for _ in range(self.slab_count):
                    if room < LARGEST_SLAB:
                        room *= 2
                align: cython.size_t = HUGE_PAGE if room >= HUGE_PAGE else CACHE_LINE
                self.slabs = cython.cast(
                    cython.pointer(cython.p_void),
                    realloc(self.slabs, (self.slab_count + 1) * cython.sizeof(cython.p_void)),
                )
                slab = (
                    cython.cast(cython.pointer(uint8_t), calloc(1, room + align)) if self.slabs else NO_BYTES
                )
                if not slab:
                    Py_FatalError("verbena: no memory left for the fabric")
                self.slabs[self.slab_count] = slab
                self.slab_count += 1
                skip = align - cython.cast(cython.size_t, slab) % align
                self.slab_at = slab + skip
                self.slab_left = room
                if align == HUGE_PAGE:
                    use_huge_pages(self.slab_at, room)
            taken = self.slab_at
            self.slab_at += whole
            self.slab_left -= whole
            return taken

    def new_packet(self):
        i: cython.int
        if self.free_packets:
            p = self.free_packets
            self.free_packets = p.next
            p.next = NO_PACKET
        elif cython.compiled:
            p = cython.cast(cython.pointer(Packet), self.take(CHUNK * cython.sizeof(Packet)))
            for i in range(CHUNK):
                p[i].older = self.all_packets
                self.all_packets = cython.address(p[i])
                if i > 0:
                    p[i].next = self.free_packets
                    self.free_packets = cython.address(p[i])
        else:
            p = Packet()
        p.id = self.next_id
        p.refs = 1
        self.next_id += 1
        self.inside += 1
        return p

    def give_bytes(self, p):
        """Bytes for a packet whose size is set; what they are is left open."""
        if cython.compiled:
            if KEPT_FROM <= p.size and p.size <= KEPT_ROOM:
                if self.kept_bytes:
                    p.data = self.kept_bytes
                    self.kept_bytes = cython.cast(cython.pointer(cython.pointer(uint8_t)), p.data)[0]
                    return
                p.data = cython.cast(cython.pointer(uint8_t), malloc(KEPT_ROOM))
            else:
                p.data = cython.cast(cython.pointer(uint8_t), malloc(p.size))
            if not p.data:
                Py_FatalError("verbena: no memory left for the fabric")
        else:
            p.data = bytearray(p.size)

    def take_bytes(self, p):
        """They are free again."""
        if cython.compiled:
            if p.data and KEPT_FROM <= p.size and p.size <= KEPT_ROOM:
                cython.cast(cython.pointer(cython.pointer(uint8_t)), p.data)[0] = self.kept_bytes
                self.kept_bytes = p.data
            else:
                free(p.data)
        p.data = NO_BYTES

    def release_packet(self, p):
        """One holder less; the last one frees it."""
        p.refs -= 1
        if p.refs > 0:
            return
        self.take_bytes(p)
        p.source = NO_SOURCE
        p.bad = p.phantom = p.entered = p.gone = False
        p.output = NO_PORT
        p.ready = p.received = 0
        p.tag = 0
        p.next = self.free_packets
        self.free_packets = p

    def new_batch(self):
        """Room for more events, when no batch is free; the uncompiled twin keeps events in lists instead."""
        i: cython.int
        size: cython.size_t
        if cython.compiled:
            size = cython.sizeof(Batch)
            for i in range(CHUNK):
                b = cython.cast(cython.pointer(Batch), self.take(size))
                b.next = self.free_batches
                self.free_batches = b
            b = self.free_batches
            self.free_batches = b.next
            b.next = NO_BATCH
            return b

    def new_flit(self):
        i: cython.int
        if self.free_flits:
            f = self.free_flits
            self.free_flits = f.next
        elif cython.compiled:
            f = cython.cast(cython.pointer(Flit), self.take(CHUNK * cython.sizeof(Flit)))
            for i in range(1, CHUNK):
                f[i].next = self.free_flits
                self.free_flits = cython.address(f[i])
        else:
            f = Flit()
        f.next = NO_FLIT
        f.first = f.last = f.phantom = False
        f.packet_id = f.tag = f.born_ps = 0
        return f

    def free_flit(self, f):
        f.next = self.free_flits
        self.free_flits = f

    def new_queue(self, port, lane, inbound):
        if self.free_queues:
            q = self.free_queues
            self.free_queues = q.next
        elif cython.compiled:
            q = cython.cast(cython.pointer(Queue), self.take(cython.sizeof(Queue)))
        else:
            q = Queue()
        q.head = q.tail = q.sending = NO_PACKET
        q.output = NO_PORT
        q.next = q.owner = NO_QUEUE
        q.copies = q.length = 0
        q.stamp += 1
        q.waiting = q.delayed = q.is_copy = False
        q.port, q.lane, q.inbound = port, lane, inbound
        return q

    def free_queue(self, q):
        q.stamp += 1
        q.next = self.free_queues
        self.free_queues = q

    # --- nodes, ports, lanes ------------------------------------------------------------------------------

    def port_at(self, index):
        """The port of that index; raises `InvalidAttributeError` for another number."""
        i: cython.int
        if not isinstance(index, int) or not 0 <= index < self.port_count:
            raise InvalidAttributeError(
                f"the fabric has no port {index!r}: it has 0 to {self.port_count - 1}"
            )
        i = index
        return self.ports[i]

    def node_at(self, index):
        """The node of that index; raises `InvalidAttributeError` for another number."""
        i: cython.int
        if not isinstance(index, int) or not 0 <= index < self.node_count:
            raise InvalidAttributeError(
                f"the fabric has no node {index!r}: it has 0 to {self.node_count - 1}"
            )
        i = index
        return self.nodes[i]

    def _make_node(self, kind, latency_ps, cut_through, voq, per_input):
        """A node without ports; returns its index."""
        if cython.compiled:
            if self.node_count == self.node_room:
                self.node_room = self.node_room * 2 + 16
                self.nodes = cython.cast(
                    cython.pointer(cython.pointer(Node)),
                    realloc(self.nodes, self.node_room * cython.sizeof(cython.p_void)),
                )
            node = cython.cast(cython.pointer(Node), self.take(cython.sizeof(Node)))
            if not self.nodes:
                raise MemoryError
            node.port = cython.cast(
                cython.pointer(cython.pointer(Port)), calloc(256, cython.sizeof(cython.p_void))
            )
            if not node.port:
                raise MemoryError
            self.nodes[self.node_count] = node
        else:
            node = Node()
            node.port = [None] * 256
            self.nodes.append(node)
        node.index, node.kind, node.ports = self.node_count, kind, 0
        node.latency_ps, node.cut_through = latency_ps, cut_through
        node.voq, node.per_input = voq, per_input
        self.node_count += 1
        return node.index

    def _make_port(self, index, number, lanes, blocks, max_size):
        """A port of a node, down; returns its index."""
        at: cython.int = number
        v: cython.int
        lanes_: cython.int = lanes
        size: cython.size_t
        line: cython.size_t
        node = self.node_at(index)
        if cython.compiled:
            if self.port_count == self.port_room:
                self.port_room = self.port_room * 2 + 16
                self.ports = cython.cast(
                    cython.pointer(cython.pointer(Port)),
                    realloc(self.ports, self.port_room * cython.sizeof(cython.p_void)),
                )
            if not self.ports:
                raise MemoryError
            # The data lanes lie just behind it (`lane_beside`).
            size = (cython.sizeof(Port) + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
            line = (cython.sizeof(Lane) + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
            block = cython.cast(cython.pointer(uint8_t), self.take(size + lanes_ * line))
            port = cython.cast(cython.pointer(Port), block)
            for v in range(lanes_):
                port.lane[v] = cython.cast(cython.pointer(Lane), block + size + v * line)
            self.ports[self.port_count] = port
        else:
            port = Port()
            port.lane = [None] * LANES
            self.ports.append(port)
        node.port[at] = port
        port.index = self.port_count
        self.port_count += 1
        port.node, port.number, port.max_size = node, at, max_size
        port.state = STATE_DOWN
        port.lanes, port.wait_since_ps, port.send_queue = lanes, -1, SEND_QUEUE
        for v in range(lanes):
            self.open_lane(port, v, blocks)
        self.open_lane(port, VL15, VL15_BUFFER)
        return port.index

    def open_lane(self, port, lane, blocks):
        """Give a port a lane with a receive buffer of that many blocks."""
        if cython.compiled:
            if not port.lane[lane]:
                port.lane[lane] = cython.cast(cython.pointer(Lane), self.take(cython.sizeof(Lane)))
        else:
            port.lane[lane] = Lane()
        made = port.lane[lane]
        made.size = blocks
        made.inbox = self.new_queue(port, lane, True)
        made.outbox = self.new_queue(port, lane, False)
        if not port.node.voq:
            return
        if cython.compiled:
            made.voq = cython.cast(
                cython.pointer(cython.pointer(Queue)), calloc(256, cython.sizeof(cython.p_void))
            )
            if not made.voq:
                raise MemoryError
        else:
            made.voq = [None] * 256

    def _make_source(self, index):
        """A source at a port; returns its index."""
        port = self.port_at(index)
        if cython.compiled:
            if self.source_count == self.source_room:
                self.source_room = self.source_room * 2 + 16
                self.sources = cython.cast(
                    cython.pointer(cython.pointer(Source)),
                    realloc(self.sources, self.source_room * cython.sizeof(cython.p_void)),
                )
            source = cython.cast(cython.pointer(Source), self.take(cython.sizeof(Source)))
            if not self.sources:
                raise MemoryError
            self.sources[self.source_count] = source
        else:
            source = Source()
            self.sources.append(source)
        source.port, source.index = port, self.source_count
        self.source_count += 1
        return source.index
