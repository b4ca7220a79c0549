# C types of transport/completer.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport QueuePair

cdef uint32_t _rnr_delay_us[32]

cdef bint acknowledge(Core e, QueuePair *q, uint32_t psn, uint64_t now) noexcept nogil
cdef void progressed(Core e, QueuePair *q, uint32_t packets, uint64_t now) noexcept nogil
cdef void go_back(Core e, QueuePair *q) noexcept nogil
cdef void missing(Core e, QueuePair *q, uint32_t psn) noexcept nogil
cdef void response(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                   uint32_t pad, uint64_t now) noexcept nogil
cdef void acknowledgement(Core e, QueuePair *q, uint32_t syndrome, uint32_t psn, uint64_t now) noexcept nogil
cdef void read_response(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                        uint64_t now) noexcept nogil
cdef void atomic_response(Core e, QueuePair *q, uint8_t *b, size_t at, uint32_t psn, uint64_t now) noexcept nogil
cdef void not_placed(Core e, QueuePair *q) noexcept nogil
cdef void tick(Core e, QueuePair *q, uint64_t now) noexcept nogil
cdef uint64_t rnr_delay_ns(uint32_t code) noexcept nogil
