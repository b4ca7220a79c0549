"""A connection, and the request for one: what programs hold."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from verbena.adapter.gid import Gid
from verbena.errors import (
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectionRefused,
    ConnectionTimeout,
    InvalidAttributeError,
    InvalidStateError,
    VerbError,
)
from verbena.management.communication import Communication, Event, State
from verbena.management.connection_manager import REJ_PRIVATE_DATA, REP_PRIVATE_DATA
from verbena.transport.kinds import QPState, QPType
from verbena.verbs.queue_pair import QueuePair
from verbena.verbs.signal import Signal
from verbena.wire import RejectReason, service_port

if TYPE_CHECKING:
    from verbena.verbs.cm import ConnectionService


def check_private_data(data: bytes, most: int) -> None:
    """Raise `InvalidAttributeError` unless it is bytes that fit."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidAttributeError(f"private_data: bytes are needed, not {type(data).__name__}")
    if memoryview(data).nbytes > most:
        raise InvalidAttributeError(
            f"{memoryview(data).nbytes} bytes of private data: this message takes at most {most}"
        )


class Connection:
    """A connection of a queue pair.  Made by `Context.connect` and `ConnectionRequest.accept`; a context manager.

    qp: the queue pair.  private_data: what the peer's program sent with its request or its answer, without the zeros
    that fill up the field.  peer, local: IP address and port.  The end of the connection, from whichever side, moves
    the queue pair to ERR, which flushes what is posted.
    """

    def __init__(
        self, service: ConnectionService, qp: QueuePair, peer: tuple[str, int], local: tuple[str, int]
    ) -> None:
        self.qp = qp
        self.peer = peer
        self.local = local
        self.private_data = b""
        self.comm: Communication | None = None
        self._service = service
        self._signal = Signal(service.context.driver)
        service.signals.add(self._signal)
        self._made = False
        self._ending = False
        self._ended = False
        self._failure: ConnectError | VerbError | None = None

    @property
    def state(self) -> State:
        """Where it is in the protocol (`management.communication.State`)."""
        return State.IDLE if self.comm is None else self.comm.state

    @property
    def is_connected(self) -> bool:
        """Can data pass?"""
        return self._made and not self._ending

    # --- what the connection manager tells ----------------------------------------------------------------

    def on_event(self, comm: Communication, event: Event) -> None:
        """Called by the connection manager, from any thread."""
        manager = self._service.manager
        if event is Event.REPLIED:
            self.comm = comm  # the answer may be here before `connect` returns
            self.private_data = comm.private_data
            try:
                self._service.bring_up(self.qp, manager.agreement(comm))
            except VerbError as error:
                manager.abort(comm)
                self._fail(error)
            else:
                if not manager.ready(comm):  # given up while the queue pair was brought up
                    self._end()
        elif event is Event.ESTABLISHED:
            self._made = True
            self._service.connecting.discard(self.qp)
        elif event is Event.REFUSED:
            self._fail(_refused(self.peer, comm.reason, comm.private_data))
        elif event is Event.TIMED_OUT:
            self._fail(ConnectionTimeout(f"{_name(self.peer)} does not answer"))
        elif event is Event.DISCONNECTED:
            self._end()
            manager.release(comm)
        self._signal.notify()

    def _fail(self, failure: ConnectError | VerbError) -> None:
        self._end()
        self._service.connecting.discard(self.qp)
        if self._failure is None:
            self._failure = failure

    def _end(self) -> None:
        """To ERR with the queue pair; if it was never brought up, it can be used for another attempt."""
        self._ending = True
        with self._service.lock, contextlib.suppress(ClosedError):
            if self.qp.state not in (QPState.RESET, QPState.INIT):
                self.qp.modify(QPState.ERR)
        self._ended = True

    # --- being made ---------------------------------------------------------------------------------------

    def _decided(self) -> bool:
        return self._made or self._failure is not None or not self._service.open

    def _result(self) -> Connection:
        if self._failure is not None:
            raise self._failure
        if self._made:
            return self
        self.abandon()
        if not self._service.open:
            raise ClosedError("the adapter was closed while the connection was made")
        raise ConnectionTimeout(f"{_name(self.peer)} did not answer in time")

    def abandon(self) -> None:
        """Give up making it."""
        if self.comm is not None:
            self._service.manager.abort(self.comm)
        self._end()
        self._service.connecting.discard(self.qp)

    def wait_made(self, timeout: float | None) -> Connection:
        """Wait until it is made; raises what went wrong."""
        try:
            self._signal.block(self._decided, timeout)
        except BaseException:
            self.abandon()
            raise
        return self._result()

    async def made(self, timeout: float | None) -> Connection:
        """The same, awaited."""
        try:
            async with asyncio.timeout(timeout):
                await self._signal.until(self._decided)
        except TimeoutError:
            pass
        except BaseException:
            self.abandon()
            raise
        return self._result()

    # --- its end ------------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        """End the connection: the queue pair goes to ERR at once, and the peer is told.  Harmless when it has ended."""
        self._end()
        if self.comm is not None:
            self._service.manager.disconnect(self.comm)
        self._signal.notify()

    def _over(self) -> bool:
        return self._ended or not self._service.open

    def wait_disconnected(self, timeout: float | None = None) -> bool:
        """Wait until either side has ended the connection; False after `timeout` seconds."""
        return self._signal.block(self._over, timeout)

    async def disconnected(self) -> None:
        """Wait until either side has ended the connection."""
        await self._signal.until(self._over)

    def check(self) -> None:
        """Raise `ConnectionLost` if it has ended."""
        if self._over():
            raise ConnectionLost(f"the connection with {_name(self.peer)} has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"<Connection with {_name(self.peer)}, {self.state.name}>"


class ConnectionRequest:
    """Somebody asks for a connection: accept or reject it.  Made by a `Listener`.

    remote_address, remote_port: who asks.  private_data: what came along, without the zeros that fill up the field.
    qp_type: RC or UC, which the queue pair has to be.
    """

    def __init__(self, service: ConnectionService, comm: Communication) -> None:
        assert comm.req is not None
        self.remote_address = str(Gid(comm.remote).ip)
        self.remote_port = comm.ip.src_port if comm.ip is not None else 0
        self.private_data = comm.private_data
        self.qp_type = QPType(comm.req.transport_service)
        self._service = service
        self._comm = comm
        comm.notify = self._on_event
        self._withdrawn = False

    def _on_event(self, comm: Communication, event: Event) -> None:
        self._withdrawn = True

    @property
    def is_open(self) -> bool:
        """Can it still be decided on?  The peer may have given up."""
        return not self._withdrawn and self._comm.state in (State.REQ_RCVD, State.MRA_REQ_SENT)

    def _checked(self) -> None:
        if self._withdrawn:
            raise ConnectionLost(f"{self.remote_address} has given up its request")
        if not self.is_open:
            raise InvalidStateError("this request has been decided on already")

    def _start(self, qp: QueuePair, private_data: bytes, resources: int, depth: int) -> Connection:
        self._checked()
        check_private_data(private_data, REP_PRIVATE_DATA)
        service, comm = self._service, self._comm
        service.take(qp)
        try:
            if qp.type is not self.qp_type:
                raise InvalidAttributeError(
                    f"{self.remote_address} asks for {self.qp_type.name}, and this queue pair is {qp.type.name}"
                )
            offer = service.offer(qp, resources, depth)
            peer = (self.remote_address, self.remote_port)
            port = service_port(comm.service_id) or 0
            connection = Connection(service, qp, peer, (str(service.context.adapter.gid.ip), port))
            connection.comm, connection.private_data = comm, self.private_data
            service.bring_up(qp, service.manager.agreement(comm, offer))
            try:
                service.manager.accept(comm, offer, connection.on_event, bytes(private_data))
            except InvalidStateError:  # the peer has given up just now
                connection.abandon()
                self._checked()
                raise
        except BaseException:
            service.connecting.discard(qp)
            raise
        return connection

    def accept(
        self,
        qp: QueuePair,
        private_data: bytes = b"",
        *,
        timeout: float = 5.0,
        responder_resources: int = 16,
        initiator_depth: int = 16,
    ) -> Connection:
        """Accept with a queue pair in RESET or INIT, which goes to RTS; returns when the peer is ready, too.

        private_data: at most 196 bytes.  responder_resources, initiator_depth: READs and atomics that the peer, and
        this side, may have outstanding; what the peer offers is the most.

        Raises `ConnectionTimeout`, `ConnectionRefused` or `ConnectionLost` when the peer has gone, a `VerbError` for
        arguments that do not fit; after the latter the request can still be decided on.
        """
        return self._start(qp, private_data, responder_resources, initiator_depth).wait_made(timeout)

    async def accept_async(
        self,
        qp: QueuePair,
        private_data: bytes = b"",
        *,
        timeout: float = 5.0,
        responder_resources: int = 16,
        initiator_depth: int = 16,
    ) -> Connection:
        """`accept`, awaited."""
        return await self._start(qp, private_data, responder_resources, initiator_depth).made(timeout)

    def reject(self, private_data: bytes = b"", reason: int = RejectReason.CONSUMER_REJECT) -> None:
        """Refuse; the peer gets at most 148 bytes of private data, and a reason (28: the program does not want it)."""
        check_private_data(private_data, REJ_PRIVATE_DATA)
        if not isinstance(reason, int) or not 0 < reason <= 0xFFFF:
            raise InvalidAttributeError(f"reason = {reason!r}: 1 to 65535")
        self._checked()
        self._service.manager.reject(self._comm, reason, bytes(private_data))

    def __repr__(self) -> str:
        return (
            f"<ConnectionRequest of {self.remote_address} port {self.remote_port}, {self._comm.state.name}>"
        )


def _name(peer: tuple[str, int]) -> str:
    return f"{peer[0]} port {peer[1]}"


_EXPLAINED: dict[int, str] = {
    RejectReason.INVALID_SERVICE_ID: "nobody listens at {}",
    RejectReason.CONSUMER_REJECT: "the program at {} refused the connection",
    RejectReason.NO_RESOURCES: "{} has no room for another connection",
    RejectReason.TIMEOUT: "{} gave up waiting",
    RejectReason.STALE_CONNECTION: "{} believes this queue pair to be connected already",
}


def _refused(peer: tuple[str, int], reason: int, private_data: bytes) -> ConnectionRefused:
    known = reason in RejectReason.__members__.values()
    name = RejectReason(reason).name.lower().replace("_", " ") if known else "unknown"
    what = _EXPLAINED.get(reason, "{} refused the connection").format(_name(peer))
    return ConnectionRefused(f"{what} (reason {reason}: {name})", reason, private_data)
