# C types of memory/entries.py.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from verbena.memory.spaces cimport Spaces

cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif

    #if defined(__GNUC__)
    #define verbena_expect(p) __builtin_prefetch((const void *)(p), 1)
    #else
    #define verbena_expect(p) ((void)0)
    #endif

    /* n bytes of zeros, aligned; huge pages for what is large, or most lookups would miss a translation, too. */
    static void *zeroed(size_t alignment, size_t n) {
        n = (n + alignment - 1) / alignment * alignment;
        void *p = aligned_alloc(alignment, n);
    #if defined(MADV_HUGEPAGE)
        if (p && alignment >= 4096)
            madvise(p, n, MADV_HUGEPAGE);
    #endif
        return p ? memset(p, 0, n) : NULL;
    }
    """
    void *zeroed(size_t alignment, size_t n) nogil
    void verbena_expect(void *p) nogil

cdef enum:
    LOCAL_WRITE = 1  # access rights: the values of Linux' enum ibv_access_flags
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    REMOTE_ATOMIC = 8
    WINDOW_BIND = 16
    ZERO_BASED = 32
    REMOTE_RIGHTS = 14  # what a window may give

cdef enum:  # what a key belongs to
    KIND_REGION = 0
    KIND_FAST_REGION = 1  # registered by a work request
    KIND_SPACE = 2  # all of an address space, by a reserved local key
    KIND_WINDOW_1 = 3
    KIND_WINDOW_2A = 4
    KIND_WINDOW_2B = 5
    KIND_RKEY = 6  # a window as document 003 has it

cdef enum:  # where it stands
    STATE_NEVER = 0
    STATE_RETIRED = 1
    STATE_UNBOUND = 2
    STATE_BOUND = 3
    STATE_DISABLED = 4  # invalidated
    STATE_USED = 5  # a one-shot key, by its one operation

cdef enum:
    CHUNK = 256  # entries of the table that are made together
    SLAB = 64  # chunks beyond the first so many are made so many at a time, in one huge page
    HUGE_PAGE = 2097152
    LINE = 64  # bytes of a line of the processor's caches
    RESERVED_LKEY = 0  # local keys that no region has: the domain's address space, and that of virtual addresses
    RESERVED_VIRTUAL_LKEY = 1
    FIRST_KEY = 256
    MOST_REFUSALS = 256  # remembered, the newest
    MOST_USES = 256

cdef struct Region:
    # What each access looks at: 64 bytes, one line of the processor's caches.
    uint8_t *base
    uint64_t address  # of the first byte, as work requests and peers name it
    uint64_t last  # offset of the last byte; see `empty`
    uint64_t origin  # of the first byte: where in the buffer, or its address in the space
    uint32_t local_key
    uint32_t remote_key
    int32_t domain
    int32_t space  # its pages; -1 = the bytes are one buffer
    uint32_t qpn  # the only queue pair that may use it; 0 = all of the domain
    uint32_t serial  # of its allocation
    uint16_t access
    uint8_t kind
    uint8_t state
    uint8_t empty
    uint8_t one_shot
    uint8_t claim_more  # the next request may go on with the operation that used a one-shot key
    uint8_t generation  # of its tags, the one that was given out last
    # What a use changes, and what is rarely looked at: another line.
    uint64_t uses
    uint64_t bytes
    uint64_t used_ns
    uint32_t used_qpn  # of a one-shot key: of the operation that used it
    uint32_t used_peer
    uint32_t refusals
    uint32_t parent  # place of the region that a window is bound to; 0 = none
    uint32_t windows  # bound to it
    uint32_t claim_first  # the packet numbers of the operation that used a one-shot key
    uint32_t claim_last
    uint32_t claim_length  # the range that it asked for
    uint64_t claim_begin

cdef struct Refusal:
    uint64_t when
    uint64_t address
    uint64_t length
    uint32_t key
    uint32_t qpn
    uint32_t access
    uint8_t reason
    bint remote
    int32_t space  # where a page was absent: in which space, and what the key calls the first byte of it
    uint64_t page
    uint64_t missing

cdef struct Use:
    uint64_t when
    uint64_t address
    uint64_t length
    uint32_t key
    uint32_t qpn
    uint32_t peer
    uint32_t access
    uint8_t gid[16]  # of the peer's port

cdef class KeyEntries(Spaces):
    cdef Region **chunks
    cdef readonly uint32_t capacity  # regions at most
    cdef readonly uint32_t window_capacity
    cdef uint32_t places
    cdef readonly uint32_t count
    cdef readonly uint32_t window_count
    cdef object _free
    cdef uint32_t _fresh
    cdef uint32_t _serial
    cdef uint64_t _secret
    cdef uint64_t rounds[4]
    cdef public uint64_t now  # set by whoever runs the adapter, with each burst
    cdef int reason  # of the last access that was not granted
    cdef uint64_t *refused_remote
    cdef uint64_t *refused_local
    cdef Refusal *refusal_ring
    cdef uint64_t refusal_count
    cdef int32_t missing_space  # of the last refusal for want of a page: where, and what the key calls it
    cdef uint64_t missing_address
    cdef Use *use_ring
    cdef uint64_t granted_uses
    cdef uint32_t second_bound  # type 2 windows that are bound
    cdef uint64_t errors_seen
    cdef uint32_t hide(self, uint32_t place) noexcept nogil
    cdef uint32_t place_of(self, uint32_t index) noexcept nogil
    cdef Region *entry(self, uint32_t place) noexcept nogil
    cdef void expect(self, uint32_t key) noexcept nogil
    cdef uint32_t new_place(self) except 0
    cdef bint new_chunk(self, uint32_t chunk) except False
    cdef uint32_t tag_of(self, uint32_t place, uint32_t generation) noexcept nogil
    cdef uint32_t next_key(self, Region *r, uint32_t place) noexcept nogil
    cdef void use(self, Region *r, uint32_t qpn, uint32_t peer, uint8_t *gid, uint32_t psn, uint32_t packets,
                  uint64_t address, uint64_t length, uint32_t access, bint more) noexcept nogil
    cdef bint claimed(self, Region *r, uint32_t qpn, uint32_t psn, uint64_t address, uint64_t length,
                      bint begins) noexcept nogil
    cdef void deny(self, bint remote, uint32_t key, uint64_t address, uint64_t length, uint32_t qpn,
                   uint32_t access) noexcept nogil
