# C types of fabric/chance.py.
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    LOG_STEPS = 1024

cdef uint64_t MASK64, GAMMA, MIX_A, MIX_B, LOW_32
cdef uint32_t _log_table[1025]

cdef uint64_t scramble(uint64_t word) noexcept nogil
cdef int64_t exponential(uint64_t word) noexcept nogil
