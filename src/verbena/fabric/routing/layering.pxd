# C types of fabric/routing/layering.py.
from libc.stdint cimport uint64_t

from verbena.fabric.routing.channels cimport Dependencies

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
