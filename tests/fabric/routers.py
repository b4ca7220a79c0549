"""Routers to test: subnets A (port 1) and B (port 2), whose outputs are lists, and packets to send through them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Any

from verbena.fabric.router import PENDING, Hop, Pending, Router, RouterPort
from verbena.runtime.virtual import VirtualClock
from verbena.wire import BTH, GRH, LRH, UDP, IPv6, NativePacket, TransportPacket, udp_checksum
from verbena.wire.headers import LinkNextHeader

A, B, C = (bytes.fromhex(f"20010db80000000{i}") for i in (1, 2, 3))
SEND_ONLY = 4


def gid(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8, "big")


def ip(text: str) -> bytes:
    return IPv6Address(text).packed


def native(
    source: bytes,
    target: bytes,
    payload: bytes = b"payload!",
    *,
    hops: int = 64,
    sl: int = 0,
    flow: int = 0x12345,
    dlid: int = 0xFFFF,
) -> bytes:
    """LRH … ICRC with a GRH and a SEND, sealed."""
    packet = NativePacket(
        LRH(sl=sl, dlid=dlid, slid=5),
        GRH(traffic_class=0x28, flow_label=flow, hop_limit=hops, sgid=source, dgid=target),
        TransportPacket.build(BTH(opcode=SEND_ONLY, dest_qp=0x11, psn=77), payload=payload),
    )
    return packet.sealed().encode()[:-2]


def udp6(source: bytes, target: bytes, payload: bytes, *, hops: int = 64, port: int = 9) -> bytes:
    """An IPv6 packet with a UDP datagram."""
    head = IPv6(payload_length=8 + len(payload), hop_limit=hops, src=source, dst=target)
    datagram = UDP(4000, port, 8 + len(payload), 0).pack() + payload
    checksum = udp_checksum(head, datagram)
    return head.pack() + UDP(4000, port, 8 + len(payload), checksum).pack() + payload


def raw(datagram: bytes, lnh: LinkNextHeader = LinkNextHeader.IPV6, sl: int = 0) -> bytes:
    """LRH … last word of a raw packet."""
    padded = datagram + bytes(-len(datagram) % 4)
    return LRH(sl=sl, lnh=lnh, dlid=0xFFFF, slid=5, packet_length=2 + len(padded) // 4).pack() + padded


class Element:
    """A router and what it did: `sent` (port, packet), `freed` (port, handle); `full`: (port, lane) without room."""

    def __init__(
        self,
        prefixes: Iterable[bytes] = (A, B),
        clock: VirtualClock | None = None,
        guid: int = 0x100,
        **options: Any,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.sent: list[tuple[int, bytes]] = []
        self.freed: list[tuple[int, object]] = []
        self.locals: list[tuple[int, bytes]] = []
        self.full: set[tuple[int, int]] = set()
        self.known: dict[tuple[int, bytes], Hop | Pending | None] = {}
        self.asked: list[tuple[int, bytes]] = []
        self.takes_local = False
        self.guid = guid
        self.router = Router(
            "r",
            [
                RouterPort(i, guid + i, prefix, lid=0x20 + i, active=True)
                for i, prefix in enumerate(prefixes, 1)
            ],
            clock=self.clock,
            resolve=self.resolve,
            output=self.output,
            release=lambda port, handle: self.freed.append((port, handle)),
            local=self.local,
            **options,
        )

    def resolve(self, port: int, target: bytes) -> Hop | Pending | None:
        """By default, a GID's last two bytes are its LID."""
        self.asked.append((port, target))
        default = Hop(int.from_bytes(target[-2:], "big") or 1)
        return self.known.get((port, target), default)

    def output(self, port: int, packet: bytes) -> bool:
        if (port, packet[0] >> 4) in self.full:
            return False
        self.sent.append((port, packet))
        return True

    def local(self, port: int, packet: bytes) -> bool:
        if self.takes_local:
            self.locals.append((port, packet))
        return self.takes_local

    def unblock(self, port: int, lane: int) -> None:
        self.full.discard((port, lane))
        self.router.room(port, lane)

    def drops(self) -> dict[str, int]:
        return {n[5:]: c for n, c in self.router.counters.items() if n.startswith("drop.") and c}

    def check(self) -> None:
        """Nothing is lost in silence."""
        c = self.router.counters
        assert (
            c["received"] + c["originated"] + c["copied"]
            == c["sent"] + c["local"] + self.router.dropped + self.router.waiting
        ), dict(c)


__all__ = ["PENDING", "A", "B", "C", "Element", "gid", "ip", "native", "raw", "udp6"]
