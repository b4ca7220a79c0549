# C types of transport/ports.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.engine cimport Engine
from verbena.transport.tables cimport Path, QueuePair

cdef enum:
    MAX_PORTS = 16
    PORT_PLACES = 17  # ports are numbered from 1
    ANY_PORT = 0  # place of the line of striped connections, that wait until any of their paths opens
    MAX_GIDS = 32
    MAX_PKEYS = 128
    PORT_ARMED = 3  # states of a port, as in PortInfo:PortState
    PORT_ACTIVE = 4
    FIRST_MULTICAST_LID = 0xC000
    PERMISSIVE_LID = 0xFFFF
    LINK_LOCAL = 0xFE  # first byte of link-local addresses
    KEEP_TIMEOUT = 1  # an alternate path's timeout: that of the path before

cdef struct NativePort:
    uint32_t state
    uint32_t lid
    uint32_t lmc
    uint32_t mtu
    uint32_t open  # the service levels that may send now, one bit each
    uint32_t gid_count
    uint32_t pkey_count
    int32_t held_first  # queue pairs that wait until their service level may send; -1 = none
    int32_t held_last
    uint64_t pkey_violations
    uint64_t qkey_violations
    uint8_t gids[512]
    uint32_t pkeys[128]
    bint live

cdef class Ports(Engine):
    cdef NativePort ports[17]

    cdef bint own_gid_of(self, uint32_t number, uint8_t *b, size_t at) noexcept nogil
    cdef bint own_lid_of(self, uint32_t number, uint32_t lid) noexcept nogil
    cdef void hold(self, QueuePair *q, uint32_t number) noexcept nogil
    cdef void let_go(self, QueuePair *q, uint32_t number) noexcept nogil
    cdef void wake(self, uint32_t number) noexcept nogil
    cdef void wake_line(self, uint32_t number) noexcept nogil
    cdef bint stripes_closed(self, QueuePair *q) noexcept nogil
    cdef void place_path(self, Path *p) noexcept nogil
    cdef void port_failed(self, uint32_t number) noexcept nogil
