# C types of transport/notification.py.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from verbena.transport.schedule cimport Schedule
from verbena.transport.tables cimport CompletionRing, Cqe

cdef enum:  # what has a queue raise an event
    ARMED_NOT = 0
    ARMED_ERRORS = 1
    ARMED_SOLICITED = 2  # and errors
    ARMED_ANY = 3

cdef enum:  # of an event
    EVENT_SOLICITED = 1
    EVENT_ERROR = 2
    EVENT_ASKED = 4  # the queue was armed for it

cdef enum:
    TRACE_STEPS = 16384  # a power of two

cdef struct Vector:  # one for each handler that the adapter can have: its interrupt, and the line of its events
    uint32_t identifier  # of the handler; 0 = nobody's
    uint64_t address  # where the interrupt is written to
    uint32_t data  # what is written
    int32_t descriptor  # eventfd that stands for the address; -1 = software looks at `messages`
    bint masked
    bint pending
    bint raised  # an interrupt was made, and the line has not been empty since
    bint due  # a write waits for whoever drives the adapter
    int32_t next_due
    uint32_t most  # moderation: an interrupt for so many events
    uint64_t longest_ns  # and so long after the first of them at the latest; 0 = no moderation
    uint32_t held  # events since the last interrupt
    uint64_t deadline_ns
    int32_t first_cq  # the line: queues whose event waits to be taken; -1 = none
    int32_t last_cq
    uint32_t waiting  # queues in it
    uint64_t events
    uint64_t merged  # with one of the same queue that waited
    uint64_t interrupts
    uint64_t taken
    uint64_t discarded

cdef struct Step:  # of the flow chart
    uint32_t block
    int32_t cq
    uint32_t qpn
    int32_t answer
    uint64_t when

cdef class Notification(Schedule):
    cdef Vector *vectors
    cdef readonly int max_vectors
    cdef int32_t first_due, last_due
    cdef uint32_t moderated  # vectors whose moderation timer runs
    cdef public uint64_t now_ns  # when it was last driven
    cdef public bint function_masked, shutting, ended
    cdef public bint solicited_armed  # a solicited entry needs an armed queue
    cdef public bint entry_first  # the entry is posted before its event is built
    cdef Step *steps
    cdef public bint tracing
    cdef uint64_t traced, told

    cdef Vector *vector_at(self, int32_t place) except NULL
    cdef int wanted(self, int32_t cq, Cqe *entry, bint solicited) noexcept nogil
    cdef void announce(self, int32_t cq, Cqe *entry, int kind) noexcept nogil
    cdef void append(self, int32_t place, int32_t cq) noexcept nogil
    cdef void unlink(self, int32_t place, int32_t cq) noexcept nogil
    cdef void interrupt(self, int32_t place) noexcept nogil
    cdef void message(self, int32_t place) noexcept nogil
    cdef int32_t next_message(self) noexcept nogil
    cdef void expire(self, uint64_t now) noexcept nogil
    cdef void step(self, uint32_t block, int32_t cq, uint32_t qpn, int32_t answer) noexcept nogil
