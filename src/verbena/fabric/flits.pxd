# C types of fabric/flits.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from verbena.fabric.retry cimport Retry
from verbena.fabric.tables cimport Event, Flit, Lane, LinkLayer, Node, Packet, Port, Queue

cdef class Flits(Retry):
    cdef void dress(self, Packet *p) noexcept nogil
    cdef void link_event(self, Event *e) noexcept nogil
    cdef void send_piece(self, Port *o, int lane) noexcept nogil
    cdef void flit_sent(self, Port *o) noexcept nogil
    cdef void export(self, Port *o) noexcept nogil
    cdef void ask_timeout(self, Port *o) noexcept nogil
    cdef Packet *begin_packet(self, Port *r, Flit *f) noexcept nogil
    cdef void get_ready(self, Port *r, Packet *p) noexcept nogil
    cdef void truncate(self, Port *r, Packet *p) noexcept nogil
    cdef void ready(self, Port *r, Packet *p, int32_t number) noexcept nogil
    cdef void cut_flits(self, Port *o) noexcept nogil
    cdef void lose(self, Port *o, int lane, int32_t size, int64_t packet_id) noexcept nogil
    cdef void make_link(self, Port *o)
