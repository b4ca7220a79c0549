# C types of fabric/sources.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from verbena.fabric.flits cimport Flits
from verbena.fabric.tables cimport Packet, Port, Source

cdef enum:
    PERIODIC = 0
    POISSON = 1
    BURSTY = 2
    FROM_TRACE = 3
    AHEAD = 8  # packets of a source that lie in its send queue; the others are made when these have left

cdef class Sources(Flits):
    cdef uint64_t seed
    cdef list _kept
    cdef dict _tables

    cdef object _use_table(self, Source *s, destinations)
    cdef object _join_group(self, Source *s, group)
    cdef int32_t choose(self, Source *s) noexcept nogil
    cdef uint64_t random_word(self, Source *s) noexcept nogil
    cdef int64_t gap(self, Source *s) noexcept nogil
    cdef void produce(self, Source *s) noexcept nogil
    cdef void make_phantom(self, Source *s, int32_t size, int32_t dlid, int sl) noexcept nogil
    cdef void queue_packet(self, Port *port, Packet *p) noexcept nogil
    cdef int lane_for(self, Port *port, int sl) noexcept nogil
