# C types of transport/native.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.migration cimport Migration
from verbena.transport.tables cimport QueuePair

cdef enum:
    VIOLATIONS = 64  # reports of wrong keys that may wait
    LARGEST_HEADERS = 124  # bytes of a packet beside its payload (IBA vol. 1, 7.7.8)
    MANAGEMENT_LANE = 15
    MULTICAST_GID = 0xFF  # first byte of multicast addresses

cdef struct Member:  # a queue pair that is attached to a multicast group
    uint8_t gid[16]
    uint32_t lid
    int32_t index

cdef struct Violation:
    uint32_t trap
    uint32_t port
    uint32_t key
    uint32_t sl
    uint32_t slid
    uint32_t dlid
    uint32_t source_qpn
    uint32_t qpn
    uint8_t gids[32]  # of source and destination; zeros without a global header

cdef class NativeEngine(Migration):
    cdef Member *members
    cdef uint32_t member_count, member_size
    cdef Violation violation_ring[64]
    cdef uint32_t violation_head, violation_tail
    cdef uint8_t masked[48]

    cdef void take_native(self, uint8_t *b, size_t n, uint32_t number, uint64_t now) noexcept nogil
    cdef int route_fault(self, uint8_t *b, size_t n, uint32_t number) noexcept nogil
    cdef int global_fault(self, uint8_t *b, size_t n, uint32_t number) noexcept nogil
    cdef void take_raw(self, uint8_t *b, size_t n, uint32_t number, uint64_t now) noexcept nogil
    cdef void loop(self, uint8_t *b, size_t n, uint32_t number, bint multicast, uint64_t now) noexcept nogil
    cdef bint joined(self, uint32_t place, uint8_t *b) noexcept nogil
    cdef bint has_member(self, uint8_t *b, uint32_t number) noexcept nogil

cdef uint8_t *part(uint8_t *b, size_t at, size_t n) noexcept nogil
