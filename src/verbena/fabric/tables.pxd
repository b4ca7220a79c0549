# What the fabric simulator keeps: nodes, ports, lanes, queues, packets, events.  The one place where these are
# declared; the uncompiled twin reads this file (see _declarations.py).  Everything is reached through pointers that
# stay valid: pools grow by chunks.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:  # kinds of nodes: an endnode's port sends and receives, a switch forwards
    ENDNODE = 0
    SWITCH = 1

cdef enum:  # port states, values of PortInfo:PortState (IBA vol. 1, 14.2.5.6)
    STATE_DOWN = 1
    STATE_INIT = 2
    STATE_ARMED = 3
    STATE_ACTIVE = 4

cdef enum:
    VL15 = 15
    LANES = 16
    BLOCK = 64  # bytes of a credit
    FLIT_HEADER = 12
    FLIT_PAYLOAD = 80
    NO_ROUTE = 255
    FIRST_MULTICAST = 0xC000
    PERMISSIVE = 0xFFFF
    OVERHEAD = 126  # a packet's bytes beside its payload: at most
    VCRC_BYTES = 2
    VL15_BUFFER = 64  # blocks of the receive buffer of VL15: 16 management datagrams
    SEND_QUEUE = 64  # packets that wait in a port's send queue of one lane
    CHUNK = 64  # structs that a pool takes at once
    KEPT_FROM = 2048  # bytes of packets of this size,
    KEPT_ROOM = 4352  # and up to this one (4,096 bytes with all headers), are kept for others
    BATCH = 15  # events that lie together
    CACHE_LINE = 64
    FIRST_SLAB = 65536  # bytes taken from the system; each slab is twice as large as the one before ...
    LARGEST_SLAB = 8388608  # ... up to this
    HUGE_PAGE = 2097152
    MASK_BYTES = 32  # a set of ports 0..255

cdef enum:  # kinds of events
    EVENT_ARRIVE = 0  # a packet's head may leave the switch, or its tail has reached an endnode
    EVENT_SENT = 1  # a packet's (or flit's) last byte left the port
    EVENT_CREDIT = 2  # credit has come back
    EVENT_SOURCE = 3  # a source makes a packet
    EVENT_TIMEOUT = 4  # the head of a queue has waited for too long
    EVENT_WAKE = 5  # a head that had to be held back may be sent
    EVENT_FLIT = 6  # a flit's last byte has reached the port
    EVENT_READY = 7  # bytes of a packet may leave the switch
    EVENT_ACK = 8  # flits received must be acknowledged
    EVENT_REPLAY = 9  # flits sent were not acknowledged in time
    EVENT_ASK = 10  # a packet has waited for credit: ask the peer

cdef enum:  # counters of a port
    XMIT_PACKETS = 0  # these four are kept by lane
    XMIT_BYTES = 1
    RCV_PACKETS = 2
    RCV_BYTES = 3
    XMIT_WAIT_PS = 4
    DELIVERED = 5
    XMIT_FLITS = 6
    RCV_FLITS = 7
    XMIT_ACKS = 8
    XMIT_NAKS = 9
    XMIT_CREDITS = 10
    FLIT_RETRIES = 11
    REPLAYED = 12
    FLIT_ERRORS = 13
    SEQUENCE_ERRORS = 14
    BIT_ERRORS = 15
    WITHOUT_CREDIT = 16
    BUFFER_OVERRUN = 17
    LINK_RECOVERED = 18
    LINK_DOWNED = 19
    DROP_LFT = 20
    DROP_MFT = 21
    DROP_PKEY = 22
    DROP_HOQ = 23
    DROP_LIFETIME = 24
    DROP_VL15 = 25
    DROP_LINK = 26
    DROP_STATE = 27
    DROP_MTU = 28
    DROP_LANE = 29
    DROP_VCRC = 30
    DROP_NODE = 31
    DROP_SMI = 32
    COUNTERS = 33

cdef enum:  # reports to the software above
    LINK_UP = 1
    LINK_DOWN = 2
    ROOM = 3
    PKEY_VIOLATION = 4
    FLITS_READY = 5

cdef enum:  # what a trace holds, as bits for `trace_on`
    TRACE_SEND = 1  # a packet begins to leave a port
    TRACE_ARRIVE = 2  # a packet's head may be forwarded by the switch
    TRACE_DELIVER = 4
    TRACE_DROP = 8
    TRACE_FLIT_SENT = 16
    TRACE_FLIT_RECEIVED = 32
    TRACE_SENT = 64  # a packet's last byte has left a port

# What is used for every packet lies together in lines of the processor's cache (64 bytes), the rest behind it: with
# many thousands of ports the time goes into waiting for memory.

cdef struct Event:  # half a line
    int64_t time  # ps
    Port *port
    void *what  # the packet, queue or flit
    uint32_t stamp  # of the link or queue that it belongs to: an event whose stamp is old means nothing
    uint16_t number
    uint8_t kind
    uint8_t lane

cdef struct Batch:  # events of one slot of the wheel
    Batch *next
    int32_t count
    Event event[15]

cdef struct Packet:
    Packet *next
    uint8_t *data  # LRH ... VCRC; nothing: only a length
    int64_t entered_ps  # when its head could leave the node it is in
    int64_t tail_ps  # when its last byte has arrived there; once it is being sent: in the next node
    int64_t came_ps  # once it is being sent: when its last byte has arrived in this node
    int64_t since_ps  # it waits for its output since
    int32_t size  # LRH ... VCRC
    uint16_t blocks
    uint16_t dlid
    uint16_t refs
    uint8_t lane
    uint8_t sl
    uint8_t in_port
    uint8_t bad  # cut off by a link that went down
    uint8_t phantom
    uint8_t gone  # flit mode: dropped, and more of it is on its way
    Source *source
    Port *output  # flit mode: where it is being sent
    Packet *older  # all that were ever made
    int64_t born_ps
    int64_t id
    int64_t tag
    int32_t ready  # flit mode: bytes that may be sent on
    int32_t received  # flit mode: bytes received
    uint8_t entered  # flit mode: it has joined a queue

cdef struct Queue:
    Packet *head
    Packet *tail
    Packet *sending
    Port *port  # where the packets came in, or will go out if this is a send queue
    Port *output  # which output the head waits for
    Queue *next  # in that output's ring
    int32_t length
    uint32_t stamp
    uint8_t lane
    uint8_t inbound  # packets hold blocks of the port's receive buffer
    uint8_t waiting
    uint8_t delayed  # an event will enlist the head
    uint8_t copies  # multicast copies that still wait or travel
    uint8_t is_copy
    Queue *owner  # a multicast copy's: the queue that holds the buffer

cdef struct Lane:
    int32_t credits  # blocks that the peer has room for, as far as this side has looked
    int32_t offset  # flit mode: bytes sent of the packet on its way out
    Queue *first  # queues whose heads wait for this output, in the order of their turns
    Queue *last
    int64_t xmit_packets
    int64_t xmit_bytes
    Queue *outbox
    Queue *active  # flit mode: whose packet is on its way out
    int32_t sent  # flit mode: blocks sent, modulo 4096
    int32_t limit  # flit mode: what the peer allowed, modulo 4096
    # The other half belongs to what comes in by the port, and has a line of its own.
    int32_t occupied
    int32_t size  # blocks of the receive buffer
    Queue *inbox
    int64_t rcv_packets
    int64_t rcv_bytes
    Queue **voq  # by output port
    int64_t freed_ps  # from when on the peer may use `freeing`
    int32_t freeing
    int32_t freed  # blocks that the peer may use, and has not looked for yet
    uint8_t wanted  # the peer waits for credit
    uint8_t room_wanted
    uint8_t skip  # flit mode: the rest of a packet that was refused
    int32_t arrived  # flit mode: blocks received since the link came up, modulo 4096
    int32_t told  # flit mode: what this side allowed last, modulo 4096
    Packet *arriving  # flit mode

cdef struct Arbiter:  # VL arbitration (IBA vol. 1, 7.6.9)
    int32_t high_count
    int32_t low_count
    int32_t high_at
    int32_t low_at
    int32_t high_left  # bytes left to the current entry
    int32_t low_left
    int32_t limit  # Limit_High
    int64_t allowance  # bytes of high priority until low priority has a turn
    uint8_t high_vl[64]
    uint8_t high_weight[64]
    uint8_t low_vl[64]
    uint8_t low_weight[64]

cdef struct Port:
    Node *node
    Port *peer
    int64_t credit_ps  # how long a credit takes to come back: the cable and an empty flit
    uint32_t waiting  # lanes on which heads wait
    uint32_t epoch  # of the link
    int32_t max_size
    uint8_t state
    uint8_t number
    uint8_t lanes
    uint8_t turn
    uint8_t busy
    uint8_t limited  # its head-of-queue limit is not 0
    uint8_t stalled
    uint8_t hold
    uint8_t visible
    uint8_t coupled  # data packets are an engine's (see `runtime.coupling`): they are not looked for at once
    uint8_t tapped
    uint8_t pkeys_in
    uint8_t pkeys_out
    uint8_t far_cuts  # the peer is a switch that cuts through
    Lane *lane[16]
    LinkLayer *link
    int64_t rate_bps
    int64_t free_ps  # when the last transmission ends or ended
    int64_t busy_ps  # how long it has been sending, until free_ps
    int64_t byte_ps  # 0: no whole number
    int64_t delay_ps
    int64_t far_latency_ps  # of the peer's node
    int64_t wait_since_ps  # -1: nothing waits for credit
    Queue *tx_queue
    Arbiter *arbiter
    uint32_t far_epoch  # the peer's
    int32_t index
    int64_t remainder  # of the division by the rate
    int64_t hoq_ps
    uint8_t external
    int32_t send_queue
    int32_t pkey_count
    uint16_t *pkeys
    uint8_t sl2vl[16]
    int32_t lid
    int32_t lmc
    int64_t counters[33]

cdef struct Node:
    int64_t latency_ps
    int64_t lifetime_ps
    Port **port
    uint8_t *lft
    int32_t lft_size
    int32_t ports  # highest port number
    uint16_t lid  # of a switch's port 0
    uint8_t lmc
    uint8_t kind
    uint8_t cut_through
    uint8_t voq
    uint8_t per_input
    uint8_t mixed  # its ports have different rates
    int64_t rate_bps  # of its first cable
    uint8_t **tables  # by input port
    int32_t *table_sizes
    uint8_t *mft
    int32_t mft_size
    int32_t index

cdef struct Source:
    Port *port
    uint64_t random
    int64_t next_ps
    int64_t mean_gap_ps
    int64_t stop_ps  # -1: none
    int64_t left  # packets, -1 without end
    int32_t index
    int32_t burst
    int32_t in_burst
    int32_t process
    int32_t cyclic
    int32_t size
    int32_t count  # destinations, or packets of a trace
    int32_t at
    int32_t queued
    bint waiting  # for room in its queue
    bint scheduled
    const uint16_t *dlid
    const uint8_t *sl
    const int64_t *time  # a trace's
    const int32_t *sizes
    int32_t group  # whose latencies are counted together; -1: none
    int64_t made  # packets
    int64_t delivered
    int64_t dropped
    int64_t delivered_bytes
    int64_t latency_sum
    int64_t latency_max

cdef struct Flit:
    Flit *next
    int32_t size  # of the payload
    int32_t sequence
    int64_t packet_id
    int64_t tag
    int64_t born_ps
    uint8_t kind
    uint8_t lane
    bint first
    bint last
    bint phantom
    uint8_t data[92]

cdef struct LinkLayer:  # what flit mode keeps for a port
    Flit *replay  # sent and not acknowledged, oldest first
    Flit *replay_last
    Flit *resend  # the next one to be sent again
    Flit *leaving  # an external port's flit
    uint64_t random
    int64_t error_distance  # mean, in bits; 0: no errors
    int64_t bits_to_error  # sent before the next bit that is flipped
    int64_t progress_ps  # when the peer last acknowledged something, or the replay buffer was empty
    int64_t first_ps  # when the first flit came that was not acknowledged yet
    int64_t ack_ps  # how long an acknowledgment may wait for more
    int64_t replay_ps  # how long the peer may take to acknowledge
    int64_t ask_ps  # how long to wait for credit before asking
    int64_t given_ack_ps  # an external port's own times; 0: derived from the rate, as on a cable
    int64_t given_replay_ps
    int64_t given_ask_ps
    bint patient  # never trains again by itself: whoever carries the flits knows when the peer is gone
    int32_t unacknowledged
    int32_t next_sequence
    int32_t acknowledged  # last number acknowledged by the peer
    int32_t expected
    int32_t to_acknowledge  # flits received since the last acknowledgment
    int32_t replays  # without progress
    uint32_t active  # lanes with a packet on its way out
    uint32_t credit_due  # lanes whose credit the peer should be told
    uint32_t asks  # lanes on which this side asks for credit
    int32_t credit_turn
    bint ack_due
    bint nak_due
    bint nak_sent
    bint ack_timer
    bint replay_timer
    bint ask_timer
    uint8_t *out  # an external port's bytes that wait to be taken
    int64_t out_size
    int64_t out_room

cdef struct Trace:
    int64_t time_ps
    int32_t port
    int32_t sequence
    int32_t size
    uint8_t kind
    uint8_t lane
    uint8_t detail
    int64_t packet_id

cdef struct Report:
    int32_t kind
    int32_t port
    int32_t detail

cdef extern from *:
    void *NOTHING "NULL"
    Event *NO_EVENT "NULL"
    Batch *NO_BATCH "NULL"
    Packet *NO_PACKET "NULL"
    Queue *NO_QUEUE "NULL"
    Port *NO_PORT "NULL"
    Source *NO_SOURCE "NULL"
    Flit *NO_FLIT "NULL"
    Lane *NO_LANE "NULL"
    Arbiter *NO_ARBITER "NULL"
    LinkLayer *NO_LINK "NULL"
    uint8_t *NO_BYTES "NULL"

cdef extern from "Python.h":
    void Py_FatalError(const char *) noexcept nogil

cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    #if defined(MADV_HUGEPAGE)
    #define verbena_use_huge_pages(p, n) ((void)madvise((p), (n), MADV_HUGEPAGE))
    #else
    #define verbena_use_huge_pages(p, n) ((void)0)
    #endif
    """
    void use_huge_pages "verbena_use_huge_pages"(void *, size_t) noexcept nogil

cdef int64_t BYTE_PS  # how long a byte takes at 1 bit/s, in ps

cdef class Tables:
    cdef Node **nodes
    cdef Port **ports
    cdef Source **sources
    cdef int32_t node_count
    cdef int32_t port_count
    cdef int32_t source_count
    cdef int32_t node_room
    cdef int32_t port_room
    cdef int32_t source_room
    cdef Packet *free_packets
    cdef Packet *all_packets
    cdef uint8_t *kept_bytes  # the first of those that are kept; each begins with the address of the next
    cdef Batch *free_batches
    cdef Flit *free_flits
    cdef Queue *free_queues
    cdef void **slabs
    cdef int32_t slab_count
    cdef int64_t slab_left  # bytes of the last slab
    cdef uint8_t *slab_at
    cdef bint flits
    cdef readonly int64_t inside  # packets in the fabric
    cdef int64_t next_id
    cdef int64_t now_ps

    cdef void *take(self, size_t size) noexcept nogil
    cdef Packet *new_packet(self) noexcept nogil
    cdef void release_packet(self, Packet *p) noexcept nogil
    cdef void give_bytes(self, Packet *p) noexcept nogil
    cdef void take_bytes(self, Packet *p) noexcept nogil
    cdef Batch *new_batch(self) noexcept nogil
    cdef Flit *new_flit(self) noexcept nogil
    cdef void free_flit(self, Flit *f) noexcept nogil
    cdef Queue *new_queue(self, Port *port, int lane, bint inbound) noexcept nogil
    cdef void free_queue(self, Queue *q) noexcept nogil
    cdef Port *port_at(self, index) except NULL
    cdef Node *node_at(self, index) except NULL
    cdef void open_lane(self, Port *port, int lane, int64_t blocks)
