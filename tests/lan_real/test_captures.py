"""The same frames on both sides, in captures that Wireshark reads: Ethernet at an interface, the fabric at a port."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tap_lab import eventually, lab, needs, star

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.network("netns", "tap", "raw"),
    pytest.mark.skipif(needs("tshark") is not None, reason="needs the program tshark"),
    pytest.mark.skipif(needs("tcpdump") is not None, reason="needs the program tcpdump"),
]


def fields(capture: Path, filter_: str, *names: str) -> list[list[str]]:
    """What tshark reads of the packets that fit; none may be malformed."""
    wanted = [part for name in names for part in ("-e", name)]
    told = subprocess.run(
        ["tshark", "-r", str(capture), "-Y", filter_, "-T", "fields", *wanted],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    return [line.split("\t") for line in told.splitlines()]


@pytest.mark.requirement("LAN-12", "LAN-25")
def test_both_sides_in_wireshark(tmp_path: Path) -> None:
    on_ethernet, on_fabric = tmp_path / "ethernet.pcap", tmp_path / "fabric.pcapng"
    with lab(star("ab")) as net, net.fabric.capture(on_fabric, ["s1[1]", "s1[2]"]):
        dump = net.start("b", "tcpdump", "-U", "-i", "lan0", "-w", str(on_ethernet))
        assert dump.stdout
        eventually(lambda: "listening on" in dump.stdout.readline(), "tcpdump listens")
        net.ping("a", net.ip("b"), "-p", "766562656e61")
        net.ping("a", net.ip6("b"))
        eventually(lambda: len(fields(on_ethernet, "icmp", "icmp.type")) >= 6, "the echoes are captured")
        dump.send_signal(signal.SIGINT)
        dump.communicate(timeout=10)
        a, b = net.mac("a").hex(":"), net.mac("b").hex(":")
    # The Ethernet: plain ARP, echoes, neighbour discovery, between the cards' addresses.
    requests = fields(on_ethernet, "arp.opcode == 1 && eth.dst == ff:ff:ff:ff:ff:ff", "arp.src.hw_mac")
    assert [a] in requests
    assert [b, a] in fields(on_ethernet, "arp.opcode == 2", "eth.src", "eth.dst")
    assert len(fields(on_ethernet, f"icmp.type == 0 && eth.src == {b} && eth.dst == {a}", "icmp.seq")) == 3
    assert fields(on_ethernet, "icmpv6.type == 135 || icmpv6.type == 136", "eth.src")
    # The fabric: unreliable connections for unicast, datagrams for what is for all, and the same bytes in them.
    opcodes = {int(line[0]) for line in fields(on_fabric, "infiniband.bth", "infiniband.bth.opcode")}
    assert 0x24 in opcodes, "UC SEND Only"
    assert 0x64 in opcodes, "UD SEND Only"
    carried = fields(
        on_fabric, "infiniband.bth.opcode == 0x24 && frame contains 76:65:62:65:6e:61", "frame.len"
    )
    assert len(carried) >= 6
    assert not fields(on_fabric, "_ws.malformed && infiniband.bth.opcode == 0x24", "frame.number")
