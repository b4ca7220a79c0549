"""Random numbers of the fabric simulator: 64-bit integers (splitmix64), and exponential intervals made of them.

Integers alone, also for logarithms (a table in fixed point, with linear interpolation: exact to 2^-20): a seed gives
the same run on every machine, compiled or not.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.fabric.wheel import highest_bit
else:
    from verbena._declarations import declarations
    from verbena.fabric.wheel import highest_bit

    globals().update(declarations(__file__))
    _log_table = [0] * (LOG_STEPS + 1)

MASK64 = 0xFFFFFFFFFFFFFFFF
GAMMA = 0x9E3779B97F4A7C15
MIX_A = 0xBF58476D1CE4E5B9
MIX_B = 0x94D049BB133111EB
LOW_32 = 0xFFFFFFFF


def mixed(word):
    """One splitmix64 step of a Python integer."""
    word = (word + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return word ^ (word >> 31)


def _logarithm(i):
    """round(2^20 ln(1 + i / 1024)), by integers alone: the bits of the binary logarithm by squaring."""
    x = (1024 + i) << 50  # 1.0 is 2^60
    bits = 0
    for _ in range(40):
        bits <<= 1
        if x >= 1 << 61:
            x >>= 1
            bits += 1
        x = x * x >> 60
    # The first of the 40 bits is that of 2^0: 1 + i/1024 = 2^(bits / 2^39).
    return (bits * 762_123_384_786 + (1 << 58)) >> 59  # ln 2 = 762123384786 / 2^40


def _make_log_table():
    i: cython.int
    for i in range(LOG_STEPS + 1):
        _log_table[i] = _logarithm(i)


_make_log_table()


def scramble(word):
    """What the generator gives for its state, which grows by `GAMMA` each time (splitmix64)."""
    word = ((word ^ (word >> 30)) * MIX_A) & MASK64
    word = ((word ^ (word >> 27)) * MIX_B) & MASK64
    return word ^ (word >> 31)


def exponential(word):
    """-ln(u) in 2^-20, of mean 1, for a random word that stands for u in (0, 1)."""
    top: cython.int
    fraction: uint64_t
    step: cython.int
    log: cython.longlong
    slope: cython.longlong
    word |= 1
    top = highest_bit(word)
    fraction = ((word << (63 - top)) & MASK64) >> 31  # 1.0 is 2^32
    fraction &= LOW_32
    step = cython.cast(cython.int, fraction >> 22)
    slope = _log_table[step + 1] - _log_table[step]
    log = _log_table[step] + ((slope * cython.cast(cython.longlong, fraction & 0x3FFFFF)) >> 22)
    return (64 - top) * 726817 - log  # ln 2 in 2^-20
