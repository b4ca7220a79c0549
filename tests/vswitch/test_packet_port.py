"""The physical side: an interface with a cable of its own, pause frames sent and obeyed on it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime import namespaces
from verbena.runtime.packet_port import PacketPort
from verbena.runtime.packet_socket import PacketInterface
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import PortConfig
from verbena.wire.pause import PauseFrame, PfcFrame, is_mac_control, unpack_pause
from vswitch.lab import frame, number_of
from vswitch.real_lab import SMALL, card, eventually, numbers

pytestmark = pytest.mark.network("netns", "raw")
LABS = count(1)


class Cable:
    """A veth pair: the switch's card, and a socket at the other end."""

    def __init__(self, space: str) -> None:
        self.space = space
        subprocess.run(
            ["ip", "-n", space, "link", "add", "card0", "type", "veth", "peer", "name", "far0"], check=True
        )
        for name in ("card0", "far0"):
            # No addresses of its own, so that the kernel sends nothing by it.
            subprocess.run(["ip", "-n", space, "link", "set", name, "addrgenmode", "none", "up"], check=True)
        self.far = namespaces.inside(space, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.far.bind(("far0", 3))
        self.far.settimeout(10)

    def read(self, control: bool = False) -> bytes:
        """The next frame of ours, or pause frame."""
        while True:
            data, address = self.far.recvfrom(70_000)
            ours = data[6:11] == b"\x02\0\0\0\0"
            if address[2] != socket.PACKET_OUTGOING and (is_mac_control(data) if control else ours):
                return data


@contextmanager
def cable() -> Iterator[Cable]:
    space = f"verbena-vsw-c{os.getpid()}-{next(LABS)}"
    namespaces.create(space)
    try:
        made = Cable(space)
        yield made
        made.far.close()
    finally:
        namespaces.remove(space)


def plug(loop: SwitchLoop, made: Cable, signal: str = "none") -> PacketPort:
    driver = PacketPort(PacketInterface("card0", namespace=made.space), signal=signal, rate_bps=1e9)
    config = PortConfig("uplink", input=SMALL, output=SMALL, may_pause=signal != "none")
    loop.add(driver, config, physical=True)
    return driver


@pytest.mark.requirement("VSW-19")
def test_foreign_addresses_go_out_on_the_cable_and_come_back() -> None:
    with cable() as made, SwitchLoop() as loop:
        plug(loop, made)
        program, local = card(loop, "program", 1), card(loop, "local", 2)
        program.send(frame(1, 7, 11))
        assert number_of(made.read()) == 11
        made.far.send(frame(7, 1, 12))
        assert numbers(program, 1) == [12]
        program.send(frame(1, 2, 13))
        assert numbers(local, 1) == [13]
        tagged = frame(7, 1, 14, priority=3)
        made.far.send(tagged)
        assert program.wait_frames(30)
        assert program.receive() == tagged, "a tag that the kernel took off is put back"
        program.close()
        local.close()


@pytest.mark.requirement("VSW-12")
@pytest.mark.parametrize("signal", ["pfc", "pause"])
def test_pauses_are_sent_when_an_input_is_full_and_ended_when_it_is_not(signal: str) -> None:
    with cable() as made, SwitchLoop() as loop:
        driver = plug(loop, made, signal)
        program = card(loop, "program", 1, ring=1 << 12)
        for number in range(100):
            made.far.send(frame(7, 1, number, 200))
        eventually(
            lambda: driver.counters()["signals_sent"] > 10, "it is stopped, and says so again and again"
        )
        kinds = {unpack_pause(made.read(control=True)) for _ in range(10)}
        said = PfcFrame.of(0, 0xFFFF) if signal == "pfc" else PauseFrame(0xFFFF)
        over = PfcFrame.of(0, 0) if signal == "pfc" else PauseFrame(0)
        assert said in kinds <= {said, over}, "of its class, and no other"
        assert numbers(program, 100) == list(range(100))
        made.far.settimeout(1)
        last = None
        with contextlib.suppress(TimeoutError):
            while True:
                last = made.read(control=True)
        assert last is not None
        assert unpack_pause(last) == over, "the last word: go on"
        assert loop.switch.losses() == {}
        assert driver.counters()["kernel.dropped_to_switch"] == 0
        program.close()


@pytest.mark.requirement("VSW-12", "VSW-15")
def test_pauses_that_come_are_obeyed_for_their_class_and_their_time() -> None:
    with cable() as made, SwitchLoop() as loop:
        plug(loop, made, "pfc")
        program = card(loop, "program", 1)
        made.far.send(PfcFrame.of(0, 0xFFFF).pack())
        eventually(lambda: loop.status()["ports"]["uplink"]["paused"] == 1, "class 0 is paused")
        program.send(frame(1, 7, 1))
        program.send(frame(1, 7, 2, priority=4))
        assert number_of(made.read()) == 2, "the other class goes on"
        begun = time.monotonic()
        assert number_of(made.read()) == 1
        assert time.monotonic() - begun < 5, "65,535 quanta at 1 Gb/s are 34 ms"
        made.far.send(PauseFrame(10).pack())
        told = eventually(
            lambda: (c := loop.status()["drivers"]["uplink"])["signals_malformed"] and c, "it is counted"
        )
        assert told["signals_heard"] == 1, "an 802.3x pause on a link with priority flow control"
        program.close()


@pytest.mark.requirement("VSW-18")
def test_a_cable_that_is_slow_makes_the_sender_wait() -> None:
    """The card's queue drops what it has no room for, and says so: it is offered again."""
    with cable() as made, SwitchLoop() as loop:
        shaper = ["root", "tbf", "rate", "8mbit", "burst", "5k", "limit", "10k"]
        subprocess.run(["tc", "-n", made.space, "qdisc", "add", "dev", "card0", *shaper], check=True)
        driver = plug(loop, made)
        program = card(loop, "program", 1, ring=1 << 12)
        sender = threading.Thread(
            target=lambda: program.send_all([frame(1, 7, n, 1000) for n in range(200)], timeout=60)
        )
        sender.start()
        assert [number_of(made.read()) for _ in range(200)] == list(range(200))
        sender.join(60)
        told = driver.counters()
        assert told["waited"] > 0
        assert not any(name.startswith("drop.") for name in told), told
        assert loop.switch.losses() == {}
        program.close()


def test_pauses_from_a_port_that_may_not_send_them() -> None:
    with cable() as made, SwitchLoop() as loop:
        plug(loop, made)
        made.far.send(PauseFrame(0xFFFF).pack())
        eventually(lambda: loop.status()["ports"]["uplink"].get("drop.reserved") == 1, "it is counted")
        assert loop.status()["ports"]["uplink"]["paused"] == 0


def test_what_cannot_be_opened() -> None:
    with cable() as made, pytest.raises(SystemLimitError, match="no interface card9"):
        PacketInterface("card9", namespace=made.space)
    with cable() as made, pytest.raises(InvalidAttributeError, match="one of none, pfc, pause"):
        PacketPort(PacketInterface("card0", namespace=made.space), signal="ib")
