# C types of transport/datagrams.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport QueuePair

cdef int refused(Core e, QueuePair *c, uint8_t *b, size_t at) noexcept nogil
cdef void borrow(QueuePair *c, QueuePair *q) noexcept nogil
cdef void datagram_request(Core e, QueuePair *c, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                           uint32_t pad, bint solicited, bint asked) noexcept nogil
cdef void resync(Core e, QueuePair *c, uint8_t *b, size_t at, uint32_t psn) noexcept nogil
cdef void datagram_response(Core e, QueuePair *c, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                            uint32_t pad, uint64_t now) noexcept nogil
