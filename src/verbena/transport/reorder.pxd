# C types of transport/reorder.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport Early, QueuePair

cdef Early *early_at(Early *window, uint32_t psn) noexcept nogil
cdef void arrived(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, bint answer, uint64_t now) noexcept nogil
cdef void hand_on(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, bint answer, uint64_t now) noexcept nogil
cdef bint keep(Core e, Early *slot, uint8_t *b, size_t at, size_t n, uint32_t psn) noexcept nogil
cdef void arrived_request(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t psn,
                          uint64_t now) noexcept nogil
cdef void arrived_response(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t psn,
                           uint64_t now) noexcept nogil
cdef bint is_early(QueuePair *q, uint8_t *b, size_t at, uint32_t psn) noexcept nogil
cdef void follow_requests(Core e, QueuePair *q, uint64_t now) noexcept nogil
cdef void follow_responses(Core e, QueuePair *q, uint64_t now) noexcept nogil
cdef Early *earliest_response(Core e, QueuePair *q) noexcept nogil
cdef void gap_tick(Core e, QueuePair *q, uint64_t now) noexcept nogil
