"""Wireshark reads what a lossless link carries: VXLAN frames one way, PFC frames the other, with the right quanta."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from verbena.runtime.virtual_time import VirtualTime
from verbena.vswitch.path import FAR, VNI
from verbena.vswitch.path import Path as SocketPath
from verbena.vswitch.path_machine import PathConfig
from verbena.wire.frame import LinkType
from verbena.wire.pcap import PcapngWriter

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")


def fields(capture: Path, only: str, *names: str) -> list[list[str]]:
    options = [option for name in names for option in ("-e", name)]
    command = ["tshark", "-n", "-r", str(capture), "-Y", only, "-T", "fields", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.requirement("VSW-12", "VSW-20")
def test_the_physical_link_in_wireshark(tmp_path: Path) -> None:
    time = VirtualTime()
    path = SocketPath(time.clock, PathConfig(machines=2, frames=300, read_gap_ns=20_000))
    capture = tmp_path / "link.pcapng"
    with capture.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface("physical", LinkType.ETHERNET)
        path.link.tap = lambda data: writer.write(data, time.now)
        path.start()
        time.run_until_idle()
    assert path.delivered == 600
    outer = fields(capture, "vxlan", "vxlan.vni", "udp.dstport", "_ws.malformed")
    assert outer == [[str(VNI), "4789,9000", ""]] * 600
    pauses = fields(
        capture,
        "macc",
        "macc.opcode",
        "macc.cbfc.enbv",
        "macc.cbfc.pause_time.c0",
        "eth.src",
        "_ws.malformed",
    )
    assert len(pauses) == path.link.messages > 0
    assert {p[0] for p in pauses} == {"0x0101"}
    assert {p[1] for p in pauses} == {"0x0001"}
    assert {int(p[2], 0) for p in pauses} == {0, 65_535}, "stops, and ends of stops"
    assert {p[3] for p in pauses} == {FAR.mac.hex(":")}
    assert int(pauses[-1][2], 0) == 0, "the last word is: go on"
