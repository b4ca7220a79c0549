# C types of vswitch/core.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from verbena.vswitch.forwarder cimport SwitchForwarder
from verbena.vswitch.tables cimport Port, Queue, Slot

cdef class SwitchCore(SwitchForwarder):
    cdef bint member(self, int port, int vlan) noexcept nogil
    cdef int destination(self, int port, const uint8_t *data, int vlan) noexcept nogil
    cdef uint64_t everyone(self, int port, int vlan) noexcept nogil
    cdef int enter(self, int port, const uint8_t *data, uint32_t stored, uint32_t length, bint patient,
                   bint direct) noexcept nogil
    cdef int refuse(self, int port, int cls, int cause) noexcept nogil
    cdef int admit(self, int port, int cls, const uint8_t *data, uint32_t stored, uint32_t length, bint direct,
                   int vlan, bint tagged) noexcept nogil
    cdef bint straight(self, int port, int cls, int out, int32_t s) noexcept nogil
    cdef void pull(self, int out) noexcept nogil
    cdef int32_t take(self, int out) noexcept nogil
    cdef int32_t take_or_sleep(self, int out) noexcept nogil
    cdef int give(self, int32_t s, int out, uint8_t *target) noexcept nogil
    cdef int change_of_tag(self, int32_t s, int out) noexcept nogil
