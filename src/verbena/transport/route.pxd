# C types of transport/route.py.
from libc.stdint cimport uint8_t, uint32_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport Path

cdef enum:
    LRH_BYTES = 8
    ROUTE_BYTES = 48  # LRH and GRH
    NEXT_IS_BTH = 2  # LRH:LNH
    NEXT_IS_GRH = 3
    GRH_NEXT_IS_BTH = 0x1B  # GRH:NxtHdr

cdef void mask_route(uint8_t *to, const uint8_t *route, size_t size) noexcept nogil
cdef void write_route(Path *p) noexcept nogil
cdef uint32_t route_seed(Path *p, uint32_t length) noexcept nogil
cdef void seal_route(Core e, Path *p, uint8_t *b, size_t n, bint ask) noexcept nogil
