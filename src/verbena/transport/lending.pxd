# C types of transport/lending.py.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from verbena.transport.end_to_end cimport EndToEnd
from verbena.transport.tables cimport Loan, QueuePair, SendWqe

cdef class Lending(EndToEnd):
    cdef void offer(self, QueuePair *q, uint64_t now) noexcept nogil
    cdef int fitting(self, QueuePair *q, SendWqe *w, Loan *loan) noexcept nogil
    cdef void wait_in_line(self, QueuePair *q, uint32_t place) noexcept nogil
    cdef void join(self, QueuePair *c, QueuePair *q, uint32_t place) noexcept nogil
    cdef void leave(self, QueuePair *c, QueuePair *q) noexcept nogil
    cdef void withdraw(self, QueuePair *q) noexcept nogil
    cdef void take_up(self, QueuePair *c) noexcept nogil
    cdef void give_up(self, QueuePair *c) noexcept nogil
    cdef void empty(self, QueuePair *c) noexcept nogil
    cdef void lost(self, QueuePair *q, uint32_t place, int status) noexcept nogil
    cdef void settle(self, QueuePair *q) noexcept nogil
