"""Whole packets: their structure, encoding and decoding, and their CRCs.

* `TransportPacket`: BTH, extended headers, payload, pad and ICRC; the UDP payload of RoCEv2.
* `RocePacket`: it behind UDP and IPv4 or IPv6 and, in a capture, Ethernet (annex A17).
* `NativePacket`: it behind LRH and perhaps GRH, with a VCRC at the end (IBA vol. 1, 5.2).
* `RawPacket`: LRH, EtherType or IPv6 header, payload, VCRC (IBA vol. 1, 5.3).
* `OtherPacket`: what else is seen on an Ethernet.

Decoding is total: bytes give a packet that encodes to the same bytes, or they raise `DecodeError`.  It checks
structure (lengths, versions, opcode); CRCs are kept and answered by `icrc_ok` and `vcrc_ok`, so that a broken
packet can still be shown.  `sealed()` gives the packet with all its lengths, checksums and CRCs put right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, TypeVar

from verbena.wire.crc import ICRC_SIZE, VCRC_SIZE, native_icrc, roce_icrc, vcrc
from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.headers import BTH, GRH, GRH_NEXT_HEADER_IBA, LRH, RWH, LinkNextHeader
from verbena.wire.ip import UDP, Cooked, Ethernet, IPv4, IPv6, internet_checksum, udp_checksum
from verbena.wire.layout import Buffer, Layout
from verbena.wire.opcodes import OPCODES, Opcode, OpcodeInfo

H = TypeVar("H", bound=Layout)


@dataclass(frozen=True, slots=True)
class TransportPacket:
    """BTH ... ICRC.  `headers` are the extended headers that the opcode has, in the order of `OPCODES`."""

    bth: BTH
    headers: tuple[Layout, ...] = ()
    payload: bytes = b""
    pad: bytes = b""
    icrc: int = 0

    @classmethod
    def build(cls, bth: BTH, *headers: Layout, payload: bytes = b"") -> Self:
        """With the pad that `payload` needs, and the pad count in the BTH; the ICRC is left to `sealed()`."""
        pad = -len(payload) % 4
        return cls(replace(bth, pad_count=pad), headers, payload, bytes(pad))

    @property
    def info(self) -> OpcodeInfo:
        """What the opcode means."""
        return OPCODES[self.bth.opcode]

    @property
    def opcode(self) -> Opcode:
        return self.info.opcode

    def get(self, kind: type[H]) -> H | None:
        """The extended header of that kind, if the packet has it: `packet.get(RETH)`."""
        return next((header for header in self.headers if isinstance(header, kind)), None)

    def body(self) -> bytes:
        """The packet without its ICRC."""
        info = OPCODES.get(self.bth.opcode)
        if info is None:
            raise EncodeError(f"{self.bth.opcode:#04x} is no opcode")
        if tuple(type(header) for header in self.headers) != info.headers:
            wanted = ", ".join(header.__name__ for header in info.headers) or "none"
            raise EncodeError(f"{info.name} has the extended headers {wanted}, not {self.headers!r}")
        if self.payload and not info.has_payload:
            raise EncodeError(f"{info.name} has no payload; {len(self.payload)} bytes were given")
        if len(self.pad) != self.bth.pad_count or (len(self.payload) + len(self.pad)) % 4:
            raise EncodeError(
                f"a payload of {len(self.payload)} bytes needs pad and pad count {-len(self.payload) % 4}"
            )
        if self.bth.version:
            raise EncodeError(f"BTH.version is {self.bth.version}; there is only version 0")
        return b"".join(
            (self.bth.pack(), *(header.pack() for header in self.headers), self.payload, self.pad)
        )

    def encode(self) -> bytes:
        """The bytes from BTH to ICRC."""
        return self.body() + self.icrc.to_bytes(ICRC_SIZE, "big")

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """`data` is exactly one packet, from BTH to ICRC."""
        view = memoryview(data)
        bth = BTH.unpack(view)
        if bth.version:
            raise DecodeError("version", f"transport header version {bth.version}; only 0 is known")
        info = OPCODES.get(bth.opcode)
        if info is None:
            raise DecodeError("opcode", f"{bth.opcode:#04x} is no opcode")
        offset = BTH.SIZE
        headers = []
        for kind in info.headers:
            headers.append(kind.unpack(view, offset))
            offset += kind.SIZE
        end = len(view) - ICRC_SIZE
        if end - offset < bth.pad_count:
            raise DecodeError(
                "short", f"{info.name} needs {offset + bth.pad_count + ICRC_SIZE} bytes, got {len(view)}"
            )
        if (end - offset) % 4:
            raise DecodeError("length", f"payload and pad have {end - offset} bytes, not a multiple of 4")
        if end > offset and not info.has_payload:
            raise DecodeError(
                "length", f"{info.name} has no payload; {end - offset} bytes follow its headers"
            )
        pad_at = end - bth.pad_count
        icrc = int.from_bytes(view[end:], "big")
        return cls(bth, tuple(headers), bytes(view[offset:pad_at]), bytes(view[pad_at:end]), icrc)


@dataclass(frozen=True, slots=True)
class RocePacket:
    """A RoCEv2 packet: IP, UDP and a transport packet; `link` if it was read from an Ethernet."""

    ip: IPv4 | IPv6
    udp: UDP
    transport: TransportPacket
    link: Ethernet | Cooked | None = None
    trailer: bytes = b""
    """What followed the IP packet in its frame (padding, a frame check sequence)."""

    def encode(self) -> bytes:
        link = self.link.pack() if self.link is not None else b""
        return link + self.ip.pack() + self.udp.pack() + self.transport.encode() + self.trailer

    def expected_icrc(self) -> int:
        return roce_icrc(self.ip.pack() + self.udp.pack(), self.transport.body())

    @property
    def icrc_ok(self) -> bool:
        return self.transport.icrc == self.expected_icrc()

    def sealed(self) -> Self:
        """With right lengths, ICRC and checksums; IPv4 carries no UDP checksum, IPv6 must (RFC 8200, 8.1)."""
        size = UDP.SIZE + len(self.transport.encode())
        udp = replace(self.udp, length=size, checksum=0)
        ip: IPv4 | IPv6
        if isinstance(self.ip, IPv4):
            ip = replace(self.ip, total_length=IPv4.SIZE + size, checksum=0)
            ip = replace(ip, checksum=internet_checksum(ip.pack()))
        else:
            ip = replace(self.ip, payload_length=size)
        packet = replace(self, ip=ip, udp=udp)
        transport = replace(self.transport, icrc=packet.expected_icrc())
        if isinstance(ip, IPv6):
            udp = replace(udp, checksum=udp_checksum(ip, udp.pack() + transport.encode()))
        return replace(packet, udp=udp, transport=transport)


@dataclass(frozen=True, slots=True)
class NativePacket:
    """A native InfiniBand packet with a transport header, local (no GRH) or global."""

    lrh: LRH
    grh: GRH | None
    transport: TransportPacket
    vcrc: int = 0

    def _route(self) -> bytes:
        return self.lrh.pack() + (self.grh.pack() if self.grh is not None else b"")

    def encode(self) -> bytes:
        return self._route() + self.transport.encode() + self.vcrc.to_bytes(VCRC_SIZE, "big")

    def expected_icrc(self) -> int:
        return native_icrc(self._route(), self.transport.body())

    @property
    def icrc_ok(self) -> bool:
        return self.transport.icrc == self.expected_icrc()

    @property
    def vcrc_ok(self) -> bool:
        return self.vcrc == vcrc(self.encode()[:-VCRC_SIZE])

    def sealed(self) -> Self:
        """With right lengths, next-header codes, ICRC and VCRC."""
        size = len(self.transport.encode())
        grh = self.grh
        lnh = LinkNextHeader.IBA_LOCAL
        if grh is not None:
            lnh = LinkNextHeader.IBA_GLOBAL
            grh = replace(grh, payload_length=size, next_header=GRH_NEXT_HEADER_IBA)
        words = (LRH.SIZE + (GRH.SIZE if grh is not None else 0) + size) // 4
        packet = replace(self, lrh=replace(self.lrh, lnh=lnh, packet_length=words), grh=grh)
        packet = replace(packet, transport=replace(self.transport, icrc=packet.expected_icrc()))
        return replace(packet, vcrc=vcrc(packet.encode()[:-VCRC_SIZE]))


@dataclass(frozen=True, slots=True)
class RawPacket:
    """A raw packet: no InfiniBand transport.  With `rwh` it is of an EtherType, without it an IPv6 packet."""

    lrh: LRH
    rwh: RWH | None
    payload: bytes
    vcrc: int = 0

    def encode(self) -> bytes:
        rwh = self.rwh.pack() if self.rwh is not None else b""
        return self.lrh.pack() + rwh + self.payload + self.vcrc.to_bytes(VCRC_SIZE, "big")

    @property
    def vcrc_ok(self) -> bool:
        return self.vcrc == vcrc(self.encode()[:-VCRC_SIZE])

    def sealed(self) -> Self:
        """Filled up to whole words, with right length, next-header code and VCRC."""
        payload = self.payload + bytes(-len(self.payload) % 4)
        lnh = LinkNextHeader.RAW if self.rwh is not None else LinkNextHeader.IPV6
        words = (LRH.SIZE + (RWH.SIZE if self.rwh is not None else 0) + len(payload)) // 4
        packet = replace(self, lrh=replace(self.lrh, lnh=lnh, packet_length=words), payload=payload)
        return replace(packet, vcrc=vcrc(packet.encode()[:-VCRC_SIZE]))


@dataclass(frozen=True, slots=True)
class OtherPacket:
    """Anything that is no RoCEv2: its bytes, who sent it to whom, what kind it is and perhaps more."""

    data: bytes
    source: str
    destination: str
    kind: str
    summary: str = ""

    def encode(self) -> bytes:
        return self.data


Packet = RocePacket | NativePacket | RawPacket | OtherPacket


def decode_infiniband(data: Buffer) -> NativePacket | RawPacket:
    """A native packet from LRH to VCRC."""
    view = memoryview(data)
    lrh = LRH.unpack(view)
    if lrh.link_version:
        raise DecodeError("version", f"link version {lrh.link_version}; only 0 is known")
    end = len(view) - VCRC_SIZE
    if end != 4 * lrh.packet_length:
        reason = "short" if end < 4 * lrh.packet_length else "length"
        raise DecodeError(
            reason, f"LRH says {4 * lrh.packet_length + VCRC_SIZE} bytes, the packet has {len(view)}"
        )
    if end < LRH.SIZE:
        raise DecodeError("length", f"a packet of {lrh.packet_length} words cannot hold its LRH")
    check = int.from_bytes(view[end:], "big")
    rest = view[LRH.SIZE : end]
    if lrh.lnh == LinkNextHeader.RAW:
        return RawPacket(lrh, RWH.unpack(rest), bytes(rest[RWH.SIZE :]), check)
    if lrh.lnh == LinkNextHeader.IPV6:
        return RawPacket(lrh, None, bytes(rest), check)
    if lrh.lnh == LinkNextHeader.IBA_LOCAL:
        return NativePacket(lrh, None, TransportPacket.decode(rest), check)
    grh = GRH.unpack(rest)
    if grh.ip_version != 6:
        raise DecodeError("version", f"GRH has IP version {grh.ip_version}, not 6")
    if grh.next_header != GRH_NEXT_HEADER_IBA:
        raise DecodeError("header", f"GRH:NxtHdr is {grh.next_header:#x}, not {GRH_NEXT_HEADER_IBA:#x}")
    if grh.payload_length != len(rest) - GRH.SIZE:
        raise DecodeError("length", f"GRH says {grh.payload_length} bytes, {len(rest) - GRH.SIZE} follow it")
    return NativePacket(lrh, grh, TransportPacket.decode(rest[GRH.SIZE :]), check)
