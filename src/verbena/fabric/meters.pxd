# C types of fabric/meters.py.
from libc.stdint cimport int32_t, int64_t, uint8_t

from verbena.fabric.configuration cimport Configuration
from verbena.fabric.tables cimport Lane, Port, Queue, Source

cdef class Meters(Configuration):
    cdef int64_t due(self, Source *s) noexcept nogil
    cdef bint moves(self, Queue *q, int lane, const uint8_t *dead) noexcept nogil
    cdef bint buffer_moves(self, Port *r, int lane, const uint8_t *dead) noexcept nogil
    cdef Queue *stuck_queue(self, Port *r, int lane) noexcept nogil
