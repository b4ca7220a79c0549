"""Both sides of a LAN in files that Wireshark reads: the Ethernet of the cards, the packets of the fabric."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lan.lan_lab import BROADCAST, MS, SMALL, Lan, host, star
from verbena.errors import InvalidStateError
from verbena.lan import LanNode
from verbena.runtime.ethernet_capture import EthernetCapture
from verbena.wire.pcap import read_capture


def tshark(path: Path, *fields: str, only: str = "") -> list[list[str]]:
    options = [option for field in fields for option in ("-e", field)]
    command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|", *options]
    if only:
        command += ["-Y", only]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def test_what_was_captured_is_what_passed(tmp_path: Path) -> None:
    lan = star(3)
    cards = {name: lan.card(name) for name in ("h0", "h1")}
    with EthernetCapture(tmp_path / "lan.pcapng", cards, lan.clock) as capture:
        sent = [lan.send("h0", "h1", 100), lan.send("h0", BROADCAST, 200)]
        lan.settle()
        with pytest.raises(InvalidStateError):
            EthernetCapture(tmp_path / "again.pcapng", cards, lan.clock)
    lan.send("h0", "h1", 300)
    lan.settle()
    found = list(read_capture((tmp_path / "lan.pcapng").read_bytes()))
    assert [packet.data for packet in found] == [*sent, *sent]  # as they left, and as they came in
    assert capture.packets == 4
    assert [packet.time_ns for packet in found] == sorted(packet.time_ns for packet in found)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.requirement("LAN-05", "LAN-25")
def test_wireshark_reads_both_sides(tmp_path: Path) -> None:
    """Plain ARP and ICMP on the Ethernet side; on the fabric's, UD and UC packets and the connection manager's."""
    lan = Lan("star hosts=3")
    hosts = [host(lan, LanNode(lan.device(f"h{n}", limits=SMALL)).card, n + 1) for n in range(3)]
    lan.settle(20 * MS)
    ports = {f"h{n}": each.port for n, each in enumerate(hosts)}
    with (
        EthernetCapture(tmp_path / "ethernet.pcapng", ports, lan.clock),
        lan.capture(tmp_path / "fabric.pcapng", ["h0[1]", "h1[1]"]),
    ):
        hosts[0].ping("10.0.0.2")
        lan.settle(5 * MS)
        hosts[0].ping("10.0.0.2", 1000)
        lan.settle(5 * MS)
    arp = tshark(
        tmp_path / "ethernet.pcapng", "arp.opcode", "arp.src.hw_mac", "arp.dst.proto_ipv4", only="arp"
    )
    mac = hosts[0].port.mac.hex(":")
    assert arp[0] == ["1", mac, "10.0.0.2"]
    assert [row[0] for row in arp] == ["1", "1", "1", "2", "2"]  # sent, heard by two; answered, and heard
    echoes = tshark(tmp_path / "ethernet.pcapng", "icmp.type", only="icmp")
    assert [row[0] for row in echoes] == ["8", "8", "0", "0"] * 2
    wrong = "_ws.malformed || icmp.checksum.status == 0 || ip.checksum.status == 0"
    assert not tshark(tmp_path / "ethernet.pcapng", "frame.number", only=wrong)
    opcodes = tshark(tmp_path / "fabric.pcapng", "infiniband.bth.opcode", only="infiniband")
    kinds = {int(row[0]) >> 5 for row in opcodes if row[0]}
    assert kinds == {1, 3}  # UC and UD
    requests = tshark(tmp_path / "fabric.pcapng", "infiniband.mad.attributeid", only="infiniband.mad")
    assert "0x0010" in {row[0] for row in requests}  # ConnectRequest
    assert not tshark(tmp_path / "fabric.pcapng", "frame.number", only="_ws.malformed")
