"""What is done to every packet: byte order, copies, and the invariant CRC of RoCEv2.

Compiled (see ``kernels.pxd`` for the C types) or run as it stands, with the same results.  The CRC itself comes from
ISA-L, through the `isal` package; `zlib`'s serves where ISA-L is missing.

**The invariant CRC** (RoCEv2 annex A17.3.3; IBA vol. 1, 7.8.1) is the CRC-32 of Ethernet over eight bytes of ones,
the IP and UDP headers with their variable fields set to ones, the BTH with its `resv8a` byte set to ones, and the
rest of the packet; it is sent least significant byte first.

**The IPv4 identification** is covered by it, and a UDP socket neither shows nor sets that field.  A sender
(see `runtime.udp`) arranges for segment *i* of a burst to carry identification *i*.  A receiver first assumes the
same; when that fails, it uses that a CRC is linear over GF(2): changing one 32-bit word that *n* bytes follow, by
*w*, changes the CRC by w * x^(32 + 8n) mod P.  Multiplying the difference seen by the inverse power gives back the
word, and only a difference in the identification (and the don't-fragment flag) is believed.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if not cython.compiled:
    from verbena._declarations import declarations

    globals().update(declarations(__file__))

POLYNOMIAL = 0xEDB88320
ORDER = 0xFFFFFFFF
X_0 = 0x80000000


def _library_crc():  # type: ignore[no-untyped-def]
    """The Python function `crc32(data, value)` of the best library at hand."""
    try:
        from isal.isal_zlib import crc32 as function
    except ImportError:
        from zlib import crc32 as function
    return function


def _library_crc_address() -> int:
    """The address of the same function in C, for loops that do not hold the interpreter lock."""
    import ctypes

    try:
        import isal.isal_zlib as module

        return ctypes.cast(ctypes.CDLL(module.__file__).crc32_gzip_refl, ctypes.c_void_p).value or 0
    except (ImportError, OSError, AttributeError):
        pass
    import zlib
    from ctypes.util import find_library

    for name in (getattr(zlib, "__file__", None), find_library("z"), "libz.so.1"):
        try:
            if name:
                return ctypes.cast(ctypes.CDLL(name).crc32, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    raise ImportError("no CRC-32 in C was found: install the package isal, or zlib's shared library")


_crc_python = _library_crc()
if cython.compiled:
    _crc = cython.cast(crc_function, cython.cast(uintptr_t, _library_crc_address()))


def crc32(crc, b, at, n):
    """CRC-32 of n bytes of b from `at`, continuing `crc` (0 to start); conditioning as in zlib."""
    if cython.compiled:
        return _crc(crc, b + at, n)
    return _crc_python(memoryview(b)[at : at + n], crc)


def copy(to, to_at, source, at, n):
    """Copy n bytes."""
    if cython.compiled:
        memcpy(to + to_at, source + at, n)
    else:
        to[to_at : to_at + n] = source[at : at + n]


def fill(to, at, value, n):
    """Set n bytes to one value."""
    if cython.compiled:
        memset(to + at, value, n)
    else:
        to[at : at + n] = bytes([value]) * n


def same(a, a_at, b, b_at, n):
    """Are n bytes of two buffers equal?"""
    if cython.compiled:
        return memcmp(a + a_at, b + b_at, n) == 0
    return a[a_at : a_at + n] == b[b_at : b_at + n]


def put16(b, at, v):
    b[at] = (v >> 8) & 0xFF
    b[at + 1] = v & 0xFF


def put24(b, at, v):
    b[at] = (v >> 16) & 0xFF
    b[at + 1] = (v >> 8) & 0xFF
    b[at + 2] = v & 0xFF


def put32(b, at, v):
    put16(b, at, v >> 16)
    put16(b, at + 2, v)


def put64(b, at, v):
    put32(b, at, v >> 32)
    put32(b, at + 4, v)


def get16(b, at):
    return (b[at] << 8) | b[at + 1]


def get24(b, at):
    return (b[at] << 16) | (b[at + 1] << 8) | b[at + 2]


def get32(b, at):
    return (get16(b, at) << 16) | get16(b, at + 2)


def get64(b, at):
    high: cython.ulonglong = get32(b, at)
    return (high << 32) | get32(b, at + 4)


def multiply(a, b):
    """a * b mod P over GF(2), both bit-reversed as in the CRC (bit 31 is x^0)."""
    product: cython.uint = 0
    i: cython.int
    for i in range(32):
        if (a >> (31 - i)) & 1:
            product ^= b
        b = (b >> 1) ^ POLYNOMIAL if b & 1 else b >> 1
    return product


def x_power(exponent):
    """x^exponent mod P; the order of x is 2^32 - 1, so that a negative power is one mod 2^32 - 1."""
    result: cython.uint = X_0
    i: cython.int
    for i in range(32):
        if (exponent >> i) & 1:
            result = multiply(result, _powers[i])
    return result


def ident_effect(ident, following):
    """What identification `ident` in the place of 0 does to a CRC when `following` bytes come after its word."""
    word: cython.uint = ((ident & 0xFF) << 8) | (ident >> 8)
    return multiply(word, x_power((32 + 8 * following) % ORDER))


if not cython.compiled:
    _powers = [0] * 32
    _prefix_ident = [0] * 256


def _tables():  # type: ignore[no-untyped-def]
    i: cython.int
    power: cython.uint = 0x40000000
    for i in range(32):
        _powers[i] = power
        power = multiply(power, power)
    for i in range(256):
        _prefix_ident[i] = ident_effect(i, IP4_PREFIX - 16)


_tables()


def prefix(to, is_ip4, source, destination, sport, dport):
    """Write the masked headers that stand before the BTH (lengths 0); returns their size.

    `source` and `destination` are 16-byte GIDs, IPv4 addresses in mapped form.
    """
    size: cython.size_t
    fill(to, 0, 0xFF, IP6_PREFIX)
    if is_ip4:
        size = IP4_PREFIX
        to[8] = 0x45
        put16(to, 10, 0)
        put16(to, 12, 0)
        put16(to, 14, 0x4000)
        to[17] = 17
        copy(to, 20, source, 12, 4)
        copy(to, 24, destination, 12, 4)
    else:
        size = IP6_PREFIX
        to[8] = 0x6F
        put16(to, 12, 0)
        to[14] = 17
        copy(to, 16, source, 0, 16)
        copy(to, 32, destination, 0, 16)
    put16(to, size - 8, sport)
    put16(to, size - 6, dport)
    put16(to, size - 4, 0)
    return size


def seed(head, is_ip4, udp_payload):
    """The CRC of a prefix for packets with that many bytes after the UDP header, identification 0."""
    if is_ip4:
        put16(head, 10, udp_payload + 28)
        put16(head, IP4_PREFIX - 4, udp_payload + 8)
        return crc32(0, head, 0, IP4_PREFIX)
    put16(head, 12, udp_payload + 8)
    put16(head, IP6_PREFIX - 4, udp_payload + 8)
    return crc32(0, head, 0, IP6_PREFIX)


def ident_seed(seed_0, ident):
    """The seed of an IPv4 packet whose identification is `ident` (below 256)."""
    return seed_0 ^ _prefix_ident[ident & 0xFF]


def packet_crc(crc, b, at, n):
    """The invariant CRC of the n bytes (CRC included) from the BTH on; `crc` is the seed.

    The `resv8a` byte is changed and restored: b must be writable.
    """
    resv8a: cython.uchar = b[at + 4]
    result: cython.uint
    b[at + 4] = 0xFF
    result = crc32(crc, b, at, n - 4)
    b[at + 4] = resv8a
    return result


def seal(crc, b, at, n):
    """Write the invariant CRC into the last four of the n bytes from `at` on."""
    value: cython.uint = packet_crc(crc, b, at, n)
    b[at + n - 4] = value & 0xFF
    b[at + n - 3] = (value >> 8) & 0xFF
    b[at + n - 2] = (value >> 16) & 0xFF
    b[at + n - 1] = value >> 24


def sealed_with(b, at, n):
    """The CRC that stands in a packet's last four bytes."""
    high: cython.uint = (b[at + n - 1] << 8) | b[at + n - 2]
    return (high << 16) | (b[at + n - 3] << 8) | b[at + n - 4]


def inverse_power(udp_payload):
    """What `solve_ident` needs for packets with that many bytes after the UDP header."""
    following: cython.ulonglong = udp_payload - 4 + IP4_PREFIX - 16
    return x_power((ORDER - (32 + 8 * following) % ORDER) % ORDER)


def solve_ident(difference, power):
    """Which change of the identification explains a CRC difference: 0..65535, or `NOT_AN_IDENT`.

    The result is to be XORed to the identification assumed.  The don't-fragment flag may differ, too.
    """
    word: cython.uint = multiply(difference, power)
    if (word >> 16) != 0 and (word >> 16) != 0x0040:
        return NOT_AN_IDENT
    return ((word & 0xFF) << 8) | ((word >> 8) & 0xFF)
