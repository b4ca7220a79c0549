# C types of fabric/retry.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from verbena.fabric.tables cimport Flit, Lane, LinkLayer, Packet, Port, Queue
from verbena.fabric.trains cimport Trains

cdef enum:
    SEQUENCE_MASK = 4095
    HALF = 2048  # half the numbers: what is further away is behind
    WINDOW = 2047  # flits that may be unacknowledged
    ACK_AFTER = 8  # flits that one acknowledgment is for, if they come in time
    ACK_WAIT_FLITS = 32  # flit times that it waits for more
    REPLAYS = 4  # without progress; then the link trains again
    LARGEST_LIMIT = 2047  # blocks that may be open at once

cdef class Retry(Trains):
    cdef uint64_t link_seed

    cdef void accept(self, Port *r, Flit *f) noexcept nogil
    cdef void retrain(self, Port *o) noexcept nogil
    cdef int32_t limit_of(self, Lane *line) noexcept nogil
    cdef int32_t room_of(self, Lane *line) noexcept nogil
    cdef int credit_lane(self, Port *o, Flit *f) noexcept nogil
    cdef void transmit(self, Port *o, Flit *f) noexcept nogil
    cdef void draw_error(self, Port *o) noexcept nogil
    cdef void damage(self, Port *o, Flit *f) noexcept nogil
    cdef void send_control(self, Port *o, int kind, int lane, int32_t sequence, bint first) noexcept nogil
    cdef void keep(self, Port *o, Flit *f) noexcept nogil
    cdef void send_copy(self, Port *o, Flit *f) noexcept nogil
    cdef void resend_next(self, Port *o) noexcept nogil
    cdef void flit_arrived(self, Port *r, Flit *f, int32_t total) noexcept nogil
    cdef void take_credit(self, Port *r, Flit *f) noexcept nogil
    cdef void take_data(self, Port *r, Flit *f) noexcept nogil
    cdef void want_nak(self, Port *r) noexcept nogil
    cdef void acknowledged_to(self, Port *o, int32_t sequence) noexcept nogil
    cdef void replay(self, Port *o) noexcept nogil
    cdef void ack_timeout(self, Port *r) noexcept nogil
    cdef int64_t replay_wait(self, Port *o) noexcept nogil
    cdef void replay_timeout(self, Port *o) noexcept nogil
    cdef void begin_link(self, Port *o) noexcept nogil
    cdef void forget_flits(self, Port *o) noexcept nogil
