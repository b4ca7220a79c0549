"""What the tests of the wire layer share: the golden captures, random headers, a packet of every opcode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from verbena import wire
from verbena.wire.layout import Layout

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CAPTURES = sorted(GOLDEN.glob("*.pcap"))

HEADERS: tuple[type[Layout], ...] = (
    *(wire.LRH, wire.GRH, wire.RWH, wire.BTH, wire.RDETH, wire.DETH, wire.RETH, wire.AtomicETH, wire.AETH),
    *(wire.AtomicAckETH, wire.ImmDt, wire.IETH, wire.VlanTag, wire.IPv4, wire.IPv6, wire.UDP),
)
CM_MESSAGES: tuple[type[wire.CmMessage], ...] = (
    *(wire.REQ, wire.MRA, wire.REJ, wire.REP, wire.RTU, wire.DREQ, wire.DREP),
)


def golden_packets() -> Iterator[tuple[Path, wire.CapturedPacket]]:
    for path in CAPTURES:
        for captured in wire.read_capture(path.read_bytes()):
            yield path, captured


def golden_roce() -> list[bytes]:
    """The frames of all RoCE packets in the golden captures."""
    packets = (captured.data for _, captured in golden_packets())
    return [data for data in packets if isinstance(wire.decode_ethernet(data), wire.RocePacket)]


def layouts(kind: type[Layout], **fixed: object) -> st.SearchStrategy[Layout]:
    """Any value of a fixed-size format."""
    values: dict[str, st.SearchStrategy[object]] = {}
    for field in kind._FIELDS:
        if field.kind == "uint":
            values[field.name] = st.integers(0, field.mask)
        elif field.kind == "flag":
            values[field.name] = st.booleans()
        else:
            values[field.name] = st.binary(min_size=field.width // 8, max_size=field.width // 8)
    return st.builds(kind, **values | {name: st.just(value) for name, value in fixed.items()})


@st.composite
def transport_packets(draw: st.DrawFn) -> wire.TransportPacket:
    """Any right transport packet; its ICRC is not."""
    info = wire.OPCODES[draw(st.sampled_from(list(wire.Opcode)))]
    bth = draw(layouts(wire.BTH, opcode=int(info.opcode), version=0))
    headers = [draw(layouts(kind)) for kind in info.headers]
    payload = draw(st.binary(max_size=67)) if info.has_payload else b""
    return wire.TransportPacket.build(bth, *headers, payload=payload)


def of_opcode(opcode: wire.Opcode, psn: int, size: int = 21) -> wire.TransportPacket:
    """A typical packet of `opcode`."""
    info = wire.OPCODES[opcode]
    typical: dict[type[Layout], Layout] = {
        wire.RDETH: wire.RDETH(ee_context=0x123456),
        wire.DETH: wire.DETH(qkey=0x11111111, src_qp=0x4321),
        wire.RETH: wire.RETH(virtual_address=0x7F00_1234_5678, rkey=0xABCD, dma_length=size),
        wire.AtomicETH: wire.AtomicETH(virtual_address=0x7F00_0000_0008, rkey=0xABCD, swap_add=7, compare=5),
        wire.AETH: wire.AETH.ack(msn=77),
        wire.AtomicAckETH: wire.AtomicAckETH(original=0x1122334455667788),
        wire.ImmDt: wire.ImmDt(data=0xCAFEF00D),
        wire.IETH: wire.IETH(rkey=0xBEEF),
    }
    size = 16 if opcode is wire.Opcode.CNP else size
    bth = wire.BTH(opcode=opcode, dest_qp=0x1234, psn=psn, ack_request=bool(psn & 1))
    payload = bytes(1 + at % 251 for at in range(size)) if info.has_payload else b""
    return wire.TransportPacket.build(bth, *(typical[kind] for kind in info.headers), payload=payload)


ETHERNET_V4 = wire.Ethernet(b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", ethertype=0x0800)
ETHERNET_V6 = wire.Ethernet(b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", (wire.VlanTag(vlan=5),), ethertype=0x86DD)
IPV4 = wire.IPv4(src=bytes((10, 0, 0, 1)), dst=bytes((10, 0, 0, 2)))
IPV6 = wire.IPv6(
    src=bytes.fromhex("fe80000000000000020000fffe000001"), dst=bytes.fromhex("fd" + "00" * 14 + "02")
)
GRH = wire.GRH(flow_label=0x12345, sgid=IPV6.src, dgid=IPV6.dst)
LRH = wire.LRH(vl=3, sl=2, dlid=0x11, slid=0x22)


def in_every_wrapping(transport: wire.TransportPacket) -> list[wire.RocePacket | wire.NativePacket]:
    """RoCEv2 over both IP versions, native local and global."""
    udp = wire.UDP(src_port=50000)
    packets: tuple[wire.RocePacket | wire.NativePacket, ...] = (
        wire.RocePacket(IPV4, udp, transport, ETHERNET_V4),
        wire.RocePacket(IPV6, udp, transport, ETHERNET_V6),
        wire.RocePacket(IPV4, udp, transport),
        wire.NativePacket(LRH, None, transport),
        wire.NativePacket(LRH, GRH, transport),
    )
    return [packet.sealed() for packet in packets]


def link_type(packet: wire.RocePacket | wire.NativePacket) -> wire.LinkType:
    if isinstance(packet, wire.NativePacket):
        return wire.LinkType.INFINIBAND
    return wire.LinkType.RAW if packet.link is None else wire.LinkType.ETHERNET


def request(private_data: bytes = b"hello") -> wire.REQ:
    """A connection request as librdmacm makes it."""
    header = wire.IpCmHeader.of("10.0.0.1", "10.0.0.2", 40000)
    gids = [bytes(10) + b"\xff\xff" + address for address in (IPV4.src, IPV4.dst)]
    return wire.REQ(
        local_comm_id=0x1234,
        service_id=wire.service_id(7174),
        local_qpn=0x11,
        starting_psn=99,
        path_mtu=5,
        retry_count=7,
        rnr_retry_count=7,
        primary_local_gid=gids[0],
        primary_remote_gid=gids[1],
        private_data=header.pack() + private_data,
    )


def gsi(message: wire.CmMessage, psn: int = 0) -> wire.TransportPacket:
    """A CM message as it travels between the general services interfaces."""
    bth = wire.BTH(opcode=wire.Opcode.UD_SEND_ONLY, dest_qp=wire.GSI_QP, psn=psn)
    deth = wire.DETH(qkey=wire.GSI_QKEY, src_qp=wire.GSI_QP)
    return wire.TransportPacket.build(bth, deth, payload=wire.cm_mad(message, transaction_id=5).pack())
