# C types of memory/windows.py.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from verbena.memory.entries cimport Region
from verbena.memory.table cimport RegionTable

cdef class WindowTable(RegionTable):
    cdef readonly uint64_t binds
    cdef readonly uint64_t unbinds
    cdef readonly uint64_t bind_errors
    cdef readonly uint64_t invalidates
    cdef readonly uint64_t fast_registrations
    cdef readonly uint64_t kernel_calls  # verbs that only a driver may do: registering, making and freeing windows
    cdef object _lists  # of each fast region, the spaces that hold its page lists

    cdef int bind(self, int32_t domain, uint32_t qpn, uint32_t place, uint32_t serial, uint32_t new_key,
                  uint32_t parent_key, uint64_t address, uint64_t length, uint32_t access) noexcept nogil
    cdef int bind_window(self, Region *r, int32_t domain, uint32_t qpn, uint32_t new_key, uint32_t parent_key,
                         uint64_t address, uint64_t length, uint32_t access) noexcept nogil
    cdef int authorized(self, int32_t domain, uint32_t parent_key, uint64_t address, uint64_t length,
                        uint32_t access) noexcept nogil
    cdef int register_fast(self, int32_t domain, uint32_t place, uint32_t serial, uint32_t new_key, int32_t space,
                           uint64_t origin, uint64_t address, uint64_t length, uint32_t access) noexcept nogil
    cdef int invalidate_local(self, int32_t domain, uint32_t qpn, uint32_t key) noexcept nogil
