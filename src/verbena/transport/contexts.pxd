# C types of transport/contexts.py.
from libc.stdint cimport int32_t

from verbena.transport.tables cimport QueuePair, Tables

cdef class Contexts(Tables):
    cdef void release_stripes(self, QueuePair *q) noexcept nogil
    cdef void discard_early(self, QueuePair *q) noexcept nogil
    cdef void turn_stripes(self, QueuePair *q) noexcept nogil
    cdef bint is_open(self, int32_t path) noexcept nogil
    cdef int32_t next_path(self, QueuePair *q) noexcept nogil
