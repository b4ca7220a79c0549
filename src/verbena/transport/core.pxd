# C types of transport/core.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.notification cimport Notification
from verbena.transport.tables cimport (
    Answer, CompletionRing, Cqe, Loan, QueuePair, RecvQueue, RecvWqe, SendWqe, Sge
)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_MUTEX_RECURSIVE
    int pthread_mutexattr_init(pthread_mutexattr_t *)
    int pthread_mutexattr_settype(pthread_mutexattr_t *, int)
    int pthread_mutex_init(pthread_mutex_t *, pthread_mutexattr_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef class Core(Notification):
    cdef pthread_mutex_t mutex
    cdef object _lock
    cdef uint32_t burst_segment  # of the burst just made: bytes of each packet but the last
    cdef uint32_t burst_packets
    cdef int32_t burst_path
    cdef public uint32_t burst_limit  # packets of a burst at most
    # Where the packet that is being executed came in (native InfiniBand)
    cdef uint32_t rx_slid, rx_sl, rx_path_bits
    cdef uint32_t rx_number  # of the port
    cdef int32_t parked_head  # the first of those who wait for a page; -1 = nobody does
    cdef uint8_t word[8]
    # The piece of local memory that was not to be used
    cdef uint32_t bad_key
    cdef uint64_t bad_address, bad_length

    cdef void acquire(self)
    cdef void release(self)
    cdef void report(self, int32_t kind, int32_t a, int32_t b) noexcept nogil
    cdef bint push(self, int32_t cq, Cqe *entry, bint solicited) noexcept nogil
    cdef void complete_send(self, QueuePair *q, int status) noexcept nogil
    cdef void complete_recv(self, QueuePair *q, int status, int opcode, uint64_t length, int flags,
                            uint32_t immediate, uint32_t source_qpn, bint solicited) noexcept nogil
    cdef bint take_receive(self, QueuePair *q) noexcept nogil
    cdef bint migrate(self, QueuePair *q) noexcept nogil
    cdef void violation(self, QueuePair *q, uint8_t *b, size_t at, uint32_t trap) noexcept nogil
    cdef void fail(self, QueuePair *q) noexcept nogil
    cdef void flush(self, QueuePair *q) noexcept nogil
    cdef void flush_send(self, QueuePair *q) noexcept nogil
    cdef void drained(self, QueuePair *q) noexcept nogil
    cdef bint hold_back(self, QueuePair *q, SendWqe *w, uint64_t now) noexcept nogil
    cdef void message_over(self, QueuePair *c, int status) noexcept nogil
    cdef void message_failed(self, QueuePair *c, int status) noexcept nogil
    cdef void message_not_ready(self, QueuePair *c, uint64_t until) noexcept nogil
    cdef void fail_context(self, QueuePair *c, int status) noexcept nogil
    cdef void recall(self, QueuePair *q) noexcept nogil
    cdef void give_back(self, QueuePair *q, bint told) noexcept nogil
    cdef void park(self, QueuePair *q) noexcept nogil
    cdef void denied(self, QueuePair *q, uint32_t key, uint64_t address, uint64_t length,
                     uint32_t access) noexcept nogil
    cdef void denied_here(self, QueuePair *q, uint32_t access) noexcept nogil
    cdef bint can_gather(self, QueuePair *q, uint32_t place, uint32_t access) noexcept nogil
    cdef bint gather(self, QueuePair *q, uint32_t place, uint64_t offset, uint8_t *to, size_t at,
                     size_t n) noexcept nogil
    cdef bint check_list(self, int32_t domain, Sge *sge, uint32_t first, uint32_t sges,
                         uint32_t access) noexcept nogil
    cdef bint can_scatter(self, int32_t domain, Sge *sge, uint32_t first, uint32_t sges, uint64_t offset,
                          size_t n) noexcept nogil
    cdef bint scatter(self, int32_t domain, Sge *sge, uint32_t first, uint32_t sges, uint64_t offset,
                      uint8_t *source, size_t at, size_t n) noexcept nogil

cdef SendWqe *send_at(QueuePair *q, uint32_t place) noexcept nogil
cdef RecvWqe *recv_at(RecvQueue *queue, uint32_t place) noexcept nogil
cdef Cqe *entry_at(CompletionRing *ring, uint32_t place) noexcept nogil
cdef Answer *answer_at(QueuePair *q, uint32_t place) noexcept nogil
cdef Loan *loan_at(QueuePair *q, uint32_t place) noexcept nogil
