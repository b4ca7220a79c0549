"""Real time: a channel adapter on a UDP socket, speaking RoCEv2 (annex A17) to anyone who does.

The socket is bound to a local address and port 4791, and not connected: only then does Linux send identification 0
(or, for a burst that it cuts itself, 0, 1, 2, …) with the don't-fragment flag, which the invariant CRC covers.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any
from weakref import WeakSet

import psutil

from verbena import _pure
from verbena.adapter.attributes import DeviceAttributes
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.adapter.gid import Gid
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.descriptors import ServedWaiting
from verbena.runtime.service import Service
from verbena.runtime.udp_plain import UDP_GRO, UDP_SEGMENT, PlainLoop, SocketWire
from verbena.runtime.udp_socket import enlarge
from verbena.runtime.wires import Wire
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context

try:
    from verbena.runtime._udp_loop import UdpLoop
except ImportError:
    UdpLoop = None

SO_MEMINFO = 55
SK_MEMINFO_DROPS = 8  # the ninth of its 32-bit numbers
IP_PMTUDISC_DO = 2
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
UDP_NO_CHECK6_RX = 102
LARGEST_WINDOW = 2 << 20
SMALLEST_WINDOW = 64 << 10
# IP, UDP, BTH, RETH, immediate and CRC around a payload of the path MTU.
OVERHEAD: dict[int, int] = {
    socket.AF_INET: 20 + 8 + 12 + 16 + 4 + 4,
    socket.AF_INET6: 40 + 8 + 12 + 16 + 4 + 4,
}


def interface_mtu(address: str) -> int:
    """The MTU of the interface that has a local address; 1500 where that cannot be told."""
    ip = ipaddress.ip_address(address.split("%")[0])
    stats = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(entry.address.split("%")[0])
            # All of 127.0.0.0/8 is local, whatever part of it the loopback interface names.
            if (own == ip or (own.is_loopback and ip.is_loopback)) and name in stats:
                return int(stats[name].mtu)
    return 1500


def roce_mtu(interface: int, family: int) -> int:
    """The largest path MTU whose packets fit an interface; raises `SystemLimitError` when none does."""
    for mtu in (4096, 2048, 1024, 512, 256):
        if mtu + OVERHEAD[family] <= interface:
            return mtu
    raise SystemLimitError(f"an interface MTU of {interface} bytes has no room for RoCE packets")


def bound_socket(address: str, port: int) -> socket.socket:
    """A UDP socket as RoCEv2 needs it.  Raises `SystemLimitError` with what is wrong."""
    gid = Gid.from_ip(address)
    family = socket.AF_INET if gid.is_ip4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            sock.bind((address, port))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Soft-RoCE and cards send UDP checksum 0, which IPv6 sockets refuse unless they are told.
            sock.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
            sock.bind(socket.getaddrinfo(address, port, family, socket.SOCK_DGRAM)[0][4])
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            why = "is in use: another adapter runs there, choose another address"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = "is not available: the address is not one of this machine's"
        elif error.errno == errno.EACCES:
            why = "is not permitted: take a port above 1023"
        else:
            why = f"cannot be had: {error.strerror}"
        raise SystemLimitError(f"UDP {address} port {port} {why}") from None
    enlarge(sock)
    return sock


def offloads(sock: socket.socket) -> bool:
    """Switch on bursts in both directions; False where the kernel has none."""
    try:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
    except OSError:
        return False
    return True


class UdpDriver(ServedWaiting):
    """Runs one adapter on a socket, with a background thread.  Implements `verbs.driver.Driver`."""

    def __init__(
        self, adapter: ChannelAdapter, service: Service, sock: socket.socket, wire: Wire, port: SocketWire
    ) -> None:
        super().__init__(service)
        self.clock: Clock = service
        self._adapter = adapter
        self._engine = adapter.engine
        self._socket = sock
        self._wire = wire
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop: Any
        if UdpLoop is not None and wire is port:
            if not port.segmentation:
                self._engine.burst_limit = 1
            self._loop = UdpLoop(
                self._engine,
                sock.fileno(),
                self._wake_fd,
                service.report_fd,
                port.is_ip6,
                port.port,
                port.gid,
            )
        else:
            self._loop = PlainLoop(adapter, wire, port, self._wake_fd, service.report_fd)
        self.kick = self._loop.kick
        self.progress = self._loop.progress
        adapter.on_work = self._loop.kick
        self._thread = threading.Thread(target=self._loop.run, name="verbena progress", daemon=True)
        self._thread.start()

    def wait_cq(self, index: int, timeout_ns: int | None) -> bool:
        return bool(self._loop.wait_cq(index, -1 if timeout_ns is None else timeout_ns))

    def refresh_counters(self) -> None:
        """Ask the kernel what it dropped because the socket's buffer was full (a burst that came whole counts once)."""
        numbers = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (SK_MEMINFO_DROPS + 1))
        drops = int.from_bytes(numbers[4 * SK_MEMINFO_DROPS :], sys.byteorder)
        self._engine.set_counter("drop.rx_socket", drops)

    def close(self) -> None:
        self._loop.kick()
        self._loop.end()
        self._thread.join()
        self._loop.close()
        self._service.end()
        self._wire.close()
        self._socket.close()
        os.close(self._wake_fd)

    def abandon(self) -> None:
        """`close` in the child of a fork: the socket is the parent's, and nothing is sent."""
        self._engine.renew_lock()
        self._loop.abandon()
        self._service.abandon()
        self._socket.close()
        os.close(self._wake_fd)
        self._forget_descriptors()


_opened: WeakSet[Context] = WeakSet()


def _after_fork() -> None:
    """The child of a fork has the adapters' memory, but not their threads: they are closed there."""
    for context in list(_opened):
        context.abandon()
    _opened.clear()


os.register_at_fork(after_in_child=_after_fork)


def open_device(
    address: str,
    *,
    udp_port: int = 4791,
    name: str | None = None,
    seed: int | None = None,
    mtu: int | None = None,
    limits: DeviceAttributes | None = None,
    ack_policy: AckPolicy = AckPolicy.COALESCED,
    wrap: Callable[[Wire, Clock, Random], Wire] | None = None,
) -> Context:
    """Open a channel adapter on a UDP socket at a local IP address: RoCEv2, without card, kernel module or root.

    address: IPv4 or IPv6, one of this machine's; loopback addresses (127.0.0.1, 127.0.0.2, …) make several adapters
    on one machine.  udp_port: own and the peers' port; 4791 is RoCEv2's.  seed: of packet numbers, keys and other
    random choices; by default they cannot be guessed.  mtu: the port's active MTU in bytes, by default the largest
    that fits the interface.  wrap: called with the wire, the clock and a random stream; returns the wire to use instead
    (`PcapTap`, `FaultInjector`, …); wrapped wires are driven by Python code.

    After `os.fork` the adapter stays the parent's; in the child, everything made with it is closed.

    Raises `SystemLimitError` when the address is not local or its port in use, `InvalidAttributeError`.
    """
    if not isinstance(udp_port, int) or not 1 <= udp_port <= 65_535:
        raise InvalidAttributeError(f"udp_port = {udp_port!r}: 1 to 65535")
    gid = Gid.from_ip(address)
    sock = bound_socket(address, udp_port)
    try:
        largest = roce_mtu(interface_mtu(address), sock.family)
        if mtu is not None and (mtu not in (256, 512, 1024, 2048, 4096) or mtu > largest):
            raise InvalidAttributeError(
                f"mtu = {mtu}: one of 256, 512, 1024, 2048, 4096, here at most {largest}"
            )
    except Exception:
        sock.close()
        raise
    _pure.say_once()
    random: Random = SystemRandom() if seed is None else Random(seed)
    port = SocketWire(sock, gid.raw, udp_port, mtu or largest, offloads(sock))
    service = Service(address)
    wire: Wire = port if wrap is None else wrap(port, service, Random(random.getrandbits(64)))
    room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    adapter = ChannelAdapter(
        gid,
        limits or DeviceAttributes(name=name or f"verbena@{address}"),
        clock=service,
        random=random,
        udp_port=udp_port,
        active_mtu=mtu or largest,
        window_bytes=max(SMALLEST_WINDOW, min(LARGEST_WINDOW, room // 4)),
        ack_policy=ack_policy,
        lock=threading.RLock(),
    )
    driver = UdpDriver(adapter, service, sock, wire, port)
    service.serve(adapter)
    context = Context(adapter, driver)
    _opened.add(context)
    # As on Linux, whoever asks for a service that nobody offers is told so at once, not left to time out.
    context.serve_connections()
    return context
