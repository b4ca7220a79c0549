# C types of transport/sources.py.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from verbena.transport.work cimport Work

cdef enum:
    IDENT_REACH = 64  # how far ahead, and how late, an identification may be

cdef class Sources(Work):
    cdef uint8_t rx_prefix[64]
    cdef uint8_t rx_source[16]
    cdef uint32_t rx_port
    cdef bint rx_is_ip4
    cdef bint rx_known
    cdef bint rx_elsewhere  # the present burst came to another GID than the first
    cdef bint rx_straight  # this source is known to number each burst from 0
    cdef uint32_t rx_length
    cdef uint32_t rx_seed
    cdef uint32_t solve_length
    cdef uint32_t solve_power

    cdef void know_source(self, uint8_t *source, uint32_t port) noexcept nogil
    cdef int check_crc(self, uint8_t *b, size_t at, size_t n, uint32_t place, uint64_t now) noexcept nogil
    cdef uint32_t flow_place(self) noexcept nogil
    cdef void straight(self) noexcept nogil
    cdef bint follows(self, uint32_t ident, uint64_t now) noexcept nogil
