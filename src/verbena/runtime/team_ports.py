"""A team's ends in real time: interfaces of the operating system as members, TAP devices as virtual cards.

A member is a packet socket (Linux, packet(7)) on any Ethernet interface: a card, one end of a veth pair.  Large frames
stay whole (``PACKET_VNET_HDR``), and tags that the kernel has taken off come back (``PACKET_AUXDATA``).

The kernel tells of links that come and go (rtnetlink(7)).  Of a carrier that was lost it may tell only a second after
the last such event (Linux, net/core/link_watch.c); so whoever sends looks, too, at most every `LOOK_NS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from verbena.errors import SystemLimitError
from verbena.runtime.packet_socket import (
    AUXDATA,
    PACKET_ADD_MEMBERSHIP,
    PACKET_AUXDATA,
    PACKET_IGNORE_OUTGOING,
    PACKET_MR_PROMISC,
    PACKET_VNET_HDR,
    SOL_PACKET,
    STATUS_VLAN,
)
from verbena.runtime.real_loop import RealLoop
from verbena.runtime.tap import BUFFER, Tap
from verbena.team.card import Upper
from verbena.team.driver import IntermediateDriver
from verbena.team.frames import OffloadFrame, add_tag
from verbena.team.miniport import VirtualCard
from verbena.team.trace import Layer
from verbena.wire.ip import ROCE_PORT
from verbena.wire.offload import PLAIN

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
SIOCGIFHWADDR, SIOCGIFMTU, SIOCGIFINDEX, SIOCGIFFLAGS = 0x8927, 0x8921, 0x8933, 0x8913
SIOCETHTOOL, ETHTOOL_GLINK = 0x8946, 0xA
LOOK_NS = 1_000_000
IFF_UP, IFF_RUNNING, IFF_LOWER_UP = 0x1, 0x40, 0x10000
RTMGRP_LINK, RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 1, 16, 17, 18
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
ALL_LINKS = struct.pack("=IHHII16x", 32, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
BURST = 16
"""Frames that one descriptor may bring in its turn.  Large ones take 50 to 100 microseconds each, and a link event
waits for the turns of all that were ready before it came: with two members and one TAP device, 5 ms at most."""
BUFFERS = 4 << 20
CONTROL = socket.CMSG_SPACE(AUXDATA.size)
GONE = (errno.ENETDOWN, errno.ENXIO, errno.ENODEV)


SO_ATTACH_FILTER = 26
NOT_ROCE = (
    (0x28, 0, 0, 12),  # the type
    (0x15, 0, 8, 0x0800),
    (0x30, 0, 0, 23),  # the protocol of IPv4
    (0x15, 0, 6, 17),
    (0x28, 0, 0, 20),  # a fragment that is not the first
    (0x45, 4, 0, 0x1FFF),
    (0xB1, 0, 0, 14),  # the length of the header
    (0x48, 0, 0, 16),  # the port of UDP
    (0x15, 0, 1, ROCE_PORT),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0x40000),
)
"""A packet filter (bpf(4)): everything but what belongs to the adapter on the card, which the driver shall not see."""


class LinkWatch:
    """Tells of interfaces that come up and go down, as the kernel tells it."""

    def __init__(self, loop: RealLoop) -> None:
        self.loop = loop
        self.listeners: dict[int, Callable[[bool], None]] = {}
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sock.bind((0, RTMGRP_LINK))
        self._sock.setblocking(False)
        # A member that has failed loses every frame that it is still given: nothing comes before this.
        loop.watch(self._sock.fileno(), self._readable, first=True)

    def _readable(self) -> None:
        while True:
            try:
                self._take(self._sock.recv(65_536))
            except BlockingIOError:
                return
            except OSError:  # more happened than the kernel could tell (ENOBUFS): what is true now?
                self._ask()
                return

    def _ask(self) -> None:
        """Have the kernel tell of all interfaces; it answers as if each had just changed."""
        with contextlib.suppress(OSError):
            self._sock.send(ALL_LINKS)

    def _take(self, data: bytes) -> None:
        at = 0
        while len(data) - at >= 32:
            size, kind = struct.unpack_from("=IH", data, at)
            if size < 32:
                return
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                index, flags = struct.unpack_from("=iI", data, at + 20)
                listener = self.listeners.get(index)
                if listener is not None:
                    listener(kind == RTM_NEWLINK and bool(flags & IFF_UP and flags & IFF_LOWER_UP))
            at += size + 3 & ~3

    def close(self) -> None:
        self.loop.watch(self._sock.fileno(), None)
        self._sock.close()


class PacketPort(Upper):
    """An Ethernet interface as a member.  Implements `team.card.EthernetPort`.  rdma: an adapter is on it, too.

    Raises `SystemLimitError` where there is no such interface, or packet sockets need a right that is missing.
    `counters`: ``tx``, ``rx`` and drops by reason.
    """

    def __init__(self, loop: RealLoop, watch: LinkWatch, name: str, *, rdma: bool = False) -> None:
        super().__init__()
        self.loop = loop
        self.name = name
        self.rate_bps = 0.0
        self.counters: Counter[str] = Counter()
        self._head = bytearray(len(PLAIN))
        self._body = bytearray(BUFFER)
        self._view = memoryview(self._body)
        self._parts = [self._head, self._body]
        try:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise SystemLimitError(f"packet sockets: {error.strerror} (needs CAP_NET_RAW)") from None
        try:
            self.mac = self._ask(SIOCGIFHWADDR)[18:24]
            self.mtu = struct.unpack_from("i", self._ask(SIOCGIFMTU), 16)[0]
            self.index = struct.unpack_from("i", self._ask(SIOCGIFINDEX), 16)[0]
            flags = struct.unpack_from("H", self._ask(SIOCGIFFLAGS), 16)[0]
            self._sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            self._sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            with contextlib.suppress(OSError):  # Linux 4.20; before, they come and are let go
                self._sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            member = struct.pack("iHH8s", self.index, PACKET_MR_PROMISC, 0, b"")
            self._sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
            if rdma:
                code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in NOT_ROCE))
                program = struct.pack("HL", len(NOT_ROCE), ctypes.addressof(code))
                self._sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self._sock.setsockopt(socket.SOL_SOCKET, option, BUFFERS)
            self._sock.bind((name, ETH_P_ALL))
        except OSError as error:
            self._sock.close()
            raise SystemLimitError(f"interface {name} cannot be a member: {error.strerror}") from None
        # Else the system would answer, from the member's own address, whoever asks for an address of the team's.
        self._arp = Path(f"/proc/sys/net/ipv4/conf/{name}/arp_ignore")
        self._arp_before = ""
        with contextlib.suppress(OSError):
            self._arp_before = self._arp.read_text()
            self._arp.write_text("1")
        self._sock.setblocking(False)
        self._carrier = (ctypes.c_uint32 * 2)(ETHTOOL_GLINK, 1)  # ethtool_value
        self._looked_ns = 0
        self._gone = False
        self._is_up = bool(flags & IFF_UP and flags & IFF_RUNNING)
        self._watch = watch
        watch.listeners[self.index] = self._link
        loop.watch(self._sock.fileno(), self._readable)

    def _ask(self, request: int) -> bytes:
        return fcntl.ioctl(self._sock, request, struct.pack("256s", self.name.encode()[:15]))

    @property
    def is_up(self) -> bool:
        return self._is_up

    def _has_carrier(self) -> bool:
        """What is true now; True, too, where the interface's driver cannot tell."""
        name = self.name.encode()[:15]
        with contextlib.suppress(OSError):
            fcntl.ioctl(
                self._sock, SIOCETHTOOL, struct.pack("16sP16x", name, ctypes.addressof(self._carrier))
            )
        return bool(self._carrier[1])

    def _link(self, up: bool) -> None:
        # What the kernel told may be older than what was seen.
        if up != self._is_up and (not up or self._has_carrier()):
            self._is_up = up
            self.tell(up)

    def transmit(self, frame: bytes) -> bool:
        """Implements `EthernetPort.transmit`."""
        if self._give((getattr(frame, "header", PLAIN), frame)):
            return True
        if self._gone:  # not at once: whoever sends now does not expect the team to change meanwhile
            self.loop.call_soon(self._look)
        return False

    def transmit_parts(self, front: bytes, rest: memoryview, header: bytes) -> bool:
        """The same for a frame in two parts, with its virtio_net_hdr; `rest` is not kept.

        Where it does not go because the link has gone, the team knows that when this returns.
        """
        if self._give((header, front, rest)):
            return True
        self._look()
        return False

    def _look(self) -> None:
        if self._gone:
            self._gone = False
            self._link(False)

    def _give(self, parts: tuple[bytes | memoryview, ...]) -> bool:
        now = self.loop.now()
        if now - self._looked_ns > LOOK_NS:
            self._looked_ns = now
            if self._is_up and not self._has_carrier():
                self._gone = True
                self.counters["drop.tx.carrier"] += 1
                return False
        try:
            self._sock.sendmsg(parts)
        except OSError as error:
            full = isinstance(error, BlockingIOError)
            self.counters["drop.tx.full" if full else "drop.tx.system"] += 1
            # Earlier than the watch tells; or what is left of an end that is over (packet(7)).
            self._gone = error.errno in GONE and not self._has_carrier()
            return False
        self.counters["tx"] += 1
        return True

    def _readable(self) -> None:
        for _ in range(BURST):
            try:
                size, control, _, source = self._sock.recvmsg_into(self._parts, CONTROL)
            except BlockingIOError:
                return
            except OSError:  # the link went down: the watch tells
                self.counters["drop.rx.system"] += 1
                return
            if source[2] == PACKET_OUTGOING:
                continue
            self.counters["rx"] += 1
            vlan = 0
            for level, kind, body in control:
                if kind == PACKET_AUXDATA and level == SOL_PACKET and len(body) >= AUXDATA.size:
                    status, *_, tci, _ = AUXDATA.unpack_from(body)
                    vlan = tci & 0xFFF if status & STATUS_VLAN else 0
            view, header = self._view[: max(0, size - len(PLAIN))], bytes(self._head)
            if self.on_view is None or not self.on_view(vlan, view, header):
                made = bytes(view) if header == PLAIN else OffloadFrame(view, header)
                self.deliver(add_tag(made, vlan))

    def close(self) -> None:
        """Give the interface back, as it was."""
        if self._arp_before:
            with contextlib.suppress(OSError):
                self._arp.write_text(self._arp_before)
        self._watch.listeners.pop(self.index, None)
        self.loop.watch(self._sock.fileno(), None)
        self._sock.close()


class TapBinding:
    """The operating system's protocol stack on a virtual card, by a TAP device."""

    def __init__(self, loop: RealLoop, driver: IntermediateDriver, card: VirtualCard, tap: Tap) -> None:
        self.loop = loop
        self.trace = driver.trace
        self._short = driver.passages.down
        self.card = card
        self.tap = tap
        card.attach(self._up, tap.set_carrier)
        card.take_view = self._up_view
        tap.set_carrier(card.is_up)
        loop.watch(tap.fileno(), self._down)

    def _up(self, frame: bytes) -> None:
        self.trace.hop(Layer.STACK)
        self.tap.write(frame, getattr(frame, "header", PLAIN))

    def _up_view(self, frame: memoryview, header: bytes) -> None:
        self.tap.write(frame, header)

    def _down(self) -> None:
        for _ in range(BURST):
            read = self.tap.read()
            if read is None:
                return
            view, header = read
            if self._short(self.card, view, header):
                continue
            made = bytes(view) if header == PLAIN else OffloadFrame(view, header)
            if not self.trace.on:
                self.card.transmit(made)
                continue
            with self.trace.journey("out", len(made)):
                self.trace.hop(Layer.STACK)
                self.card.transmit(made)

    def close(self) -> None:
        """Remove the device."""
        self.loop.watch(self.tap.fileno(), None)
        self.card.detach()
        self.card.take_view = None
        self.tap.close()
