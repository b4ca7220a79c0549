# C types of transport/requester.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport QueuePair, SendWqe

cdef bint after(uint32_t a, uint32_t b) noexcept nogil
cdef bint is_read_or_atomic(SendWqe *w) noexcept nogil
cdef uint32_t read_chunk(QueuePair *q) noexcept nogil
cdef uint32_t chunk_end(QueuePair *q, SendWqe *w, uint32_t packet) noexcept nogil
cdef bint begin(Core e, QueuePair *q, SendWqe *w) noexcept nogil
cdef bint may_send(Core e, QueuePair *q, SendWqe *w) noexcept nogil
cdef uint32_t send_opcode(SendWqe *w, bint first, bint last) noexcept nogil
cdef bint has_immediate(uint32_t opcode) noexcept nogil
cdef uint32_t header_size(uint32_t opcode, uint32_t service) noexcept nogil
cdef void write_bth(uint8_t *b, size_t at, uint32_t opcode, uint32_t flags, uint32_t pkey, uint32_t qpn,
                    uint32_t psn) noexcept nogil
cdef uint32_t mig_request(QueuePair *q) noexcept nogil
cdef void write_extended(uint8_t *b, size_t at, QueuePair *q, SendWqe *w, uint32_t opcode, uint64_t offset,
                         uint64_t length) noexcept nogil
cdef size_t send_burst(Core e, QueuePair *q, uint8_t *b, size_t size, uint64_t now) noexcept nogil
cdef void ask_and_seal(Core e, QueuePair *q, uint8_t *b, size_t n, bint ask) noexcept nogil
cdef void send_failed(Core e, QueuePair *q, int status) noexcept nogil
cdef void advance(Core e, QueuePair *q, SendWqe *w, uint32_t packets) noexcept nogil
