"""Partition-aggregate, incast and background flows in real time: the kernel's own TCP and UDP between namespaces.

All sockets are this process's, each made inside its station's namespace, and served by one loop (`socket_loop`); what
goes from one to another goes through whatever joins the namespaces.  Connections stay from query to query, as search
back-ends have them.  Everything random comes from the stream that is handed in.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from random import Random

from verbena.errors import InvalidAttributeError, SystemLimitError, VerbenaError
from verbena.runtime.socket_loop import READ, WRITE, SocketLoop, Station
from verbena.runtime.udp_socket import SO_RCVBUFFORCE
from verbena.vswitch.workloads import DATAGRAM_BYTES, Times

PORT, BACKGROUND_PORT = 7_400, 7_401
CONNECT_S = 30.0
CHUNK = 1 << 18
WAKE_BYTES = 1 << 16
"""A reader is woken when so much of an answer is there, or all of it: a wake-up for each segment would slow it down."""
RECEIVE_BYTES = 64 << 20
DATAGRAMS_AT_ONCE = 512
_DATAGRAM = struct.Struct(">IHI")
"""Of an answer's datagram: query, worker, number."""
_QUESTION = struct.Struct(">IH")
_ZEROS = memoryview(bytes(CHUNK))


def use_congestion(sock: socket.socket, name: str) -> None:
    """The congestion control of what it sends; raises `SystemLimitError` if this kernel has none of that name."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError:
        raise SystemLimitError(f"this kernel has no congestion control {name}") from None


def listening(station: Station, port: int, most: int) -> socket.socket:
    """A TCP socket that waits for connections."""
    sock = station.socket(socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((station.address, port))
    sock.listen(most)
    return sock


class _Queries:
    """What TCP and UDP have in common: when a query is asked, how long answers take, when the next one follows."""

    def __init__(
        self,
        loop: SocketLoop,
        aggregator: Station,
        workers: Sequence[Station],
        *,
        response_bytes: int,
        queries: int,
        deadline_ns: int,
        gap_ns: int = 10_000_000,
    ) -> None:
        if response_bytes < 1 or queries < 1 or not workers:
            raise InvalidAttributeError("response_bytes, queries and the number of workers are 1 or more")
        self.times = Times()
        self.incomplete = 0
        self._loop, self._aggregator, self._workers = loop, aggregator, list(workers)
        self._size, self._left, self._deadline, self._gap = response_bytes, queries, deadline_ns, gap_ns
        self._asked = 0
        self._open = 0
        self._query = 0

    @property
    def done(self) -> bool:
        """Are all queries complete, or given up?"""
        return self._left == 0 and self._open == 0

    def start(self) -> None:
        """Ask the next query."""
        self._left -= 1
        self._query += 1
        self._open = len(self._workers)
        self._asked = self._loop.now()
        self._ask()

    def _ask(self) -> None:
        raise NotImplementedError

    def _answered(self) -> None:
        """A worker's answer is complete."""
        taken = self._loop.now() - self._asked
        times = self.times
        times.flows_ns.append(taken)
        times.answers += 1
        times.in_time += taken <= self._deadline
        self._open -= 1
        if not self._open:
            times.queries_ns.append(taken)
            self._next()

    def _next(self) -> None:
        if self._left:
            self._loop.call_at(self._loop.now() + self._gap, self.start)


class TcpQueries(_Queries):
    """An aggregator asks all workers, each answers `response_bytes` by TCP; the next query follows `gap_ns` later.

    Raises `SystemLimitError` where the kernel lacks what it needs, `VerbenaError` when a connection breaks.
    """

    def __init__(
        self,
        loop: SocketLoop,
        aggregator: Station,
        workers: Sequence[Station],
        *,
        congestion: str,
        **more: int,
    ) -> None:
        super().__init__(loop, aggregator, workers, **more)
        self._buffer = bytearray(CHUNK)
        self._missing: dict[socket.socket, int] = {}
        self._owed: dict[socket.socket, int] = {}
        with listening(aggregator, PORT, len(self._workers)) as listener:
            for worker in self._workers:
                self._connect(worker, listener, congestion)

    def _connect(self, worker: Station, listener: socket.socket, congestion: str) -> None:
        there = worker.socket(socket.SOCK_STREAM)
        try:
            use_congestion(there, congestion)
            there.settimeout(CONNECT_S)
            there.connect((self._aggregator.address, PORT))
            listener.settimeout(CONNECT_S)
            here, _ = listener.accept()
        except SystemLimitError:
            there.close()
            raise
        except OSError as error:
            there.close()
            raise VerbenaError(f"{worker.name} cannot connect to {self._aggregator.name}: {error}") from None
        for sock in (there, here):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._owed[there] = self._missing[here] = 0
        self._loop.watch(there, READ, partial(self._questioned, there, worker))
        self._loop.watch(here, READ, partial(self._arrived, here, worker))

    def _ask(self) -> None:
        for sock in self._missing:
            self._missing[sock] = self._size
            self._wake_at(sock, self._size)
        for sock in self._missing:
            try:
                sock.send(b"?")
            except OSError as error:
                raise VerbenaError(f"a worker cannot be asked: {error.strerror}") from None

    def _wake_at(self, sock: socket.socket, left: int) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(left, WAKE_BYTES))

    def _questioned(self, sock: socket.socket, worker: Station) -> None:
        self._owed[sock] += self._size * len(_read(sock, self._buffer, worker.name))
        self._answer(sock, worker)

    def _answer(self, sock: socket.socket, worker: Station) -> None:
        while self._owed[sock]:
            try:
                self._owed[sock] -= sock.send(_ZEROS[: self._owed[sock]])
            except BlockingIOError:
                self._loop.watch(sock, WRITE, partial(self._answer, sock, worker))
                return
            except OSError as error:
                raise VerbenaError(f"the connection of {worker.name} broke: {error.strerror}") from None
        self._loop.watch(sock, READ, partial(self._questioned, sock, worker))

    def _arrived(self, sock: socket.socket, worker: Station) -> None:
        while self._missing[sock]:
            try:
                self._missing[sock] -= len(_read(sock, self._buffer, worker.name))
            except BlockingIOError:
                self._wake_at(sock, self._missing[sock])
                return
        self._answered()


def _read(sock: socket.socket, buffer: bytearray, name: str) -> memoryview:
    try:
        size = sock.recv_into(buffer)
    except BlockingIOError:
        raise
    except OSError as error:
        raise VerbenaError(f"the connection of {name} broke: {error.strerror}") from None
    if not size:
        raise VerbenaError(f"the connection of {name} has ended")
    return memoryview(buffer)[:size]


class UdpQueries(_Queries):
    """Partition-aggregate over UDP: each answer is `response_bytes` in datagrams, sent at once; nothing is sent again.

    A query that lost a datagram is never complete: it is given up after `give_up_ns`, and counted in `incomplete`.
    """

    def __init__(
        self,
        loop: SocketLoop,
        aggregator: Station,
        workers: Sequence[Station],
        *,
        give_up_ns: int = 1_000_000_000,
        **more: int,
    ) -> None:
        super().__init__(loop, aggregator, workers, **more)
        self._datagrams = -(-self._size // DATAGRAM_BYTES)
        self._give_up_ns = give_up_ns
        self._missing = [0] * len(self._workers)
        self._sock = aggregator.socket(socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.bind((aggregator.address, PORT))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        loop.watch(self._sock, READ, self._arrived)
        self._to: list[tuple[socket.socket, int]] = []
        for number, worker in enumerate(self._workers):
            sock = worker.socket(socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.bind((worker.address, PORT))
            sock.connect((aggregator.address, PORT))
            loop.watch(sock, READ, partial(self._questioned, sock, number))

    def _ask(self) -> None:
        self._missing = [self._datagrams] * len(self._workers)
        for number, worker in enumerate(self._workers):
            with suppress(OSError):  # it is lost, and its query given up
                self._sock.sendto(_QUESTION.pack(self._query, number), (worker.address, PORT))
        query = self._query
        self._loop.call_at(self._asked + self._give_up_ns, partial(self._give_up, query))

    def _questioned(self, sock: socket.socket, number: int) -> None:
        try:
            query, _ = _QUESTION.unpack(sock.recv(64))
        except (OSError, struct.error):
            return  # such as a refusal, by ICMP, of something that was sent before
        self._answer(sock, query, number, 0)

    def _answer(self, sock: socket.socket, query: int, number: int, at: int) -> None:
        body = bytes(DATAGRAM_BYTES - _DATAGRAM.size)
        while at < self._datagrams:
            try:
                sock.send(_DATAGRAM.pack(query, number, at) + body)
            except BlockingIOError:
                self._loop.watch(sock, WRITE, partial(self._answer, sock, query, number, at))
                return
            except OSError:
                pass  # the kernel dropped it and said so: it is lost
            at += 1
        self._loop.watch(sock, READ, partial(self._questioned, sock, number))

    def _arrived(self) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data = self._sock.recv(DATAGRAM_BYTES)
            except OSError:
                return
            query, number, _ = _DATAGRAM.unpack_from(data)
            if query != self._query or not self._missing[number]:
                continue  # of a query that was given up
            self._missing[number] -= 1
            if not self._missing[number]:
                self._answered()

    def _give_up(self, query: int) -> None:
        if query != self._query or not self._open:
            return
        self.incomplete += 1
        self.times.answers += self._open
        self._open = 0
        self._missing = [0] * len(self._workers)
        self._next()


class BackgroundFlows:
    """TCP flows between random stations until `stop`: exponential gaps, sizes drawn from `sizes`."""

    def __init__(
        self,
        loop: SocketLoop,
        random: Random,
        stations: Sequence[Station],
        *,
        mean_gap_ns: int,
        sizes: Sequence[int],
        congestion: str,
    ) -> None:
        if len(stations) < 2 or mean_gap_ns < 1 or not sizes:
            raise InvalidAttributeError("background flows need two hosts, a gap of 1 ns or more, and a size")
        self.times = Times()
        self._loop, self._random, self._stations, self._gap = loop, random, list(stations), mean_gap_ns
        self._sizes, self._congestion = list(sizes), congestion
        self._running = True
        self._begun: dict[tuple[str, int], int] = {}
        self._buffer = bytearray(CHUNK)
        for station in self._stations:
            listener = listening(station, BACKGROUND_PORT, 64)
            listener.setblocking(False)
            loop.watch(listener, READ, partial(self._accept, listener))

    @property
    def open(self) -> int:
        """Flows that are not complete yet."""
        return len(self._begun)

    def stop(self) -> None:
        """Begin no more."""
        self._running = False

    def start(self) -> None:
        """Begin a flow, and the next one later."""
        if not self._running:
            return
        source, destination = self._random.sample(self._stations, 2)
        left = self._random.choice(self._sizes)
        sock = source.socket(socket.SOCK_STREAM)
        use_congestion(sock, self._congestion)
        sock.setblocking(False)
        sock.bind((source.address, 0))
        self._begun[sock.getsockname()] = self._loop.now()
        sock.connect_ex((destination.address, BACKGROUND_PORT))
        self._loop.watch(sock, WRITE, partial(self._send, sock, left))
        pause = 1 + int(self._random.expovariate(1 / self._gap))
        self._loop.call_at(self._loop.now() + pause, self.start)

    def _send(self, sock: socket.socket, left: int) -> None:
        while left:
            try:
                left -= sock.send(_ZEROS[:left])
            except BlockingIOError:
                self._loop.watch(sock, WRITE, partial(self._send, sock, left))
                return
            except OSError as error:
                raise VerbenaError(f"a background flow broke: {error.strerror}") from None
        self._loop.forget(sock)  # the kernel sends the rest, and says at the end that it was all

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = listener.accept()
        except OSError:
            return  # whoever it was has gone already
        sock.setblocking(False)
        self._loop.watch(sock, READ, partial(self._receive, sock, peer))

    def _receive(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        try:
            while sock.recv_into(self._buffer):
                pass
        except BlockingIOError:
            return
        except OSError as error:
            raise VerbenaError(f"a background flow broke: {error.strerror}") from None
        self._loop.forget(sock)
        self.times.flows_ns.append(self._loop.now() - self._begun.pop(peer))
