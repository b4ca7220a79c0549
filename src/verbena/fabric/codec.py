"""Flits to and from bytes, as `wire.flit` has them, for every flit on a link."""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.fabric.tables import *
    from cython.cimports.verbena.wire.kernels import crc32, get16, get32, put16, put32
else:
    from verbena._declarations import declarations
    from verbena.fabric.tables import *
    from verbena.wire.kernels import crc32, get16, get32, put16, put32

    globals().update(declarations(__file__))


def encode_flit(f, credit_lane, limit):
    """Write the header before the payload, which is in its place already."""
    b = f.data
    b[0] = (f.kind << 4) | f.lane
    b[1] = (0x80 if f.first else 0) | f.size
    put16(b, 2, (0x8000 if f.last else 0) | f.sequence)
    put16(b, 4, (credit_lane << 12) | limit)
    put16(b, 6, 0)
    put32(b, 8, crc32(crc32(0, b, 0, 8), b, FLIT_HEADER, f.size))


def decode_flit(f, total):
    """Read the header of `total` bytes; False if they are not a sound flit."""
    b = f.data
    if total < FLIT_HEADER:
        return False
    f.kind = b[0] >> 4
    f.lane = b[0] & 15
    f.first = (b[1] & 0x80) != 0
    f.size = b[1] & 0x7F
    f.last = (b[2] & 0x80) != 0
    f.sequence = get16(b, 2) & 0xFFF
    if f.size > FLIT_PAYLOAD or total != FLIT_HEADER + f.size:
        return False
    if crc32(crc32(0, b, 0, 8), b, FLIT_HEADER, f.size) != get32(b, 8):
        return False
    return f.kind >= DATA and f.kind <= CREDIT and (f.kind == DATA) == (f.size > 0)


def credit_lane_of(f):
    return f.data[4] >> 4


def credit_limit_of(f):
    return get16(f.data, 4) & 0xFFF


def encoded(kind, lane, sequence, payload, first, last, credit_lane, credit_limit):
    """The bytes of a flit, for comparison with `wire.flit`."""
    source: cython.const[cython.uchar][::1]
    i: cython.int
    if cython.compiled:
        whole: Flit
        f = cython.address(whole)
    else:
        f = Flit()
    f.kind, f.lane, f.sequence, f.size = kind, lane, sequence, len(payload)
    f.first, f.last = first, last
    source = payload
    for i in range(len(payload)):
        f.data[FLIT_HEADER + i] = source[i]
    encode_flit(f, credit_lane, credit_limit)
    return bytes([f.data[i] for i in range(FLIT_HEADER + f.size)])


def decoded(octets):
    """The fields of a flit (kind, lane, sequence, payload, first, last, credit lane, limit), or None."""
    source: cython.const[cython.uchar][::1]
    i: cython.int
    if not FLIT_HEADER <= len(octets) <= FLIT_HEADER + FLIT_PAYLOAD:
        return None
    if cython.compiled:
        whole: Flit
        f = cython.address(whole)
    else:
        f = Flit()
    source = octets
    for i in range(len(octets)):
        f.data[i] = source[i]
    if not decode_flit(f, len(octets)):
        return None
    payload = bytes([f.data[FLIT_HEADER + i] for i in range(f.size)])
    credit = (credit_lane_of(f), credit_limit_of(f))
    return (f.kind, f.lane, f.sequence, payload, bool(f.first), bool(f.last), *credit)
