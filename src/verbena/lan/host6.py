"""IPv6 of the built-in host: neighbour discovery (RFC 4861) and ICMPv6 echo (RFC 4443).

Two addresses: the given one, and a link-local one of the same interface identifier.  No routers, no autoconfiguration.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import IPv6Address, IPv6Interface
from typing import TYPE_CHECKING

from verbena.errors import NotFound
from verbena.lan.neighbours import NeighbourTable
from verbena.management.datagrams import Pending
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import HEADER_SIZE
from verbena.wire.icmp6 import PROTOCOL_ICMP6
from verbena.wire.ip import ETHERTYPE_IPV6, IPv6, upper_layer_checksum

if TYPE_CHECKING:
    from verbena.lan.host import Host

ECHO_REQUEST, ECHO_REPLY = 128, 129
SOLICITATION, ADVERTISEMENT = 135, 136
SOURCE_MAC, TARGET_MAC = 1, 2
SOLICITED, OVERRIDE = 0x40, 0x20
ND_HOPS = 255
"""A neighbour's message has passed no router (RFC 4861, 3.1)."""
ALL_NODES = IPv6Address("ff02::1").packed
LINK_LOCAL = bytes.fromhex("fe80000000000000")
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
IPV6_TYPE = ETHERTYPE_IPV6.to_bytes(2, "big")
TIMEOUT_NS = 4_000_000_000


def group_mac(destination: bytes) -> bytes:
    """The Ethernet group of an IPv6 group (RFC 2464, 7)."""
    return b"\x33\x33" + destination[12:]


class Ipv6:
    """The IPv6 part of a `Host`."""

    def __init__(self, host: Host, interface: IPv6Interface, neighbours: dict[str, int]) -> None:
        self.host = host
        self.ip = interface.ip.packed
        self.network = interface.network
        self.link_local = LINK_LOCAL + self.ip[8:]
        self._addresses = {self.ip, self.link_local}
        self._groups = {ALL_NODES, SOLICITED_NODE + self.ip[13:]}
        self._echoes: dict[tuple[bytes, int], Pending[int]] = {}
        self._sequence = 0
        self.neighbours = NeighbourTable(
            host.clock,
            host.counters,
            ask=self._ask,
            send=partial(host._send_ethernet, IPV6_TYPE),
            unreachable=self._unreachable,
            **neighbours,
        )

    # --- out ------------------------------------------------------------------------------------------------------

    def _packet(self, to: bytes, kind: int, code: int, body: bytes, hops: int) -> bytes:
        source = self.link_local if to[:2] == b"\xfe\x80" or to[:2] == b"\xff\x02" else self.ip
        ip = IPv6(
            payload_length=4 + len(body), next_header=PROTOCOL_ICMP6, hop_limit=hops, src=source, dst=to
        )
        checksum = upper_layer_checksum(ip, PROTOCOL_ICMP6, bytes((kind, code, 0, 0)) + body)
        return ip.pack() + bytes((kind, code)) + checksum.to_bytes(2, "big") + body

    def send(self, to: bytes, kind: int, code: int, body: bytes, hops: int = 64, mac: bytes = b"") -> None:
        """An ICMPv6 message to a host of this network, or to a group."""
        packet = self._packet(to, kind, code, body, hops)
        if len(packet) > self.host.port.mtu:
            self.host.counters["drop.too_long"] += 1
            return
        if to[0] == 0xFF:
            mac = group_mac(to)
        mac = mac or self.neighbours.find(to)
        if mac:
            self.host._send_ethernet(IPV6_TYPE, mac, packet)
        elif IPv6Address(to) in self.network or to[:2] == b"\xfe\x80":
            self.neighbours.want(to, packet)
        else:
            self.host.counters["drop.no_route"] += 1

    def _ask(self, ip: bytes) -> None:
        option = bytes((SOURCE_MAC, 1)) + self.host.port.mac
        self.send(SOLICITED_NODE + ip[13:], SOLICITATION, 0, bytes(4) + ip + option, ND_HOPS)

    def announce(self) -> None:
        """Unsolicited advertisements of both addresses."""
        for address in (self.ip, self.link_local):
            self.host.counters["tx.advertisements"] += 1
            self._advertise(ALL_NODES, address, OVERRIDE)

    def _advertise(self, to: bytes, address: bytes, flags: int, mac: bytes = b"") -> None:
        option = bytes((TARGET_MAC, 1)) + self.host.port.mac
        self.send(to, ADVERTISEMENT, 0, bytes((flags, 0, 0, 0)) + address + option, ND_HOPS, mac)

    def ping(self, address: str, size: int = 56) -> Pending[int]:
        """The round trip time in nanoseconds; fails with `NotFound`."""
        made: Pending[int] = Pending()
        to = IPv6Address(address).packed
        self._sequence = number = (self._sequence + 1) & 0xFFFF
        sent = self.host.clock.now()
        answer: Pending[int] = Pending()
        self._echoes[to, number] = answer

        def late() -> None:
            if self._echoes.pop((to, number), None) is not None:
                answer.fail(NotFound(f"{address} does not answer"))

        timer = self.host.clock.call_at(sent + TIMEOUT_NS, late)

        def done(found: Pending[int]) -> None:
            timer.cancel()
            if found.error is not None:
                made.fail(found.error)
            else:
                made.resolve(found.result() - sent)

        answer.when_done(done)
        self.send(to, ECHO_REQUEST, 0, b"\x56\x42" + number.to_bytes(2, "big") + bytes(size))
        return made

    def _unreachable(self, ip: bytes, packets: Sequence[bytes]) -> None:
        self.host.counters["drop.unreachable"] += len(packets)
        for (to, number), pending in list(self._echoes.items()):
            if to == ip:
                del self._echoes[to, number]
                pending.fail(NotFound(f"{IPv6Address(ip)} is unreachable: nobody answers for it"))

    # --- in -------------------------------------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        """A frame with an IPv6 packet."""
        counters = self.host.counters
        try:
            ip = IPv6.unpack(frame, HEADER_SIZE)
        except DecodeError:
            counters["drop.ip6"] += 1
            return
        message = frame[HEADER_SIZE + 40 : HEADER_SIZE + 40 + ip.payload_length]
        if ip.version != 6 or len(message) != ip.payload_length or ip.src[0] == 0xFF:
            counters["drop.ip6"] += 1
        elif ip.dst not in self._addresses and ip.dst not in self._groups:
            counters["drop.not_mine"] += 1
        elif ip.next_header != PROTOCOL_ICMP6:
            counters["drop.protocol"] += 1
        elif len(message) < 8 or upper_layer_checksum(ip, PROTOCOL_ICMP6, message):
            counters["drop.icmp6"] += 1
        else:
            self._message(ip, message, frame[6:12])

    def _message(self, ip: IPv6, message: bytes, mac: bytes) -> None:
        counters = self.host.counters
        kind = message[0]
        if kind == ECHO_REQUEST:
            counters["rx.echo_requests"] += 1
            self.send(ip.src, ECHO_REPLY, 0, message[4:])
        elif kind == ECHO_REPLY:
            counters["rx.echo_replies"] += 1
            pending = self._echoes.pop((ip.src, int.from_bytes(message[6:8], "big")), None)
            if pending is not None:
                pending.resolve(self.host.clock.now())
        elif kind in (SOLICITATION, ADVERTISEMENT):
            if ip.hop_limit != ND_HOPS or len(message) < 24:
                counters["drop.nd"] += 1
            elif kind == SOLICITATION:
                self._solicited(ip, message, mac)
            else:
                self._advertised(message, mac)
        else:
            counters["rx.icmp6_other"] += 1

    def _solicited(self, ip: IPv6, message: bytes, mac: bytes) -> None:
        target = message[8:24]
        option = _option(message, SOURCE_MAC)
        if option and option != mac:
            self.host.counters["drop.nd"] += 1
            return
        mine = target in self._addresses
        if any(ip.src) and option:
            self.neighbours.learn(ip.src, option, create=mine)
        if mine and any(ip.src):
            self._advertise(ip.src, target, SOLICITED | OVERRIDE, mac)

    def _advertised(self, message: bytes, mac: bytes) -> None:
        option = _option(message, TARGET_MAC) or mac
        if option != mac or option[0] & 1 or message[8:24] in self._addresses:
            self.host.counters["drop.nd"] += 1
            return
        self.neighbours.learn(message[8:24], option)


def _option(message: bytes, wanted: int) -> bytes:
    """The hardware address in an option of a neighbour's message; nothing if it has none (RFC 4861, 4.6)."""
    at = 24
    while at + 8 <= len(message):
        size = 8 * message[at + 1]
        if not size:
            break
        if message[at] == wanted:
            return message[at + 2 : at + 8]
        at += size
    return b""
