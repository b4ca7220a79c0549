# C types of fabric/routing/paths.py.

cdef enum:
    DOWN = 0  # kinds of next hops: only away from the roots from here on,
    UP = 1  # towards them first,
    BEYOND = 2  # or against the rule, where nothing else is left

cdef class Paths:
    cdef readonly int switches
    cdef int[::1] first
    cdef int[::1] owner
    cdef int[::1] peer
    cdef int[::1] adjacent_first
    cdef int[::1] adjacent
    cdef int[::1] to
    cdef int[::1] hops
    cdef signed char[::1] kind
    cdef int[::1] queue
    cdef int queued
    cdef int[::1] candidates_first
    cdef int[::1] candidates
    cdef int[::1] load
    cdef int[::1] switch_load
    cdef int[::1] position
    cdef unsigned char[::1] hosts
    cdef int[::1] marked

    cdef void spread(self) noexcept
    cdef void gather(self, bint ruled) noexcept
    cdef int shared(self, int s, int c, int lid, int base, unsigned char[::1] table, int width) noexcept
    cdef int choose(self, int s, int lid, int base, int old, unsigned char[::1] table, int width,
                    int[::1] load) noexcept
    cdef int refined(self, int dest) noexcept
    cdef int strict(self, int dest) noexcept
    cdef int beyond(self, int dest) noexcept
