"""A small host on an Ethernet port: ARP, IPv4 with ICMP echo and UDP, IPv6 with neighbour discovery (`host6`).

It makes LANs of many nodes possible where no operating system is wanted; whatever it says is what the standards say
(RFC 826, 5227, 791, 792, 768), so that real hosts understand it, too.  It has one address of each kind, on one link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, NotFound
from verbena.lan.host6 import Ipv6
from verbena.lan.neighbours import NeighbourTable
from verbena.lan.port import EthernetPort, PortEvent
from verbena.management.datagrams import Pending
from verbena.wire.arp import ArpOperation, ArpPacket
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import BROADCAST, HEADER_SIZE
from verbena.wire.ip import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_UDP,
    UDP,
    IPv4,
    internet_checksum,
    udp_checksum,
)

PROTOCOL_ICMP = 1
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST = 0, 3, 8
PORT_UNREACHABLE = 3
ECHO_TIMEOUT_NS = 1_000_000_000
MOST_ECHOES = 1024
ARP_TYPE = ETHERTYPE_ARP.to_bytes(2, "big")
IPV4_TYPE = ETHERTYPE_IPV4.to_bytes(2, "big")
IPV6_TYPE = ETHERTYPE_IPV6.to_bytes(2, "big")
ARP_HEADER = ArpPacket().pack()[:6]  # Ethernet and IPv4, addresses of 6 and 4 bytes
Datagram = Callable[[bytes, int, bytes], None]
"""Called with a UDP datagram: the sender's address and port, and what it holds."""


class Host:
    """A host at a port.

    ipv4: its address with the length of its network's prefix, such as ``10.0.0.1/8``; ipv6: the same.  Either may be
    left out.  neighbours: of the neighbour tables, as of `NeighbourTable`.

    `counters`: ``rx.*``, ``tx.*``, ``drop.<reason>``.
    """

    def __init__(
        self,
        port: EthernetPort,
        clock: Clock,
        ipv4: str | None = None,
        ipv6: str | None = None,
        *,
        neighbours: dict[str, int] | None = None,
    ) -> None:
        self.port = port
        self.clock = clock
        self.counters: Counter[str] = Counter()
        self.ip = b""
        self._network = IPv4Interface("0.0.0.0/32").network
        if ipv4 is not None:
            try:
                interface = IPv4Interface(ipv4)
            except ValueError:
                raise InvalidAttributeError(f"ipv4 = {ipv4!r}: an address such as 10.0.0.1/8") from None
            self.ip = interface.ip.packed
            self._network = interface.network
        self.neighbours = NeighbourTable(
            clock,
            self.counters,
            ask=self._ask,
            send=partial(self._send_ethernet, IPV4_TYPE),
            unreachable=self._unreachable,
            **(neighbours or {}),
        )
        self.v6: Ipv6 | None = None
        if ipv6 is not None:
            try:
                self.v6 = Ipv6(self, IPv6Interface(ipv6), neighbours or {})
            except ValueError:
                raise InvalidAttributeError(f"ipv6 = {ipv6!r}: an address such as fd00::1/64") from None
        self._udp: dict[int, Datagram] = {}
        self._echoes: dict[tuple[bytes, int], Pending[int]] = {}
        self._sequence = 0
        self.other: Callable[[bytes], None] = lambda frame: None
        """Is given frames of all other types, whole."""
        port.attach(self._received, self._changed)

    # --- the port -------------------------------------------------------------------------------------------------

    def _changed(self, event: PortEvent, detail: bytes) -> None:
        if event in (PortEvent.LINK_UP, PortEvent.ADDRESS):
            self.announce()
        elif event is PortEvent.AGED:
            self.neighbours.forget(detail)
            if self.v6 is not None:
                self.v6.neighbours.forget(detail)

    def announce(self) -> None:
        """Tell everybody the present hardware address (RFC 5227, 3; RFC 4861, 7.2.6)."""
        mac = self.port.mac
        if self.ip:
            self.counters["tx.announcements"] += 1
            packet = ArpPacket(sender_mac=mac, sender_ip=self.ip, target_ip=self.ip)
            self.transmit(packet.frame(BROADCAST, mac))
        if self.v6 is not None:
            self.v6.announce()

    def transmit(self, frame: bytes) -> None:
        """Send a frame as it is; one that the port does not take is dropped, and counted."""
        if self.port.send_frames((frame,)):
            self.counters["tx.frames"] += 1
        else:
            self.counters["drop.no_room"] += 1

    def _send_ethernet(self, kind: bytes, mac: bytes, packet: bytes) -> None:
        self.transmit(mac + self.port.mac + kind + packet)

    def _received(self, frames: list[bytes]) -> None:
        for frame in frames:
            kind = frame[12:14]
            if kind == ARP_TYPE:
                self._arp(frame)
            elif kind == IPV4_TYPE:
                self._ip(frame)
            elif kind == IPV6_TYPE and self.v6 is not None:
                self.v6.received(frame)
            else:
                self.counters["rx.other"] += 1
                self.other(frame)

    # --- address resolution ---------------------------------------------------------------------------------------

    def _ask(self, ip: bytes) -> None:
        mac = self.port.mac
        self.transmit(ArpPacket(sender_mac=mac, sender_ip=self.ip, target_ip=ip).frame(BROADCAST, mac))

    def _arp(self, frame: bytes) -> None:
        """RFC 826, packet reception.  The fields are looked at in place: a large LAN hears many requests."""
        if len(frame) < HEADER_SIZE + ArpPacket.SIZE or frame[14:20] != ARP_HEADER:
            self.counters["drop.arp"] += 1
            return
        operation, mac, ip, target = frame[21], frame[22:28], frame[28:32], frame[38:42]
        if mac[0] & 1 or mac != frame[6:12] or ip == self.ip:
            self.counters["drop.arp_sender"] += 1  # no host's address, somebody else's, or ours
            return
        mine = target == self.ip
        if any(ip):
            self.neighbours.learn(ip, mac, create=mine)
        if mine and operation == ArpOperation.REQUEST:
            self.counters["tx.arp_replies"] += 1
            own = self.port.mac
            reply = ArpPacket(
                operation=ArpOperation.REPLY,
                sender_mac=own,
                sender_ip=self.ip,
                target_mac=mac,
                target_ip=ip,
            )
            self.transmit(reply.frame(mac, own))

    def resolve(self, address: str) -> Pending[bytes]:
        """The hardware address of an IPv4 address; fails with `NotFound` when nobody answers."""
        ip = IPv4Address(address).packed
        made: Pending[bytes] = Pending()
        known = self.neighbours.find(ip)

        def told(mac: bytes) -> None:
            if mac:
                made.resolve(mac)
            else:
                made.fail(NotFound(f"nobody answers for {address}"))

        if known:
            made.resolve(known)
        else:
            self.neighbours.want(ip, watcher=told)
        return made

    # --- IPv4 -----------------------------------------------------------------------------------------------------

    def send_ip(self, protocol: int, destination: bytes, payload: bytes) -> None:
        """An IPv4 packet to a host of this network, to all, or to a group."""
        address = IPv4Address(destination)
        header = IPv4(
            total_length=20 + len(payload), protocol=protocol, src=self.ip, dst=destination, ttl=64
        ).pack()
        checksum = internet_checksum(header)
        packet = header[:10] + checksum.to_bytes(2, "big") + header[12:] + payload
        if len(packet) > self.port.mtu:
            self.counters["drop.too_long"] += 1
        elif address == self._network.broadcast_address or destination == b"\xff" * 4:
            self._send_ethernet(IPV4_TYPE, BROADCAST, packet)
        elif address.is_multicast:
            group = bytes((0x01, 0x00, 0x5E, destination[1] & 0x7F, *destination[2:]))
            self._send_ethernet(IPV4_TYPE, group, packet)
        elif address not in self._network:
            self.counters["drop.no_route"] += 1
        elif mac := self.neighbours.find(destination):
            self._send_ethernet(IPV4_TYPE, mac, packet)
        else:
            self.neighbours.want(destination, packet)

    def _unreachable(self, ip: bytes, packets: Sequence[bytes]) -> None:
        self.counters["drop.unreachable"] += len(packets)
        for (to, number), pending in list(self._echoes.items()):
            if to == ip:
                del self._echoes[to, number]
                pending.fail(NotFound(f"{IPv4Address(ip)} is unreachable: nobody answers for it"))

    def _ip(self, frame: bytes) -> None:
        try:
            header = IPv4.unpack(frame, HEADER_SIZE)
        except DecodeError:
            self.counters["drop.ip"] += 1
            return
        start = HEADER_SIZE + 4 * header.header_words
        end = HEADER_SIZE + header.total_length
        if header.version != 4 or start < HEADER_SIZE + 20 or end > len(frame) or end < start:
            self.counters["drop.ip"] += 1
        elif internet_checksum(frame[HEADER_SIZE:start]):
            self.counters["drop.ip_checksum"] += 1
        elif header.is_fragment:
            self.counters["drop.fragment"] += 1
        elif not self._is_mine(header.dst):
            self.counters["drop.not_mine"] += 1
        elif header.protocol == PROTOCOL_ICMP:
            self._icmp(header.src, frame[start:end])
        elif header.protocol == PROTOCOL_UDP:
            self._datagram(header, frame[start:end])
        else:
            self.counters["drop.protocol"] += 1

    def _is_mine(self, destination: bytes) -> bool:
        if destination == self.ip or destination == b"\xff" * 4:
            return True
        address = IPv4Address(destination)
        return address.is_multicast or address == self._network.broadcast_address

    # --- ICMP -----------------------------------------------------------------------------------------------------

    def ping(self, address: str, size: int = 56) -> Pending[int]:
        """The round trip time in nanoseconds; fails with `NotFound` where nobody answers within a second."""
        made: Pending[int] = Pending()
        destination = IPv4Address(address).packed
        self._sequence = number = (self._sequence + 1) & 0xFFFF
        if len(self._echoes) >= MOST_ECHOES:
            made.fail(NotFound(f"{MOST_ECHOES} echoes are on their way: let some come"))
            return made
        answer: Pending[int] = Pending()
        self._echoes[destination, number] = answer
        sent = self.clock.now()

        def late() -> None:
            if self._echoes.pop((destination, number), None) is not None:
                answer.fail(NotFound(f"{address} does not answer"))

        timer = self.clock.call_at(sent + ECHO_TIMEOUT_NS + 3_000_000_000, late)

        def done(found: Pending[int]) -> None:
            timer.cancel()
            if found.error is not None:
                made.fail(found.error)
            else:
                made.resolve(found.result() - sent)

        answer.when_done(done)
        self._send_icmp(destination, ECHO_REQUEST, 0, 0x5642 << 16 | number, bytes(size))
        return made

    def _send_icmp(self, to: bytes, kind: int, code: int, word: int, data: bytes) -> None:
        body = word.to_bytes(4, "big") + data
        checksum = internet_checksum(bytes((kind, code, 0, 0)) + body)
        self.send_ip(PROTOCOL_ICMP, to, bytes((kind, code)) + checksum.to_bytes(2, "big") + body)

    def _icmp(self, source: bytes, message: bytes) -> None:
        if len(message) < 8 or internet_checksum(message):
            self.counters["drop.icmp"] += 1
            return
        kind, word = message[0], int.from_bytes(message[4:8], "big")
        if kind == ECHO_REQUEST:
            self.counters["rx.echo_requests"] += 1
            self._send_icmp(source, ECHO_REPLY, 0, word, message[8:])
        elif kind == ECHO_REPLY:
            self.counters["rx.echo_replies"] += 1
            pending = self._echoes.pop((source, word & 0xFFFF), None)
            if pending is not None:
                pending.resolve(self.clock.now())
        else:
            self.counters[f"rx.icmp_{kind}"] += 1

    # --- UDP ------------------------------------------------------------------------------------------------------

    def listen(self, port: int, receive: Datagram) -> None:
        """Let datagrams to a UDP port go to `receive`."""
        self._udp[port] = receive

    def send_udp(self, address: str, port: int, data: bytes, source_port: int = 49_152) -> None:
        """A UDP datagram, not fragmented: what is longer than the MTU is dropped, and counted."""
        destination = IPv4Address(address).packed
        header = UDP(source_port, port, 8 + len(data))
        pseudo = IPv4(src=self.ip, dst=destination)
        checksum = udp_checksum(pseudo, header.pack() + data)
        self.send_ip(PROTOCOL_UDP, destination, UDP(source_port, port, 8 + len(data), checksum).pack() + data)

    def _datagram(self, header: IPv4, datagram: bytes) -> None:
        try:
            udp = UDP.unpack(datagram)
        except DecodeError:
            self.counters["drop.udp"] += 1
            return
        if udp.length != len(datagram) or (udp.checksum and udp_checksum(header, datagram) != 0xFFFF):
            self.counters["drop.udp"] += 1
            return
        receive = self._udp.get(udp.dst_port)
        if receive is not None:
            self.counters["rx.udp"] += 1
            receive(header.src, udp.src_port, datagram[8:])
            return
        self.counters["drop.udp_port"] += 1
        if header.dst == self.ip:
            self._send_icmp(header.src, UNREACHABLE, PORT_UNREACHABLE, 0, header.pack() + datagram[:8])

    def close(self) -> None:
        """Leave the port."""
        self.port.detach()
        self.neighbours.close()
        if self.v6 is not None:
            self.v6.neighbours.close()
