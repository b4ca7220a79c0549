# C types of runtime/frame_pump.py.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from verbena.vswitch.engine cimport SwitchEngine

cdef extern from *:
    """
    #include <errno.h>
    #include <stddef.h>
    #include <sys/uio.h>
    static inline long long vb_outcome(long long n) {
        return n >= 0 ? n : errno == EAGAIN || errno == EWOULDBLOCK ? -1 : errno == EBADFD ? -2 : -3;
    }
    static inline long long vb_readv(int fd, void *head, size_t head_size, void *body, size_t size) {
        struct iovec parts[2] = {{head, head_size}, {body, size}};
        long long n;
        do n = readv(fd, parts, 2); while (n < 0 && errno == EINTR);
        return vb_outcome(n);
    }
    static inline long long vb_writev(int fd, void *head, size_t head_size, void *body, size_t size) {
        struct iovec parts[2] = {{head, head_size}, {body, size}};
        long long n;
        do n = writev(fd, parts, 2); while (n < 0 && errno == EINTR);
        return vb_outcome(n);
    }
    """
    int64_t vb_readv(int fd, void *head, uint64_t head_size, void *body, uint64_t size) noexcept nogil
    int64_t vb_writev(int fd, void *head, uint64_t head_size, void *body, uint64_t size) noexcept nogil

cdef enum:
    HEAD_SIZE = 10  # of a virtio_net_hdr
    LEAST = 14  # an Ethernet header

cdef enum:  # of a read or write that moved nothing
    AGAIN = -1
    REMOVED = -2
    WRONG = -3

cdef class FramePump:
    cdef uint8_t[::1] view
    cdef uint8_t *data
    cdef uint8_t head[16]
    cdef readonly object buffer
    cdef object late
    cdef readonly int fd
    cdef readonly uint32_t room
    cdef readonly uint32_t extra
    cdef readonly int64_t held
    cdef readonly bint drained
    cdef readonly bint full
    cdef readonly bint gone
    cdef readonly uint64_t blocked
    cdef readonly uint64_t controls
    cdef readonly uint64_t runts
    cdef readonly uint64_t errors
    cdef readonly uint64_t refused
    cdef readonly uint64_t octets
    cdef readonly uint64_t written

    cdef int64_t read_one(self) except -4
    cdef int64_t write_one(self, uint8_t *frame, int64_t size) except -4
