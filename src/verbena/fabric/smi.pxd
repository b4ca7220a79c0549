# C types of fabric/smi.py.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from verbena.fabric.arbitration cimport Arbitration
from verbena.fabric.tables cimport Node, Packet, Port

cdef enum:  # where a directed-route packet goes
    SMI_DROP = -1  # else a port's number; 0 is the switch's own
    MAD_AT = 28  # LRH, BTH, DETH
    HOP_POINTER = 34
    HOP_COUNT = 35
    INITIAL_PATH = 156
    RETURN_PATH = 220
    SMP_SIZE = 290  # with ICRC and VCRC
    DIRECTED_ROUTE = 0x81
    LARGEST_HOP = 63

cdef uint16_t _vcrc_table[8][256]

cdef uint32_t vcrc16(const uint8_t *b, size_t n) noexcept nogil
cdef void seal_vcrc(uint8_t *b, size_t size) noexcept nogil
cdef bint vcrc_right(const uint8_t *b, size_t size) noexcept nogil
cdef void seal_icrc(uint8_t *b, size_t size) noexcept nogil

cdef class Smi(Arbitration):
    cdef bint is_directed(self, Packet *p) noexcept nogil
    cdef void reseal(self, Packet *p) noexcept nogil
    cdef int smi_forward(self, Node *node, int in_port, Packet *p) noexcept nogil
    cdef bint smi_leave(self, Packet *p) noexcept nogil
    cdef void smi_arrive(self, Port *port, Packet *p) noexcept nogil
