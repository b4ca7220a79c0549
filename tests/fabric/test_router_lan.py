"""Raw IPv6 packets between subnets and an ordinary IPv6 network, and what senders are told (document 003:553-555)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.routers import PENDING, A, B, Element, gid, ip, native, raw, udp6
from verbena.fabric.router import Hop, LanPort, Route
from verbena.wire import IPv6, LinkType, PcapWriter, RawPacket, decode_infiniband, upper_layer_checksum
from verbena.wire.icmp6 import Icmp6Error, icmp6_error

HOST_A, HOST_B = gid(A, 0xA), gid(B, 0xB)
FAR = ip("2001:4860::8844")
ROUTER_LAN = ip("2001:4860::1")


class Edge(Element):
    """A router with port 9 on a LAN; `lan` is what it sent there, `lan_room` whether the LAN takes anything."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.lan: list[bytes] = []
        self.lan_room = True
        self.port = LanPort(9, ROUTER_LAN, self.onto_lan, backlog=3)
        self.router.attach_lan(self.port)

    def onto_lan(self, datagram: bytes) -> bool:
        if self.lan_room:
            self.lan.append(datagram)
        return self.lan_room


def hopped(datagram: bytes) -> bytes:
    return datagram[:7] + bytes([datagram[7] - 1]) + datagram[8:]


@pytest.mark.requirement("SWR-09")
@pytest.mark.parametrize("size", range(5))
def test_an_ipv6_datagram_goes_out_and_one_comes_back(size: int) -> None:
    edge = Edge()
    outward = udp6(HOST_A, FAR, b"q" * size)
    edge.router.receive(1, raw(outward), handle=1)
    assert edge.lan == [hopped(outward)], "the datagram itself, without local header and padding"
    assert edge.freed == [(1, 1)]
    back = udp6(FAR, HOST_A, b"a" * size)
    edge.router.receive_lan(9, back)
    ((port, packet),) = edge.sent
    inward = decode_infiniband(packet + b"\0\0")
    assert isinstance(inward, RawPacket)
    assert (port, inward.lrh.dlid, inward.lrh.slid, inward.rwh) == (1, 0xA, 0x21, None)
    assert inward.payload[: len(back)] == hopped(back)
    assert inward.payload[len(back) :] == bytes(-len(back) % 4)
    edge.check()


@pytest.mark.requirement("TRN-19")
def test_a_native_frame_is_delivered_to_the_port_of_its_destination() -> None:
    """The router's part: to the LID that the subnet has for the address, in the subnet that the prefix names."""
    edge = Edge()
    edge.known[2, HOST_B] = Hop(0x1234, sl=2)
    frame = udp6(FAR, HOST_B, b"bridged") + b"\0" * 11  # padding of a short Ethernet frame
    edge.router.receive_lan(9, frame)
    ((port, packet),) = edge.sent
    assert port == 2
    inward = decode_infiniband(packet + b"\0\0")
    assert (inward.lrh.dlid, inward.lrh.sl, inward.lrh.lnh) == (0x1234, 2, 1)
    assert IPv6.unpack(inward.payload).dst == HOST_B
    assert len(inward.payload) == 56, "47 bytes of header and UDP, 7 of data, filled up; no Ethernet padding"
    edge.check()


def test_raw_packets_between_subnets() -> None:
    edge = Edge()
    datagram = udp6(HOST_A, HOST_B, b"across")
    edge.router.receive(1, raw(datagram))
    ((port, packet),) = edge.sent
    assert (port, decode_infiniband(packet + b"\0\0").payload[: len(datagram)]) == (2, hopped(datagram))


def test_the_fabrics_transport_does_not_leave_by_a_lan() -> None:
    edge = Edge()
    edge.router.receive(1, native(HOST_A, FAR))
    assert edge.lan == []
    assert edge.drops() == {"lan_transport": 1}


def test_a_lan_without_room_holds_back_the_subnet_and_loses_nothing() -> None:
    edge = Edge()
    edge.lan_room = False
    for i in range(20):
        edge.router.receive(1, raw(udp6(HOST_A, FAR, bytes([i]))), handle=i)
    assert (edge.freed, edge.router.waiting, edge.drops()) == ([], 20, {})
    edge.lan_room = True
    edge.router.room(9)
    assert [d[48] for d in edge.lan] == list(range(20))
    assert [h for _, h in edge.freed] == list(range(20))
    edge.check()


def test_a_subnet_without_room_makes_a_lan_lose_what_it_may() -> None:
    edge = Edge()
    edge.full = {(1, 0)}
    for i in range(10):
        edge.router.receive_lan(9, udp6(FAR, HOST_A, bytes([i])))
    assert edge.drops() == {"backlog": 7}
    edge.unblock(1, 0)
    assert [p[8 + 48] for _, p in edge.sent] == [0, 1, 2]
    edge.router.receive_lan(9, udp6(FAR, HOST_A, b"again"))
    assert len(edge.sent) == 4
    edge.check()


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "short"),
        (b"\x60" * 39, "short"),
        (b"\x45" + bytes(45), "version"),
        (udp6(FAR, HOST_A, b"abc")[:-1], "length"),
        (udp6(FAR, HOST_A, bytes(1453)), "length"),
        (udp6(FAR, ip("fe80::1"), b""), "link_local"),
        (udp6(FAR, HOST_A, b"", hops=1), "hop_limit"),
        (udp6(ip("ff0e::1"), HOST_A, b""), "source"),
        (udp6(FAR, ROUTER_LAN, b""), "own_address"),
    ],
)
def test_what_does_not_come_in_from_a_lan(datagram: bytes, reason: str) -> None:
    edge = Edge()
    edge.router.receive_lan(9, datagram)
    assert edge.drops() == {reason: 1}
    assert edge.sent == []
    edge.check()


def test_a_lan_port_that_is_down() -> None:
    edge = Edge()
    edge.router.configure(9, active=False)
    edge.router.receive_lan(9, udp6(FAR, HOST_A, b""))
    edge.router.receive(1, raw(udp6(HOST_A, FAR, b"")))
    edge.router.receive_lan(1, udp6(FAR, HOST_A, b""))
    assert edge.drops() == {"port_down": 2, "no_route": 1}


# --- what senders are told ----------------------------------------------------------------------------------------


def report_of(edge: Edge) -> tuple[IPv6, bytes]:
    """The one ICMPv6 message that subnet A got."""
    ((port, packet),) = edge.sent
    payload = decode_infiniband(packet + b"\0\0").payload
    head = IPv6.unpack(payload)
    message = payload[40 : 40 + head.payload_length]
    assert port == 1
    assert upper_layer_checksum(head, 58, message) == 0, "its checksum is right"
    return head, message


@pytest.mark.parametrize(
    ("datagram", "kind", "code", "parameter"),
    [
        (udp6(HOST_A, FAR, b"xyz", hops=1), 3, 0, 0),
        (udp6(HOST_A, FAR, bytes(1500)), 2, 0, 1500),
        (udp6(HOST_A, ip("fe80::1"), b"xyz"), 1, 2, 0),
        (udp6(HOST_A, gid(B, 0x404), b"xyz"), 1, 3, 0),
        (udp6(HOST_A, ip("3ffe::1"), b"xyz"), 1, 0, 0),
    ],
)
def test_the_sender_of_an_ip_packet_is_told(datagram: bytes, kind: int, code: int, parameter: int) -> None:
    edge = Edge()
    edge.known[2, gid(B, 0x404)] = None
    edge.router.table.remove(Route.to("::/0", 9))
    edge.router.table.add(Route.to("2001:4860::/32", 9))
    edge.router.receive(1, raw(datagram))
    head, message = report_of(edge)
    assert (head.src, head.dst) == (edge.router.ports[1].gid, HOST_A)
    assert (message[0], message[1], int.from_bytes(message[4:8], "big")) == (kind, code, parameter)
    quoted = message[8:]
    assert quoted[:7] == datagram[:7]
    assert quoted[8:] == datagram[8 : len(quoted)]
    assert len(message) <= 1240
    edge.check()


def test_reports_are_few_and_never_about_reports() -> None:
    edge = Edge()
    for i in range(40):
        edge.router.receive(1, raw(udp6(HOST_A, FAR, bytes([i]), hops=1)))
    assert len(edge.sent) == 10
    edge.clock.advance(50_000_000)
    for i in range(40):
        edge.router.receive(1, raw(udp6(HOST_A, FAR, bytes([i]), hops=1)))
    assert len(edge.sent) == 15
    edge.clock.advance(1_000_000_000)
    edge.sent.clear()
    first = decode_infiniband(
        raw(icmp6_error(Icmp6Error.TIME_EXCEEDED, 0, 0, HOST_A, udp6(FAR, HOST_B, b"")) or b"") + b"\0\0"
    ).payload
    edge.router.receive(1, raw(first[:7] + b"\1" + first[8:96]))
    edge.router.receive(1, raw(udp6(ip("fe80::1"), FAR, b"")))  # its sender is nobody here: told by no route
    edge.router.receive(1, raw(udp6(HOST_A, ip("ff0e::5"), b"")))
    assert [p for _, p in edge.sent if p[8 + 40] == 3] == []
    edge.check()


@given(st.binary(max_size=80), st.sampled_from(Icmp6Error))
def test_whatever_is_reported_is_a_right_message_or_none(packet: bytes, kind: Icmp6Error) -> None:
    made = icmp6_error(kind, 0, 7, HOST_B, packet)
    if made is not None:
        head = IPv6.unpack(made)
        assert len(made) == 40 + head.payload_length <= 1280
        assert head.dst == packet[8:24]
        assert head.dst[0] != 0xFF
        assert upper_layer_checksum(head, 58, made[40:]) == 0
        assert made[48:] == packet


@pytest.mark.requirement("TRN-18")
def test_an_independent_decoder_reads_what_leaves_by_the_lan(tmp_path: Path) -> None:
    """tshark finds the addresses, ports and checksums of a datagram, and of a report, right."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    edge = Edge()
    edge.router.receive(1, raw(udp6(HOST_A, FAR, b"to the world")))
    edge.router.receive_lan(9, udp6(FAR, HOST_A, b"from it", hops=1))
    assert len(edge.lan) == 2
    path = tmp_path / "lan.pcap"
    with path.open("wb") as file:
        writer = PcapWriter(file, LinkType.RAW)
        for i, datagram in enumerate(edge.lan):
            writer.write(datagram, i)
    command = [
        "tshark",
        "-r",
        str(path),
        "-o",
        "udp.check_checksum:TRUE",
        "-T",
        "fields",
        "-E",
        "separator=,",
    ]
    fields = (
        "ipv6.src",
        "ipv6.dst",
        "ipv6.hlim",
        "udp.dstport",
        "udp.checksum.status",
        "icmpv6.type",
        "icmpv6.checksum.status",
    )
    for field in fields:
        command += ["-e", field]
    command += ["-E", "occurrence=f"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "2001:db8:0:1::a,2001:4860::8844,63,9,1,,"
    assert lines[1].startswith("2001:4860::1,2001:4860::8844,64,9,")
    assert lines[1].endswith(",3,1")


def test_a_lan_packet_waits_for_its_destination() -> None:
    edge = Edge()
    edge.known[1, HOST_A] = PENDING
    for i in range(5):
        edge.router.receive_lan(9, udp6(FAR, HOST_A, bytes([i])))
    assert (edge.router.waiting, edge.drops()) == (3, {"backlog": 2})
    edge.known[1, HOST_A] = Hop(0xA)
    edge.router.resolved(1, HOST_A)
    assert len(edge.sent) == 3
    edge.check()
