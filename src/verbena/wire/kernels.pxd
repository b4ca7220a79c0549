# C types of wire/kernels.py.  Buffers are a pointer and an offset, so that the uncompiled twin can use any
# Python buffer in the pointer's place.
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    IP4_PREFIX = 36  # masked LRH, IPv4 and UDP headers
    IP6_PREFIX = 56
    NOT_AN_IDENT = -1

ctypedef uint32_t (*crc_function)(uint32_t, const uint8_t *, uint64_t) noexcept nogil

cdef crc_function _crc
cdef uint32_t POLYNOMIAL, X_0
cdef uint64_t ORDER

cdef uint32_t crc32(uint32_t crc, const uint8_t *b, size_t at, size_t n) noexcept nogil
cdef void copy(uint8_t *to, size_t to_at, const uint8_t *source, size_t at, size_t n) noexcept nogil
cdef void fill(uint8_t *to, size_t at, uint8_t value, size_t n) noexcept nogil
cdef bint same(const uint8_t *a, size_t a_at, const uint8_t *b, size_t b_at, size_t n) noexcept nogil

cdef void put16(uint8_t *b, size_t at, uint32_t v) noexcept nogil
cdef void put24(uint8_t *b, size_t at, uint32_t v) noexcept nogil
cdef void put32(uint8_t *b, size_t at, uint32_t v) noexcept nogil
cdef void put64(uint8_t *b, size_t at, uint64_t v) noexcept nogil
cdef uint32_t get16(const uint8_t *b, size_t at) noexcept nogil
cdef uint32_t get24(const uint8_t *b, size_t at) noexcept nogil
cdef uint32_t get32(const uint8_t *b, size_t at) noexcept nogil
cdef uint64_t get64(const uint8_t *b, size_t at) noexcept nogil

cdef uint32_t multiply(uint32_t a, uint32_t b) noexcept nogil
cdef uint32_t x_power(uint32_t exponent) noexcept nogil
cdef uint32_t ident_effect(uint32_t ident, uint32_t following) noexcept nogil

cdef uint32_t _powers[32]
cdef uint32_t _prefix_ident[256]

cdef size_t prefix(uint8_t *to, bint is_ip4, const uint8_t *source, const uint8_t *destination,
                   uint32_t sport, uint32_t dport) noexcept nogil
cdef uint32_t seed(uint8_t *head, bint is_ip4, uint32_t udp_payload) noexcept nogil
cdef uint32_t ident_seed(uint32_t seed_0, uint32_t ident) noexcept nogil
cdef uint32_t packet_crc(uint32_t crc, uint8_t *b, size_t at, size_t n) noexcept nogil
cdef void seal(uint32_t crc, uint8_t *b, size_t at, size_t n) noexcept nogil
cdef uint32_t sealed_with(const uint8_t *b, size_t at, size_t n) noexcept nogil
cdef uint32_t inverse_power(uint32_t udp_payload) noexcept nogil
cdef int solve_ident(uint32_t difference, uint32_t power) noexcept nogil
