"""Connections: listen, connect, accept, disconnect, as programs of librdmacm know them.

A port is an IP port of the RDMA port space for TCP, so that Linux programs which use librdmacm can be the other side.
The protocol is `management.connection_manager`'s; here it meets queue pairs, and programs that wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast
from weakref import WeakSet

from verbena.adapter.attributes import AddressVector
from verbena.adapter.gid import Gid
from verbena.errors import (
    ClosedError,
    ConnectionTimeout,
    InvalidAttributeError,
    InvalidStateError,
    ResourceError,
)
from verbena.management.communication import Communication
from verbena.management.connection_manager import (
    REQ_PRIVATE_DATA,
    ConnectionManager,
)
from verbena.management.connection_table import Listening
from verbena.management.negotiation import Agreement, Offer
from verbena.transport.kinds import QPState, QPType
from verbena.verbs.connection import Connection, ConnectionRequest, check_private_data
from verbena.verbs.gsi import GeneralServices
from verbena.verbs.queue_pair import ALL_REMOTE, QueuePair
from verbena.verbs.signal import Signal
from verbena.wire import REQ, DecodeError, IpCmHeader, Mad, TransportService, cm_message, service_id

if TYPE_CHECKING:
    from verbena.verbs.context import Context
    from verbena.verbs.subnet import Reply
    from verbena.wire.sa_records import PathRecord

SERVICES = {QPType.RC: TransportService.RC, QPType.UC: TransportService.UC}
FIRST_EPHEMERAL, LAST_EPHEMERAL = 32_768, 60_999  # as Linux does
MIN_RNR_TIMER = 12  # 0.64 ms


def introduce(mad: bytes) -> bytes | None:
    """The GID that a connection request says it is from; None of any other datagram."""
    try:
        message = cm_message(Mad.unpack(mad))
    except DecodeError:
        return None
    return message.primary_local_gid if isinstance(message, REQ) else None


def connect_as_agreed(qp: QueuePair, agreed: Agreement, vector: AddressVector) -> None:
    """INIT to RTS, by that path, with what both ends agreed on; raises a `VerbError` where it does not fit."""
    path: dict[str, Any] = {
        "ah_attr": vector,
        "path_mtu": agreed.path_mtu,
        "dest_qp_num": agreed.dest_qp_num,
        "rq_psn": agreed.rq_psn,
    }
    if qp.type is QPType.UC:
        qp.modify(QPState.RTR, **path)
        qp.modify(QPState.RTS, sq_psn=agreed.sq_psn)
        return
    qp.modify(
        QPState.RTR,
        **path,
        max_dest_rd_atomic=agreed.max_dest_rd_atomic,
        min_rnr_timer=MIN_RNR_TIMER,
    )
    qp.modify(
        QPState.RTS,
        sq_psn=agreed.sq_psn,
        timeout=agreed.timeout,
        retry_cnt=agreed.retry_cnt,
        rnr_retry=agreed.rnr_retry,
        max_rd_atomic=agreed.max_rd_atomic,
    )


class ConnectionService:
    """The connection manager of one context.  Made with the first `listen` or `connect`."""

    def __init__(self, context: Context) -> None:
        adapter = context.adapter
        self.context = context
        self.lock = adapter.engine
        self.signals: WeakSet[Signal] = WeakSet()
        self.gsi = GeneralServices(context, lambda source, mad: self.manager.receive(source, mad), introduce)
        self.manager = ConnectionManager(
            adapter.gid.raw,
            adapter.limits.node_guid,
            adapter.active_mtu,
            clock=adapter.clock,
            random=adapter.random,
            send=self.gsi.send,
            lock=adapter.engine,
            pkey=adapter.pkeys[0],
        )
        self.listeners: set[Listener] = set()
        self.connecting: set[QueuePair] = set()
        self.open = True
        context.on_close(self.close)

    def counters(self) -> dict[str, int]:
        """What the connection manager counted, each name with ``cm.`` before it."""
        found = {f"cm.{name}": count for name, count in sorted(self.manager.counters.items())}
        for name, count in self.gsi.counters.items():
            found[f"cm.gsi.{name}"] = count
        return found

    def close(self) -> None:
        """End all connections, saying so to the peers, and queue pair 1."""
        self.open = False
        for listener in list(self.listeners):
            listener.close()
        self.manager.close()
        self.gsi.close()
        for signal in list(self.signals):
            signal.notify()

    def abandon(self) -> None:
        """`close` in the child of a fork: nobody is told."""
        self.open = False
        self.gsi.abandon()
        for listener in self.listeners:
            listener.abandon()

    # --- queue pairs --------------------------------------------------------------------------------------

    def take(self, qp: QueuePair) -> None:
        """Reserve a queue pair for a connection; raises a `VerbError` unless it can be used for one."""
        if not isinstance(qp, QueuePair):
            raise InvalidAttributeError(f"qp: a QueuePair is needed, not {type(qp).__name__}")
        if qp.context is not self.context:
            raise InvalidAttributeError(
                "the queue pair belongs to another adapter: make one with this context"
            )
        if qp.type not in SERVICES:
            raise InvalidAttributeError(
                f"a {qp.type.name} queue pair cannot be connected: use RC or UC, or activate() for datagrams"
            )
        with self.lock:
            if qp in self.connecting or qp.state not in (QPState.RESET, QPState.INIT):
                state = "being connected" if qp in self.connecting else f"in {qp.state.name}"
                raise InvalidStateError(f"the queue pair is {state}: connecting begins in RESET or INIT")
            self.connecting.add(qp)

    def offer(self, qp: QueuePair, responder_resources: int, initiator_depth: int, **more: Any) -> Offer:
        """What this side brings to a connection of `qp`."""
        limits = self.context.adapter.limits
        for name, value, most in (
            ("responder_resources", responder_resources, limits.max_qp_rd_atom),
            ("initiator_depth", initiator_depth, limits.max_qp_init_rd_atom),
            ("retry_count", more.get("retry_count", 7), 7),
            ("rnr_retry", more.get("rnr_retry", 7), 7),
        ):
            if not isinstance(value, int) or not 0 <= value <= most:
                raise InvalidAttributeError(f"{name} = {value!r}: 0 to {most}")
        return Offer(
            qpn=qp.qp_num,
            psn=qp.endpoint.psn,
            service=SERVICES[qp.type],
            mtu=self.context.adapter.active_mtu,
            responder_resources=responder_resources if qp.type is QPType.RC else 0,
            initiator_depth=initiator_depth if qp.type is QPType.RC else 0,
            srq=qp.srq is not None,
            **more,
        )

    def initialize(self, qp: QueuePair, port_num: int = 1) -> None:
        """RESET to INIT; nothing if it is there already."""
        with self.lock:
            if qp.state is QPState.RESET:
                qp.modify(QPState.INIT, port_num=port_num, pkey_index=0, access_flags=ALL_REMOTE)

    def bring_up(self, qp: QueuePair, agreed: Agreement) -> None:
        """INIT (or RESET) to RTS with what was agreed on; raises a `VerbError` where that does not fit."""
        with self.lock:  # nobody closes the queue pair meanwhile
            vector = self._way(agreed)
            self.initialize(qp, vector.port_num)
            connect_as_agreed(qp, agreed, vector)

    def _way(self, agreed: Agreement) -> AddressVector:
        return self.context.adapter.vector_to(
            Gid(agreed.remote_gid),
            hop_limit=agreed.hop_limit,
            traffic_class=agreed.traffic_class,
            flow_label=agreed.flow_label,
        )

    # --- where a host is ----------------------------------------------------------------------------------

    def find(self, host: str, timeout: float) -> Gid:
        """The GID behind an address or, on a managed InfiniBand subnet, a host's name; the way there is known then.

        Raises `NotFound` for a name or an address that the subnet does not know, `ManagementTimeout`.
        """
        search = self._search(host)
        try:
            question = next(search)
            while True:
                question = search.send(question.get(timeout))
        except StopIteration as found:
            return cast(Gid, found.value)

    async def find_async(self, host: str) -> Gid:
        """`find`, awaited."""
        search = self._search(host)
        try:
            question = next(search)
            while True:
                question = search.send(await question)
        except StopIteration as found:
            return cast(Gid, found.value)

    def _search(self, host: str) -> Generator[Reply[Any], Any, Gid]:
        """The questions that lead from a host to a GID with a way; each is sent its answer."""
        native = self.context.adapter.native
        if native is None:
            return Gid.from_ip(host)
        subnet = self.context.subnet
        try:
            gid = Gid.from_ip(host)
        except InvalidAttributeError:
            platforms = yield subnet.nodes_of_host(host)
            guids = yield subnet.port_guids(platforms[0])
            gid = Gid((native.port(1).gid_prefix << 64 | guids[0]).to_bytes(16, "big"))
        own = self.context.adapter.gid
        if native.port(1).sm_lid:
            record: PathRecord = yield subnet.path(sgid=own.raw, dgid=gid.raw)
            vector = AddressVector(
                gid,
                dlid=record.dlid,
                sl=record.sl,
                src_path_bits=record.slid - native.port(1).lid,
                hop_limit=record.hop_limit or 1,
            )
            native.neighbours.place(gid, vector)
        return gid

    # --- the active side ----------------------------------------------------------------------------------

    def start(
        self,
        remote: Gid,
        port: int,
        qp: QueuePair,
        private_data: bytes,
        responder_resources: int,
        initiator_depth: int,
        more: dict[str, Any],
    ) -> Connection:
        """Send the request of a connection to be."""
        here = self.context.adapter.gid
        if remote.is_ip4 != here.is_ip4:
            raise InvalidAttributeError(f"this adapter is at {here.ip}, which cannot reach {remote.ip}")
        if not isinstance(port, int) or not 1 <= port <= 65_535:
            raise InvalidAttributeError(f"port = {port!r}: 1 to 65535")
        check_private_data(private_data, REQ_PRIVATE_DATA)
        self.take(qp)
        try:
            offer = self.offer(qp, responder_resources, initiator_depth, **more)
            offer = self._locate(offer, remote)
            self.initialize(qp, self._port_to(remote))
            local_port = self.context.adapter.random.randint(FIRST_EPHEMERAL, LAST_EPHEMERAL)
            header = IpCmHeader.of(str(here.ip), str(remote.ip), local_port)
            connection = Connection(self, qp, (str(remote.ip), port), (str(here.ip), local_port))
            connection.comm = self.manager.connect(
                remote.raw, service_id(port), offer, connection.on_event, header.pack() + bytes(private_data)
            )
        except BaseException:
            self.connecting.discard(qp)
            raise
        return connection

    def _port_to(self, remote: Gid) -> int:
        """The port that a connection to this GID leaves from."""
        native = self.context.adapter.native
        return 1 if native is None else native.neighbours.vector_to(remote).port_num

    def _locate(self, offer: Offer, remote: Gid) -> Offer:
        """On InfiniBand a request names the LIDs of its path (IBA vol. 1, 12.7.11)."""
        native = self.context.adapter.native
        if native is None:
            return offer
        way = native.neighbours.vector_to(remote)
        own = native.port(way.port_num).lid + way.src_path_bits
        local = not native.is_global(way)
        return replace(offer, local_lid=own, remote_lid=way.dlid, sl=way.sl, subnet_local=local)

    def listen(self, port: int, backlog: int) -> Listener:
        """A listener at a port; 0 chooses a free one."""
        if not isinstance(port, int) or not 0 <= port <= 65_535:
            raise InvalidAttributeError(f"port = {port!r}: 0 to 65535")
        if port == 0:
            span = LAST_EPHEMERAL - FIRST_EPHEMERAL + 1
            first = self.context.adapter.random.randrange(span)
            places = (FIRST_EPHEMERAL + (first + i) % span for i in range(span))
            free = (place for place in places if not self.manager.is_listening(service_id(place)))
            port = next(free, 0)
            if not port:
                raise ResourceError("every port has a listener: close one")
        return Listener(self, port, backlog)


class Listener:
    """Takes connection requests at a port.  Made by `Context.listen`; a context manager.

    At most `backlog` requests wait for a decision; those beyond it are refused.
    """

    def __init__(self, service: ConnectionService, port: int, backlog: int) -> None:
        self.port = port
        self.backlog = backlog
        self._service = service
        self._signal = Signal(service.context.driver)
        service.signals.add(self._signal)
        self._requests: deque[ConnectionRequest] = deque()
        self._open = True
        self._listening: Listening = service.manager.listen(service_id(port), backlog, self._on_request)
        service.listeners.add(self)

    def _on_request(self, comm: Communication) -> None:
        self._requests.append(ConnectionRequest(self._service, comm))
        self._signal.notify()

    def _next(self) -> ConnectionRequest | None:
        """The oldest request whose peer has not given up."""
        while self._requests:
            request = self._requests.popleft()
            if request.is_open:
                return request
        if not self._open:
            raise ClosedError(f"the listener at port {self.port} is closed")
        return None

    def _ready(self) -> bool:
        return any(request.is_open for request in self._requests) or not self._open

    def get_request(self, timeout: float | None = None) -> ConnectionRequest:
        """The oldest request, waiting for one; raises `ConnectionTimeout` after `timeout` seconds."""
        while True:
            ready = self._signal.block(self._ready, timeout)
            if request := self._next():
                return request
            if not ready:
                raise ConnectionTimeout(f"nobody asked for a connection to port {self.port}")

    async def request(self) -> ConnectionRequest:
        """The oldest request, awaited."""
        while True:
            await self._signal.until(self._ready)
            if request := self._next():
                return request

    async def __aiter__(self) -> AsyncIterator[ConnectionRequest]:
        while True:
            try:
                request = await self.request()
            except ClosedError:
                return
            yield request

    def close(self) -> None:
        """Listen no more; requests that nobody has decided on are rejected.  Connections stay."""
        if self._open:
            self._open = False
            self._service.listeners.discard(self)
            self._service.manager.stop_listening(self._listening)
            self._signal.notify()

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Listener at port {self.port}, {'open' if self._open else 'closed'}>"
