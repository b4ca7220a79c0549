# C types of transport/native.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.engine cimport Engine
from verbena.transport.tables cimport Path, QueuePair

cdef enum:
    MAX_PORTS = 16
    PORT_PLACES = 17  # place 0 stays empty: ports are numbered from 1
    MAX_GIDS = 32
    GID_BYTES = 512
    MAX_PKEYS = 128
    VIOLATIONS = 64  # reports of wrong keys that may wait
    PORT_ARMED = 3  # states of a port, as in PortInfo:PortState
    PORT_ACTIVE = 4
    FIRST_MULTICAST_LID = 0xC000
    PERMISSIVE_LID = 0xFFFF
    LARGEST_HEADERS = 124  # bytes of a packet beside its payload (IBA vol. 1, 7.7.8)
    MANAGEMENT_LANE = 15
    KEEP_TIMEOUT = 1  # an alternate path's timeout: that of the path before
    LINK_LOCAL = 0xFE  # first byte of link-local addresses
    MULTICAST_GID = 0xFF  # first byte of multicast addresses

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

cdef class NativeEngine(Engine):
    cdef NativePort ports[17]
    cdef Member *members
    cdef uint32_t member_count, member_size
    cdef Violation violation_ring[64]
    cdef uint32_t violation_head, violation_tail
    cdef uint32_t rx_front, rx_dlid
    cdef bint rx_migrated  # BTH:MigReq
    cdef bint rx_multicast
    cdef uint8_t masked[48]

    cdef void take_native(self, uint8_t *b, size_t n, uint32_t number, uint64_t now) noexcept nogil
    cdef int route_fault(self, uint8_t *b, size_t n, uint32_t number) noexcept nogil
    cdef int global_fault(self, uint8_t *b, size_t n, uint32_t number) noexcept nogil
    cdef bint own_gid_of(self, uint32_t number, uint8_t *b, size_t at) noexcept nogil
    cdef bint own_lid_of(self, uint32_t number, uint32_t lid) noexcept nogil
    cdef bint matches(self, int32_t path, uint8_t *b) noexcept nogil
    cdef bint joined(self, uint32_t place, uint8_t *b) noexcept nogil
    cdef void hold(self, QueuePair *q, uint32_t number) noexcept nogil
    cdef void let_go(self, QueuePair *q, uint32_t number) noexcept nogil
    cdef void place_path(self, Path *p) noexcept nogil
    cdef void port_failed(self, uint32_t number) noexcept nogil
    cdef void take_raw(self, uint8_t *b, size_t n, uint32_t number, uint64_t now) noexcept nogil
    cdef void loop(self, uint8_t *b, size_t n, uint32_t number, bint multicast, uint64_t now) noexcept nogil
    cdef bint has_member(self, uint8_t *b, uint32_t number) noexcept nogil
    cdef void send_again(self, QueuePair *q) noexcept nogil
    cdef void wake(self, uint32_t number) noexcept nogil

cdef uint8_t *part(uint8_t *b, size_t at, size_t n) noexcept nogil
cdef bint same_partition(uint32_t own, uint32_t pkey) noexcept nogil
