# C types of fabric/trains.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from verbena.fabric.crossbar cimport Crossbar
from verbena.fabric.tables cimport Lane, Node, Packet, Port, Queue

cdef class Trains(Crossbar):
    cdef void pump(self, Port *o) noexcept nogil
    cdef void start(self, Port *o, int lane) noexcept nogil
    cdef void begun(self, Port *o, Packet *p) noexcept nogil
    cdef void train_sent(self, Port *o) noexcept nogil
    cdef void arrive(self, Port *r, Packet *p, uint32_t stamp) noexcept nogil
    cdef void enter(self, Port *r, Packet *p) noexcept nogil
    cdef int refused(self, Port *r, Packet *p) noexcept nogil
    cdef void reach_end(self, Port *r, Packet *p) noexcept nogil
    cdef void deliver(self, Port *r, Packet *p) noexcept nogil
    cdef void free_blocks(self, Port *r, int lane, int32_t blocks) noexcept nogil
    cdef void note_credit(self, Port *r, int lane) noexcept nogil
    cdef void send_credit(self, Port *r, int lane, int32_t blocks, int64_t when) noexcept nogil
    cdef void credit(self, Port *o, int lane, int32_t blocks) noexcept nogil
    cdef int32_t credits_of(self, Port *o, int lane) noexcept nogil
    cdef void begin_epoch(self, Port *o) noexcept nogil
    cdef void go_down(self, Port *o, int reason) noexcept nogil
    cdef void cut(self, Port *o) noexcept nogil
    cdef void cut_queue(self, Queue *q) noexcept nogil
    cdef void flush_output(self, Port *o, int reason) noexcept nogil
    cdef void come_up(self, Port *o) noexcept nogil
