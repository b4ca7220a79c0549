"""An independent decoder, Wireshark's tshark, reads what we write: packets of every opcode, CM messages, files."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from verbena import wire
from verbena.wire.layout import Layout
from wire.samples import (
    CAPTURES,
    GRH,
    IPV6,
    LRH,
    gsi,
    in_every_wrapping,
    link_type,
    of_opcode,
    request,
)

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")

# tshark 4.0 looks for the extended headers of RD packets eight bytes behind their place (IBA vol. 1, 9.3: right
# after the BTH), finds too few bytes if there is no payload, and takes a notification's CRC for payload.
RD = [code for code, info in wire.OPCODES.items() if info.service is wire.Service.RD]
RD_EMPTY = [code for code in RD if not wire.OPCODES[code].has_payload]
NOT_READ_TO_THE_END = [*RD_EMPTY, wire.Opcode.CNP]

Written = wire.RocePacket | wire.NativePacket | wire.RawPacket


def tshark(path: Path, *fields: str, only: str = "") -> list[list[str]]:
    """The fields of each packet, as tshark decodes it."""
    options = [option for field in fields for option in ("-e", field)]
    # Dissectors must not guess protocols into our payloads, nor wait for the rest of a message.
    result = subprocess.run(
        [
            "tshark",
            "-n",
            "-r",
            str(path),
            "-Y",
            only or "frame",
            "-T",
            "fields",
            "-E",
            "occurrence=f",
            *options,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in result.stdout.splitlines()]


def write(path: Path, packets: list[Written]) -> None:
    with path.open("wb") as file:
        writer = wire.PcapngWriter(file)
        kinds = (wire.LinkType.ETHERNET, wire.LinkType.RAW, wire.LinkType.ERF)
        numbers = {kind: writer.add_interface(kind.name.lower(), kind) for kind in kinds}
        for at, packet in enumerate(packets):
            time_ns = 1_700_000_000_000_000_000 + at
            if isinstance(packet, wire.RocePacket):
                writer.write(packet.encode(), time_ns, numbers[link_type(packet)], comment=f"packet {at}")
            else:
                writer.write(wire.wrap_erf(packet.encode(), time_ns), time_ns, numbers[wire.LinkType.ERF])


@pytest.mark.requirement("VRB-17")
def test_every_opcode_in_every_wrapping(tmp_path: Path) -> None:
    packets: list[Written] = []
    for number, opcode in enumerate(wire.Opcode):
        for size in (21, 256):
            packets += in_every_wrapping(of_opcode(opcode, psn=0xFFFFF0 + number % 16, size=size))
    path = tmp_path / "opcodes.pcapng"
    write(path, packets)

    bth = [f"infiniband.bth.{name}" for name in ("opcode", "psn", "destqp", "padcnt", "p_key", "a")]
    crcs = ["infiniband.invariant.crc", "infiniband.variant.crc"]
    rows = tshark(path, *bth, *crcs, "_ws.malformed", "frame.time_epoch")
    assert len(rows) == len(packets)
    for at, (row, packet) in enumerate(zip(rows, packets, strict=True)):
        assert isinstance(packet, wire.RocePacket | wire.NativePacket)
        header = packet.transport.bth
        numbers = [int(value, 0) for value in row[:6]]
        expected = (
            header.opcode,
            header.psn,
            header.dest_qp,
            header.pad_count,
            header.pkey,
            header.ack_request,
        )
        assert tuple(numbers) == expected, (header, row)
        assert row[8] == "" or header.opcode in RD_EMPTY, f"tshark calls {packet} malformed"
        if header.opcode not in NOT_READ_TO_THE_END:
            assert int(row[6], 16) == packet.transport.icrc
            if isinstance(packet, wire.NativePacket):
                assert int(row[7], 16) == packet.vcrc
        assert row[9].split(".")[1] == f"{at:09}"


EXTENDED = {
    "infiniband.deth.q_key": (wire.DETH, "qkey"),
    "infiniband.deth.srcqp": (wire.DETH, "src_qp"),
    "infiniband.reth.va": (wire.RETH, "virtual_address"),
    "infiniband.reth.r_key": (wire.RETH, "rkey"),
    "infiniband.reth.dmalen": (wire.RETH, "dma_length"),
    "infiniband.atomiceth.swapdt": (wire.AtomicETH, "swap_add"),
    "infiniband.atomiceth.cmpdt": (wire.AtomicETH, "compare"),
    "infiniband.aeth.syndrome": (wire.AETH, "syndrome"),
    "infiniband.aeth.msn": (wire.AETH, "msn"),
    "infiniband.atomicacketh.origremdt": (wire.AtomicAckETH, "original"),
}


@pytest.mark.requirement("VRB-17")
def test_fields_of_the_extended_headers(tmp_path: Path) -> None:
    packets: list[Written] = []
    for opcode in wire.Opcode:
        if opcode not in RD:
            packets += in_every_wrapping(of_opcode(opcode, psn=1))
    path = tmp_path / "headers.pcapng"
    write(path, packets)
    seen = set()
    for row, packet in zip(tshark(path, *EXTENDED), packets, strict=True):
        assert isinstance(packet, wire.RocePacket | wire.NativePacket)
        for text, (kind, name) in zip(row, EXTENDED.values(), strict=True):
            header: Layout | None = packet.transport.get(kind)
            if text and header is None:  # tshark names two fields of an AtomicETH as those of a RETH
                header = packet.transport.get(wire.AtomicETH)
            assert bool(text) is (header is not None), (packet.transport.info.name, name)
            if text:
                assert int(text, 0) == getattr(header, name)
                seen.add((kind, name))
    assert seen == set(EXTENDED.values())


def test_route_headers(tmp_path: Path) -> None:
    transport = of_opcode(wire.Opcode.RC_SEND_ONLY, psn=1)
    udp6 = wire.RawPacket(LRH, None, replace(IPV6, next_header=59).pack()).sealed()
    arp = wire.RawPacket(LRH, wire.RWH(ethertype=0x88B5), b"raw!").sealed()
    path = tmp_path / "native.pcapng"
    write(path, [wire.NativePacket(LRH, GRH, transport).sealed(), udp6, arp])
    names = ("vl", "sl", "lnh", "dlid", "pktlen", "slid")
    rows = tshark(
        path, *(f"infiniband.lrh.{name}" for name in names), "infiniband.rwh.etype", "_ws.malformed"
    )
    assert [[int(value, 0) for value in row[:6]] for row in rows] == [
        [3, 2, 3, 0x11, 22, 0x22],
        [3, 2, 1, 0x11, 12, 0x22],
        [3, 2, 0, 0x11, 4, 0x22],
    ]
    assert rows[2][6] == "0x88b5"
    assert [row[7] for row in rows] == ["", "", ""]
    grh = tshark(
        path,
        "infiniband.grh.flowlabel",
        "infiniband.grh.paylen",
        "infiniband.grh.dgid",
        only="frame.number == 1",
    )
    assert grh == [[str(GRH.flow_label), str(len(transport.encode())), "fd00::2"]]


@pytest.mark.requirement("VRB-17")
def test_messages_of_the_connection_manager(tmp_path: Path) -> None:
    messages = [
        request(),
        wire.REP(
            0x77,
            0x1234,
            local_qpn=0x22,
            starting_psn=0xABCDEF,
            rnr_retry_count=7,
            srq=True,
            target_ack_delay=15,
        ),
        wire.RTU(0x1234, 0x77),
        wire.REJ(0x77, 0x1234, message=wire.MessageRejected.REP, reason=wire.RejectReason.CONSUMER_REJECT),
        wire.DREQ(0x1234, 0x77, remote_qpn=0x22),
        wire.DREP(0x77, 0x1234),
    ]
    packets: list[Written] = []
    for message in messages:
        packets += in_every_wrapping(gsi(message))[:2]
    path = tmp_path / "cm.pcapng"
    write(path, packets)
    rows = tshark(path, "infiniband.mad.attributeid", "infiniband.mad.transactionid", "_ws.malformed")
    assert [(int(row[0], 0), int(row[1], 0), row[2]) for row in rows] == [
        (message.ATTRIBUTE_ID, 5, "") for message in messages for _ in range(2)
    ]
    prefix = "infiniband.cm."
    expected = {
        "req.serviceid.dport": 7174,
        "req.localqpn": 0x11,
        "req.startpsn": 99,
        "req.retrcount": 7,
        "req.pkey": 0xFFFF,
        "req.pppmtu": 5,
        "req.rnrretrcount": 7,
        "req.ip_cm.sport": 40000,
        "rep.localqpn": 0x22,
        "rep.startpsn": 0xABCDEF,
        "rep.rnrretrcount": 7,
        "rep.srq": 1,
        "rep.tgtackdelay": 15,
        "rej.msgrej": 1,
        "rej.reason": 28,
        "req.remoteqpneecn": 0x22,
    }
    rows = tshark(path, *(prefix + name for name in expected))
    read = {name: {row[at] for row in rows} - {""} for at, name in enumerate(expected)}
    assert {name: {int(value, 0) for value in values} for name, values in read.items()} == {
        name: {value} for name, value in expected.items()
    }
    addresses = tshark(path, prefix + "req.ip_cm.sip4", prefix + "req.ip_cm.dip4", only=prefix + "req")
    assert addresses[0] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_golden_captures_read_alike(path: Path) -> None:
    rows = tshark(
        path, "frame.number", "infiniband.bth.opcode", "infiniband.bth.psn", "infiniband.invariant.crc"
    )
    captured = list(wire.read_capture(path.read_bytes()))
    assert len(rows) == len(captured)
    for row, each in zip(rows, captured, strict=True):
        packet = wire.decode(each.data, each.link_type)
        if isinstance(packet, wire.RocePacket):
            transport = packet.transport
            assert [int(value, 0) for value in row[1:]] == [
                transport.opcode,
                transport.bth.psn,
                transport.icrc,
            ]
        else:
            assert row[1:] == ["", "", ""]


def test_pcap_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plain.pcap"
    packet = in_every_wrapping(of_opcode(wire.Opcode.UC_SEND_ONLY, psn=3))[0]
    with path.open("wb") as file:
        wire.PcapWriter(file, wire.LinkType.ETHERNET).write(packet.encode(), 5_000_000_007)
    assert tshark(path, "infiniband.bth.opcode", "frame.time_epoch") == [["36", "5.000000007"]]
