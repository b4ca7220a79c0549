"""The route headers of native InfiniBand packets: LRH, and GRH where the destination is in another subnet.

A path keeps both as they are sent (IBA vol. 1, 7.7 and 8.3); only the lengths change from packet to packet.  The lane
is left 0: the port that a packet leaves from knows which one its service level means.  Beside them it keeps what the
invariant CRC covers (7.8.1): of a local packet the LRH without its lane; with a GRH the LRH, which a router makes
anew, counts as ones, and so do the GRH's traffic class, flow label and hop limit.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

if cython.compiled:
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import copy, crc32, fill, put16, put24, seal
else:
    from verbena._declarations import declarations
    from verbena.transport.tables import *
    from verbena.wire.kernels import copy, crc32, fill, put16, put24, seal

    globals().update(declarations(__file__))


def mask_route(to, route, size):
    """Copy `size` bytes of route headers, with the fields that the invariant CRC does not cover set to ones."""
    copy(to, 0, route, 0, size)
    if size == LRH_BYTES:
        to[0] |= 0xF0
        return
    fill(to, 0, 0xFF, LRH_BYTES)
    to[8] |= 0x0F
    fill(to, 9, 0xFF, 3)
    to[15] = 0xFF


def write_route(p):
    """Write a path's headers from its fields, lengths 0."""
    fill(p.route, 0, 0, ROUTE_BYTES)
    p.route[1] = p.sl << 4 | (NEXT_IS_BTH if p.front == LRH_BYTES else NEXT_IS_GRH)
    put16(p.route, 2, p.dlid)
    put16(p.route, 6, p.slid)
    if p.front == ROUTE_BYTES:
        p.route[8] = 0x60 | p.traffic_class >> 4
        put24(p.route, 9, (p.traffic_class & 15) << 20 | p.flow_label)
        p.route[14] = GRH_NEXT_IS_BTH
        p.route[15] = p.hop_limit
        copy(p.route, 16, p.own, 0, 16)
        copy(p.route, 32, p.remote, 0, 16)
    mask_route(p.prefix, p.route, p.front)


def route_seed(p, length):
    """Set the lengths for packets of `length` bytes from LRH to ICRC; returns the CRC of the masked headers."""
    put16(p.route, 4, length >> 2)
    if p.front == LRH_BYTES:
        put16(p.prefix, 4, length >> 2)
    else:
        put16(p.route, 12, length - ROUTE_BYTES)
        put16(p.prefix, 12, length - ROUTE_BYTES)
    return crc32(0, p.prefix, 0, p.front)


def seal_route(e, p, b, n, ask):
    """Give the packets of the burst just made their route headers and CRCs; ask for an answer with the last one."""
    i: cython.uint
    at: cython.size_t = 0
    length: cython.size_t = e.burst_segment
    base: cython.uint = route_seed(p, cython.cast(cython.uint, length))
    for i in range(e.burst_packets):
        if at + length > n:
            length = n - at
            base = route_seed(p, cython.cast(cython.uint, length))
        copy(b, at, p.route, 0, p.front)
        if ask and i + 1 == e.burst_packets:
            b[at + p.front + 8] = 0x80
        seal(base, b, at + p.front, length - p.front)
        at += length
