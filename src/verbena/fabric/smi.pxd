# C types of fabric/smi.py.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from verbena.fabric.arbitration cimport Arbitration
from verbena.fabric.tables cimport Node, Packet, Port

cdef enum:  # where a directed-route packet goes
    SMI_DROP = -1  # else a port's number; 0 is the switch's own
    MAD_AT = 28  # LRH, BTH, DETH
    HOP_POINTER = 34
    HOP_COUNT = 35
    INITIAL_PATH = 156
    RETURN_PATH = 220
    SMP_SIZE = 290  # with ICRC and VCRC
    DIRECTED_ROUTE = 0x81
    LARGEST_HOP = 63

cdef extern from *:
    """
    /* The bytes of a message folded to 16 with the same CRC: 64 at a time by carry-less multiplication (V. Gopal et
       al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ, 2009), or 256 where the processor multiplies
       512 bits at a time.  k: for 512, 128 and 2048 bits ahead.  `begin` is what the CRC starts with.  The caller folds
       whole blocks of 64 bytes, at least one. */
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    static int verbena_can_fold(void) { return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"); }
    static int verbena_can_fold_wide(void) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
    }
    #define VERBENA_FOLD(x, k, y) _mm_xor_si128(_mm_xor_si128( \
        _mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), y)
    __attribute__((target("pclmul,sse4.1")))
    static void verbena_fold(const uint8_t *b, size_t n, unsigned begin, const uint64_t *k, uint8_t *folded) {
        const __m128i far = _mm_set_epi64x((long long)k[1], (long long)k[0]);
        const __m128i near = _mm_set_epi64x((long long)k[3], (long long)k[2]);
        const __m128i *at = (const __m128i *)b;
        __m128i a = _mm_xor_si128(_mm_loadu_si128(at), _mm_cvtsi32_si128((int)begin));
        __m128i c = _mm_loadu_si128(at + 1), d = _mm_loadu_si128(at + 2), e = _mm_loadu_si128(at + 3);
        for (at += 4, n -= 64; n >= 64; at += 4, n -= 64) {
            a = VERBENA_FOLD(a, far, _mm_loadu_si128(at));
            c = VERBENA_FOLD(c, far, _mm_loadu_si128(at + 1));
            d = VERBENA_FOLD(d, far, _mm_loadu_si128(at + 2));
            e = VERBENA_FOLD(e, far, _mm_loadu_si128(at + 3));
        }
        c = VERBENA_FOLD(a, near, c);
        d = VERBENA_FOLD(c, near, d);
        e = VERBENA_FOLD(d, near, e);
        _mm_storeu_si128((__m128i *)folded, e);
    }
    #define VERBENA_FOLD_WIDE(x, k, y) _mm512_ternarylogic_epi64( \
        _mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11), y, 0x96)
    __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.1")))
    static void verbena_fold_wide(const uint8_t *b, size_t n, unsigned begin, const uint64_t *k, uint8_t *folded) {
        const __m512i wide = _mm512_broadcast_i32x4(_mm_set_epi64x((long long)k[5], (long long)k[4]));
        const __m512i far = _mm512_broadcast_i32x4(_mm_set_epi64x((long long)k[1], (long long)k[0]));
        const __m128i near = _mm_set_epi64x((long long)k[3], (long long)k[2]);
        __m512i a = _mm512_xor_si512(_mm512_loadu_si512(b), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)begin)));
        __m128i x;
        b += 64, n -= 64;
        if (n >= 192) {
            __m512i c = _mm512_loadu_si512(b), d = _mm512_loadu_si512(b + 64), e = _mm512_loadu_si512(b + 128);
            for (b += 192, n -= 192; n >= 256; b += 256, n -= 256) {
                a = VERBENA_FOLD_WIDE(a, wide, _mm512_loadu_si512(b));
                c = VERBENA_FOLD_WIDE(c, wide, _mm512_loadu_si512(b + 64));
                d = VERBENA_FOLD_WIDE(d, wide, _mm512_loadu_si512(b + 128));
                e = VERBENA_FOLD_WIDE(e, wide, _mm512_loadu_si512(b + 192));
            }
            a = VERBENA_FOLD_WIDE(a, far, c);
            a = VERBENA_FOLD_WIDE(a, far, d);
            a = VERBENA_FOLD_WIDE(a, far, e);
        }
        for (; n >= 64; b += 64, n -= 64)
            a = VERBENA_FOLD_WIDE(a, far, _mm512_loadu_si512(b));
        x = VERBENA_FOLD(_mm512_castsi512_si128(a), near, _mm512_extracti32x4_epi32(a, 1));
        x = VERBENA_FOLD(x, near, _mm512_extracti32x4_epi32(a, 2));
        x = VERBENA_FOLD(x, near, _mm512_extracti32x4_epi32(a, 3));
        _mm_storeu_si128((__m128i *)folded, x);
    }
    #else
    static int verbena_can_fold(void) { return 0; }
    static int verbena_can_fold_wide(void) { return 0; }
    static void verbena_fold(const uint8_t *b, size_t n, unsigned begin, const uint64_t *k, uint8_t *folded) {
        (void)b; (void)n; (void)begin; (void)k; (void)folded;
    }
    #define verbena_fold_wide verbena_fold
    #endif
    """
    bint can_fold "verbena_can_fold" () noexcept nogil
    bint can_fold_wide "verbena_can_fold_wide" () noexcept nogil
    void fold_wide "verbena_fold_wide" (const uint8_t *, size_t, unsigned int, const uint64_t *, uint8_t *) noexcept nogil
    void fold "verbena_fold" (const uint8_t *, size_t, unsigned int, const uint64_t *, uint8_t *) noexcept nogil

cdef enum:
    FOLDED = 16  # bytes that are left of a message
    FOLD_STEP = 64
    FEWEST_FOLDED = 128  # shorter messages are not worth it

cdef uint16_t _vcrc_table[8][256]
cdef uint64_t _fold_by[6]
cdef bint _folds
cdef bint _folds_wide

cdef uint32_t vcrc_over(const uint8_t *b, size_t n, uint32_t crc) noexcept nogil

cdef uint32_t vcrc16(const uint8_t *b, size_t n) noexcept nogil
cdef void seal_vcrc(uint8_t *b, size_t size) noexcept nogil
cdef bint vcrc_right(const uint8_t *b, size_t size) noexcept nogil
cdef void seal_icrc(uint8_t *b, size_t size) noexcept nogil

cdef class Smi(Arbitration):
    cdef bint is_directed(self, Packet *p) noexcept nogil
    cdef void reseal(self, Packet *p) noexcept nogil
    cdef int smi_forward(self, Node *node, int in_port, Packet *p) noexcept nogil
    cdef bint smi_leave(self, Packet *p) noexcept nogil
    cdef void smi_arrive(self, Port *port, Packet *p) noexcept nogil
