"""`verbena rping`: ping by RDMA, with Linux' `rping` (librdmacm) as the other side if one likes.

The client tells where its data is; the server fetches it with RDMA READ and says "go ahead"; the client tells where
it wants it; the server puts it there with RDMA WRITE and says so.  What is told are 16 bytes: address, key, length.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from verbena.errors import CompletionError, CompletionStatus, ConnectionLost, SystemLimitError, VerbenaError
from verbena.memory.access import Access
from verbena.runtime.udp import open_device
from verbena.transport.kinds import CompletionOpcode, QPState, QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.cm import Listener
from verbena.verbs.connection import Connection, ConnectionRequest
from verbena.verbs.context import Context

DEFAULT_PORT = 7174
SMALLEST, LARGEST = 26, 65_535  # bytes, as rping allows
INFO = struct.Struct(">QII")  # address, remote key, length
QUEUE = 16
CONNECT_TIMEOUT = 10.0
ALL = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE
INIT = {"port_num": 1, "pkey_index": 0, "access_flags": ALL}

Print = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """count: pings, None = until interrupted.  size: bytes of each."""

    count: int | None = None
    size: int = 64
    verbose: bool = False
    validate: bool = False


class DataMismatch(VerbenaError):
    """What came back is not what was sent."""


def ping_text(number: int, size: int) -> bytes:
    """The data of a ping: its number, then letters from "A" on, and a zero at the end."""
    text = f"rdma-ping-{number}: ".encode()
    letters = bytes(65 + i % 58 for i in range(max(0, size - len(text))))
    # The first letter moves on with each ping.
    letters = bytes(65 + (c - 65 + number) % 58 for c in letters)
    return (text + letters)[: size - 1] + b"\0"


def as_text(data: bytes) -> str:
    """What C would print of it."""
    return data.split(b"\0")[0].decode("ascii", "backslashreplace")


class Session:
    """One side of one connection: its queue pair, its memory, and one request at a time."""

    def __init__(self, ctx: Context, size: int) -> None:
        self.size = size
        self._pd = ctx.alloc_pd()
        self.cq = ctx.create_cq(2 * QUEUE)
        self.qp = self._pd.create_qp(QPType.RC, self.cq, max_send_wr=QUEUE, max_recv_wr=QUEUE)
        self.source = self._pd.alloc_mr(size, ALL)
        self.sink = self._pd.alloc_mr(size, ALL)
        self._infos = self._pd.alloc_mr(2 * INFO.size, Access.LOCAL_WRITE)
        self._sent = False
        self._received: list[int] = []
        self.qp.modify(QPState.INIT, **INIT)
        self._post_receive()

    def _post_receive(self) -> None:
        self.qp.post_recv(RecvRequest(0, [self._infos.sge(INFO.size, INFO.size)]))

    async def _take(self, done: Callable[[], bool]) -> None:
        while not done():
            entry: Any
            for entry in await self.cq:
                if entry.status is CompletionStatus.WR_FLUSH_ERR:
                    raise ConnectionLost("the peer has ended the connection")
                entry.raise_for_status()
                if entry.opcode is CompletionOpcode.RECV:
                    self._received.append(entry.byte_len)
                else:
                    self._sent = True

    async def _do(self, request: WorkRequest) -> None:
        self._sent = False
        self.qp.post_send(request)
        await self._take(lambda: self._sent)

    async def tell(self, address: int = 0, key: int = 0, length: int = 0) -> None:
        """Send 16 bytes: where data is or shall go; or, of no content, "go ahead"."""
        self._infos.buf[: INFO.size] = INFO.pack(address, key, length)
        await self._do(WorkRequest(sg_list=[self._infos.sge(0, INFO.size)]))

    async def hear(self) -> tuple[int, int, int]:
        """Receive the peer's 16 bytes: address, key, length."""
        await self._take(lambda: bool(self._received))
        length = self._received.pop(0)
        if length != INFO.size:
            raise ConnectionLost(f"the peer sent {length} bytes where rping sends {INFO.size}")
        address, key, size = INFO.unpack(self._infos.buf[INFO.size :])
        self._post_receive()
        return address, key, size

    async def fetch(self, address: int, key: int, length: int) -> bytes:
        """RDMA READ of the peer's memory."""
        sge = self.sink.sge(0, length)
        await self._do(WorkRequest(opcode=WROpcode.RDMA_READ, sg_list=[sge], remote_addr=address, rkey=key))
        return bytes(self.sink.buf[:length])

    async def put(self, address: int, key: int, length: int) -> None:
        """RDMA WRITE of what was fetched into the peer's memory."""
        sge = self.sink.sge(0, length)
        await self._do(WorkRequest(opcode=WROpcode.RDMA_WRITE, sg_list=[sge], remote_addr=address, rkey=key))

    def close(self) -> None:
        """Close the queue pair and free the memory."""
        for item in (self.qp, self.source, self.sink, self._infos, self.cq, self._pd):
            item.close()


# --- the two sides ----------------------------------------------------------------------------------------------


async def ping(ctx: Context, host: str, port: int, options: Options, write: Print) -> int:
    """The client: returns how many pings came back.  Raises a `VerbenaError` for whatever goes wrong."""
    session = Session(ctx, options.size)
    try:
        connection = await ctx.connect_async(
            host, port, session.qp, timeout=CONNECT_TIMEOUT, responder_resources=1, initiator_depth=1
        )
        with connection:
            number = 0
            while options.count is None or number < options.count:
                await _ping_once(session, number, options, write)
                number += 1
            return number
    finally:
        session.close()


async def _ping_once(session: Session, number: int, options: Options, write: Print) -> None:
    data = ping_text(number, options.size)
    session.source.buf[:] = data
    await session.tell(session.source.addr, session.source.rkey, options.size)
    await session.hear()
    await session.tell(session.sink.addr, session.sink.rkey, options.size)
    await session.hear()
    back = bytes(session.sink.buf)
    if options.validate and back != data:
        raise DataMismatch(f"ping {number} came back changed")
    if options.verbose:
        write(f"ping data: {as_text(back)}")


async def serve(
    contexts: Sequence[Context], port: int, options: Options, write: Print, *, persistent: bool = False
) -> None:
    """The server, at one adapter or several: of one client, or (persistent) of any number until interrupted.

    Raises a `VerbenaError` for whatever goes wrong; a persistent server prints it and goes on.
    """
    with contextlib.ExitStack() as stack:
        listeners = {stack.enter_context(ctx.listen(port, backlog=16)): ctx for ctx in contexts}
        if not persistent:
            request, ctx = await _first_request(listeners)
            await _serve_one(ctx, request, options, write)
            return
        async with asyncio.TaskGroup() as group:
            for listener, ctx in listeners.items():
                group.create_task(_serve_all(group, listener, ctx, options, write))


async def _first_request(listeners: dict[Listener, Context]) -> tuple[ConnectionRequest, Context]:
    waiting = {asyncio.create_task(listener.request()): ctx for listener, ctx in listeners.items()}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    first = done.pop()
    return first.result(), waiting[first]


async def _serve_all(
    group: asyncio.TaskGroup, listener: Listener, ctx: Context, options: Options, write: Print
) -> None:
    async for request in listener:
        group.create_task(_serve_guarded(ctx, request, options, write))


async def _serve_guarded(ctx: Context, request: ConnectionRequest, options: Options, write: Print) -> None:
    try:
        await _serve_one(ctx, request, options, write)
    except VerbenaError as error:
        complain(f"client {request.remote_address}: {_sentence(error)}")


async def _serve_one(ctx: Context, request: ConnectionRequest, options: Options, write: Print) -> None:
    session = Session(ctx, LARGEST)
    try:
        connection = await request.accept_async(session.qp, responder_resources=1, initiator_depth=1)
        with connection:
            while await _answer_once(session, connection, options, write):
                pass
    finally:
        session.close()


async def _answer_once(session: Session, connection: Connection, options: Options, write: Print) -> bool:
    """One ping; False when the client has ended the connection instead."""
    try:
        address, key, length = await session.hear()
    except ConnectionLost:
        if connection.is_connected:
            raise
        return False
    if length > session.size:
        raise ConnectionLost(f"the client offers {length} bytes; rping sends {session.size} at most")
    data = await session.fetch(address, key, length)
    if options.verbose:
        write(f"server ping data: {as_text(data)}")
    await session.tell()
    address, key, _ = await session.hear()
    await session.put(address, key, min(length, len(data.split(b"\0")[0]) + 1))
    try:
        await session.tell()
    except ConnectionLost:  # a client that got it may leave before it has acknowledged it
        if connection.is_connected:
            raise
        return False
    return True


# --- the command ------------------------------------------------------------------------------------------------


def rping(
    server: bool,
    client: bool,
    address: str,
    port: int = DEFAULT_PORT,
    count: int | None = None,
    size: int = 64,
    verbose: bool = False,
    validate: bool = False,
    persistent: bool = False,
    local: str | None = None,
) -> int:
    """Run one side of rping; returns the exit status.

    address: the server's; where the server itself runs, the one to listen at, 0.0.0.0 for all.  local: the client's
    own address, by default the one that routes to the server.
    """
    if server == client:
        return complain("say either -s (server) or -c (client)", 2)
    if not SMALLEST <= size <= LARGEST:
        return complain(f"size {size}: {SMALLEST} to {LARGEST} bytes", 2)
    if count is not None and count < 0:
        return complain(f"count {count}: 0 (for ever) or more", 2)
    options = Options(count or None, size, verbose, validate)
    try:
        host = resolve(address)
        with contextlib.ExitStack() as stack:
            if server:
                contexts = [stack.enter_context(ctx) for ctx in open_here(host)]
                asyncio.run(serve(contexts, port, options, _print, persistent=persistent))
            else:
                ctx = stack.enter_context(open_towards(host, local))
                asyncio.run(ping(ctx, host, port, options, _print))
    except (VerbenaError, OSError) as error:
        return complain(_sentence(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def complain(text: str, status: int = 1) -> int:
    """One sentence on the standard error stream; returns the exit status."""
    print(f"verbena rping: {text}", file=sys.stderr)
    return status


def _sentence(error: BaseException) -> str:
    if isinstance(error, CompletionError):
        return f"the peer does not answer as it should: {error}"
    return str(error)


def resolve(name: str) -> str:
    """The IP address of a name; raises `SystemLimitError`."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)[0][4][0])
    except OSError as error:
        raise SystemLimitError(f"{name}: {error.strerror or error}") from None


def open_here(host: str) -> list[Context]:
    """Adapters at an address of this machine; for the unspecified address, at each that has none yet."""
    ip = ipaddress.ip_address(host.split("%")[0])
    if not ip.is_unspecified:
        return [open_device(host)]
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    opened, failure = [], SystemLimitError("this machine has no address to listen at")
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == family and "%" not in entry.address:
                try:
                    opened.append(open_device(entry.address))
                except SystemLimitError as error:
                    failure = error
    if not opened:
        raise failure
    return opened


def open_towards(host: str, local: str | None) -> Context:
    """An adapter at the local address that routes to a host.

    An address holds one adapter: to a server of this machine, on loopback, another loopback address serves.
    """
    if local is not None:
        return open_device(local)
    ip = ipaddress.ip_address(host.split("%")[0])
    if ip.is_loopback and ip.version == 4:
        for candidate in range(1, 255):
            other = f"127.0.0.{candidate}"
            if other != host:
                with contextlib.suppress(SystemLimitError):
                    return open_device(other)
    return open_device(routing_address(host))


def routing_address(host: str) -> str:
    """The local address from which packets to a host go; raises `SystemLimitError` when there is no route."""
    try:
        where = socket.getaddrinfo(host, 4791, type=socket.SOCK_DGRAM)[0]
        with socket.socket(where[0], where[1]) as probe:
            probe.connect(where[4])
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SystemLimitError(f"no route to {host}: {error.strerror or error}") from None
