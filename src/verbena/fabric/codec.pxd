# C types of fabric/codec.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t

from verbena.fabric.tables cimport Flit

cdef enum:  # values of wire.flit.FlitKind
    DATA = 1
    ACK = 2
    NAK = 3
    CREDIT = 4

cdef void encode_flit(Flit *f, int credit_lane, int limit) noexcept nogil
cdef bint decode_flit(Flit *f, int32_t total) noexcept nogil
cdef int credit_lane_of(Flit *f) noexcept nogil
cdef int credit_limit_of(Flit *f) noexcept nogil
