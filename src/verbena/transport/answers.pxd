# C types of transport/answers.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport Answer, QueuePair

cdef bint answer(QueuePair *q, uint32_t kind, uint32_t syndrome, uint32_t psn) noexcept nogil
cdef bint too_many(QueuePair *q) noexcept nogil
cdef void acknowledge_request(Core e, QueuePair *q, uint32_t psn, bint asked) noexcept nogil
cdef void not_ready(Core e, QueuePair *q, int reason) noexcept nogil
cdef bint not_granted(Core e, QueuePair *q, uint32_t key, uint64_t address, uint64_t length,
                      uint32_t access) noexcept nogil
cdef void refuse(Core e, QueuePair *q, uint32_t code, int event, int reason) noexcept nogil
cdef size_t answer_burst(Core e, QueuePair *q, uint8_t *b, size_t size) noexcept nogil
cdef size_t read_burst(Core e, QueuePair *q, Answer *a, uint8_t *b, size_t size) noexcept nogil
cdef size_t write_aeth(Core e, QueuePair *q, uint8_t *b, uint32_t opcode, uint32_t syndrome, uint32_t psn,
                       uint32_t msn, uint64_t value, uint32_t destination) noexcept nogil
