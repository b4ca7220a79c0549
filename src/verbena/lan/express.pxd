# C types of lan/express.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from verbena.transport.tables cimport Cqe
from verbena.transport.work cimport ScatterGatherEntry, Work, WorkRequest

cdef enum:
    HEADER_BYTES = 16  # of a message: message.HEADER
    OFFLOAD_BYTES = 10  # of a virtio_net_hdr
    ETHERNET_BYTES = 14
    FIRST_BYTE = 16  # version 1, a frame: message.VERSION, message.Kind
    OFFLOAD_FLAG = 2  # message.Flags
    GROUP = 1  # of an Ethernet address's first octet
    LAST_UNICAST_LID = 0xBFFF
    ARP_TYPE = 0x0806
    IPV6_TYPE = 0x86DD
    VLAN_TYPE = 0x8100
    OUTER_VLAN_TYPE = 0x88A8
    ICMP6 = 58
    NO_ROOM = -1
    CLOSED = -2

cdef class FrameSink:
    cdef bint put(self, uint8_t *b, int64_t head, int64_t at, int64_t n) except -1

cdef class Express:
    cdef object station, services, receiver, card, policy, liveness, clock, peers, pool, message, counters
    cdef dict channels
    cdef list requests
    cdef Work engine
    cdef WorkRequest request
    cdef ScatterGatherEntry piece
    cdef uint8_t[::1] out_view
    cdef uint8_t[::1] in_view
    cdef uint8_t *out
    cdef uint8_t *into
    cdef uint8_t own[6]
    cdef uint64_t out_address
    cdef int64_t begins, slot
    cdef readonly int64_t room
    cdef int64_t mtu, segment
    cdef bint offload
    cdef int32_t cq, sent_cq, shared
    cdef uint32_t lid

    cdef bint is_usable(self) except -1
    cdef int64_t begin(self) except -3
    cdef bint send(self, bint unfinished, int64_t n) except -1
    cdef bint done(self) except -1
    cdef bint reap(self) except -1
    cdef bint post(self, object peer, object channel, int64_t at, int64_t length, int64_t n) except -1
    cdef bint came(self, FrameSink sink, uint32_t qpn, int64_t at, int64_t n, int64_t now) except -1
    cdef void hold(self)
    cdef void let_go(self)
