# C types of runtime/coupling.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.fabric.core cimport FabricCore
from verbena.fabric.tables cimport Packet, Port
from verbena.transport.native cimport NativeEngine

cdef enum:
    BURST_ROOM = 65536
    BARE = 2  # LRH:LNH of packets with transport headers
    WITH_GRH = 3
    LRH_SIZE = 8
    ROUTE_SIZE = 48
    BTH_BYTES = 12
    MANAGEMENT_QP = 1
    VCRC_LENGTH = 2

cdef class Couplings:
    cdef FabricCore core
    cdef dict _engines
    cdef list _adapters
    cdef object _last
    cdef uint8_t _burst[65536]
    cdef Packet *first
    cdef Packet *last

    cdef bint nothing_else(self) noexcept nogil
    cdef size_t put(self, Port *port, size_t n, size_t segment) noexcept nogil
    cdef bint is_data(self, Packet *p) noexcept nogil
    cdef void sort_out(self) noexcept nogil
    cdef void feed(self, NativeEngine engine, uint32_t number, uint64_t now) noexcept nogil
