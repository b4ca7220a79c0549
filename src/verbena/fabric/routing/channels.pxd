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

cdef class Layering(Dependencies):
    cdef uint64_t[::1] barred
    cdef int[::1] place
    cdef int[::1] channel_at
    cdef int[::1] seen
    cdef int seen_stamp
    cdef int[::1] ahead
    cdef int[::1] behind
    cdef int[::1] stack
    cdef int[::1] at
    cdef int[::1] pool
    cdef int[::1] path
    cdef long long[::1] paths

    cdef int read(self, unsigned char[::1] table, int width, int lid, int source) noexcept
    cdef bint fits(self, int lane, int length) noexcept
    cdef bint holds(self, int lane, int length) noexcept
    cdef bint join(self, int lane, int x, int y) noexcept
    cdef int search_ahead(self, int lane, int start, int bound, int goal) noexcept
    cdef int search_behind(self, int lane, int start, int bound) noexcept
    cdef void settle(self, int lane, int ahead, int behind) noexcept
    cdef void sort(self, int[::1] values, int n) noexcept
