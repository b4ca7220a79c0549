# C types of memory/table.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.memory.entries cimport KeyEntries, Region

cdef struct Tie:  # what the reserved local keys open in a protection domain: places, 0 = nothing
    uint32_t effective
    uint32_t virtual

cdef class RegionTable(KeyEntries):
    cdef object _views
    cdef uint64_t _next_address
    cdef Tie *ties
    cdef uint32_t tie_count
    cdef Region *find_local(self, int32_t domain, uint32_t key, uint64_t address, uint64_t length,
                            uint32_t access) noexcept nogil
    cdef Region *find_remote(self, int32_t domain, uint32_t qpn, uint32_t key, uint64_t address,
                             uint64_t length, uint64_t need, uint32_t access, uint32_t psn,
                             bint first) noexcept nogil
    cdef bint within(self, Region *r, uint64_t address, uint64_t length, uint32_t access) noexcept nogil
    cdef bint pages_in(self, Region *r, uint64_t address, uint64_t length, uint64_t need, bint write, uint32_t key,
                       uint32_t qpn) noexcept nogil
    cdef Region *opened_local(self, int32_t domain, uint32_t key) noexcept nogil
    cdef Region *opened_remote(self, int32_t domain, uint32_t qpn, uint32_t key) noexcept nogil
    cdef void get(self, Region *r, uint64_t address, uint8_t *to, size_t at, size_t n) noexcept nogil
    cdef void put(self, Region *r, uint64_t address, uint8_t *source, size_t at, size_t n) noexcept nogil
    cdef void release_parent(self, Region *r) noexcept nogil
    cdef void forget_queue_pair(self, uint32_t qpn) noexcept nogil
    cdef bint invalidate(self, int32_t domain, uint32_t qpn, uint32_t key) noexcept nogil
