# C types of fabric/wheel.py.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from verbena.fabric.tables cimport Batch, Event, Lane, Packet, Port, Queue, Tables

cdef enum:
    LEVELS = 5
    SLOT_BITS = 12
    SLOTS = 4096
    WORDS = 64  # of the occupancy map of a level
    TICK_BITS = 12  # a slot of the lowest level is 4,096 ps
    RADIX_BITS = 6
    MANY = 256  # ports; fewer lie in the cache without looking ahead
    ENOUGH = 48  # events of an agenda, if the next SPAN slots have so many
    SPAN = 16
    FEW = 24  # events that are sorted by insertion
    STEP = 2  # events between two steps of looking ahead

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll" (uint64_t) noexcept nogil
    int count_leading_zeros "__builtin_clzll" (uint64_t) noexcept nogil

cdef extern from *:
    """
    /* The empty statement keeps compilers from dropping a function that does nothing else. */
    #define verbena_prefetch(p) do { __builtin_prefetch(p); __asm__ volatile("" : : : ); } while (0)
    """
    void prefetch "verbena_prefetch" (const void *) noexcept nogil

cdef Lane *lane_beside(Port *port, int lane) noexcept nogil
cdef int lowest_bit(uint64_t word) noexcept nogil
cdef int highest_bit(uint64_t word) noexcept nogil

cdef uint64_t ONE

cdef class Wheel(Tables):
    cdef Batch **first  # by level and slot
    cdef Batch **last
    cdef uint64_t *map  # a bit for each occupied slot
    cdef uint64_t *summary  # a bit for each word of the map that is not 0; one word a level
    cdef int64_t tick  # the slot of the lowest level that is worked on
    cdef Event *agenda  # that slot's events, in order
    cdef Event *scratch
    cdef int32_t agenda_at
    cdef int32_t agenda_end
    cdef int32_t agenda_room
    cdef bint sorted  # that slot's events are there
    cdef readonly int64_t scheduled  # events that wait

    cdef Event *schedule(self, int64_t time, int kind, Port *port) noexcept nogil
    cdef Event *place(self, int64_t time) noexcept nogil
    cdef int32_t slot_of(self, int64_t time) noexcept nogil
    cdef Event *put_last(self, int32_t at) noexcept nogil
    cdef Event *put_in_order(self, int64_t time) noexcept nogil
    cdef int32_t next_slot(self, int level, int32_t slot) noexcept nogil
    cdef void mark_empty(self, int32_t at) noexcept nogil
    cdef void grow_agenda(self, int32_t room) noexcept nogil
    cdef void collect(self, int32_t at) noexcept nogil
    cdef void collect_from(self, int32_t slot, int64_t last_tick) noexcept nogil
    cdef void sort_agenda(self, int32_t start) noexcept nogil
    cdef void sort_by_digit(self, Event *source, Event *target, int32_t count, int shift) noexcept nogil
    cdef void look_ahead(self, int32_t at) noexcept nogil
    cdef Event *next_event(self, int64_t until) noexcept nogil
    cdef bint descend(self, int64_t last_tick) noexcept nogil
    cdef void spread(self, int32_t at) noexcept nogil
    cdef void advance(self, int64_t tick) noexcept nogil
    cdef int64_t earliest(self) noexcept nogil
