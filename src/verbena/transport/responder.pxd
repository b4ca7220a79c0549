# C types of transport/responder.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport QueuePair

cdef void request(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                  uint32_t pad, bint solicited, bint asked) noexcept nogil
cdef void out_of_sequence(Core e, QueuePair *q) noexcept nogil
cdef void accept(Core e, QueuePair *q, uint32_t psn, uint32_t packets, bint message_ends,
                 bint by_ack, bint asked) noexcept nogil
cdef bint in_order(QueuePair *q, uint32_t opcode) noexcept nogil
cdef void send_packet(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                      uint32_t pad, bint solicited, bint asked) noexcept nogil
cdef void write_packet(Core e, QueuePair *q, uint8_t *b, size_t at, size_t n, uint32_t opcode, uint32_t psn,
                       uint32_t pad, bint solicited, bint asked) noexcept nogil
cdef void read_request(Core e, QueuePair *q, uint8_t *b, size_t at, uint32_t psn, bint repeated) noexcept nogil
cdef void atomic_request(Core e, QueuePair *q, uint8_t *b, size_t at, uint32_t opcode, uint32_t psn) noexcept nogil
cdef void duplicate(Core e, QueuePair *q, uint8_t *b, size_t at, uint32_t opcode, uint32_t psn) noexcept nogil
cdef uint32_t end_bits(uint32_t opcode) noexcept nogil
cdef bint too_long(uint64_t length) noexcept nogil
