"""asyncio streams on sockets direct: `open_connection` and `start_server`, as asyncio has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from verbena.runtime.direct import DirectNode, DirectSocket
from verbena.team.offload.session import Session

HIGH, PIECE = 1 << 20, 1 << 18
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class DirectTransport(asyncio.Transport):
    """A managed connection as an asyncio transport.  `get_extra_info("session")` is the connection itself."""

    def __init__(self, node: DirectNode, session: Session, protocol: asyncio.Protocol) -> None:
        super().__init__({"session": session, "node": node})
        self._node = node
        self._session = session
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._left = bytearray()
        self._paused_writing = False
        self._paused_reading = False
        self._at_end = False
        self._closing = False
        self._asked = False
        self._eof = False
        self.made: asyncio.Future[None] = self._loop.create_future()
        session.on_change = self._changed
        self._changed()

    def _changed(self) -> None:
        """From the node's thread, or whoever holds its lock."""
        if not self._asked:
            self._asked = True
            try:
                self._loop.call_soon_threadsafe(self._look)
            except RuntimeError:  # the program's loop has ended
                self._session.on_change = lambda: None

    def _look(self) -> None:
        self._asked = False
        with self._node.loop.lock:
            session = self._session
            if not self.made.done() and (session.is_established or session.error is not None):
                if session.error is not None:
                    self.made.set_exception(session.error)
                    return
                self.made.set_result(None)
                self._protocol.connection_made(self)
            if not self.made.done():
                return
            self._flush()
            data = b"" if self._paused_reading or not session.readable else session.read(PIECE)
            more = bool(session.readable) and not self._paused_reading
            ended, error = session.at_end, session.error
        if data:
            self._protocol.data_received(data)
        if more:
            self._changed()
        elif ended and not self._at_end:
            self._at_end = True
            self._protocol.eof_received()
        elif error is not None and not self._at_end:
            self._at_end = self._closing = True
            self._protocol.connection_lost(error)
        if self._closing and not self._left and not (ended and error):
            self._finish()

    def _flush(self) -> None:
        session = self._session
        while self._left and session.room and session.error is None:
            taken = session.write(self._left)
            del self._left[:taken]
        if self._paused_writing and len(self._left) < HIGH // 4:
            self._paused_writing = False
            self._protocol.resume_writing()
        if not self._left and self._eof:
            session.close_writing()

    def _finish(self) -> None:
        if self._session.on_change == self._changed:
            session = self._session
            with self._node.loop.lock:
                session.close_writing()
                session.on_change = lambda: session.readable and session.read()  # type: ignore[assignment]
            self._protocol.connection_lost(None)

    # --- asyncio.Transport --------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._node.loop.lock:
            self._left += data
            self._flush()
        if len(self._left) > HIGH and not self._paused_writing:
            self._paused_writing = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        with self._node.loop.lock:
            self._eof = True
            self._flush()

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._paused_reading = True

    def resume_reading(self) -> None:
        self._paused_reading = False
        self._changed()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._changed()

    def abort(self) -> None:
        with self._node.loop.lock:
            if self._session.is_open:
                self._session.abort()
        self.close()

    def get_write_buffer_size(self) -> int:
        return len(self._left)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol


def _streams(node: DirectNode, session: Session) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Any]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = DirectTransport(node, session, protocol)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop), transport.made


async def open_connection(node: DirectNode, host: str, port: int) -> Streams:
    """As `asyncio.open_connection`; host: the peer node's upload address."""
    session = node.begin((host, port))
    reader, writer, made = _streams(node, session)
    await made
    return reader, writer


class DirectServer:
    """What `start_server` returns.  A context manager."""

    def __init__(self, node: DirectNode, port: int) -> None:
        self.node = node
        self.port = port
        self.tasks: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Take no further connections."""
        with self.node.loop.lock:
            self.node.sockets.unlisten(self.port)

    async def __aenter__(self) -> DirectServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def start_server(
    node: DirectNode,
    callback: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]],
    port: int,
) -> DirectServer:
    """As `asyncio.start_server`: the callback is run for each connection to a port."""
    loop = asyncio.get_running_loop()
    server = DirectServer(node, port)

    async def serve(session: Session) -> None:
        reader, writer, made = _streams(node, session)
        await made
        await callback(reader, writer)

    def begin(session: Session) -> None:
        task = loop.create_task(serve(session))
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)

    with node.loop.lock:
        node.sockets.listen(port, lambda session: _hand_over(loop, begin, session))
    return server


def _hand_over(loop: asyncio.AbstractEventLoop, begin: Callable[[Session], None], session: Session) -> None:
    loop.call_soon_threadsafe(begin, session)


__all__ = ["DirectServer", "DirectSocket", "open_connection", "start_server"]
