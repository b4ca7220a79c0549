"""The RDMA card: the user-mode driver, which moves bytes, and the kernel-mode proxy, which makes and destroys.

Document 004, paragraphs 29 to 31: the user-mode driver calls the proxy; the proxy makes the connection at the card,
through the virtual bus driver, and informs the user-mode driver; only then data pass, and neither the stack nor the
intermediate driver sees them.  An offloaded connection is a reliable-connection queue pair of this fabric, whose
completions come by its completion handler.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Protocol

from verbena.adapter.attributes import Endpoint, QPCapabilities
from verbena.clock import Clock, Timer
from verbena.errors import InvalidStateError, ResourceError, VerbenaError
from verbena.memory.access import Access
from verbena.team.card import BusDriver
from verbena.team.offload.channel import ChannelEvents
from verbena.team.offload.record import HEAD, Record
from verbena.team.offload.states import OffloadConfig, Path
from verbena.team.trace import Layer, PathTrace
from verbena.transport.kinds import CompletionOpcode, QPState, QPType, SendFlags
from verbena.transport.work import CompletionQueueEntry, RecvRequest, ScatterGatherEntry, WorkRequest
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.context import Context
from verbena.wire.errors import DecodeError

STEPS = 1_000
LARGE = 1 << 16
"""Bodies from so many bytes on are not copied into a slot to be sent."""
AWAY_NS = 1_000_000
"""A program that has not waited for its connection for so long does something else."""


class Lock(Protocol):
    """As `threading.Lock`."""

    def acquire(self) -> bool: ...
    def release(self) -> None: ...


class RdmaCard:
    """A card that can offload.

    name: the one it has as a member of the team.  context: its channel adapter.  is_up: as the team sees it.  channels:
    the offloaded connections, by completion queue.
    """

    def __init__(self, name: str, context: Context, bus: BusDriver, config: OffloadConfig) -> None:
        self.name = name
        self.context = context
        self.bus = bus
        self.config = config
        self.is_up = True
        self.counters: Counter[str] = Counter()
        self.channels: dict[int, RdmaChannel] = {}
        self.domain = context.alloc_pd()
        (self.handler,) = context.set_completion_handler(self._completed)

    def _completed(self, queue: CompletionQueue) -> None:
        channel = self.channels.get(queue.index)
        if channel is not None:
            channel.completed()


class KernelModeProxy:
    """Makes, connects and destroys queue pairs: the privileged verbs.

    log: (when, step) of the last set-ups and tear-downs; counters: ``proxy.*``.
    """

    def __init__(self, card: RdmaCard, clock: Clock, trace: PathTrace) -> None:
        self.card = card
        self.trace = trace
        self.log: deque[tuple[int, str]] = deque(maxlen=STEPS)
        self.counters: Counter[str] = Counter()
        self._clock = clock

    def note(self, step: str) -> None:
        """Write a step down."""
        self.log.append((self._clock.now(), step))

    def _call(self, step: str) -> None:
        self.trace.hop(Layer.PROXY)
        self.note(f"proxy: {step}")
        self.card.bus.call()

    def create(self, channel: RdmaChannel) -> None:
        """A queue pair with its queues and buffers; raises `ResourceError` where the card has no room for one."""
        with self.trace.journey("set-up"):
            self._call("create")
            card, config = self.card, self.card.config
            if len(card.channels) >= config.most_queue_pairs:
                self.counters["proxy.no_queue_pair"] += 1
                raise ResourceError(f"{card.name} has no more than {config.most_queue_pairs} queue pairs")
            size = config.slot_size + HEAD
            channel.queue = card.context.create_cq(4 * config.slots, handler=card.handler)
            caps = QPCapabilities(2 * config.slots, 2 * config.slots, 1, 1)
            try:
                channel.pair = card.domain.create_qp(
                    QPType.RC,
                    channel.queue,
                    max_send_wr=caps.max_send_wr,
                    max_recv_wr=caps.max_recv_wr,
                )
                channel.region = card.domain.alloc_mr(2 * config.slots * size, Access.LOCAL_WRITE)
            except VerbenaError:
                channel.release()
                raise
            card.channels[channel.queue.index] = channel
            self.counters["proxy.created"] += 1

    def connect(self, channel: RdmaChannel, endpoint: Endpoint, mtu: int) -> None:
        """Connect it to the peer's, and tell the user-mode driver that it may be used."""
        with self.trace.journey("set-up"):
            self._call("connect")
            assert channel.pair is not None
            channel.pair.modify(QPState.INIT, port_num=1, pkey_index=0, access_flags=Access.NONE)
            channel.post_receives()
            channel.pair.connect(endpoint, mtu=mtu, timeout=self.card.config.timeout_code, min_rnr_timer=1)
            self.counters["proxy.connected"] += 1
            self.note("proxy: inform")
        channel.connected()

    def destroy(self, channel: RdmaChannel) -> None:
        """Destroy it."""
        with self.trace.journey("tear-down"):
            self._call("destroy")
            if channel.queue is not None:
                self.card.channels.pop(channel.queue.index, None)
            channel.release()
            self.counters["proxy.destroyed"] += 1


class UserModeDriver:
    """Gives connections their queue pairs: asks the proxy, and then sends and receives without it."""

    def __init__(self, card: RdmaCard, clock: Clock, trace: PathTrace) -> None:
        self.card = card
        self.clock = clock
        self.trace = trace
        self.proxy = KernelModeProxy(card, clock, trace)

    def open(self) -> RdmaChannel:
        """A channel that is not connected yet; raises `ResourceError`, or what the card refuses with."""
        self.proxy.note("user: call proxy")
        channel = RdmaChannel(self)
        self.proxy.create(channel)
        return channel


class RdmaChannel(ChannelEvents):
    """Records on a queue pair: each is one SEND, out of and into registered slots.

    Completions come by the completion handler; while a program attends (`attend`), it takes them itself, and the
    handler is asked for again when it has been away for `AWAY_NS`.
    """

    def __init__(self, driver: UserModeDriver) -> None:
        super().__init__(Path.OFFLOAD)
        self.driver = driver
        self.card = driver.card
        self.pair: Any = None
        self.queue: CompletionQueue | None = None
        self.region: Any = None
        self._usable = False
        self._open = True
        self._attending = 0
        self._attended_ns = -AWAY_NS
        self._timer: Timer | None = None
        self._waiting: deque[Record] = deque()
        self._lent: dict[int, Any] = {}  # what the program has written, registered while the card sends it
        config = self.card.config
        self._slot = config.slot_size + HEAD
        self._slots = config.slots
        self._free = list(range(config.slots))

    @property
    def endpoint(self) -> Endpoint:
        """What the peer needs to connect."""
        here: Endpoint = self.pair.endpoint
        return here

    @property
    def is_up(self) -> bool:
        return self._usable and self._open

    @property
    def largest(self) -> int:
        return self.card.config.slot_size

    @property
    def room(self) -> int:
        if not self.is_up or self._waiting:
            return 0
        return len(self._free) * self.card.config.slot_size

    def connected(self) -> None:
        """The proxy says that it may be used."""
        self._usable = True

    def post_receives(self) -> None:
        """Give the card its receive slots, and ask for the handler."""
        assert self.queue is not None
        for slot in range(self._slots, 2 * self._slots):
            self._post_receive(slot)
        self.queue.req_notify()

    def _post_receive(self, slot: int) -> None:
        sge = self.region.sge(slot * self._slot, self._slot)
        self.pair.post_recv(RecvRequest(slot, [sge]))

    def send(self, record: Record) -> None:
        """Implements `Channel.send`; raises `InvalidStateError` before the proxy has answered."""
        if not self._usable:
            raise InvalidStateError("the proxy has not connected this queue pair yet: nothing can be sent")
        if not self._open:
            return
        self._waiting.append(record)
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self._free and self._open:
            record = self._waiting.popleft()
            slot = self._free.pop()
            size = HEAD + len(record.body)
            trace = self.driver.trace
            with trace.journey("out", size):
                trace.hop(Layer.SWITCH_LAYER)
                trace.hop(Layer.USER_DRIVER)
                trace.hop(Layer.RDMA_CARD, self.card.name)
                self.card.counters["offload.tx"] += 1
                self.card.counters["offload.tx.bytes"] += len(record.body)
                request = WorkRequest(slot, flags=SendFlags.SIGNALED)
                try:
                    request.sg_list = self._gather(slot, record)
                    self.pair.post_send(request)
                except VerbenaError as error:
                    self._down(str(error))

    def _gather(self, slot: int, record: Record) -> list[ScatterGatherEntry]:
        """Where the card finds a record: its head in the slot; a large body where the program has it."""
        at, body = slot * self._slot, record.body
        self.region.buf[at : at + HEAD] = record.head()
        if len(body) >= LARGE:
            try:
                lent = self.card.domain.reg_mr(body, Access.NONE)
            except ResourceError:
                self.card.counters["offload.copied"] += 1
            else:
                self._lent[slot] = lent
                return [self.region.sge(at, HEAD), lent.sge()]
        size = HEAD + len(body)
        self.region.buf[at + HEAD : at + size] = body
        return [self.region.sge(at, size)]

    def completed(self) -> None:
        """The completion handler was called: look at all entries, and ask for the next call."""
        clock = self.driver.clock
        if self._attending or clock.now() - self._attended_ns < AWAY_NS:
            if self._timer is None and self._open:
                self._timer = clock.call_at(clock.now() + AWAY_NS, self._look)
            return
        queue = self.queue
        while queue is not None and self._open:
            entries = queue.poll(64)
            if not entries:
                queue.req_notify()
                entries = queue.poll(64)
                if not entries:
                    break
            for entry in entries:
                self._entry(entry)
                if self._was_closed():
                    return
        if not self._was_closed():
            self._flush()
            if self.room:
                self.on_room()

    def _look(self) -> None:
        """Has the program gone away?"""
        self._timer = None
        self.completed()

    def attend(self, lock: Lock, timeout_ns: int) -> None:
        """Wait, without the lock, until there is something for `poll`; for a program that waits for that itself."""
        queue = self.queue
        if queue is None or not self._open:
            return
        index, driver = queue.index, self.card.context.driver
        self._attending += 1
        lock.release()
        try:
            driver.wait_cq(index, timeout_ns)
        finally:
            lock.acquire()
            self._attending -= 1
            self._attended_ns = self.driver.clock.now()

    def poll(self) -> bool:
        """Look at what has come without being called, for a program that waits; was there anything?"""
        if self.queue is None or not self._open:
            return False
        entries = self.queue.poll(64)
        for entry in entries:
            if not self._was_closed():
                self._entry(entry)
        if entries and not self._was_closed():
            self._flush()
            if self.room:
                self.on_room()
        return bool(entries)

    def _was_closed(self) -> bool:
        return not self._open

    def _entry(self, entry: CompletionQueueEntry) -> None:
        if not entry.ok:
            self._down(f"the queue pair failed: {entry.status.name}")
            return
        slot = entry.wr_id
        if entry.opcode is not CompletionOpcode.RECV:
            lent = self._lent.pop(slot, None)
            if lent is not None:
                lent.close()
            self._free.append(slot)
            return
        at = slot * self._slot
        trace = self.driver.trace
        with trace.journey("in", entry.byte_len):
            trace.hop(Layer.RDMA_CARD, self.card.name)
            trace.hop(Layer.USER_DRIVER)
            trace.hop(Layer.SWITCH_LAYER)
            self.card.counters["offload.rx"] += 1
            self.card.counters["offload.rx.bytes"] += max(0, entry.byte_len - HEAD)
            try:
                record = Record.parse(self.region.buf[at : at + entry.byte_len])
            except DecodeError as error:
                self.card.counters[f"drop.record.{error.reason}"] += 1
                self._down(f"bad record: {error}")
                return
            self._post_receive(slot)
            self.on_record(record)

    def fail(self, why: str) -> None:
        """The card is gone."""
        self._down(why)

    def _down(self, why: str) -> None:
        if self._open:
            self._open = False
            # Not at once: whoever posts or polls just now goes on doing so.
            self.card.context.driver.call_soon(self._destroy)
            self.on_down(why)

    def _destroy(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.queue is not None or self.pair is not None:
            self.driver.proxy.destroy(self)

    def release(self) -> None:
        """Close what there is of it."""
        for thing in (self.pair, *self._lent.values(), self.region, self.queue):
            if thing is not None:
                thing.close()
        self._lent.clear()
        self.pair = self.region = self.queue = None

    def close(self) -> None:
        """Implements `Channel.close`."""
        self.quieten()
        if self._open:
            self._open = False
            self.card.context.driver.call_soon(self._destroy)

    def abort(self) -> None:
        """Implements `Channel.abort`."""
        self.close()
