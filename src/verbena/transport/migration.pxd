# C types of transport/migration.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t

from verbena.transport.ports cimport Ports
from verbena.transport.tables cimport QueuePair

cdef class Migration(Ports):
    # Of the packet that is being executed
    cdef uint32_t rx_front, rx_dlid
    cdef bint rx_migrated  # BTH:MigReq
    cdef bint rx_multicast

    cdef bint matches(self, int32_t path, uint8_t *b) noexcept nogil
    cdef bint uses_port(self, QueuePair *q, uint32_t number) noexcept nogil
    cdef void send_again(self, QueuePair *q) noexcept nogil

cdef bint same_partition(uint32_t own, uint32_t pkey) noexcept nogil
