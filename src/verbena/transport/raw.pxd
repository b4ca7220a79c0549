# C types of transport/raw.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.native cimport NativeEngine
from verbena.transport.tables cimport QueuePair

cdef enum:
    IP6_BYTES = 40
    RAW_HEADER_BYTES = 4  # RWH: 16 reserved bits, EtherType
    NEXT_IS_RWH = 0  # LRH:LNH
    NEXT_IS_IP6 = 1
    HOP_BY_HOP = 0  # extension headers of IPv6 (RFC 8200, 4)
    ROUTING = 43
    FRAGMENT = 44
    AUTHENTICATION = 51
    DESTINATION_OPTIONS = 60
    BROKEN_CHAIN = -1
    ANY_PROTOCOL = -1

cdef struct RawClient:  # a protocol that a queue pair is registered for
    uint8_t service  # RAW_IPV6 or RAW_ETHERTYPE
    int32_t protocol  # next header or EtherType; ANY_PROTOCOL
    bint by_address
    uint8_t address[16]
    int32_t index

cdef class RawEngine(NativeEngine):
    cdef RawClient *clients
    cdef uint32_t client_count, client_size

    cdef int32_t client_of(self, uint32_t service, int32_t protocol, uint8_t *b, size_t at) noexcept nogil
    cdef void deliver_raw(self, QueuePair *q, uint8_t *b, size_t n, uint32_t number) noexcept nogil
    cdef size_t make_raw(self, QueuePair *q, uint8_t *b, size_t size) noexcept nogil

cdef int32_t protocol_of(uint8_t *b, size_t at, size_t n) noexcept nogil
