"""Raw datagrams: packets without a transport header, wholly under software's control (document 003:552-555).

IBA vol. 1, 9.8.4, 10.2.  What a program sends are the bytes behind the LRH: an IPv6 packet, or a raw header with an
EtherType and what belongs to it.  The adapter adds the LRH (the link adds the VCRC), and nothing else: no number, no
CRC of its own, no answer.  What arrives is delivered byte by byte.

An IPv6 packet is filled up to whole words on its way; its own length says where it ends, so that the receiver's
program sees no filling.  A packet of an EtherType has no such length: it must consist of whole words.

Incoming packets are given to queue pairs by what these are registered for: IPv6 packets by the protocol behind all
extension headers and by destination address, others by EtherType.  The most specific registration wins: an address
before a protocol, both before either.  The search is linear: registrations are few, as protocols are.  A fragment is
given to who is registered for the protocol that its fragment header names; only the first has what comes after it.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import InvalidAttributeError, ResourceError
from verbena.transport.native import NativeEngine

if cython.compiled:
    from cython.cimports.libc.stdlib import free, realloc
    from cython.cimports.verbena.transport.core import send_at
    from cython.cimports.verbena.transport.requester import advance, begin, send_failed
    from cython.cimports.verbena.transport.route import LRH_BYTES
    from cython.cimports.verbena.transport.tables import *
    from cython.cimports.verbena.wire.kernels import copy, fill, get16, put16, same
else:
    from verbena._declarations import declarations
    from verbena.transport.core import send_at
    from verbena.transport.requester import advance, begin, send_failed
    from verbena.transport.route import LRH_BYTES
    from verbena.transport.tables import *
    from verbena.wire.kernels import copy, fill, get16, put16, same

    globals().update(declarations(__file__))

EXTENSION_HEADERS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS))


def protocol_of(b, at, n):
    """The protocol behind the extension headers of the IPv6 packet of n bytes at b[at] (RFC 8200, 4).

    `BROKEN_CHAIN` when the headers run beyond its end, or are not what a destination may accept: hop-by-hop options
    that are not first (4.3), a routing header that is not at its end (4.4).
    """
    following: cython.int = b[at + 6]
    place: cython.size_t = IP6_BYTES
    size: cython.size_t
    while (
        following == HOP_BY_HOP
        or following == ROUTING
        or following == FRAGMENT
        or following == AUTHENTICATION
        or following == DESTINATION_OPTIONS
    ):
        if place + 8 > n or (following == HOP_BY_HOP and place != IP6_BYTES):
            return BROKEN_CHAIN
        if following == FRAGMENT:
            if (get16(b, at + place + 2) & 0xFFF9) != 0:
                return b[at + place]
            size = 8
        elif following == AUTHENTICATION:
            size = 4 * (cython.cast(cython.size_t, b[at + place + 1]) + 2)
        else:
            if following == ROUTING and b[at + place + 3] != 0:
                return BROKEN_CHAIN
            size = 8 * (cython.cast(cython.size_t, b[at + place + 1]) + 1)
        following = b[at + place]
        place += size
        if place > n:
            return BROKEN_CHAIN
    return following


class RawEngine(NativeEngine):
    """One adapter's transport, with raw datagrams.  Made by `adapter.ChannelAdapter`."""

    if not cython.compiled:
        client_count = 0

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.clients = []

    def __dealloc__(self):
        if cython.compiled:
            free(self.clients)

    # --- who gets what ------------------------------------------------------------------------------------

    def register_client(self, index, protocol, address):
        """Give a raw queue pair the packets of a protocol.

        protocol: next header (0 to 255, no extension header) or EtherType (0 to 65535), by the queue pair's service;
        None: any.  address: 16 bytes, the IPv6 destination; None: any.  Raises `InvalidAttributeError`, and
        `ResourceError` when another registration is for the same.
        """
        at: cython.int = index
        self.acquire()
        try:
            service: cython.int = self.qp_at(at).service
            check_client(service, protocol, address)
            number: cython.int = ANY_PROTOCOL if protocol is None else protocol
            taken = self.find_client(service, number, address)
            if taken >= 0:
                qpn = self.qps[self.clients[taken].index].qpn
                raise ResourceError(f"queue pair {qpn:#x} is registered for that already: close it first")
            self._grow()
            self.clients[self.client_count].service = service
            self.clients[self.client_count].protocol = number
            self.clients[self.client_count].by_address = address is not None
            for i in range(16):
                self.clients[self.client_count].address[i] = 0 if address is None else address[i]
            self.clients[self.client_count].index = at
            self.client_count += 1
        finally:
            self.release()

    def _grow(self):
        if cython.compiled:
            if self.client_count == self.client_size:
                self.client_size = max(16, 2 * self.client_size)
                self.clients = cython.cast(
                    cython.pointer(RawClient),
                    realloc(self.clients, self.client_size * cython.sizeof(RawClient)),
                )
                if not self.clients:
                    raise MemoryError
        else:
            self.clients.append(RawClient())

    def find_client(self, service, protocol, address):
        """The place of just this registration; -1 when there is none."""
        i: cython.uint
        for i in range(self.client_count):
            if (
                self.clients[i].service == service
                and self.clients[i].protocol == protocol
                and bool(self.clients[i].by_address) == (address is not None)
                and (address is None or bytes([self.clients[i].address[k] for k in range(16)]) == address)
            ):
                return int(i)
        return -1

    def unregister_client(self, index, protocol, address):
        """End a registration; False when the queue pair has none like this."""
        at: cython.int = index
        self.acquire()
        try:
            service: cython.int = self.qp_at(at).service
            place: cython.int = self.find_client(
                service, ANY_PROTOCOL if protocol is None else protocol, address
            )
            if place < 0 or self.clients[place].index != at:
                return False
            self._drop_client(place)
            return True
        finally:
            self.release()

    def _drop_client(self, at: cython.int):
        last: cython.int = self.client_count - 1
        self.clients[at] = self.clients[last]
        self.client_count -= 1
        if not cython.compiled:
            self.clients.pop()

    def free_qp(self, index):
        i: cython.int
        for i in range(cython.cast(cython.int, self.client_count) - 1, -1, -1):
            if self.clients[i].index == index:
                self._drop_client(i)
        NativeEngine.free_qp(self, index)

    def client_of(self, service, protocol, b, at):
        """The queue pair for a packet of that protocol to the address at b[at] (IPv6 only); -1: nobody wants it."""
        i: cython.uint
        fit: cython.int
        best: cython.int = 0
        found: cython.int = -1
        for i in range(self.client_count):
            if self.clients[i].service != service:
                continue
            if self.clients[i].protocol != ANY_PROTOCOL and self.clients[i].protocol != protocol:
                continue
            if self.clients[i].by_address and not same(self.clients[i].address, 0, b, at, 16):
                continue
            fit = 1 + (2 if self.clients[i].by_address else 0)
            if self.clients[i].protocol != ANY_PROTOCOL:
                fit += 1
            if fit > best:
                best = fit
                found = self.clients[i].index
        return found

    # --- receiving ----------------------------------------------------------------------------------------

    def take_raw(self, b, n, number, now):
        """A packet without a transport header: n bytes, LRH first, which is checked already."""
        client: cython.int
        protocol: cython.int
        length: cython.size_t = n - LRH_BYTES
        if self.client_count == 0:
            self.counters[DROP_RAW] += 1
            return
        if b[1] & 3 == NEXT_IS_RWH:
            if length < RAW_HEADER_BYTES:
                self.counters[DROP_SHORT] += 1
                return
            client = self.client_of(RAW_ETHERTYPE, get16(b, LRH_BYTES + 2), b, 0)
        else:
            if length < IP6_BYTES:
                self.counters[DROP_SHORT] += 1
                return
            if b[LRH_BYTES] >> 4 != 6:
                self.counters[DROP_GRH_VERSION] += 1
                return
            length = IP6_BYTES + get16(b, LRH_BYTES + 4)
            if length + LRH_BYTES > n or n - LRH_BYTES - length > 3:
                self.counters[DROP_LENGTH] += 1
                return
            protocol = protocol_of(b, LRH_BYTES, length)
            if protocol == BROKEN_CHAIN:
                self.counters[DROP_IP_HEADER] += 1
                return
            client = self.client_of(RAW_IPV6, protocol, b, LRH_BYTES + 24)
        if client < 0:
            self.counters[DROP_NO_PROTOCOL] += 1
            return
        self.deliver_raw(self.qps[client], b, length, number)

    def deliver_raw(self, q, b, n, number):
        """Put the n bytes behind the LRH into the oldest receive buffer."""
        if q.state < RTR or q.state == ERROR:
            self.counters[DROP_QP_STATE] += 1
            return
        if n > self.ports[number].mtu:
            self.counters[DROP_LENGTH] += 1
            return
        if not self.take_receive(q):
            self.counters[DROP_NO_RECEIVE] += 1
            return
        if n > q.recv_length:
            self.counters[DROP_TOO_LONG] += 1
            return
        if not self.scatter(q.domain, q.recv_sge, 0, q.recv_sges, 0, b, LRH_BYTES, n):
            self.counters[DROP_PROTECTION] += 1
            self.complete_recv(q, LOC_PROT_ERR, WC_RECV, 0, 0, 0, 0, False)
            self.fail(q)
            return
        self.counters[RX_ACCEPTED] += 1
        self.complete_recv(q, SUCCESS, WC_RECV, n, 0, 0, 0, False)

    # --- sending ------------------------------------------------------------------------------------------

    def make_requests(self, q, b, size, now):
        if q.service >= RAW_IPV6:
            return self.make_raw(q, b, size)
        return NativeEngine.make_requests(self, q, b, size, now)

    def make_raw(self, q, b, size):
        """Write the next burst of raw packets: of one size (the last perhaps shorter) and one path."""
        written: cython.size_t = 0
        length: cython.uint
        total: cython.uint
        self.burst_segment = 0
        self.burst_packets = 0
        while q.sq_next != q.sq_head and self.burst_packets < self.burst_limit:
            w = send_at(q, q.sq_next)
            if not w.started and not begin(self, q, w):
                break
            length = cython.cast(cython.uint, w.length)
            total = LRH_BYTES + ((length + 3) & ~cython.cast(cython.uint, 3))
            if self.burst_packets == 0:
                self.burst_segment = total
                self.burst_path = w.path
            elif w.path != self.burst_path or total > self.burst_segment:
                break
            if written + total > size:
                break
            if not self.gather(q, q.sq_next, 0, b, written + LRH_BYTES, length):
                if self.burst_packets == 0 and q.sq_una == q.sq_next:
                    send_failed(self, q, LOC_PROT_ERR)
                break
            fill(b, written + LRH_BYTES + length, 0, total - LRH_BYTES - length)
            p = self.paths[w.path]
            copy(b, written, p.route, 0, LRH_BYTES)
            b[written + 1] = (p.sl << 4) | (NEXT_IS_IP6 if q.service == RAW_IPV6 else NEXT_IS_RWH)
            put16(b, written + 4, total >> 2)
            written += total
            self.burst_packets += 1
            advance(self, q, w, 1)
            if total < self.burst_segment:
                break
        return written

    # --- the same, for callers in Python ------------------------------------------------------------------

    def receive_raw(self, packet, port, now):
        """Take a raw packet, LRH to its last word without VCRC, from a writable buffer: `receive_native` does it."""
        self.receive_native(packet, port, now)


def check_client(service, protocol, address):
    """Raise `InvalidAttributeError` unless a queue pair of that service can be registered so."""
    if service != RAW_IPV6 and service != RAW_ETHERTYPE:
        raise InvalidAttributeError(
            "only a raw queue pair (RAW_IPV6, RAW_ETHERTYPE) is registered for a protocol"
        )
    largest = 0xFF if service == RAW_IPV6 else 0xFFFF
    if protocol is not None and (not isinstance(protocol, int) or not 0 <= protocol <= largest):
        raise InvalidAttributeError(f"protocol {protocol!r}: a number from 0 to {largest}, or None for any")
    if service == RAW_ETHERTYPE:
        if address is not None:
            raise InvalidAttributeError("a packet of an EtherType has no address to register for")
        return
    if protocol in EXTENSION_HEADERS:
        raise InvalidAttributeError(
            f"next header {protocol} is an extension header: register for the protocol that follows it"
        )
    if address is not None and len(address) != 16:
        raise InvalidAttributeError(f"an IPv6 address has 16 bytes, not {len(address)}")


def upper_layer_protocol(packet):
    """`protocol_of`, for callers in Python: bytes of an IPv6 packet, at least 40 of them; -1 for a broken chain."""
    if len(packet) < IP6_BYTES:
        return BROKEN_CHAIN
    if cython.compiled:
        octets: cython.const[cython.uchar][::1] = packet
        return protocol_of(
            cython.cast(cython.pointer(uint8_t), cython.address(octets[0])), 0, octets.shape[0]
        )
    return protocol_of(packet, 0, len(packet))
