# C types of transport/engine.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.sources cimport Sources
from verbena.transport.tables cimport QueuePair

cdef enum:
    LARGEST_PAYLOAD = 4096
    MULTICAST_QPN = 0xFFFFFF

cdef enum:
    AHEAD_PACKETS = 4  # so many packets before a request is executed, its key is looked up

cdef uint8_t _heads[256]
cdef uint8_t _bodies[256]

cdef bint is_response(uint32_t opcode) noexcept nogil

cdef class Engine(Sources):
    cdef uint8_t grh[40]

    cdef void take_burst(self, uint8_t *b, size_t n, size_t segment, uint8_t *source, uint32_t port,
                         uint32_t first, uint64_t now) noexcept nogil
    cdef void look_ahead(self, uint8_t *b, size_t at, size_t n) noexcept nogil
    cdef void take_packet(self, uint8_t *b, size_t at, size_t n, uint32_t place, uint64_t now) noexcept nogil
    cdef void execute(self, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t code, uint32_t pad,
                      uint64_t now) noexcept nogil
    cdef bint from_peer(self, QueuePair *q, uint8_t *b) noexcept nogil
    cdef bint by_other_path(self, QueuePair *q, uint8_t *b) noexcept nogil
    cdef bint to_members(self, uint8_t *b, size_t at, size_t n, uint32_t code, uint32_t pad) noexcept nogil
    cdef int write_grh(self, uint8_t *b, size_t n) noexcept nogil
    cdef bint must_wait(self, QueuePair *q) noexcept nogil
    cdef bint stays_inside(self, uint8_t *b, size_t n, uint64_t now) noexcept nogil
    cdef bint right_partition(self, QueuePair *q, uint32_t pkey) noexcept nogil
    cdef void datagram(self, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t pad,
                       bint solicited) noexcept nogil
    cdef size_t make_requests(self, QueuePair *q, uint8_t *b, size_t size, uint64_t now) noexcept nogil
    cdef size_t make_answers(self, QueuePair *q, uint8_t *b, size_t size) noexcept nogil
    cdef size_t make_burst(self, uint8_t *b, size_t size, uint64_t now) noexcept nogil
    cdef void run_timers(self, uint64_t now) noexcept nogil
