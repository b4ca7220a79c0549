"""The transport services library: datagrams and connections that carry messages (document 000:102, figure 4, 44-52).

One for each port with a driver.  It owns the port's queue pairs, completion queue and message pools, and nothing above
them: whose a message is, and where it has to go, the driver says.  All of it goes through the verbs: a protection
domain, regions, one datagram queue pair, and a connected one for each channel, which share one receive queue.

Everything is bounded.  A frame to be sent takes a slot of the message pool; when there is none, the caller is told so,
and called when there is again.  What the queue pairs cannot take at once waits in the message's slot.

The least common denominator of adapters is enough (000:72): 256-byte packets, unreliable datagrams, unreliable and
reliable connections.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from verbena.errors import VerbError
from verbena.lan.config import LanConfig
from verbena.lan.datagrams import QKEY, DatagramSender, cut
from verbena.lan.express import Express
from verbena.lan.message import HEADER, HEADER_SIZE, OFFLOAD_SIZE, VERSION, Flags, Kind
from verbena.lan.pools import Message, MessagePool, ReceivePool
from verbena.lan.ways import Way
from verbena.transport.kinds import CompletionOpcode, Notify, QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.context import Context
from verbena.verbs.one_at_a_time import OneAtATime
from verbena.verbs.queue_pair import QueuePair

log = logging.getLogger("verbena")

FRAME, OFFLOAD = VERSION << 4 | int(Kind.FRAME), int(Flags.OFFLOAD)
"""Plain numbers: they are used for each frame."""
GRH_SPACE = 40
CONTROL_MESSAGES = 32
CONTROL_SIZE = 128
SENT_DATAGRAM, SENT_FRAME = 1 << 60, 2 << 60
RECEIVED_DATAGRAM, RECEIVED_FRAME = 3 << 60, 4 << 60
KINDS = 7 << 60
SMALLEST_PACKET = 256
POLL = 64
ANY = int(Notify.ANY)

Arrived = Callable[[int, int, int, Any], None]
"""Called with what came: source LID, source queue pair, service level, and a view of the message with its header."""


class Channel:
    """A connection to one peer.  Made by `TransportServices.make_channel`; `qp` is brought up by who makes it.

    At most `depth` frames are with the queue pair, as many again wait here; those beyond are dropped and counted.
    """

    __slots__ = ("closed", "depth", "in_flight", "owner", "qp", "ready", "used_ns", "waiting")

    def __init__(self, qp: QueuePair, depth: int, owner: Any) -> None:
        self.qp = qp
        self.depth = depth
        self.owner = owner
        self.ready = False
        self.closed = False
        self.in_flight: deque[Message] = deque()
        self.waiting: deque[Message] = deque()
        self.used_ns = 0


class TransportServices:
    """The library of one port.

    counters: shared with the driver.  arrived: called with each message that came.  room: called when a message slot
    is free again after `make` had none.  channel_failed: called with a channel whose queue pair has failed.  broken:
    called when no datagrams can be sent any more.  `express`: the short way of frames, if there is one; whoever sets it
    lets the library close it.

    Sent frames complete on a queue of their own, which is looked at when the next one is sent: no event is made of what
    nobody waits for.
    """

    def __init__(
        self,
        context: Context,
        port_number: int,
        config: LanConfig,
        counters: Counter[str],
        *,
        arrived_datagram: Arrived,
        arrived_frame: Callable[[Channel, Any], None],
        finished: Callable[[], None],
        room: Callable[[], None],
        channel_failed: Callable[[Channel], None],
        broken: Callable[[], None],
    ) -> None:
        self.context = context
        self.config = config
        self.counters = counters
        self._engine: Any = context.adapter.engine
        self._arrived_datagram = arrived_datagram
        self._arrived_frame = arrived_frame
        self._finished = finished
        self._room = room
        self._channel_failed = channel_failed
        self._broken = broken
        self._port_number = port_number
        self.number = 0  # of the message that was made last
        self._starved = False
        self.express: Express | None = None
        self.open = True
        self.packet = context.query_port(port_number).active_mtu
        most_pieces = -(-(config.largest_message - HEADER_SIZE) // (SMALLEST_PACKET - HEADER_SIZE))
        self.lead = HEADER_SIZE * most_pieces  # the fragments' headers stand before the message
        self._open_queues(self.packet)

    def _open_queues(self, packet: int) -> None:
        config, context = self.config, self.context
        self.pd = context.alloc_pd()
        depth = config.datagram_receives + config.frame_receives + config.send_depth
        self.cq = context.create_cq(depth)
        frames = config.channel_depth * min(config.max_channels, config.send_messages) + config.send_messages
        self.sent_cq = context.create_cq(frames)
        self._cq_index = self.cq.index
        self.messages = MessagePool(self.pd, config.send_messages, self.lead + config.largest_message)
        self.control = MessagePool(self.pd, CONTROL_MESSAGES, CONTROL_SIZE)
        self._datagrams = ReceivePool(
            self.pd, config.datagram_receives, GRH_SPACE + packet, RECEIVED_DATAGRAM
        )
        self.receives = ReceivePool(self.pd, config.frame_receives, config.largest_message, RECEIVED_FRAME)
        self.datagram_qp = self.pd.create_qp(
            QPType.UD,
            self.cq,
            max_send_wr=config.send_depth,
            max_recv_wr=config.datagram_receives,
            max_send_sge=2,
            max_recv_sge=1,
        )
        self.shared = self.pd.create_srq(config.frame_receives, 1)
        self.channels: dict[int, Channel] = {}
        self._sender = DatagramSender(
            self.datagram_qp, config.send_depth, SENT_DATAGRAM, self.counters, self._broken
        )
        self.datagram_qp.activate(qkey=QKEY, port_num=self._port_number)
        self.datagram_qp.post_recv_many(self._datagrams.requests)
        for request in self.receives.requests:
            self.shared.post_recv(request)
        sinks = context.adapter.cq_sinks
        sinks[self.cq.index] = OneAtATime(self._engine, self._completed)
        sinks[self.sent_cq.index] = OneAtATime(self._engine, self._sent)
        self.cq.req_notify()
        self.sent_cq.req_notify(kind=Notify.ERROR)

    # --- messages -------------------------------------------------------------------------------------------------

    def make(self, lid: int, frame: bytes, flags: int, offload: bytes = b"") -> Message | None:
        """A message with a frame in it; None when the pool is empty (`room` is called later).

        This is the one copy on the way out: from the caller's buffer into registered memory.
        """
        message = self.take_message()
        if message is None:
            return None
        length = len(frame)
        if offload:
            flags |= OFFLOAD
            length += OFFLOAD_SIZE
        message.number = self.next_number()
        message.length = HEADER_SIZE + length
        at = message.at + self.lead
        buf = self.messages.buf
        HEADER.pack_into(buf, at, FRAME, flags, lid, message.number, length, 0)
        at += HEADER_SIZE
        if offload:
            buf[at : at + OFFLOAD_SIZE] = offload
            at += OFFLOAD_SIZE
        buf[at : at + len(frame)] = frame
        return message

    def take_message(self) -> Message | None:
        """A slot for a message; None when all are in use (`room` is called later)."""
        self.take_sent()
        message = self.messages.take()
        if message is None:
            self._starved = True
            self._watch_sent()
        return message

    def next_number(self) -> int:
        """That of the message which is made next."""
        self.number = (self.number + 1) & 0xFFFFFFFF
        return self.number

    def send_control(self, lid: int, kind: Kind, body: bytes, ways: Sequence[Way]) -> bool:
        """Send a short message of a kind of its own to some destinations; False when all slots are in use."""
        message = self.control.take()
        if message is None:
            self.counters["drop.tx.control"] += 1
            return False
        number = self.next_number()
        buf, at = self.control.buf, message.at
        HEADER.pack_into(buf, at, VERSION << 4 | kind, 0, lid, number, len(body), 0)
        buf[at + HEADER_SIZE : at + HEADER_SIZE + len(body)] = body
        message.length = HEADER_SIZE + len(body)
        piece = [self.control.sge(message, 0, message.length)]
        self._sender.add(message, ways, [piece])
        return True

    # --- datagrams ------------------------------------------------------------------------------------------------

    def send_datagrams(self, message: Message, ways: Sequence[Way]) -> None:
        """Send a message to some destinations, each fragment from where it lies; takes the caller's reference."""
        if not ways:
            message.release()
            return
        packet = min([way.mtu for way in ways])
        pieces = cut(message, self.lead, min(packet, self.packet) - HEADER_SIZE)
        if len(pieces) > 1:
            self.counters["tx.fragmented"] += 1
        self._sender.add(message, ways, pieces)

    # --- channels -------------------------------------------------------------------------------------------------

    def make_channel(self, owner: Any) -> Channel:
        """A channel whose queue pair is still in RESET; raises a `VerbError` at the adapter's limits."""
        config = self.config
        qp = self.pd.create_qp(
            QPType[config.service],
            self.sent_cq,
            self.cq,
            max_send_wr=config.channel_depth,
            max_recv_wr=0,
            max_send_sge=1,
            max_recv_sge=1,
            srq=self.shared,
        )
        made = self.channels[qp.qp_num] = Channel(qp, config.channel_depth, owner)
        return made

    def send_frame(self, channel: Channel, message: Message) -> None:
        """Send a message on a channel; takes the caller's reference."""
        if len(channel.in_flight) >= channel.depth:
            if len(channel.waiting) >= channel.depth:
                self.counters["drop.tx.channel_full"] += 1
                message.release()
            else:
                channel.waiting.append(message)
                self._watch_sent()
            return
        piece = self.messages.sge(message, self.lead, message.length)
        channel.in_flight.append(message)
        self.counters["posts.channel"] += 1
        try:
            channel.qp.post_send(WorkRequest(SENT_FRAME | channel.qp.qp_num, WROpcode.SEND, [piece]))
        except VerbError:
            self.not_posted(channel)

    def not_posted(self, channel: Channel) -> None:
        """A channel did not take its last message: it has failed, and nobody has looked at its completions yet."""
        channel.in_flight.pop().release()
        self.counters["drop.tx.channel_failed"] += 1
        self._channel_failed(channel)

    def take_sent(self) -> None:
        """Look at the frames that were sent."""
        while self.open and (entries := self._engine.poll(self.sent_cq.index, POLL)):
            for entry in entries:
                self._frame_sent(entry)

    def _watch_sent(self) -> None:
        """Somebody waits for a frame to be sent."""
        self.sent_cq.req_notify()
        self.take_sent()  # those that were before that was asked for raise no event

    def _frame_sent(self, entry: Any) -> None:
        channel = self.channels.get(entry.wr_id & ~KINDS)
        if channel is None or not channel.in_flight:
            return
        channel.in_flight.popleft().release()
        if not entry.ok:
            self.counters["drop.tx.channel_failed"] += 1
            if not channel.closed:
                self._channel_failed(channel)
        elif channel.waiting:
            self.send_frame(channel, channel.waiting.popleft())

    def close_channel(self, channel: Channel) -> None:
        """End a channel; what it had still to send is dropped and counted."""
        if channel.closed:
            return
        channel.closed = True
        channel.ready = False
        self.channels.pop(channel.qp.qp_num, None)
        channel.qp.close()
        for message in (*channel.in_flight, *channel.waiting):
            self.counters["drop.tx.channel_closed"] += 1
            message.release()
        channel.in_flight.clear()
        channel.waiting.clear()

    # --- completions ----------------------------------------------------------------------------------------------

    def _completed(self) -> None:
        with self._engine:
            if self.open:
                self._take_all()
        self._guarded(self._finished)

    def _sent(self) -> None:
        """Frames have been sent that somebody waits for, or one has failed."""
        with self._engine:
            if self.open:
                waited_for = self._starved or any(channel.waiting for channel in self.channels.values())
                self.sent_cq.req_notify(kind=Notify.ANY if waited_for else Notify.ERROR)
                self.take_sent()
                self._tell_of_room()

    def _take_all(self) -> None:
        """Everything that has completed.  Where a queue cannot be filled up any more, the library is opened anew."""
        try:
            self._engine.arm(self._cq_index, ANY)
            self._take_entries()
        except VerbError:
            self._sender.fail()

    def _take_entries(self) -> None:
        """Everything that has completed; receive buffers go back to their queues in one go."""
        poll, index = self._engine.poll, self._cq_index
        more = True
        while more and self.open:
            if self.express is not None:
                self.express.take()
            entries = poll(index, POLL)
            more = len(entries) == POLL  # what completes from now on is notified anew
            datagrams: list[RecvRequest] = []
            for entry in entries:
                number = entry.wr_id
                kind = number & KINDS
                if kind == RECEIVED_DATAGRAM:
                    place = number & 0xFFFF
                    if entry.ok:
                        self._datagram(entry, place)
                        datagrams.append(self._datagrams.requests[place])
                    else:  # the queue pair has failed, and would flush whatever is posted
                        self._sender.fail()
                elif kind == RECEIVED_FRAME:
                    self._frame(entry, number & 0xFFFF)
                else:
                    self._sender.completed(entry.ok)
                if not self._still_open():
                    return
            if datagrams:
                self.datagram_qp.post_recv_many(datagrams)
        if self.open:
            if self._sender.jobs:
                self._sender.pump()
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        if self._starved and self.messages.free:
            self._starved = False
            self._room()

    def _still_open(self) -> bool:
        """What was done with a message may have closed everything."""
        return self.open

    def _datagram(self, entry: Any, place: int) -> None:
        at = place * self._datagrams.size + GRH_SPACE
        view = self._datagrams.buf[at : at + entry.byte_len - GRH_SPACE]
        try:
            self._arrived_datagram(entry.slid, entry.src_qp, entry.sl, view)
        except Exception:
            self._internal()

    def _frame(self, entry: Any, place: int) -> None:
        channel = self.channels.get(entry.qp_num)
        if not entry.ok and channel is not None:
            self._channel_failed(channel)
        elif entry.ok and entry.opcode == CompletionOpcode.RECV:
            if channel is None:
                self.counters["drop.rx.closed_channel"] += 1
            else:
                at = place * self.receives.size
                self._guarded(self._arrived_frame, channel, self.receives.buf[at : at + entry.byte_len])
        if self.open and self.shared.is_open:  # nobody has to be driven for it
            self._engine.post_shared(self.shared.index, self.receives.requests[place])

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        """Nothing that a peer sends may end the receive path."""
        try:
            function(*arguments)
        except Exception:
            self._internal()

    def _internal(self) -> None:
        self.counters["drop.rx.internal"] += 1
        log.exception("a message could not be handled")

    # --- end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all queue pairs and give the memory back."""
        with self._engine:
            if not self.open:
                return
            self.open = False
            if self.express is not None:
                self.express.close()
        for channel in list(self.channels.values()):
            self.close_channel(channel)
        self.datagram_qp.close()
        self.shared.close()
        for pool in (self.messages, self.control, self._datagrams, self.receives):
            pool.close()
        self.cq.close()
        self.sent_cq.close()
        self.pd.close()
