# C types of fabric/flits.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from verbena.fabric.tables cimport Event, Flit, Lane, LinkLayer, Node, Packet, Port, Queue
from verbena.fabric.trains cimport Trains

cdef class Flits(Trains):
    cdef void dress(self, Packet *p) noexcept nogil
    cdef void link_event(self, Event *e) noexcept nogil
    cdef void retrain(self, Port *o) noexcept nogil
