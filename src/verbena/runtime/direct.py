"""Sockets direct in real time: stream sockets between processes that move to the RDMA card and back.

A `DirectNode` is what a process has of it: a thread, the sockets-direct layer, TCP of the operating system for the
upload and the team path, and adapters (`open_device`) for the offload path.  `DirectSocket` has the interface of
`socket.socket`, `open_connection` and `start_server` those of asyncio's streams (`runtime.direct_streams`).
"""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from verbena.adapter.attributes import DeviceAttributes
from verbena.errors import InvalidAttributeError, InvalidStateError, SystemLimitError
from verbena.runtime.direct_channel import KernelChannel
from verbena.runtime.real_loop import RealLoop
from verbena.runtime.tap import keep_memory
from verbena.runtime.udp import open_device
from verbena.team.card import BusDriver, Upper
from verbena.team.offload.channel import Channel
from verbena.team.offload.manager import Address, SocketsDirect
from verbena.team.offload.policy import Policy, default_policy
from verbena.team.offload.rdma import RdmaCard, RdmaChannel
from verbena.team.offload.session import Session
from verbena.team.offload.states import OffloadConfig, Path
from verbena.team.trace import PathTrace
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.context import Context

ATTEND = 0.005
"""Seconds for which a program that waits for an offloaded connection takes its completions itself."""
LOOK_NS = 1_000_000
"""How often it looks meanwhile for what comes by other ways: a change of path, the end."""
REAL = OffloadConfig(
    send_buffer=8 << 20,
    receive_buffer=8 << 20,
    slots=4,
    slot_size=1 << 20,
    most_queue_pairs=64,
    tcp_in_flight=1 << 20,
    timeout_code=14,
    stall_ns=2_000_000_000,
    attempt_ns=500_000_000,
    move_ns=2_000_000_000,
)
"""Settings for real time: larger pieces, and more patience with processes that do not get a processor."""


class _AdapterCard(Upper):
    """An adapter on a socket, where the card's drivers expect a card; its Ethernet side is the operating system's."""

    mac = bytes(6)
    mtu = 0
    rate_bps = 0.0
    is_up = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def transmit(self, frame: bytes) -> bool:
        return False


class _RealCard(RdmaCard):
    """Completions come on the adapter's own thread: the loop takes them."""

    def __init__(self, name: str, context: Context, config: OffloadConfig, loop: RealLoop, trace: PathTrace):
        super().__init__(name, context, BusDriver(_AdapterCard(name), trace), config)
        self._loop = loop

    def _completed(self, queue: CompletionQueue) -> None:
        with self._loop.lock:
            super()._completed(queue)


class DirectNode:
    """The sockets-direct layer of this process.

    upload, team: IPv4 addresses of this machine that the two paths through the stack use; rdma: addresses for adapters
    (RoCEv2 at UDP port `udp_port`), the first one is used first.  service_port: TCP, at upload and team; 0: any, which
    `service_port` then tells.  A context manager.
    """

    def __init__(
        self,
        upload: str,
        team: str = "",
        rdma: tuple[str, ...] | list[str] = (),
        *,
        config: OffloadConfig = REAL,
        policy: Policy = default_policy,
        udp_port: int = 4791,
    ) -> None:
        keep_memory()
        self.loop = RealLoop("verbena sockets direct")
        self.trace = PathTrace(self.loop)
        self.config = config
        self.contexts: list[Context] = []
        self._addresses = {Path.UPLOAD: _address(upload), Path.TEAM: _address(team) if team else ""}
        self._up = {Path.UPLOAD: bool(rdma), Path.TEAM: bool(team)}
        self._failed: set[str] = set()
        self._servers: list[socket.socket] = []
        self.sockets = SocketsDirect(
            self.loop,
            random.SystemRandom(),
            self,
            self.trace,
            config,
            policy,
        )
        try:
            for path, address in self._addresses.items():
                if address:
                    self._serve(path, address)
            for number, address in enumerate(rdma):
                self._add_card(f"rnic{number}", address, udp_port)
        except BaseException:
            self.close()
            raise
        self._cards_changed()

    def _serve(self, path: Path, address: str) -> None:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address, self.config.service_port))
        except OSError as error:
            server.close()
            why = error.strerror
            raise SystemLimitError(
                f"{address} port {self.config.service_port} cannot be had: {why}"
            ) from None
        server.listen(64)
        server.setblocking(False)
        self._servers.append(server)

        def accept() -> None:
            try:
                made, _ = server.accept()
            except OSError:
                return
            channel = KernelChannel(self.loop, made, path, self.config.tcp_in_flight, made=True)
            self.sockets.arrived(channel)

        self.loop.watch(server.fileno(), accept)

    def _add_card(self, name: str, address: str, udp_port: int) -> None:
        limits = DeviceAttributes(name=name)
        context = open_device(address, udp_port=udp_port, limits=limits)
        self.contexts.append(context)
        with self.loop.lock:
            self.sockets.add_card(_RealCard(name, context, self.config, self.loop, self.trace))

    # --- Network ------------------------------------------------------------------------------------------

    def address(self, path: Path) -> bytes:
        """Implements `offload.manager.Network`."""
        text = self._addresses.get(path, "")
        return ipaddress.IPv4Address(text).packed if text else bytes(4)

    def is_up(self, path: Path) -> bool:
        """Implements `offload.manager.Network`."""
        return self._up.get(path, False)

    def dial(self, path: Path, to: Address) -> Channel:
        """Implements `offload.manager.Network`."""
        sock = socket.socket()
        sock.setblocking(False)
        source = self._addresses.get(path) or self._addresses[Path.UPLOAD]
        try:
            sock.bind((source, 0))
            failed = sock.connect_ex((str(ipaddress.IPv4Address(to[0])), to[1]))
        except (
            OSError
        ) as error:  # the address is no longer this machine's: like a network that cannot be reached
            failed = error.errno or errno.EADDRNOTAVAIL
        channel = KernelChannel(self.loop, sock, path, self.config.tcp_in_flight, made=failed == 0)
        if failed not in (0, errno.EINPROGRESS):
            self.loop.call_soon(lambda: channel._down(OSError(failed, "").strerror or "unreachable"))
        return channel

    # --- the administrator --------------------------------------------------------------------------------

    def fail(self, name: str) -> None:
        """Take an RDMA card (``rnic0``, …) out of use: its connections go on elsewhere."""
        with self.loop.lock:
            if name not in self.sockets.drivers:
                raise InvalidAttributeError(
                    f"there is no card {name}: {', '.join(self.sockets.drivers) or 'none'}"
                )
            self._failed.add(name)
            self._cards_changed()

    def recover(self, name: str) -> None:
        """Use it again."""
        with self.loop.lock:
            self._failed.discard(name)
            self._cards_changed()

    def _cards_changed(self) -> None:
        with self.loop.lock:
            usable = {name: name not in self._failed for name in self.sockets.drivers}
            active = next((name for name, good in usable.items() if good), None)
            self._up[Path.UPLOAD] = active is not None or not self._addresses[Path.TEAM]
            self.sockets.cards_changed(usable, active)

    def pin(self, session: Session, path: Path | None) -> None:
        """Want a path for a connection; None: as the policy says."""
        with self.loop.lock:
            self.sockets.pin(session, path)

    # --- programs -----------------------------------------------------------------------------------------

    def socket(self) -> DirectSocket:
        """A new stream socket."""
        return DirectSocket(self)

    def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> DirectSocket:
        """A connected socket, as `socket.create_connection`."""
        made = self.socket()
        made.settimeout(timeout)
        made.connect(address)
        return made

    def create_server(self, port: int, backlog: int = 64) -> DirectSocket:
        """A listening socket."""
        made = self.socket()
        made.bind(("", port))
        made.listen(backlog)
        return made

    def begin(self, address: tuple[str, int]) -> Session:
        """Open a connection; address: the peer's upload (or, without an RDMA card here, team) address, and a port."""
        packed = ipaddress.IPv4Address(_address(address[0])).packed
        path = Path.UPLOAD if self._up[Path.UPLOAD] else Path.TEAM
        with self.loop.lock:
            return self.sockets.connect(packed, address[1], path)

    def close(self) -> None:
        """Break everything off, and stop."""
        with self.loop.lock:
            self.sockets.close()
            for server in self._servers:
                self.loop.watch(server.fileno(), None)
                server.close()
        self.loop.close()
        for context in self.contexts:
            context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(text: str) -> str:
    """An IPv4 address, also by name."""
    try:
        return socket.gethostbyname(text)
    except OSError as error:
        raise InvalidAttributeError(f"{text!r} is no address: {error.strerror}") from None


class DirectSocket:
    """A stream socket with the interface of `socket.socket`, as far as streams have it.

    It blocks; `settimeout` limits that (`TimeoutError`), `setblocking(False)` gives `BlockingIOError`.  `session` is
    the connection under it: its path, its counters.  Threads may use both directions at once.
    """

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, node: DirectNode, session: Session | None = None) -> None:
        self.node = node
        self.session = session
        self._timeout: float | None = None
        self._changed = threading.Condition(node.loop.lock)
        self._port = 0
        self._waiting: deque[Session] | None = None
        self._backlog = 0
        self._shut = False
        if session is not None:
            session.on_change = self._notify

    def _notify(self) -> None:
        self._changed.notify_all()

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def _wait(self, ready: Callable[[], Any]) -> None:
        """With the lock held."""
        if ready():
            return
        session = self.session
        if session is not None and self._timeout != 0:
            # The thread that is woken by what comes is then the one that wants it.
            until = time.perf_counter() + min(ATTEND, self._timeout or ATTEND)
            while isinstance(channel := session.channel, RdmaChannel) and time.perf_counter() < until:
                channel.attend(self._changed, LOOK_NS)
                channel.poll()
                if ready():
                    return
        if self._timeout == 0:
            raise BlockingIOError(errno.EAGAIN, "nothing now")
        if not self._changed.wait_for(ready, self._timeout):
            raise TimeoutError("timed out")

    def _made(self) -> Session:
        if self.session is None:
            raise InvalidStateError("this socket is not connected")
        return self.session

    # --- connections --------------------------------------------------------------------------------------

    def connect(self, address: tuple[str, int]) -> None:
        """Connect; raises `ConnectionRefused`, `ConnectionLost`, `ConnectionTimeout`, or `TimeoutError`."""
        with self._changed:
            if self.session is not None or self._waiting is not None:
                raise InvalidStateError("this socket is in use already")
            session = self.session = self.node.begin(address)
            session.on_change = self._notify
            self._wait(lambda: session.is_established or session.error is not None)
            if session.error is not None:
                raise session.error

    def bind(self, address: tuple[str, int]) -> None:
        """Choose the port to listen at; the addresses are the node's."""
        self._port = address[1]

    def listen(self, backlog: int = 64) -> None:
        with self._changed:
            self._backlog = backlog
            self._waiting = deque()
            self.node.sockets.listen(self._port, self._came)

    def _came(self, session: Session) -> None:
        assert self._waiting is not None
        if len(self._waiting) >= self._backlog:
            session.abort()
            return
        self._waiting.append(session)
        self._notify()

    def accept(self) -> tuple[DirectSocket, tuple[str, int]]:
        """The next connection, and its peer."""
        with self._changed:
            if self._waiting is None:
                raise InvalidStateError("this socket does not listen")
            self._wait(lambda: self._waiting or self._shut)
            if self._shut:
                raise InvalidStateError("this socket was closed")
            made = DirectSocket(self.node, self._waiting.popleft())
            return made, made.getpeername()

    def getpeername(self) -> tuple[str, int]:
        peer = self._made().peer
        if peer is None:
            raise InvalidStateError("this socket is not connected yet")
        return str(ipaddress.IPv4Address(peer.upload if any(peer.upload) else peer.team)), peer.port

    def getsockname(self) -> tuple[str, int]:
        return str(ipaddress.IPv4Address(self.node.address(Path.UPLOAD))), self._port

    # --- bytes --------------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Some of the bytes; how many were taken."""
        with self._changed:
            session = self._made()
            if not len(data):
                return 0
            # As kernels have it: once a buffer was full, it is worth a program's while when a third is free.
            least = 1 if session.room or self._timeout == 0 else min(len(data), session.tx.capacity // 3)
            self._wait(lambda: session.room >= least or session.error is not None or session.tx.closed)
            return session.write(data)

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """All of the bytes."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def recv(self, size: int) -> bytes:
        """At least one byte, at most so many; b"" at the end."""
        with self._changed:
            session = self._made()
            self._wait(lambda: session.readable or session.at_end or session.error is not None)
            return b"" if session.at_end else session.read(size, some=True)

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(size or len(view))
        view[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        """SHUT_WR and SHUT_RDWR: nothing more is written."""
        with self._changed:
            if how in (socket.SHUT_WR, socket.SHUT_RDWR):
                self._made().close_writing()

    def close(self) -> None:
        """Write what is left, in the background, and let it go."""
        with self._changed:
            self._shut = True
            if self._waiting is not None:
                self.node.sockets.unlisten(self._port)
            if self.session is not None:
                session = self.session
                session.on_change = lambda: session.readable and session.read()  # type: ignore[assignment]
                session.close_writing()
                if session.readable:
                    session.read()
            self._notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
