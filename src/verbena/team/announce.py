"""Gratuitous announcements, which make switches and neighbours learn at once where a virtual card is now.

IPv4: ARP announcements (RFC 5227, 2.3); IPv6: unsolicited neighbour advertisements (RFC 4861, 7.2.6); where no network
address is known yet: a reverse-ARP request (RFC 903), which switches learn from and hosts ignore.
"""

from __future__ import annotations

from verbena.wire.arp import ArpPacket
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import BROADCAST
from verbena.wire.icmp6 import PROTOCOL_ICMP6
from verbena.wire.ip import ETHERTYPE_ARP, ETHERTYPE_IPV6, IPv6, upper_layer_checksum

ETHERTYPE_RARP = 0x8035
MOST = 256
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")


class Snoop:
    """The network addresses that a card's stack uses: seen in its ARP and neighbour messages, or told."""

    def __init__(self) -> None:
        self.ip4: dict[bytes, None] = {}
        self.ip6: dict[bytes, None] = {}

    def add(self, address: bytes) -> None:
        """An address of 4 or 16 bytes; the oldest is forgotten when there are too many."""
        table = self.ip4 if len(address) == 4 else self.ip6
        if any(address) and address not in table:
            if len(table) >= MOST:
                del table[next(iter(table))]
            table[address] = None

    def look(self, frame: bytes) -> None:
        """Look at a frame that the stack sends."""
        kind = frame[12] << 8 | frame[13]
        if kind == ETHERTYPE_ARP:
            try:
                arp = ArpPacket.parse(frame[14:])
            except DecodeError:
                return
            if arp.sender_mac == frame[6:12]:
                self.add(arp.sender_ip)
        elif kind == ETHERTYPE_IPV6 and len(frame) >= 78 and frame[20] == PROTOCOL_ICMP6:
            if frame[54] == 136:
                self.add(frame[62:78])
            elif frame[54] in (133, 135):
                self.add(frame[22:38])


def _advertisement(mac: bytes, address: bytes) -> bytes:
    message = bytes((136, 0, 0, 0, 0x20, 0, 0, 0)) + address + b"\x02\x01" + mac
    ip = IPv6(
        payload_length=len(message), next_header=PROTOCOL_ICMP6, hop_limit=255, src=address, dst=ALL_NODES
    )
    checksum = upper_layer_checksum(ip, PROTOCOL_ICMP6, message).to_bytes(2, "big")
    head = b"\x33\x33\x00\x00\x00\x01" + mac + ETHERTYPE_IPV6.to_bytes(2, "big")
    return head + ip.pack() + message[:2] + checksum + message[4:]


def announcements(mac: bytes, known: Snoop) -> list[bytes]:
    """The frames that announce a card, untagged."""
    frames = [ArpPacket(sender_mac=mac, sender_ip=ip, target_ip=ip).frame(BROADCAST, mac) for ip in known.ip4]
    frames += [_advertisement(mac, ip) for ip in known.ip6]
    if not frames:
        body = ArpPacket(operation=3, sender_mac=mac, target_mac=mac).pack()
        frames.append(BROADCAST + mac + ETHERTYPE_RARP.to_bytes(2, "big") + body)
    return frames
