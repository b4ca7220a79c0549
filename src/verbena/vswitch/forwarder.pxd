# C types of vswitch/forwarder.py.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from verbena.vswitch.tables cimport Queue, Slot, SwitchTables

cdef class SwitchForwarder(SwitchTables):
    cdef uint64_t todo
    cdef bint serving
    cdef int current
    cdef public bint push

    cdef void line_up(self, int port, int cls, int32_t s) noexcept nogil
    cdef void start(self, int out, int cls) noexcept nogil
    cdef int32_t line_of(self, int port, int cls, int out) noexcept nogil
    cdef void announce(self, int port, int cls, int32_t line) noexcept nogil
    cdef int32_t candidate(self, int port, int cls, int out) noexcept nogil
    cdef bint serves(self, int out, Queue *o) noexcept nogil
    cdef void serve(self, int out, int cls) noexcept nogil
    cdef void serve_one(self, int out, int cls) noexcept nogil
    cdef void move(self, int port, int cls, int out, int32_t line) noexcept nogil
    cdef void leave_input(self, int port, int cls, uint32_t length, int64_t ident) noexcept nogil
    cdef void put_out(self, int out, int cls, int32_t s) noexcept nogil
    cdef void wake_consumer(self, int out) noexcept nogil
