# C types of memory/spaces.py, and the reasons for which an access is refused.
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef enum:  # why an access is not granted; their names are in spaces.REASONS, in the same order
    GRANTED = 0
    KEY_UNKNOWN  # no key of this index was ever given out, or no such reserved key
    KEY_STALE  # the index is in use, and this is not its key, or not any more
    KEY_RETIRED  # deallocated, deregistered
    KEY_UNBOUND
    KEY_DISABLED  # invalidated, or a one-shot key that was used
    KEY_DOMAIN
    KEY_QUEUE_PAIR  # a type 2 window of another queue pair
    KEY_RANGE
    KEY_RIGHTS
    QP_RIGHTS  # the queue pair does not allow the operation, whatever the key does
    SEGMENT_INVALID  # the address is not within the space
    PAGE_ABSENT
    PAGE_PROTECTED
    REASON_COUNT
    PAGE_AWAITED  # not refused: the host was asked to bring the page in

cdef enum:
    NO_PAGE = 0  # a free place of the table
    PAGE_IN = 1
    PAGE_OUT = 2  # part of the space, without a frame
    PAGE_LOST = 3  # part of the space, and the host cannot bring it in
    PAGE_GONE = 4  # a place whose page was forgotten

cdef enum:
    MOST_FAULTS = 256  # pages that are waited for at once, at most
    AHEAD_PAGES = 64  # of a message are waited for at once, at most
    LARGEST_PACKET = 4096  # bytes of payload

cdef struct Page:
    uint64_t number
    uint8_t *frame
    uint8_t state
    bint readable
    bint writable

cdef struct Range:  # a segment: pages that belong to a space whether they have an entry or not
    uint64_t first
    uint64_t pages
    bint writable

cdef struct Space:
    Page *pages
    Range *ranges
    uint64_t mask
    uint64_t used  # places of the table, those of forgotten pages included
    uint64_t live_pages
    uint32_t range_count
    uint32_t page_bits
    uint32_t users
    uint32_t ahead  # pages of an access that are waited for at once, beside those that a packet needs
    bint on_demand

cdef struct Fault:  # a page that the host shall bring in
    uint64_t page
    int32_t space
    uint32_t key
    uint32_t qpn
    bint write
    bint told

cdef class Spaces:
    cdef Space **spaces
    cdef readonly int32_t max_spaces
    cdef object _space_frames  # for each space, its frames by page number: kept exported while they are used
    cdef object _free_spaces
    cdef Fault *faults
    cdef uint32_t fault_count
    cdef readonly uint64_t faults_raised
    cdef readonly uint64_t faults_dropped  # more pages were missing than are waited for at once
    cdef readonly uint64_t pages_resolved
    cdef uint64_t missing_page  # of the last check: the first page that was not there

    cdef Space *space_at(self, int32_t at) except NULL
    cdef Page *page_at(self, Space *s, uint64_t number) noexcept nogil
    cdef Page *page_for(self, Space *s, uint64_t number) except NULL
    cdef bint grow(self, Space *s) except False
    cdef Range *range_of(self, Space *s, uint64_t number) noexcept nogil
    cdef int page_reason(self, Space *s, uint64_t number, bint write) noexcept nogil
    cdef int covers(self, int32_t space, uint64_t address, uint64_t length, uint64_t need, bint write,
                    uint32_t key, uint32_t qpn) noexcept nogil
    cdef int authority(self, int32_t space, uint64_t address, uint64_t length, bint write) noexcept nogil
    cdef void ask(self, int32_t space, uint64_t page, bint write, uint32_t key, uint32_t qpn) noexcept nogil
    cdef void answered(self, int32_t space, uint64_t first, uint64_t pages) noexcept nogil
    cdef void space_get(self, int32_t space, uint64_t address, uint8_t *to, size_t at, size_t n) noexcept nogil
    cdef void space_put(self, int32_t space, uint64_t address, uint8_t *source, size_t at,
                        size_t n) noexcept nogil

# The first byte of a contiguous buffer, which somebody else keeps exported.
cdef inline uint8_t *first_byte(object view) except? NULL:
    cdef Py_buffer b
    PyObject_GetBuffer(view, &b, PyBUF_SIMPLE)
    cdef uint8_t *p = <uint8_t *> b.buf
    PyBuffer_Release(&b)
    return p
