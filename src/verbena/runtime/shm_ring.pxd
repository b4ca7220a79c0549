# C types of runtime/shm_ring.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from verbena.vswitch.engine cimport SwitchEngine

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t vb_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void vb_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void vb_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint64_t vb_acquire(const uint64_t *p) noexcept nogil
    void vb_release(uint64_t *p, uint64_t v) noexcept nogil
    void vb_fence() noexcept nogil

cdef enum:
    HEAD = 8  # words of 8 bytes, each in a cache line of its own
    TAIL = 16
    CONSUMER_SLEEPS = 24
    PRODUCER_SLEEPS = 32
    SHUT = 40
    HEADER_BYTES = 384
    SKIP = 0x7FFFFFFF

cdef class Ring:
    cdef uint8_t[::1] view
    cdef uint64_t *words
    cdef uint8_t *data
    cdef readonly object memory
    cdef object cells
    cdef readonly uint64_t size
    cdef uint64_t mask
    cdef uint64_t head
    cdef uint64_t tail
    cdef uint64_t other
    cdef readonly bint broken
    cdef readonly uint64_t blocked
    cdef readonly uint64_t controls

    cdef uint64_t load(self, int word) noexcept
    cdef void store(self, int word, uint64_t value) noexcept
    cdef void fence(self)
    cdef int64_t room_for(self, uint64_t length) except -2
    cdef int64_t next_record(self) except -2
    cdef void skip(self, int64_t length) noexcept
