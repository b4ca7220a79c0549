# C types of fabric/core.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from verbena.fabric.meters cimport Meters
from verbena.fabric.tables cimport Event, Packet, Port, Queue

cdef class FabricCore(Meters):
    cdef dict _held
    cdef object _next_handle

    cdef void loop(self, int64_t limit) noexcept nogil
    cdef void handle(self, Event *e) noexcept nogil
    cdef bint admit(self, Port *port, const uint8_t *octets, int size, int64_t tag) noexcept nogil
