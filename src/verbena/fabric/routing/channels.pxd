# C types of fabric/routing/channels.py.
from libc.stdint cimport uint64_t

cdef class Dependencies:
    cdef readonly int switches
    cdef readonly int channels
    cdef readonly int lanes
    cdef int words
    cdef int[::1] first
    cdef int[::1] owner
    cdef int[::1] peer
    cdef int[::1] adjacent_first
    cdef int[::1] adjacent
    cdef uint64_t[::1] present
    cdef unsigned char[::1] used
    cdef int[::1] stamped
    cdef int[::1] lanes_seen
    cdef int[::1] walked
    cdef int stamp
    cdef int walk

    cdef bint has(self, uint64_t[::1] bits, int lane, int channel, int port) noexcept
    cdef void put(self, uint64_t[::1] bits, int lane, int channel, int port, bint on) noexcept
    cdef int next_channel(self, int lane, int channel, int after) noexcept
