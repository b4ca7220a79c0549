# C types of transport/work.py.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from verbena.transport.lending cimport Lending
from verbena.transport.tables cimport Cqe, QueuePair, RecvQueue, SendWqe, Sge

cdef enum:
    ALL_FLAGS = 15
    MAX_MESSAGE = 0x7FFFFFFF  # bytes: 2^31 - 1
    LONGEST_DELAY_BITS = 56  # about two years, in nanoseconds

cdef object whole(object value)

cdef class ScatterGatherEntry:
    cdef public uint64_t addr
    cdef public uint64_t length
    cdef public uint32_t lkey

cdef class WorkRequest:
    cdef public uint64_t wr_id
    cdef public int opcode
    cdef public object sg_list
    cdef public int flags
    cdef public uint32_t imm_data
    cdef public uint64_t remote_addr
    cdef public uint32_t rkey
    cdef public uint64_t compare_add
    cdef public uint64_t swap
    cdef public uint32_t invalidate_rkey
    cdef public object ah
    cdef public uint32_t remote_qpn
    cdef public uint32_t remote_qkey
    cdef public object ee
    cdef public uint64_t delay_ns
    cdef public object mw
    cdef public object bind

cdef class RecvRequest:
    cdef public uint64_t wr_id
    cdef public object sg_list

cdef class CompletionQueueEntry:
    cdef readonly uint64_t wr_id
    cdef readonly uint64_t byte_len
    cdef readonly uint32_t qp_num
    cdef readonly uint32_t src_qp
    cdef readonly uint32_t slid
    cdef readonly int sl
    cdef readonly int path_bits
    cdef readonly int port
    cdef readonly uint32_t ee_num
    cdef uint32_t _immediate
    cdef int _status
    cdef int _opcode
    cdef int _flags

cdef class Destination:
    cdef public object tables
    cdef public int path
    cdef public int domain

cdef class Work(Lending):
    cdef uint32_t listed  # entries of the list that `put_list` copied last
    cdef uint64_t put_list(self, Sge *sge, uint32_t at, object entries, uint32_t limit) except? 1
    cdef bint put_local(self, QueuePair *q, SendWqe *w, WorkRequest request) except False
    cdef bint may_post(self, QueuePair *q, int path) except False
    cdef bint aim(self, QueuePair *q, SendWqe *w, WorkRequest request) except False
    cdef bint name_context(self, QueuePair *q, SendWqe *w, WorkRequest request) except False
    cdef bint _may_post(self, QueuePair *q) except False
    cdef bint _send(self, QueuePair *q, WorkRequest request) except False
    cdef bint _receive(self, RecvQueue *queue, object request) except False

cdef bint allowed(int service, int operation) noexcept nogil
