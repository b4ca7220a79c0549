"""A context: a program's hold on one channel adapter, where every verb begins."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

from verbena.adapter.attributes import AdapterAttributes, ContextCounts, DeviceAttributes, PortAttributes
from verbena.adapter.channel_adapter import AsyncEvent, ChannelAdapter
from verbena.adapter.end_to_end import EndToEndTable
from verbena.adapter.gid import Gid
from verbena.adapter.local_protection import LocalProtection
from verbena.adapter.protection_options import DEFAULT_PROTECTION, ProtectionOptions
from verbena.errors import ClosedError, InvalidAttributeError, InvalidStateError
from verbena.management.datagrams import MadAddress
from verbena.memory.manager import VirtualMemoryManager
from verbena.memory.process import Process
from verbena.transport.kinds import AsyncEventType, Notify
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.cm import ConnectionService, Listener
from verbena.verbs.completion import CompletionQueue, known_notify
from verbena.verbs.connection import Connection
from verbena.verbs.driver import Driver
from verbena.verbs.end_to_end import EndToEndContext, ReliableDatagramDomain
from verbena.verbs.gsi import GeneralServices
from verbena.verbs.handler_verbs import HandlerVerbs
from verbena.verbs.handlers import Calls, CompletionHandler
from verbena.verbs.memory import ProtectionDomain, SharedReceiveQueue
from verbena.verbs.process_domain import ProcessDomain
from verbena.verbs.protocols import ProtocolRegistration, protocol_of
from verbena.verbs.queue_pair import QueuePair
from verbena.verbs.signal import Signal
from verbena.verbs.subnet import SubnetService

log = logging.getLogger("verbena")


class Context(HandlerVerbs):
    """An open channel adapter.  Made by `verbena.open_device` and `VirtualNetwork.open_device`.

    A context manager: closing it closes all that was made with it.
    """

    def __init__(self, adapter: ChannelAdapter, driver: Driver) -> None:
        self.adapter = adapter
        self.driver = driver
        self.queue_pairs: dict[int, QueuePair] = {}
        self.end_to_end = EndToEndTable(adapter)
        self._objects: list[Any] = []
        self._queues: dict[int, CompletionQueue] = {}
        Calls(self)
        self._event_signal = Signal(driver)
        self._events: deque[AsyncEvent] = deque()
        self._closing: list[Callable[[], None]] = []
        self._connections: ConnectionService | None = None
        self._subnets: dict[int, SubnetService] = {}
        self._watchers: list[Callable[[AsyncEvent], None]] = []
        self._connecting = False
        self._protection: LocalProtection | None = None
        self._open = True
        adapter.event_sink = self._on_async_event
        adapter.message_sink = self._on_message
        self.default_cqs = tuple(
            CompletionQueue(self, adapter.limits.default_cq_depth) for _ in range(adapter.limits.default_cqs)
        )
        """Completion queues that were made with the adapter (`DeviceAttributes.default_cqs`)."""

    # --- queries ------------------------------------------------------------------------------------------

    def query_device(self) -> DeviceAttributes:
        """The adapter's limits and identity (IBA vol. 1, 11.2.1.2)."""
        return self._checked().limits

    def query_adapter(self) -> AdapterAttributes:
        """How many completion handlers the adapter supports (Query RNIC: document 001, paragraph 31)."""
        return AdapterAttributes(self._checked().limits.completion_handlers)

    def query_port(self, port: int = 1) -> PortAttributes:
        """The port's state and properties."""
        return self._checked().port_attributes(port)

    def query_gid(self, port: int = 1, index: int = 0) -> Gid:
        """An entry of the GID table; raises `InvalidAttributeError` beyond its end."""
        self.query_port(port)
        table = self.adapter.gid_table(port)
        if not 0 <= index < len(table):
            raise InvalidAttributeError(f"GID index {index}: the table has entries 0 to {len(table) - 1}")
        return table[index]

    @property
    def gids(self) -> tuple[Gid, ...]:
        """The GID table of port 1."""
        return self._checked().gids

    def query_pkey(self, port: int = 1, index: int = 0) -> int:
        """An entry of the P_Key table, 16 bits; raises `InvalidAttributeError` beyond its end."""
        self.query_port(port)
        table = self.adapter.pkey_table(port)
        if not 0 <= index < len(table):
            raise InvalidAttributeError(f"P_Key index {index}: the table has entries 0 to {len(table) - 1}")
        return table[index]

    def counters(self) -> dict[str, int]:
        """Everything counted so far: packets and bytes, retries, and every drop under its reason."""
        adapter = self._checked()
        self.driver.refresh_counters()
        found: dict[str, int] = adapter.engine.read_counters()
        if self._connections is not None:
            found.update(self._connections.counters())
        return found

    def count_contexts(self) -> ContextCounts:
        """How many queue pairs of each service, and end-to-end contexts, the adapter's tables hold."""
        self._checked()
        return self.end_to_end.count()

    # --- making things ------------------------------------------------------------------------------------

    def attach_memory(
        self,
        memory: VirtualMemoryManager,
        options: ProtectionOptions = DEFAULT_PROTECTION,
        *,
        name: str | None = None,
    ) -> None:
        """The adapter is one of the host that has this memory (document 003, figure 12), from now on.

        options: which of the document's embodiments.  name: what reports call it, by default the adapter's.  Raises
        `InvalidStateError` when it has memory already.
        """
        adapter = self._checked()
        if self._protection is not None:
            raise InvalidStateError("the adapter is attached to a host's memory already")
        self._protection = LocalProtection(
            memory,
            adapter.regions,
            adapter.clock,
            options,
            name=adapter.limits.name if name is None else name,
            lock=adapter.engine,
            kick=self._pages_changed,
        )
        protection = self._protection
        adapter.memory.on_page_fault = lambda fault: protection.fault(
            fault.space, fault.page, fault.write, fault.qp_num
        )

    def _pages_changed(self) -> None:
        """Who waits for a page may go on."""
        with self.adapter.engine:
            self.adapter.engine.pages_came()
        self.driver.kick()

    @overload
    def alloc_pd(self) -> ProtectionDomain: ...
    @overload
    def alloc_pd(self, process: None) -> ProtectionDomain: ...
    @overload
    def alloc_pd(self, process: Process) -> ProcessDomain: ...

    def alloc_pd(self, process: Process | None = None) -> ProtectionDomain:
        """A new protection domain.

        process: one of the host's whose memory is attached; work requests then name that process's addresses.
        """
        self._checked()
        if process is None:
            return ProtectionDomain(self)
        if self._protection is None:
            raise InvalidStateError("no memory is attached to this adapter: call attach_memory first")
        return ProcessDomain(self, self._protection, process)

    def alloc_rdd(self) -> ReliableDatagramDomain:
        """A new reliable datagram domain."""
        self._checked()
        return ReliableDatagramDomain(self)

    def create_eec(self, rdd: ReliableDatagramDomain) -> EndToEndContext:
        """A new end-to-end context of a reliable datagram domain, in RESET (IBA vol. 1, 11.2.7.1)."""
        self._checked()
        return EndToEndContext(self.require_rdd(rdd))

    def require_rdd(self, value: ReliableDatagramDomain) -> ReliableDatagramDomain:
        """The domain itself; raises a `VerbError` unless it is an open one of this adapter."""
        if not isinstance(value, ReliableDatagramDomain):
            raise InvalidAttributeError(
                f"rdd: a ReliableDatagramDomain is needed (Context.alloc_rdd), not {type(value).__name__}"
            )
        if value.context is not self:
            raise InvalidAttributeError("rdd belongs to another adapter")
        return value.checked()

    def create_cq(self, depth: int, handler: int | None = None) -> CompletionQueue:
        """A new completion queue of `depth` entries, bound to a completion handler's identifier, or to none."""
        self._checked()
        return CompletionQueue(self, depth, handler)

    def register_protocol(
        self,
        qp: QueuePair,
        next_header: int | None = None,
        address: Gid | str | None = None,
        ethertype: int | None = None,
    ) -> ProtocolRegistration:
        """Direct the raw packets of a protocol to a raw queue pair (document 003:555), until it is closed.

        RAW_IPV6: by next_header (behind all extension headers; 6 for TCP, 17 for UDP) and by destination address, or
        one of them; the most specific registration gets a packet, and an address is more specific than a protocol.
        RAW_ETHERTYPE: by ethertype.  None stands for any.  Packets come by whichever of the adapter's ports; those that
        nobody is registered for are dropped (``drop.no_protocol``).

        Raises `ResourceError` when the same is registered already, `InvalidAttributeError`.
        """
        self._checked()
        if not isinstance(qp, QueuePair) or qp.context is not self:
            raise InvalidAttributeError("qp: a raw queue pair of this adapter is needed")
        return ProtocolRegistration(qp, *protocol_of(qp.type, next_header, address, ethertype))

    # --- work -------------------------------------------------------------------------------------------------

    def post_send(self, qp: QueuePair, request: WorkRequest, notify: Notify | None = None) -> None:
        """`qp.post_send`, through the adapter that owns the queue pair.

        notify: a request completion notification with it (document 001, block 414), for the queue's next entry of that
        kind.

        Raises `InvalidAttributeError` for one of another adapter: queue pairs are not shared (document 003:565).
        """
        own = self._own(qp)
        if notify is not None:
            with self.adapter.engine:
                own.checked()
                own.send_cq.req_notify(kind=known_notify(notify))
        own.post_send(request)

    def post_recv(self, qp: QueuePair, request: RecvRequest) -> None:
        """`qp.post_recv`, in the same way."""
        self._own(qp).post_recv(request)

    def _own(self, qp: object) -> QueuePair:
        self._checked()
        if not isinstance(qp, QueuePair) or qp.context.adapter is not self.adapter:
            raise InvalidAttributeError("invalid queue pair: it belongs to another adapter, post there")
        return qp

    # --- connections --------------------------------------------------------------------------------------

    def _cm(self) -> ConnectionService:
        """The connection manager, made when it is first asked for; by one thread, while others wait for it."""
        while self._connections is None:
            with self._checked().engine:
                mine, self._connecting = not self._connecting, True
            if mine:
                try:
                    self._connections = ConnectionService(self)
                finally:
                    self._connecting = False
            else:
                self.driver.wait(lambda: not self._connecting, None)
        self._checked()
        return self._connections

    def serve_connections(self) -> None:
        """Answer connection requests from now on, even if only to refuse them; `listen` and `connect` imply it."""
        self._cm()

    def serve_management(self, management_class: int, receive: Callable[[MadAddress, bytes], None]) -> None:
        """Give the requests of a management class that come to queue pair 1 to `receive` (IBA vol. 1, 13.5.1)."""
        self._cm().gsi.serve(management_class, receive)

    @property
    def subnet(self) -> SubnetService:
        """What the subnet's administration knows: nodes, ports, paths, groups, services, notices.

        On InfiniBand only.  Raises `InvalidAttributeError` on other link layers, where there is no subnet manager.
        """
        return self.subnet_at(1)

    def subnet_at(self, port: int) -> SubnetService:
        """`subnet`, as seen from another port; ports may be in different subnets."""
        gsi = self._cm().gsi
        with self._checked().engine:
            if port not in self._subnets:
                self._subnets[port] = SubnetService(self, gsi, port)
            return self._subnets[port]

    @property
    def general_services(self) -> GeneralServices:
        """Queue pair 1 of this adapter, for agents and protocols of their own (IBA vol. 1, 13.5.1)."""
        return self._cm().gsi

    def watch_events(self, watcher: Callable[[AsyncEvent], None]) -> None:
        """Let `watcher` be called with each asynchronous event, besides its being queued for the program."""
        self._watchers.append(watcher)

    def unwatch_events(self, watcher: Callable[[AsyncEvent], None]) -> None:
        """No longer."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def listen(self, port: int, backlog: int = 16) -> Listener:
        """Take connection requests at a port of this adapter's address; port 0 chooses a free one.

        Raises `SystemLimitError` when another listener of this adapter has the port.
        """
        return self._cm().listen(port, backlog)

    def connect(
        self,
        host: str,
        port: int,
        qp: QueuePair,
        private_data: bytes = b"",
        timeout: float = 5.0,
        *,
        responder_resources: int = 16,
        initiator_depth: int = 16,
        **more: Any,
    ) -> Connection:
        """Connect a queue pair (RC or UC, in RESET or INIT) to a listener at an IP address.

        On a managed InfiniBand subnet, host may also be a host's name or a GID; the subnet is asked for the way.

        private_data: at most 56 bytes for the peer's program.  timeout: seconds.  responder_resources,
        initiator_depth: READs and atomics that the peer, and this side, may have outstanding.  more: retry_count,
        rnr_retry (0 to 7), hop_limit, traffic_class, flow_label.

        Raises `ConnectionRefused`, `ConnectionTimeout`; a `VerbError` for arguments that do not fit.  Unless the queue
        pair had been brought up already, it can then be used for another attempt.
        """
        manager = self._cm()
        remote = manager.find(host, timeout)
        made = manager.start(remote, port, qp, private_data, responder_resources, initiator_depth, more)
        return made.wait_made(timeout)

    async def connect_async(
        self,
        host: str,
        port: int,
        qp: QueuePair,
        private_data: bytes = b"",
        timeout: float = 5.0,
        *,
        responder_resources: int = 16,
        initiator_depth: int = 16,
        **more: Any,
    ) -> Connection:
        """`connect`, awaited."""
        manager = self._cm()
        remote = await manager.find_async(host)
        made = manager.start(remote, port, qp, private_data, responder_resources, initiator_depth, more)
        return await made.made(timeout)

    # --- asynchronous events ------------------------------------------------------------------------------

    def _on_async_event(self, event: AsyncEvent) -> None:
        if event.type is AsyncEventType.SM_CHANGE:
            for subnet in list(self._subnets.values()):
                subnet.master_changed()
        for watcher in list(self._watchers):
            watcher(event)
        if event.qp_num is not None:
            qp = self.queue_pairs.get(event.qp_num)
            if qp is None:  # closed in the meantime: nobody is left whom it concerns
                return
            event = replace(event, qp_num=qp.qp_num, source=qp)
        elif event.handler is not None:
            record = self.adapter.handlers.records.get(event.handler)
            event = replace(event, source=None if record is None else CompletionHandler(self, record))
        else:
            event = replace(event, source=self._source(event))
        self._events.append(event)
        self._event_signal.notify()

    def _source(self, event: AsyncEvent) -> Any:
        """The completion queue or shared receive queue that an event is about."""
        for item in list(self._objects):
            if isinstance(item, CompletionQueue) and item.index == event.cq:
                return item
            if isinstance(item, ProtectionDomain):
                for member in tuple(item.members):
                    if isinstance(member, SharedReceiveQueue) and member.index == event.srq:
                        return member
        return None

    def _event_ready(self) -> bool:
        return bool(self._events) or not self._open

    def _next_event(self) -> AsyncEvent | None:
        """The oldest event; another thread may have taken it."""
        self._checked()
        try:
            return self._events.popleft()
        except IndexError:
            return None

    def get_async_event(self, timeout: float | None = None) -> AsyncEvent | None:
        """The oldest asynchronous event, waiting `timeout` seconds at most; None after that."""
        self._checked()
        while True:
            ready = self._event_signal.block(self._event_ready, timeout)
            event = self._next_event()
            if event is not None or not ready or timeout is not None:
                return event

    async def async_event(self) -> AsyncEvent:
        """The oldest asynchronous event, awaited."""
        while True:
            await self._event_signal.until(self._event_ready)
            event = self._next_event()
            if event is not None:
                return event

    # --- end ----------------------------------------------------------------------------------------------

    def _checked(self) -> ChannelAdapter:
        if not self._open:
            raise ClosedError("this adapter is closed")
        return self.adapter

    def queue_at(self, number: int) -> CompletionQueue | None:
        """The completion queue of a number (`CompletionQueue.index`)."""
        return self._queues.get(number)

    def _context(self) -> Context:
        return self

    def hold(self, item: Any) -> None:
        """Remember an object, to close it with the context."""
        self._objects.append(item)
        if isinstance(item, CompletionQueue):
            self._queues[item.index] = item

    def let_go(self, item: Any) -> None:
        """An object closed itself."""
        if isinstance(item, CompletionQueue) and self._queues.get(item.index) is item:
            del self._queues[item.index]
        if item in self._objects:
            self._objects.remove(item)

    def on_close(self, function: Callable[[], None]) -> None:
        """Call `function` before everything is closed."""
        self._closing.append(function)

    def close(self) -> None:
        """Close everything that was made with this context, and the adapter."""
        with self.adapter.engine:
            if not self._open:
                return
            self._open = False
        self.adapter.handlers.ended = True
        self.driver.dispatcher.end(self.adapter.handlers)
        for function in reversed(self._closing):
            function()
        for kind in (ProtectionDomain, ReliableDatagramDomain):
            for item in [o for o in self._objects if isinstance(o, kind)]:
                item.__exit__()
        for item in list(self._objects):
            item.close()
        if self._protection is not None:
            self._protection.close()
        self.driver.close()
        self._event_signal.notify()

    def abandon(self) -> None:
        """In the child of a fork: everything made with this context is closed here; the parent's stays as it is."""
        if not self._open:
            return
        self._open = False
        self.driver.abandon()
        if self._connections is not None:
            self._connections.abandon()
        for item in self._objects:
            item.abandon()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Context {self.adapter.limits.name} at {self.adapter.gid.ip}>"
