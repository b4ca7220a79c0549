# C types of fabric/wheel.py.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from verbena.fabric.tables cimport Event, Packet, Port, Queue, Tables

cdef enum:
    LEVELS = 5
    SLOT_BITS = 12
    SLOTS = 4096
    WORDS = 64  # of the occupancy map of a level
    TICK_BITS = 10  # a slot of the lowest level is 1,024 ps

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll" (uint64_t) noexcept nogil
    int count_leading_zeros "__builtin_clzll" (uint64_t) noexcept nogil

cdef int lowest_bit(uint64_t word) noexcept nogil
cdef int highest_bit(uint64_t word) noexcept nogil

cdef uint64_t ONE

cdef class Wheel(Tables):
    cdef Event **first  # by level and slot
    cdef Event **last
    cdef uint64_t *map  # a bit for each occupied slot
    cdef uint64_t *summary  # a bit for each word of the map that is not 0; one word a level
    cdef int64_t tick  # the slot of the lowest level that is worked on
    cdef bint sorted  # that slot's events are in order
    cdef readonly int64_t scheduled  # events that wait

    cdef Event *schedule(self, int64_t time, int kind, Port *port) noexcept nogil
    cdef void place(self, Event *e) noexcept nogil
    cdef void put_last(self, int32_t at, Event *e) noexcept nogil
    cdef void put_in_order(self, int32_t at, Event *e) noexcept nogil
    cdef int32_t next_slot(self, int level, int32_t slot) noexcept nogil
    cdef void clear_slot(self, int32_t at) noexcept nogil
    cdef void sort_slot(self, int32_t at) noexcept nogil
    cdef Event *next_event(self, int64_t until) noexcept nogil
    cdef bint descend(self, int64_t last_tick) noexcept nogil
    cdef void advance(self, int64_t tick) noexcept nogil
    cdef int64_t earliest(self) noexcept nogil
    cdef void free_event(self, Event *e) noexcept nogil
