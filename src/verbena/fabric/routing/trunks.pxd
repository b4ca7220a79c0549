# C types of fabric/routing/trunks.py.
from verbena.fabric.routing.paths cimport Paths

cdef class Trunks(Paths):
    cdef int stamp
    cdef int[::1] on_trunk
    cdef int[::1] trunk

    cdef void mark_trunk(self, int s, int number, int offset, int[::1] slots_first, int[::1] slots,
                         int[::1] divisor) noexcept
    cdef int pick(self, int s, int number, int width) noexcept
