# C types of transport/schedule.py.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from verbena.transport.contexts cimport Contexts
from verbena.transport.tables cimport QueuePair

cdef class Schedule(Contexts):
    cdef void enlist(self, QueuePair *q) noexcept nogil
    cdef void schedule(self, QueuePair *q, uint64_t when) noexcept nogil
    cdef void unschedule(self, QueuePair *q) noexcept nogil
    cdef QueuePair *next_due(self, uint64_t now) noexcept nogil
    cdef uint64_t earliest(self) noexcept nogil
    cdef QueuePair *next_ready(self) noexcept nogil
    cdef void sift_up(self, uint32_t i, uint64_t when, int32_t index) noexcept nogil
    cdef void sift_down(self, uint32_t i, uint64_t when, int32_t index) noexcept nogil
