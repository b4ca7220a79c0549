# C types of fabric/ledger.py.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from verbena.fabric.tables cimport Packet, Port, Report, Source, Trace
from verbena.fabric.wheel cimport Wheel

cdef enum:
    BINS = 1024

cdef class Ledger(Wheel):
    cdef readonly int64_t injected
    cdef readonly int64_t imported
    cdef readonly int64_t exported
    cdef readonly int64_t replicated
    cdef readonly int64_t delivered
    cdef readonly int64_t dropped
    cdef readonly int64_t offered
    cdef readonly int64_t packet_hops
    cdef readonly int64_t events
    cdef uint64_t *bins
    cdef uint64_t *group_bins  # of each group of sources
    cdef int32_t group_count
    cdef int64_t latency_sum
    cdef int64_t latency_min
    cdef int64_t latency_max
    cdef int64_t delivered_bytes
    cdef uint32_t trace_mask
    cdef Trace *traces
    cdef int64_t trace_count
    cdef int64_t trace_room
    cdef Report *report_list
    cdef int64_t report_count
    cdef int64_t report_room
    cdef Packet *delivered_first
    cdef Packet *delivered_last
    cdef bint stop  # something became visible

    cdef void trace(self, uint32_t kind, Port *port, int lane, int32_t sequence, int32_t size, int64_t packet_id,
                    int detail, int64_t time) noexcept nogil
    cdef void report(self, int32_t kind, Port *port, int32_t detail) noexcept nogil
    cdef void drop(self, Port *port, Packet *p, int reason) noexcept nogil
    cdef void measure(self, int64_t ps) noexcept nogil
    cdef void measure_source(self, Source *s, int32_t size, int64_t ps) noexcept nogil
    cdef object _use_group(self, int group)
    cdef int latency_bin(self, int64_t ps) noexcept nogil
