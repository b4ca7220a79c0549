# C types of runtime/tap_lane.py.
from libc.stdint cimport int64_t, uint8_t

from verbena.lan.express cimport Express, FrameSink

cdef extern from *:
    """
    #include <errno.h>
    #include <stddef.h>
    #include <sys/uio.h>
    /* One frame, with or without a header of its own; what moved nothing returns its errno, negative.  A byte beyond
       `size` shows that a frame is longer. */
    static inline long long vb_lane_read(int fd, void *head, size_t head_size, void *body, size_t size) {
        char beyond;
        struct iovec parts[3] = {{head, head_size}, {body, size}, {&beyond, 1}};
        long long n;
        do n = readv(fd, parts, 3); while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
    }
    static inline long long vb_lane_write(int fd, void *head, size_t head_size, void *body, size_t size) {
        struct iovec parts[2] = {{head, head_size}, {body, size}};
        long long n;
        do n = writev(fd, parts, 2); while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
    }
    """
    int64_t vb_lane_read(int fd, void *head, size_t head_size, void *body, size_t size) noexcept nogil
    int64_t vb_lane_write(int fd, void *head, size_t head_size, void *body, size_t size) noexcept nogil

cdef enum:
    HEAD = 10  # bytes of a virtio_net_hdr
    SHORTEST = 14  # bytes of a frame
    DATA_VALID = 2  # a flag of the header: the checksum is right

cdef class TapLane(FrameSink):
    cdef readonly int fd
    cdef int extra
    cdef object counters
    cdef uint8_t plain[16]
    cdef readonly bint drained
    cdef readonly bint starved
    cdef readonly bint closed
    cdef readonly int64_t octets
    cdef readonly object left
    cdef int64_t read_one(self, uint8_t *b, int64_t at, int64_t room)
    cdef bint is_plain(self, uint8_t *b, int64_t head) noexcept
