# C types of fabric/arbitration.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from verbena.fabric.ledger cimport Ledger
from verbena.fabric.tables cimport Arbiter, Lane, Packet, Port, Queue

cdef class Arbitration(Ledger):
    cdef bint may_send(self, Port *o, int lane) noexcept nogil
    cdef bint may_send_flit(self, Port *o, int lane) noexcept nogil
    cdef void look_for_credit(self, Port *o, int lane) noexcept nogil
    cdef int pick(self, Port *o, uint32_t lanes) noexcept nogil
    cdef int by_turns(self, Port *o, uint32_t lanes) noexcept nogil
    cdef int weighted(self, Port *o, uint32_t lanes) noexcept nogil
    cdef int entry(self, Port *o, bint high, uint32_t lanes) noexcept nogil
    cdef void charge(self, Port *o, int lane, int32_t size) noexcept nogil
    cdef void join(self, Port *o, Queue *q) noexcept nogil
    cdef Queue *take_turn(self, Port *o, int lane) noexcept nogil
    cdef void unlink(self, Queue *q) noexcept nogil
    cdef int64_t occupy(self, Port *o, int64_t octets) noexcept nogil
    cdef int64_t part_span(self, Port *o, int64_t octets) noexcept nogil
    cdef int64_t span(self, Port *o, int64_t octets) noexcept nogil
