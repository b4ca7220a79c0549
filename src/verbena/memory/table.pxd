# C types of memory/table.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef enum:
    LOCAL_WRITE = 1  # access rights: the values of Linux' enum ibv_access_flags
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    REMOTE_ATOMIC = 8
    WINDOW_BIND = 16

cdef struct Region:
    uint8_t *base
    uint64_t address  # I/O virtual address of the first byte
    uint64_t length
    uint32_t local_key
    uint32_t remote_key
    int32_t domain
    uint32_t access
    bint live

cdef class RegionTable:
    cdef Region **regions
    cdef readonly uint32_t capacity
    cdef readonly uint32_t count
    cdef object _free
    cdef object _views
    cdef object _tags
    cdef object _random
    cdef uint64_t _next_address

    cdef Region *find_local(self, int32_t domain, uint32_t key, uint64_t address, uint64_t length,
                            uint32_t access) noexcept nogil
    cdef Region *find_remote(self, int32_t domain, uint32_t key, uint64_t address, uint64_t length,
                             uint32_t access) noexcept nogil
    cdef Region *find(self, int32_t domain, uint32_t key, bint remote, uint64_t address, uint64_t length,
                      uint32_t access) noexcept nogil
    cdef Region *opened(self, int32_t domain, uint32_t key, bint remote) noexcept nogil
    cdef bint invalidate(self, int32_t domain, uint32_t key) noexcept nogil
