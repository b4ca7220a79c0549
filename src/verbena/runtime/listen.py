"""The process that has a fabric's switches, routers and subnet managers, and that the hosts join."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from random import SystemRandom

from verbena.errors import SystemLimitError, VerbenaError
from verbena.fabric.assembly import FabricOptions
from verbena.fabric.topology import NodeKind, PortId, Topology
from verbena.management.store import TopologyStore
from verbena.management.subnet_manager.config import SubnetManagerConfig
from verbena.runtime.hello import HELLO_BYTES, Hello, HelloError, refusal, welcome
from verbena.runtime.link_end import LinkTimes
from verbena.runtime.real_fabric import RealFabric
from verbena.runtime.udp_socket import bound

log = logging.getLogger("verbena")
MOST_CONNECTIONS = 16_384
TRIES = 20


class Visitor:
    """A connection to us, and what came on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.line = b""
        self.node = ""
        self.ports: list[PortId] = []


def both_sockets(address: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket with the same port; port 0: a free one.  Raises `SystemLimitError`."""
    for attempt in range(TRIES):
        try:
            listener = socket.create_server(
                address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            )
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise SystemLimitError(f"TCP {address[0]} port {address[1]} cannot be had: {why}") from None
        try:
            return listener, bound((address[0], listener.getsockname()[1]))
        except SystemLimitError:
            listener.close()
            if address[1] or attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable")


class FabricServer(RealFabric):
    """Switches, routers and subnet managers in this process; hosts join from others.

    address: where it listens, for TCP (who joins) and UDP (the links); port 0: a free one.  managers: switches or hosts
    that run a subnet manager; by default the first switch of each subnet.  A host that runs one is in this process, and
    cannot be joined from another; it is opened here, with `open_device`.  The other arguments are those of
    `RealFabric`.
    """

    def __init__(
        self,
        topology: Topology,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        times: LinkTimes | None = None,
        seed: int | None = None,
        options: FabricOptions | None = None,
        managers: Sequence[str] = (),
        config: SubnetManagerConfig | None = None,
        store: TopologyStore | None = None,
    ) -> None:
        local = [node.name for node in topology.nodes.values() if node.kind is not NodeKind.CA]
        local += [name for name in managers if name in topology.nodes and name not in local]
        for link in topology.links:
            if link.a.node not in local and link.b.node not in local:
                raise SystemLimitError(
                    f"the cable from {link.a} to {link.b} joins two processes directly: put a switch between them"
                )
        self._listener, sock = both_sockets(address)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.joined: dict[str, Visitor] = {}
        self.refused: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._end_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(
            topology,
            local=local,
            sock=sock,
            times=times,
            seed=seed,
            options=options,
            managers=managers,
            config=config,
            store=store,
        )
        self._host_thread = threading.Thread(target=self._hear_hosts, name="verbena joins", daemon=True)

    def start(self, timeout: float = 60.0) -> None:
        super().start(timeout)
        if self._host_thread.ident is None:
            self._host_thread.start()

    def close(self) -> None:
        if self._open and self._host_thread.ident is not None:
            os.eventfd_write(self._end_fd, 1)
            self._host_thread.join()
        if self._open:
            self._listener.close()
            os.close(self._end_fd)
            self._selector.close()
        super().close()

    # --- who joins ----------------------------------------------------------------------------------------

    def _hear_hosts(self) -> None:
        """The body of the thread that talks with hosts."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._end_fd, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._end_fd:
                    for each in list(self._selector.get_map().values()):
                        if isinstance(each.data, Visitor):
                            each.data.sock.close()
                    return
                if key.data is None:
                    self._accept()
                else:
                    self._heard(key.data)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._selector.get_map()) > MOST_CONNECTIONS:
            self.refused["connections"] += 1
            sock.close()
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, Visitor(sock))

    def _heard(self, visitor: Visitor) -> None:
        try:
            part = visitor.sock.recv(HELLO_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        visitor.line += part
        if not part or len(visitor.line) > HELLO_BYTES or visitor.node:
            # Gone, or talking where nothing more is to be said.
            if len(visitor.line) > HELLO_BYTES or (not visitor.node and visitor.line):
                self.refused["garbage"] += 1
            self._leave(visitor)
        elif visitor.line.endswith(b"\n"):
            self._answer(visitor)

    def _answer(self, visitor: Visitor) -> None:
        try:
            hello = Hello.decode(visitor.line)
            answer = self._join(visitor, hello)
        except HelloError as error:
            self.refused["hello"] += 1
            with contextlib.suppress(OSError):
                visitor.sock.send(refusal(str(error)))
            self._leave(visitor)
            return
        visitor.sock.setblocking(True)
        try:
            visitor.sock.settimeout(1.0)
            visitor.sock.sendall(answer)
            visitor.sock.setblocking(False)
        except OSError:
            self._leave(visitor)

    def _join(self, visitor: Visitor, hello: Hello) -> bytes:
        name = hello.node
        node = self.topology.nodes.get(name)
        if node is None or node.kind is not NodeKind.CA:
            hosts = [host.name for host in self.topology.hosts if host.name not in self.nodes]
            some = ", ".join(hosts[:8]) + (" …" if len(hosts) > 8 else "")
            raise HelloError(f"{name!r} is no host of this fabric: its hosts are {some}")
        if name in self.nodes:
            raise HelloError(f"{name} is in the fabric's own process: a subnet manager runs there")
        if name in self.joined:
            raise HelloError(f"adapter in use: {name} has joined from another process")
        address = (visitor.sock.getpeername()[0], hello.port)
        with self.loop.held():
            tokens = {}
            for number in range(1, node.ports + 1):
                link = self.topology.at.get(PortId(name, number))
                if link is None:
                    continue
                tokens[number] = SystemRandom().getrandbits(63) + 1
                far = link.other(PortId(name, number))
                self.cables.attach(far, tokens[number], address)
                visitor.ports.append(far)
            visitor.node = name
            self.joined[name] = visitor
            return welcome(
                self.topology, name, tokens, self.assembly.options, self.cables.times, self.address[1]
            )

    def _leave(self, visitor: Visitor) -> None:
        self._selector.unregister(visitor.sock)
        visitor.sock.close()
        if visitor.node and self.joined.get(visitor.node) is visitor:
            del self.joined[visitor.node]
            with self.loop.held():
                self.cables.detach(visitor.ports)


def status(fabric: FabricServer) -> str:
    """One line: who has joined, what is up, what was dropped."""
    with fabric.loop.held():
        up = sum(fabric.cables.is_up(port) for port in fabric.cables.cables)
        masters = [name for name, manager in fabric.managers.items() if manager.is_master]
        total = fabric.core.statistics()
        moved = total["imported"]
    dropped = sum(fabric.loop.counters.values())
    hosts = sum(host.name not in fabric.nodes for host in fabric.topology.hosts)
    with contextlib.suppress(VerbenaError):
        return (
            f"{len(fabric.joined)} of {hosts} hosts joined, {up} links up, subnet manager on "
            f"{', '.join(masters) or 'nobody'}, {moved:,} packets in, {dropped:,} datagrams dropped"
        )
    return ""
