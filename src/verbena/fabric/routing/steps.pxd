# C types of fabric/routing/steps.py.
from verbena.fabric.routing.paths cimport Paths

cdef class Steps(Paths):
    cdef int dimensions
    cdef int[::1] size
    cdef int[::1] bit
    cdef unsigned char[::1] wraps
    cdef int[::1] place
    cdef int[::1] step_first
    cdef int[::1] step
    cdef unsigned char[::1] lane
