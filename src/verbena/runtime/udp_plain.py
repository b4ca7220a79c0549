"""The progress loop of an adapter on a UDP socket, in plain Python.

The twin of `_udp_loop.UdpLoop`: what runs where nothing is compiled, and wherever wires are wrapped around the socket
(taps, fault injectors), which are Python, too.  It needs the interpreter lock: one-sided operations to this process
wait while its Python code computes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.runtime.wires import Burst, Wire

UDP_SEGMENT = 103
UDP_GRO = 104
BUFFER = 65_536
PARK_S = 0.0002
LONGEST_LEAVE_S = 0.5
SPIN_NS = 50_000
MAPPED = b"\0" * 10 + b"\xff\xff"


class SocketWire(Wire):
    """A bound UDP socket as a wire.  `refused`: packets that the kernel did not take."""

    def __init__(self, sock: socket.socket, gid: bytes, port: int, mtu: int, segmentation: bool) -> None:
        super().__init__()
        self.sock = sock
        self.gid = gid
        self.port = port
        self.mtu = mtu
        self.segmentation = segmentation
        self.is_ip6 = sock.family == socket.AF_INET6
        self.refused = 0

    def send(self, burst: Burst) -> None:
        host = socket.inet_ntop(
            self.sock.family, burst.destination if self.is_ip6 else burst.destination[12:]
        )
        control: list[tuple[int, int, bytes]] = []
        level = socket.IPPROTO_IPV6 if self.is_ip6 else socket.IPPROTO_IP
        if burst.traffic_class:
            kind = socket.IPV6_TCLASS if self.is_ip6 else socket.IP_TOS
            control.append((level, kind, struct.pack("=i", burst.traffic_class)))
        if burst.hop_limit != 64:
            kind = socket.IPV6_HOPLIMIT if self.is_ip6 else socket.IP_TTL
            control.append((level, kind, struct.pack("=i", burst.hop_limit)))
        if len(burst) > 1 and not self.segmentation:
            for packet in burst.packets():
                self._send(packet.data, control, host, 1)
            return
        if len(burst) > 1:
            control.append((socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", burst.segment)))
        self._send(burst.data, control, host, len(burst))

    def _send(self, data: bytes, control: list[tuple[int, int, bytes]], host: str, packets: int) -> None:
        for attempt in (1, 2):
            try:
                self.sock.sendmsg([data], control, 0, (host, self.port))
                return
            except BlockingIOError:
                if attempt == 1:
                    select.select([], [self.sock], [], 0.001)
            except OSError as error:
                if packets > 1 and error.errno in (errno.EIO, errno.EINVAL):
                    self.segmentation = False
                break
        self.refused += packets

    def take(self) -> bool:
        """Hand one burst that has arrived to the receiver; False when there is none."""
        try:
            data, control, _, name = self.sock.recvmsg(BUFFER, 256)
        except OSError:
            return False
        segment = len(data)
        for level, kind, value in control:
            if level == socket.IPPROTO_UDP and kind == UDP_GRO:
                segment = struct.unpack_from("=i", value)[0]
        raw = socket.inet_pton(self.sock.family, name[0].split("%")[0])
        source = raw if self.is_ip6 else MAPPED + raw
        self.receiver(Burst(data, segment, source, self.gid, port=self.port, source_port=name[1]))
        return True


class PlainLoop:
    """Drives one adapter's engine on a wire around a `SocketWire`; the calls are those of `_udp_loop.UdpLoop`."""

    def __init__(
        self, adapter: ChannelAdapter, wire: Wire, port: SocketWire, wake_fd: int, report_fd: int
    ) -> None:
        self._adapter = adapter
        self._engine = adapter.engine
        self._wire = wire
        self._port = port
        self._wake_fd = wake_fd
        self._report_fd = report_fd
        self._buffer = bytearray(BUFFER)
        self._stop = False
        self._closed = False
        self._driven = 0.0
        self._waiting = 0
        if wire.splits or not port.segmentation:
            # Packets that travel one by one all carry identification 0: see wire.kernels.
            self._engine.burst_limit = 1
        wire.set_receiver(self._arrived)

    def _arrived(self, burst: Burst) -> None:
        self._engine.receive(
            bytearray(burst.data),
            burst.segment,
            burst.source,
            burst.source_port,
            time.monotonic_ns(),
            burst.first_ident,
        )

    def _transmit(self, now: int) -> None:
        while (made := self._engine.transmit(self._buffer, now)) is not None:
            size, segment, path = made
            gid, traffic_class, hop_limit, loopback = self._engine.path_destination(path)
            own = self._adapter.gid.raw
            burst = Burst(
                bytes(self._buffer[:size]),
                segment,
                own,
                gid,
                self._port.port,
                self._port.port,
                traffic_class,
                hop_limit,
            )
            if loopback:
                self._engine.count("looped.packets", len(burst))
                self._arrived(burst)
            else:
                self._wire.send(burst)
                if not self._port.segmentation:
                    self._engine.burst_limit = 1

    def _drive(self) -> int:
        with self._engine:
            if self._closed:
                return 0
            for _ in range(16):
                if not self._port.take():
                    break
            now = time.monotonic_ns()
            self._engine.tick(now)
            self._transmit(now)
            when: int = self._engine.tick(now)
            self._engine.set_counter("drop.tx_no_route", self._port.refused)
            self._tell()
        return when

    def _tell(self) -> None:
        """Make the writes of vectors, and have the service thread look at reports."""
        self._adapter.send_messages()
        if self._engine.has_reports():
            os.eventfd_write(self._report_fd, 1)

    def run(self) -> None:
        """Drive until `end`; the body of the background thread."""
        poller = select.poll()
        poller.register(self._port.sock, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while not self._stop:
            if self._waiting or time.monotonic() - self._driven < PARK_S:
                time.sleep(PARK_S)
                continue
            for fd, _ in poller.poll(self._sleep_ms(self._drive())):
                if fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake_fd)

    def _sleep_ms(self, when: int, deadline: int | None = None) -> int:
        until = min((t for t in (when, deadline) if t), default=0)
        if not until:
            return 100
        return min(100, max(0, -(-(until - time.monotonic_ns()) // 1_000_000)))

    def end(self) -> None:
        """Make `run` return."""
        self._stop = True
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Touch the descriptors no more: returns when no call of the program uses them.  `run` has returned.

        A wait that is still there after all that time is the caller's own, interrupted by a signal's handler.
        """
        deadline = time.monotonic() + LONGEST_LEAVE_S
        with self._engine:
            self._closed = True
        while self._waiting and time.monotonic() < deadline:
            time.sleep(PARK_S)

    def abandon(self) -> None:
        """`close` in the child of a fork, where no other thread exists."""
        self._stop = self._closed = True

    def kick(self) -> None:
        """Send what was posted."""
        self._driven = time.monotonic()
        with self._engine:
            if self._closed:
                return
            now = time.monotonic_ns()
            self._transmit(now)
            self._tell()

    def progress(self) -> None:
        """Receive, serve timers, send: once, without waiting."""
        self._driven = time.monotonic()
        self._drive()

    def wait_cq(self, index: int, timeout_ns: int) -> bool:
        """Drive until a completion queue has entries, or the time (negative: none) is over."""
        start = time.monotonic_ns()
        deadline = start + timeout_ns if timeout_ns >= 0 else None
        poller = select.poll()
        poller.register(self._port.sock, select.POLLIN)
        self._waiting += 1
        try:
            while True:
                self._driven = time.monotonic()
                when = self._drive()
                if self._closed or self._engine.has_entries(index):
                    return True
                now = time.monotonic_ns()
                if deadline is not None and now >= deadline:
                    return False
                if now - start >= SPIN_NS:
                    poller.poll(self._sleep_ms(when, deadline))
        finally:
            self._waiting -= 1
