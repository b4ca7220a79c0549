"""A real QEMU at a port: its network boot asks for an address, is offered one, and takes it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from verbena.runtime.shm_port import VirtualCard
from verbena.runtime.stream_port import StreamListener
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import PortConfig
from verbena.wire.offload import checksum
from vswitch.lab import mac
from vswitch.real_lab import card

pytestmark = pytest.mark.compiled

QEMU = shutil.which("qemu-system-x86_64")
GUEST = bytes.fromhex("525400000001")
SERVER, OFFERED = bytes((10, 85, 0, 9)), bytes((10, 85, 0, 1))
MAGIC = bytes.fromhex("63825363")
DISCOVER, OFFER, REQUEST = 1, 2, 3
IP, UDP, BOOTP = 14, 34, 42
LIMIT_S = 60.0


def message_type(frame: bytes) -> int:
    """Of a DHCP message (RFC 2132, 9.6); 0: it is none."""
    options = frame[BOOTP + 236 :]
    if frame[:6] != b"\xff" * 6 or frame[UDP : UDP + 4] != bytes((0, 68, 0, 67)) or options[:4] != MAGIC:
        return 0
    at = 4
    while at + 2 < len(options) and options[at] != 255:
        if options[at] == 53:
            return options[at + 2]
        at += 1 if options[at] == 0 else 2 + options[at + 1]
    return 0


def offer(discover: bytes) -> bytes:
    """An answer to it (RFC 2131)."""
    options = (
        MAGIC + bytes((53, 1, OFFER, 54, 4)) + SERVER + bytes((51, 4, 0, 0, 14, 16, 1, 4, 255, 255, 255, 0))
    )
    fixed = bytes((2, 1, 6, 0)) + discover[BOOTP + 4 : BOOTP + 8] + bytes(8) + OFFERED + SERVER + bytes(4)
    body = fixed + GUEST.ljust(16, b"\0") + bytes(192) + options + b"\xff"
    udp = bytes((0, 67, 0, 68)) + (8 + len(body)).to_bytes(2, "big") + bytes(2) + body
    head = bytes((0x45, 0)) + (20 + len(udp)).to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, 17, 0, 0))
    head += SERVER + b"\xff" * 4
    summed = checksum(head).to_bytes(2, "big")
    return GUEST + mac(9) + b"\x08\x00" + head[:10] + summed + head[12:] + udp


def wait_for(reader: VirtualCard, kind: int) -> bytes:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        reader.wait_frames(1)
        for frame in reader.receive_many():
            if frame[6:12] == GUEST and message_type(frame) == kind:
                return frame
    raise AssertionError(f"no DHCP message {kind} came")


@pytest.mark.slow
@pytest.mark.loopback
@pytest.mark.requirement("VSW-18", "VSW-19")
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
def test_a_real_machine_boots_from_the_network(tmp_path: Path) -> None:
    assert QEMU is not None
    listener = StreamListener(str(tmp_path / "vm.sock"))
    stream = f"stream,id=n0,server=off,addr.type=unix,addr.path={listener.address}"
    device = f"virtio-net-pci,netdev=n0,mac={GUEST.hex(':')}"
    quiet = ["-display", "none", "-serial", "none", "-monitor", "none"]
    machine = subprocess.Popen(
        [QEMU, *quiet, "-m", "64", "-boot", "n", "-netdev", stream, "-device", device],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        try:
            port = listener.accept(timeout=20)
        except TimeoutError:
            machine.kill()
            _, said = machine.communicate()
            pytest.skip(f"this QEMU has no stream socket: {said.strip()[-200:]}")
        with SwitchLoop() as loop:
            loop.add(port, PortConfig("vm", (GUEST,)))
            server = card(loop, "server", 9)
            server.send(offer(wait_for(server, DISCOVER)))
            request = wait_for(server, REQUEST)
            assert OFFERED in request[BOOTP + 240 :], "it asks for what it was offered"
            state = loop.status()["ports"]["vm"]
            assert (state["rx_frames"] >= 2, state["tx_frames"]) == (True, 1)
            assert loop.switch.losses() == {}
            server.close()
    finally:
        machine.kill()
        machine.wait()
        listener.close()
