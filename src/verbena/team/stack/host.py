"""A host's protocol stack: interfaces on Ethernet ports, ARP, IPv4 without options and fragments, ICMP echo, UDP, TCP.

RFC 826, 791, 792, 768, 1122.  Whatever comes and is not right is dropped and counted under its reason.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError, ResourceError
from verbena.team.card import EthernetPort
from verbena.team.stack.tcp import TcpConnection
from verbena.team.stack.tcp_states import TcpOptions
from verbena.team.trace import Layer, PathTrace
from verbena.wire.arp import ArpOperation, ArpPacket
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import BROADCAST
from verbena.wire.ip import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    PROTOCOL_UDP,
    UDP,
    IPv4,
    internet_checksum,
    udp_checksum,
)
from verbena.wire.tcp import HEADER_SIZE, PROTOCOL_TCP, TcpFlag, TcpSegment

if TYPE_CHECKING:
    from random import Random

ARP_RETRY_NS = 200_000_000
ARP_TRIES = 5
ARP_FRESH_NS = 60_000_000_000
WAITING = 256
FIRST_PORT, LAST_PORT = 49_152, 65_535
"""Dynamic ports (RFC 6335, 6)."""
PROTOCOL_ICMP = 1

Peer = tuple[str, int]
Key = tuple[bytes, int, bytes, int]
Datagram = Callable[[bytes, Peer], None]


class Interface:
    """An IPv4 address on an Ethernet port.  address: such as ``10.0.0.1/24``.

    neighbours: network address -> (Ethernet address, when).  on_link: told of links that come and go.
    """

    def __init__(self, stack: HostStack, port: EthernetPort, address: str) -> None:
        parsed = ipaddress.IPv4Interface(address)
        self.stack = stack
        self.port = port
        self.address = str(parsed.ip)
        self.packed = parsed.ip.packed
        self.network = parsed.network
        self.neighbours: dict[bytes, tuple[bytes, int]] = {}
        self.on_link: Callable[[bool], None] = lambda up: None
        self._waiting: dict[bytes, deque[bytes]] = {}
        self._asking: dict[bytes, Timer] = {}
        known = getattr(port, "known", None)
        if known is not None:
            known.add(self.packed)  # a virtual card announces it
        port.attach(self._received, self._changed)

    def _changed(self, up: bool) -> None:
        self.on_link(up)

    # --- resolution ---------------------------------------------------------------------------------------

    def send(self, packet: bytes, hop: bytes) -> None:
        """An IPv4 packet to a neighbour; it waits until that one's address is known."""
        found = self.neighbours.get(hop)
        now = self.stack.clock.now()
        if found is not None and now - found[1] < ARP_FRESH_NS:
            self._transmit(found[0], ETHERTYPE_IPV4, packet)
            return
        queue = self._waiting.setdefault(hop, deque())
        if len(queue) >= WAITING:
            queue.popleft()
            self.stack.counters["drop.tx.unresolved"] += 1
        queue.append(packet)
        if hop not in self._asking:
            self._ask(hop, ARP_TRIES)

    def _ask(self, hop: bytes, left: int) -> None:
        self._asking.pop(hop, None)
        if not left:
            dropped = self._waiting.pop(hop, ())
            self.stack.counters["drop.tx.unresolved"] += len(dropped)
            return
        mac = self.port.mac
        arp = ArpPacket(sender_mac=mac, sender_ip=self.packed, target_ip=hop)
        self.stack.transmit(self, arp.frame(BROADCAST, mac))
        when = self.stack.clock.now() + ARP_RETRY_NS
        self._asking[hop] = self.stack.clock.call_at(when, lambda: self._ask(hop, left - 1))

    def _learn(self, ip: bytes, mac: bytes, wanted: bool) -> None:
        if not any(ip) or mac[0] & 1 or not (wanted or ip in self.neighbours or ip in self._waiting):
            return
        if len(self.neighbours) >= 4096 and ip not in self.neighbours:
            self.neighbours.pop(next(iter(self.neighbours)))
        self.neighbours[ip] = (mac, self.stack.clock.now())
        asking = self._asking.pop(ip, None)
        if asking is not None:
            asking.cancel()
        for packet in self._waiting.pop(ip, ()):
            self._transmit(mac, ETHERTYPE_IPV4, packet)

    def _transmit(self, mac: bytes, kind: int, payload: bytes) -> None:
        self.stack.transmit(self, mac + self.port.mac + kind.to_bytes(2, "big") + payload)

    # --- frames that come ---------------------------------------------------------------------------------

    def _received(self, frame: bytes) -> None:
        self.stack.trace.hop(Layer.STACK)
        self.stack.counters["rx"] += 1
        kind = frame[12] << 8 | frame[13]
        try:
            if kind == ETHERTYPE_ARP:
                self._arp(ArpPacket.parse(frame[14:]))
            elif kind == ETHERTYPE_IPV4:
                self._ip(frame[14:])
            else:
                self.stack.counters["drop.rx.ethertype"] += 1
        except DecodeError as error:
            self.stack.counters[f"drop.rx.{error.reason}"] += 1

    def _arp(self, arp: ArpPacket) -> None:
        for_us = arp.target_ip == self.packed
        if arp.sender_ip == self.packed:
            self.stack.counters["arp.conflict"] += 1
            return
        self._learn(arp.sender_ip, arp.sender_mac, for_us)
        if for_us and arp.operation == ArpOperation.REQUEST:
            answer = ArpPacket(
                operation=ArpOperation.REPLY,
                sender_mac=self.port.mac,
                sender_ip=self.packed,
                target_mac=arp.sender_mac,
                target_ip=arp.sender_ip,
            )
            self.stack.transmit(self, answer.frame(arp.sender_mac, self.port.mac))

    def _ip(self, packet: bytes) -> None:
        ip = IPv4.unpack(packet)
        header = 4 * ip.header_words
        if ip.version != 4 or header < IPv4.SIZE or not header <= ip.total_length <= len(packet):
            raise DecodeError("length", "an IPv4 header that does not fit its packet")
        if internet_checksum(packet[:header]):
            raise DecodeError("crc", "an IPv4 header's checksum is wrong")
        if ip.dst != self.packed:
            self.stack.counters["drop.rx.address"] += 1
            return
        if ip.is_fragment:
            self.stack.counters["drop.rx.fragment"] += 1
            return
        payload = packet[header : ip.total_length]
        if ip.protocol == PROTOCOL_TCP:
            self.stack.receive_tcp(self, ip, TcpSegment.parse(payload, ip))
        elif ip.protocol == PROTOCOL_UDP:
            self.stack.receive_udp(ip, payload)
        elif ip.protocol == PROTOCOL_ICMP:
            self._icmp(ip, payload)
        else:
            self.stack.counters["drop.rx.protocol"] += 1

    def _icmp(self, ip: IPv4, message: bytes) -> None:
        if len(message) < 8 or internet_checksum(message):
            raise DecodeError("crc", "an ICMP message's checksum is wrong")
        if message[0] == 8:
            body = bytes(4) + message[4:]
            answer = body[:2] + internet_checksum(body).to_bytes(2, "big") + body[4:]
            self.send_ip(ip.src, PROTOCOL_ICMP, answer)
        elif message[0] == 0:
            self.stack.counters["icmp.echo_reply"] += 1

    def send_ip(self, destination: bytes, protocol: int, payload: bytes) -> None:
        """An IPv4 packet with this interface's address."""
        ip = IPv4(total_length=20 + len(payload), protocol=protocol, src=self.packed, dst=destination)
        head = replace(ip, checksum=internet_checksum(ip.pack())).pack()
        self.send(head + payload, destination)


class TcpListener:
    """Takes connections at a port.  accept: called with each that is established, and its peer."""

    def __init__(self, accept: Callable[[TcpConnection, Peer], None]) -> None:
        self.accept = accept


class HostStack:
    """The protocol stack of one host.  counters: frames, ``tcp.*``, drops by reason."""

    def __init__(
        self, clock: Clock, random: Random, trace: PathTrace | None = None, options: TcpOptions | None = None
    ) -> None:
        self.clock = clock
        self.trace = trace if trace is not None else PathTrace(clock)
        self.options = options or TcpOptions()
        self.interfaces: list[Interface] = []
        self.counters: Counter[str] = Counter()
        self._random = random
        self._connections: dict[Key, TcpConnection] = {}
        self._listeners: dict[tuple[bytes, int], TcpListener] = {}
        self._datagrams: dict[int, Datagram] = {}

    def bind(self, port: EthernetPort, address: str) -> Interface:
        """Put an interface with an address on a port."""
        made = Interface(self, port, address)
        self.interfaces.append(made)
        return made

    def interface_to(self, destination: str) -> Interface:
        """The interface whose network a destination is in; raises `InvalidAttributeError` if there is none."""
        address = ipaddress.IPv4Address(destination)
        for each in self.interfaces:
            if address in each.network:
                return each
        raise InvalidAttributeError(f"no interface of this host leads to {destination}")

    def transmit(self, interface: Interface, frame: bytes) -> None:
        """A frame down to an interface's port."""
        with self.trace.journey("out", len(frame)):
            self.trace.hop(Layer.STACK)
            self.counters["tx"] += 1
            if not interface.port.transmit(frame):
                self.counters["drop.tx.port"] += 1

    # --- UDP ----------------------------------------------------------------------------------------------

    def open_udp(self, port: int, receive: Datagram) -> None:
        """Let datagrams to a port go to a function."""
        self._datagrams[port] = receive

    def send_udp(self, port: int, peer: Peer, data: bytes) -> None:
        """A datagram from a port."""
        interface = self.interface_to(peer[0])
        target = ipaddress.IPv4Address(peer[0]).packed
        ip = IPv4(src=interface.packed, dst=target)
        datagram = UDP(port, peer[1], 8 + len(data), 0).pack() + data
        summed = udp_checksum(ip, datagram)
        interface.send_ip(target, PROTOCOL_UDP, datagram[:6] + summed.to_bytes(2, "big") + datagram[8:])

    def receive_udp(self, ip: IPv4, payload: bytes) -> None:
        udp = UDP.unpack(payload)
        if not 8 <= udp.length <= len(payload):
            raise DecodeError("length", f"a UDP datagram of {udp.length} bytes in {len(payload)}")
        if udp.checksum and udp_checksum(ip, payload[: udp.length]) != 0xFFFF:
            raise DecodeError("crc", "a UDP datagram's checksum is wrong")
        receive = self._datagrams.get(udp.dst_port)
        if receive is None:
            self.counters["drop.rx.port"] += 1
            return
        receive(payload[8 : udp.length], (str(ip.source), udp.src_port))

    # --- TCP ----------------------------------------------------------------------------------------------

    def listen(
        self, interface: Interface, port: int, accept: Callable[[TcpConnection, Peer], None]
    ) -> TcpListener:
        """Take connections at an interface's port; raises `InvalidAttributeError` if it is taken."""
        if (interface.packed, port) in self._listeners:
            raise InvalidAttributeError(f"port {port} of {interface.address} is taken")
        made = self._listeners[interface.packed, port] = TcpListener(accept)
        return made

    def unlisten(self, interface: Interface, port: int) -> None:
        """No longer."""
        self._listeners.pop((interface.packed, port), None)

    def connect(self, interface: Interface, peer: Peer) -> TcpConnection:
        """Begin a connection by an interface; its `on_change` tells how that ends."""
        target = ipaddress.IPv4Address(peer[0]).packed
        for _ in range(LAST_PORT - FIRST_PORT):
            key = (interface.packed, self._random.randint(FIRST_PORT, LAST_PORT), target, peer[1])
            if key not in self._connections:
                break
        else:
            raise ResourceError("all ports for connections to that peer are in use")
        made = self._make(interface, key)
        self.clock.call_at(self.clock.now(), made.connect)
        return made

    def _make(self, interface: Interface, key: Key) -> TcpConnection:
        made = TcpConnection(
            self.clock,
            partial(self._send_segment, interface, key),
            interface.port.mtu - IPv4.SIZE - HEADER_SIZE,
            self._random.getrandbits(32),
            self.options,
            self.counters,
            lambda: self._forget(key),
        )
        self._connections[key] = made
        return made

    def _forget(self, key: Key) -> None:
        self._connections.pop(key, None)

    def _send_segment(
        self,
        interface: Interface,
        key: Key,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        data: bytes,
        mss: int | None,
        scale: int | None,
    ) -> None:
        ip = IPv4(src=key[0], dst=key[2])
        segment = TcpSegment(key[1], key[3], seq, ack, flags, window, data, mss, scale)
        interface.send_ip(key[2], PROTOCOL_TCP, segment.pack(ip))

    def receive_tcp(self, interface: Interface, ip: IPv4, segment: TcpSegment) -> None:
        key = (ip.dst, segment.dst_port, ip.src, segment.src_port)
        connection = self._connections.get(key)
        if connection is not None:
            connection.receive(segment)
            return
        listener = self._listeners.get((ip.dst, segment.dst_port))
        if (
            listener is not None
            and segment.flags & TcpFlag.SYN
            and not segment.flags & (TcpFlag.ACK | TcpFlag.RST)
        ):
            connection = self._make(interface, key)
            peer = (str(ip.source), segment.src_port)
            connection.on_change = partial(self._established, listener, connection, peer)
            connection.accept(segment)
            return
        self.counters["tcp.drop.no_connection"] += 1
        if segment.flags & TcpFlag.RST:
            return
        length = len(segment.data) + bool(segment.flags & TcpFlag.SYN) + bool(segment.flags & TcpFlag.FIN)
        if segment.flags & TcpFlag.ACK:
            answer = (segment.ack, 0, TcpFlag.RST)
        else:
            answer = (0, segment.seq + length & 0xFFFFFFFF, TcpFlag.RST | TcpFlag.ACK)
        self._send_segment(interface, key, *answer, 0, b"", None, None)

    @staticmethod
    def _established(listener: TcpListener, connection: TcpConnection, peer: Peer) -> None:
        if connection.is_established:
            connection.on_change = lambda: None
            listener.accept(connection, peer)
