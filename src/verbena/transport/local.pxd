# C types of transport/local.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.core cimport Core
from verbena.transport.tables cimport QueuePair, SendWqe

cdef class WindowHandle:
    cdef readonly object table
    cdef readonly uint32_t index
    cdef readonly uint32_t serial
    cdef readonly int32_t domain
    cdef readonly int kind
    cdef public uint32_t rkey
    cdef public bint freed

cdef class BindInfo:
    cdef readonly object mr
    cdef readonly uint64_t address
    cdef readonly uint64_t length
    cdef readonly uint32_t access
    cdef readonly bint virtual
    cdef readonly bint renew
    cdef readonly object rkey
    cdef readonly uint32_t parent_key

cdef class FastRegistration:
    cdef readonly object mr
    cdef readonly object pages
    cdef readonly uint64_t length
    cdef readonly uint64_t iova
    cdef readonly uint64_t offset
    cdef readonly uint32_t access
    cdef readonly object rkey

cdef bint is_local(SendWqe *w) noexcept nogil
cdef int perform(Core e, QueuePair *q, SendWqe *w) noexcept nogil
cdef bint step_local(Core e, QueuePair *q, SendWqe *w) noexcept nogil
cdef void settle_local(Core e, QueuePair *q) noexcept nogil
cdef bint put_bind(Core e, QueuePair *q, SendWqe *w, WindowHandle window, BindInfo what) except False
cdef bint put_registration(Core e, QueuePair *q, SendWqe *w, FastRegistration what) except False
