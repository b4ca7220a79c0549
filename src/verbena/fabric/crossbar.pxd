# C types of fabric/crossbar.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from verbena.fabric.smi cimport Smi
from verbena.fabric.tables cimport Lane, Node, Packet, Port, Queue

cdef enum:  # what `route` says besides an output
    FATE_DROPPED = 1
    FATE_LOCAL = 2
    FATE_LATER = 3
    FATE_COPIED = 4

cdef class Crossbar(Smi):
    cdef int fate
    cdef Packet *tap_first
    cdef Packet *tap_last

    cdef void serve(self, Port *o) noexcept nogil
    cdef void credit_back(self, Port *r, int lane, int32_t blocks) noexcept nogil
    cdef void to_software(self, Port *port, Packet *p) noexcept nogil
    cdef int closed(self, Port *o, Packet *p) noexcept nogil
    cdef int table_entry(self, Node *node, int in_port, int dlid) noexcept nogil
    cdef bint pkey_fits(self, Port *port, Packet *p) noexcept nogil
    cdef bint for_switch(self, Packet *p) noexcept nogil
    cdef bint is_stored(self, Node *node, Packet *p) noexcept nogil
    cdef bint complete(self, Queue *q, Packet *p) noexcept nogil
    cdef Port *route(self, Queue *q, Packet *p) noexcept nogil
    cdef Port *route_directed(self, Queue *q, Packet *p) noexcept nogil
    cdef Port *check_output(self, Queue *q, Packet *p, Port *o) noexcept nogil
    cdef bint expired(self, Node *node, Packet *p) noexcept nogil
    cdef bint hold_back(self, Queue *q, Packet *p, Port *o) noexcept nogil
    cdef void replicate(self, Queue *q, Packet *p) noexcept nogil
    cdef Packet *copy_of(self, Packet *p) noexcept nogil
    cdef void copy_gone(self, Queue *q) noexcept nogil
    cdef int32_t pkey_of(self, Packet *p) noexcept nogil
    cdef bint wants_turn(self, Queue *q) noexcept nogil
    cdef void enlist(self, Queue *q) noexcept nogil
    cdef Packet *take_head(self, Queue *q) noexcept nogil
    cdef void give_up(self, Queue *q, int reason) noexcept nogil
    cdef void limit_wait(self, Queue *q) noexcept nogil
    cdef void timed_out(self, Queue *q, uint32_t stamp) noexcept nogil
    cdef void wake(self, Queue *q, uint32_t stamp) noexcept nogil
    cdef void line_up(self, Queue *q, Packet *p) noexcept nogil
    cdef void enter_buffer(self, Port *r, Packet *p) noexcept nogil
    cdef void append(self, Queue *q, Packet *p) noexcept nogil
    cdef void leave_buffer(self, Queue *q, Packet *p) noexcept nogil
    cdef void sent(self, Queue *q, Packet *p) noexcept nogil
    cdef Queue *inbox_of(self, Port *r, Packet *p) noexcept nogil
    cdef void note_tap(self, Port *port, Packet *p, bint outbound, int64_t time) noexcept nogil
