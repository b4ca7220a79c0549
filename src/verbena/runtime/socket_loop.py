"""One loop for many sockets, in namespaces of their own, and for what is to happen later."""

from __future__ import annotations

import heapq
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from verbena.errors import SystemLimitError
from verbena.runtime.namespaces import inside

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
NET_COUNTERS = ("snmp", "netstat")


@dataclass(frozen=True)
class Station:
    """A host of a workload: its network namespace, and its IPv4 address there."""

    name: str
    namespace: str
    address: str

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """A socket inside; raises `SystemLimitError`."""
        return inside(self.namespace, lambda: socket.socket(socket.AF_INET, kind))

    def counters(self) -> dict[str, int]:
        """What the kernel counts inside: ``Tcp.RetransSegs``, ``TcpExt.TCPTimeouts``, ``Udp.RcvbufErrors``, ..."""
        found: dict[str, int] = {}
        for name in NET_COUNTERS:
            # Of the thread: /proc/net itself is the main thread's namespace.
            text = inside(self.namespace, Path("/proc/thread-self/net", name).read_text)
            lines = text.splitlines()
            for heads, values in zip(lines[::2], lines[1::2], strict=True):
                group, *keys = heads.split()
                for key, value in zip(keys, values.split()[1:], strict=True):
                    found[f"{group.rstrip(':')}.{key}"] = int(value)
        return found

    def set(self, key: str, value: str) -> None:
        """A setting of its network, such as ``ipv4.tcp_early_retrans``; raises `SystemLimitError`."""
        path = Path("/proc/sys/net", *key.split("."))
        try:
            inside(self.namespace, lambda: path.write_text(value))
        except OSError as error:
            raise SystemLimitError(f"net.{key} cannot be {value}: {error.strerror}") from None


class SocketLoop:
    """Calls a function for a socket that is ready, or when a time has come.  Times in ns, of the monotonic clock."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._events: dict[socket.socket, int] = {}
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def now(self) -> int:
        return time.monotonic_ns()

    def call_at(self, when_ns: int, function: Callable[[], None]) -> None:
        heapq.heappush(self._later, (when_ns, next(self._order), function))

    def watch(self, sock: socket.socket, events: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever the socket can be read, or written; instead of what was to be called before."""
        before = self._events.get(sock)
        if before is None:
            self._selector.register(sock, events, ready)
        else:
            self._selector.modify(sock, events, ready)
        self._events[sock] = events

    def forget(self, sock: socket.socket) -> None:
        """Watch it no more, and close it."""
        if self._events.pop(sock, None) is not None:
            self._selector.unregister(sock)
        sock.close()

    def run(self, done: Callable[[], bool], limit_ns: int) -> None:
        """Until it is done; raises `TimeoutError` after so long."""
        end = self.now() + limit_ns
        while not done():
            now = self.now()
            if now >= end:
                raise TimeoutError
            if self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
                continue
            wait = min(end, self._later[0][0] if self._later else end) - self.now()
            # Rounded down to what the kernel waits in: what is due sooner than that is looked for at once.
            for key, _ in self._selector.select(max(0, wait // 1_000_000) / 1e3):
                if key.fileobj in self._events:
                    key.data()

    def close(self) -> None:
        for sock in list(self._events):
            self.forget(sock)
        self._selector.close()
