"""The frames that need no thought: to one peer whose channel is up, and from there, without a copy and without Python.

Whoever reads a device puts each frame where it will be sent from, a slot of the message pool; whoever writes to one
takes it from where it was received.  Nothing is decided here that `Sender` and `Receiver` would decide otherwise: a
frame goes this way only if they would send it, or hand it up, at once and unchanged.  Whatever else there is (groups,
resolution of addresses, bridges, cards of several ports, frames that are to be dropped) is left to them, with their
reasons and counters.

Compiled (see ``express.pxd`` for the C types) or run as it stands, with the same results.  Callers hold the adapter's
lock.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.errors import VerbError
from verbena.lan.config import LARGEST_SEGMENT
from verbena.lan.message import Role
from verbena.transport.kinds import WROpcode

if cython.compiled:
    from cython.cimports.verbena.transport.core import entry_at
    from cython.cimports.verbena.transport.tables import SUCCESS, WC_RECV
    from cython.cimports.verbena.transport.work import ScatterGatherEntry, WorkRequest
    from cython.cimports.verbena.wire.kernels import get16, get32, put16, put32, same
else:
    from verbena._declarations import declarations
    from verbena.transport.core import entry_at
    from verbena.transport.tables import SUCCESS, WC_RECV
    from verbena.transport.work import ScatterGatherEntry, WorkRequest
    from verbena.wire.kernels import get16, get32, put16, put32, same

    globals().update(declarations(__file__))

SENT_FRAME, RECEIVED_FRAME = 2, 4
"""The top four bits of a work request's number: see `transport_services`."""
NO_ROLE = Role.NONE
OFFLOAD_ROLE = int(Role.OFFLOAD)


class FrameSink:
    """Whoever takes frames from where they lie: see `LanPort.sink`."""

    def put(self, b, head, at, n):
        """Take the n bytes at b[at], their virtio_net_hdr at b[head] (negative: they are finished).

        True: done with, or dropped and counted.  False: not to be taken so.
        """
        return False


class Express:
    """The short way of one card's frames, between its library's queues and devices.  room: bytes of the longest frame.

    Belongs to the `TransportServices` that it is made with, and is of no use after `close`.
    """

    def __init__(self, station, services, receiver, liveness):
        self.station, self.services = station, services
        self.receiver, self.liveness = receiver, liveness
        self.card, self.counters, self.clock = station.card, station.counters, station.clock
        self.policy, self.peers, self.channels = station.policy, station.peers, services.channels
        self.engine = station.engine
        self.message, self.pool = None, services.messages
        config = station.config
        self.offload, self.mtu, self.room = config.offload, config.mtu, config.largest_frame
        self.segment = max(config.mtu, LARGEST_SEGMENT)
        self.lid = station.lid
        self.requests, self.slot = services.receives.requests, services.receives.size
        self.cq, self.sent_cq, self.shared = services.cq.index, services.sent_cq.index, services.shared.index
        self.piece = ScatterGatherEntry(0, 0, services.messages.lkey)
        self.request = WorkRequest(0, WROpcode.SEND, [self.piece])
        self.begins = services.lead + HEADER_BYTES + (OFFLOAD_BYTES if config.offload else 0)
        self.out_address = services.messages.region.addr
        self.out_view, self.in_view = services.messages.buf, services.receives.buf
        if cython.compiled:
            self.out = cython.cast(cython.pointer(cython.uchar), cython.address(self.out_view[0]))
            self.into = cython.cast(cython.pointer(cython.uchar), cython.address(self.in_view[0]))
        else:
            self.out, self.into, self.own = self.out_view, self.in_view, bytearray(6)
        for place, octet in enumerate(station.mac):
            self.own[place] = octet

    def close(self):
        """The library is being closed: its memory is not used any more."""
        self.services = None
        self.out_view = self.in_view = None

    def kick(self):
        """Let what was sent leave."""
        self.station.context.driver.kick()

    def hold(self):
        self.engine.acquire()

    def let_go(self):
        self.engine.release()

    def is_usable(self):
        """Does the card stand for itself alone, and does nobody look at its frames?"""
        card = self.card
        return (
            self.services is not None
            and self.station.open
            and card.role is NO_ROLE
            and not card.shared_lid
            and card.tap is None
        )

    # --- out --------------------------------------------------------------------------------------------------

    def begin(self):
        """Where in `out` the next frame is to be put, its virtio_net_hdr just before it.

        `NO_ROOM`: all messages are in use, and the card tells when that has changed.  `CLOSED`: not this way now.
        """
        if not self.is_usable():
            return CLOSED
        if self.message is None:
            self.reap()
            self.message = self.pool.take() or self.services.take_message()
            if self.message is None:
                return NO_ROOM
        at: cython.longlong = self.message.at
        return at + self.begins

    def done(self):
        """No frame is put for now."""
        if self.message is not None:
            message, self.message = self.message, None
            message.release()
        return True

    def send(self, unfinished, n):
        """Send the frame of n bytes that was put; False: that is for `Sender` to decide."""
        at: cython.longlong = self.message.at
        at += self.begins
        b = self.out
        kind: cython.uint
        lid: cython.uint
        length: cython.longlong = n
        if n < ETHERNET_BYTES or not same(b, at + 6, self.own, 0, 6) or not same(b, at, self.own, 0, 4):
            return False
        kind = get16(b, at + 12)
        if kind == ARP_TYPE or kind == VLAN_TYPE or kind == OUTER_VLAN_TYPE:
            return False
        if kind == IPV6_TYPE and (n < 54 or b[at + 20] == ICMP6):
            return False
        if (n > self.room or not self.offload) if unfinished else n - ETHERNET_BYTES > self.mtu:
            return False
        lid = get16(b, at + 4)
        peer = self.peers.reach(lid, self.lid) if 0 < lid <= LAST_UNICAST_LID else None
        if peer is None or peer.down:
            return False
        if unfinished and (peer.info is None or not peer.info.role & OFFLOAD_ROLE):
            return False
        channel = peer.channel
        if channel is None or not channel.ready or channel.waiting or len(channel.in_flight) >= channel.depth:
            return False
        number: cython.uint = (self.services.number + 1) & 0xFFFFFFFF
        self.services.number = number
        if unfinished:
            length += OFFLOAD_BYTES
            at -= OFFLOAD_BYTES
        at -= HEADER_BYTES
        b[at] = FIRST_BYTE
        b[at + 1] = OFFLOAD_FLAG if unfinished else 0
        put16(b, at + 2, self.lid)
        put32(b, at + 4, number)
        put32(b, at + 8, length)
        put32(b, at + 12, 0)
        return self.post(peer, channel, at, length + HEADER_BYTES, n)

    def post(self, peer, channel, at, length, n):
        """Post the message, and note what `Sender` notes."""
        message, self.message = self.message, None
        counters, now = self.counters, self.clock.now()
        counters["tx.frames"] += 1
        counters["tx.bytes"] += n
        counters["posts.channel"] += 1
        self.policy.sent(peer)
        peer.sent_ns = channel.used_ns = now
        self.piece.addr = self.out_address + cython.cast(cython.ulonglong, at)
        self.piece.length = length
        qpn: cython.ulonglong = channel.qp.qp_num
        self.request.wr_id = (cython.cast(cython.ulonglong, SENT_FRAME) << 60) | qpn
        channel.in_flight.append(message)
        try:
            self.engine.post_send(qpn & 0xFFFF, self.request)
        except VerbError:
            self.services.not_posted(channel)
        self.liveness.used(peer)
        return True

    def reap(self):
        """Take back the messages that were sent, up to a completion that needs a look."""
        ring = self.engine.cqs[self.sent_cq]
        while ring and ring.tail != ring.head:
            c = entry_at(ring, ring.tail)
            channel = self.channels.get(c.qpn)
            if c.status != SUCCESS or channel is None or channel.waiting or not channel.in_flight:
                self.services.take_sent()
                return False
            ring.tail += 1
            channel.in_flight.popleft().release()
        return True

    # --- in ---------------------------------------------------------------------------------------------------

    def take(self):
        """Hand the card's sink what has come, up to the first entry that is for `Receiver`."""
        sink: FrameSink = self.card.sink
        if sink is None or self.receiver.inbox or not self.is_usable():
            return  # what came before has not been handed up yet
        place: cython.uint
        now: cython.longlong = self.clock.now()
        count: cython.longlong = 0
        ring = self.engine.cqs[self.cq]
        while ring and ring.tail != ring.head:
            c = entry_at(ring, ring.tail)
            if c.wr_id >> 60 != RECEIVED_FRAME or c.status != SUCCESS or c.opcode != WC_RECV:
                break
            place = c.wr_id & 0xFFFF
            if not self.came(sink, c.qpn, place * self.slot, c.length, now):
                break
            ring.tail += 1
            count += 1
            self.engine.post_shared(self.shared, self.requests[place])
        if count:
            self.counters["rx.frames"] += count

    def came(self, sink, qpn, at, n, now):
        """Hand up the message of n bytes at `at`, if `Receiver` would."""
        b = self.into
        head: cython.longlong = -1
        begin: cython.longlong = at + HEADER_BYTES
        size: cython.longlong = n - HEADER_BYTES
        lid: cython.uint
        channel = self.channels.get(qpn)
        if channel is None or not channel.ready or size < ETHERNET_BYTES or b[at] != FIRST_BYTE:
            return False
        if get32(b, at + 8) != size or get32(b, at + 12) != 0:
            return False
        if b[at + 1] == OFFLOAD_FLAG:
            if not self.offload or size < OFFLOAD_BYTES + ETHERNET_BYTES:
                return False
            head, begin, size = begin, begin + OFFLOAD_BYTES, size - OFFLOAD_BYTES
        elif b[at + 1]:
            return False
        if size - ETHERNET_BYTES > (self.mtu if head < 0 else self.segment):
            return False
        if not same(b, begin, self.own, 0, 6) or not same(b, begin + 6, self.own, 0, 4):
            return False
        lid = get16(b, begin + 10)
        peer = channel.owner
        if get16(b, at + 2) != peer.lid or lid != peer.card or lid > LAST_UNICAST_LID:
            return False
        if not sink.put(b, head, begin, size):
            return False
        self.counters["rx.bytes"] += size
        channel.used_ns = now
        return True
