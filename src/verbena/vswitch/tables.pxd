# C types of vswitch/tables.py.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef inline uint64_t bit(int i) noexcept nogil:
    return <uint64_t>1 << i

cdef extern from *:
    """
    static inline int vb_lowest(unsigned long long mask) { return __builtin_ctzll(mask); }
    """
    int vb_lowest(uint64_t mask) noexcept nogil

cdef inline int lowest(uint64_t mask) noexcept nogil:
    return vb_lowest(mask)

cdef enum:
    CLASSES = 8  # priority classes: the priority code points of IEEE 802.1Q
    MOST_PORTS = 64  # a mask of ports fits into 64 bits
    FLOOD = 64  # where group frames go
    NOBODY = -1
    UNLIMITED = -1

cdef enum:  # what became of a frame that came to the switch
    FULL = 0  # not taken: the producer sleeps until there is room
    QUEUED = 1
    CONTROL = 2  # a MAC control frame, not taken: whoever drives the port reads it
    DROPPED = -1

cdef enum:  # why a frame went no further; the names are in tables.CAUSE_NAMES, in this order
    SHORT = 0
    LONG
    LENGTH
    VLAN
    RESERVED
    PORT_DOWN
    INPUT_FULL
    OVERRUN
    OUTPUT_FULL
    DEAD_OUTPUT
    PORT_GONE
    HAIRPIN
    FOREIGN
    UNWANTED
    CAUSES

cdef enum:  # events; from STEPS on, steps of the flow charts, only when traced
    STOP = 1
    START
    WAKE_PRODUCER
    WAKE_CONSUMER
    DROP
    STEPS = 16
    IN_SIGNAL
    IN_ARRIVED
    IN_FROM_PRODUCER
    IN_FOR_FORWARDING
    IN_QUEUED
    IN_BELOW_STOP
    IN_ABOVE_STOP
    IN_OUTPUT_FULL
    IN_OUTPUT_ROOM
    IN_MOVED
    IN_ABOVE_RESTART
    IN_BELOW_RESTART
    OUT_DEQUEUED
    OUT_BELOW_RESTART
    OUT_ABOVE_RESTART
    OUT_FORWARDER_WOKEN
    OUT_CONSUMED
    OUT_PULL
    OUT_SLEEP

cdef struct Slot:
    uint8_t *data
    int32_t next
    uint32_t stored  # bytes that are kept
    uint32_t length  # bytes that count: of a frame without its payload, more
    uint32_t room  # of data
    uint16_t vlan
    uint8_t cls
    uint8_t source  # port it came from
    uint8_t out  # port it goes to, or FLOOD
    uint8_t tagged
    uint8_t marked
    uint64_t pending  # outputs that a group frame still has to reach
    int64_t ident

cdef struct Queue:
    int32_t head
    int32_t tail
    int64_t frames
    int64_t octets
    int64_t high_frames
    int64_t low_frames
    int64_t room_frames
    int64_t high_octets
    int64_t low_octets
    int64_t room_octets
    int64_t mark_octets
    int64_t credits
    bint lossless
    bint stopped
    uint64_t entered
    uint64_t left
    uint64_t stops
    uint64_t starts
    uint64_t drops
    uint64_t marks
    int64_t peak_frames
    int64_t peak_octets
    uint64_t waiting  # of an output: inputs that have something for it
    int32_t turn
    bint in_turn
    int64_t deficit[64]

cdef struct Port:
    bint up
    bint dead
    bint tags
    bint consumer_sleeps
    uint8_t producer_sleeps  # a bit for each class
    uint8_t closed  # classes that the consumer may not be given now
    uint8_t default_cls
    uint8_t next_cls
    uint8_t filled  # classes whose output queue has something
    uint16_t pvid
    uint8_t allowed[512]
    uint64_t rx_frames
    uint64_t rx_octets
    uint64_t tx_frames
    uint64_t tx_octets
    uint64_t copies
    uint64_t producer_slept
    uint64_t producer_woken
    uint64_t consumer_slept
    uint64_t consumer_woken
    uint64_t causes[16]

cdef class SwitchTables:
    cdef Slot *slots
    cdef Queue *inputs
    cdef Queue *outputs
    cdef Port *ports
    cdef int32_t *line_head
    cdef int32_t *line_tail
    cdef int64_t *log
    cdef int64_t log_room
    cdef int64_t log_count
    cdef int32_t free_slot
    cdef int32_t slot_count
    cdef int64_t ident
    cdef readonly int32_t capacity
    cdef readonly int32_t physical
    cdef readonly uint32_t max_frame
    cdef readonly bint voq
    cdef readonly bint vlans
    cdef public bint learning
    cdef public bint bypass
    cdef public bint traced
    cdef public int64_t missed_steps
    cdef uint64_t *keys
    cdef int8_t *where
    cdef uint8_t *kept
    cdef int64_t *seen
    cdef uint32_t table_size
    cdef uint32_t table_used
    cdef readonly uint32_t learned
    cdef public uint32_t most_learned
    cdef public uint64_t table_full
    cdef public int64_t now

    cdef void fill(self, int32_t s, const uint8_t *data, uint32_t stored) noexcept nogil
    cdef int32_t allocate(self) noexcept nogil
    cdef void release(self, int32_t s) noexcept nogil
    cdef void note(self, int64_t kind, int port, int cls, int64_t ident) noexcept nogil
    cdef void step(self, int64_t kind, int port, int cls, int64_t ident) noexcept nogil
    cdef void lost(self, int port, int cls, int cause, int64_t ident) noexcept nogil
    cdef int64_t find(self, uint64_t key) noexcept nogil
    cdef void learn(self, uint64_t key, int port) noexcept nogil
