"""LANs for tests, with TAP devices in network namespaces of their own: everything stays on this machine, apart from it.

A socket belongs to the namespace in which it was made, so that tests may hold the ends of several hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from verbena import Topology, _pure
from verbena.fabric.assembly import FabricOptions
from verbena.lan.config import LanConfig
from verbena.runtime.namespaces import inside
from verbena.runtime.real_fabric import RealFabric
from verbena.runtime.real_lan import Member, Place, RealLan

ETH_P_ALL = 3
ALL_ONES = b"\xff" * 6
SOL_PACKET, PACKET_AUXDATA = 263, 8
LABS = count(1)
PROBE_NS = 150_000_000 if _pure.compiled() else 2_000_000_000  # uncompiled, a large frame takes long


def real_config(**given: Any) -> LanConfig:
    """What is not given is as for real time, with a shorter time until a path is given up."""
    return LanConfig(**{"offload": True, "probe_interval_ns": PROBE_NS, **given})


def star(hosts: Sequence[str], switches: int = 1) -> Topology:
    """Hosts on the first switch; further switches in a row behind it."""
    topology = Topology()
    for i in range(1, switches + 1):
        topology.add_switch(f"s{i}", ports=16)
        if i > 1:
            topology.connect(f"s{i - 1}", f"s{i}")
    for host in hosts:
        topology.add_host(host)
        topology.connect(host, "s1")
    return topology


def two_paths() -> Topology:
    """a and b on switches of their own, with two cables between these."""
    topology = Topology()
    for i, host in enumerate("ab", 1):
        topology.add_switch(f"s{i}", ports=4)
        topology.add_host(host)
        topology.connect(host, f"s{i}")
    topology.connect("s1", "s2")
    topology.connect("s1", "s2")
    return topology


def ping(run: Callable[..., str], address: str, *options: str, count: int = 3) -> str:
    """Echoes, each sent when the last was answered; run: a program, returns what it printed.

    Of several on the way, ping (iputils) waits for the last one for two round trips only; a busy machine takes longer.
    """
    told = ""
    for _ in range(count):
        told = run("ping", "-c", "1", "-W", "5", *options, address)
        assert " 0% packet loss" in told, told
    return told


class Lab:
    """A LAN that is up.  Hosts have 10.88.0.N and fd88::N, N counted from 1."""

    def __init__(self, lan: RealLan) -> None:
        self.lan = lan
        self.fabric = lan.fabric
        self._count = 0
        self._name = f"verbena-{os.getpid()}-{next(LABS)}"

    def namespace(self, host: str) -> str:
        return f"{self._name}-{host}"

    def ip(self, host: str) -> str:
        return self.lan.members[host].place.addresses[0].split("/")[0]

    def ip6(self, host: str) -> str:
        return self.lan.members[host].place.addresses[1].split("/")[0]

    def add(self, host: str) -> Member:
        self._count += 1
        addresses = (f"10.88.0.{self._count}/24", f"fd88::{self._count}/64")
        return self.lan.add(Place(host, "lan0", self.namespace(host), addresses))

    def mac(self, host: str) -> bytes:
        return self.lan.members[host].node.card.mac

    def counters(self, host: str) -> dict[str, int]:
        return self.lan.members[host].node.card.counters

    def run(self, host: str, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """A program in a host's namespace; it must succeed."""
        done = self.try_run(host, *command, timeout=timeout)
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.told())
        return done

    def try_run(self, host: str, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace(host), *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, host: str, *command: str) -> subprocess.Popen[str]:
        """A program that goes on; it reads nothing."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(host), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ping(self, host: str, address: str, *options: str) -> str:
        """Three echoes, all answered."""
        return ping(lambda *command: self.run(host, *command).stdout, address, *options)

    def socket(self, host: str, *arguments: int) -> socket.socket:
        """A socket in a host's namespace."""
        sock = inside(self.namespace(host), lambda: socket.socket(*arguments))
        sock.settimeout(10)
        return sock

    def packets(self, host: str, ethertype: int = ETH_P_ALL) -> socket.socket:
        """A packet socket on a host's interface."""
        sock = self.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind(("lan0", ethertype))
        return sock

    def told(self) -> str:
        """For messages of tests that fail."""
        return json.dumps(self.lan.status(), indent=1)


@contextmanager
def lab(
    topology: Topology,
    hosts: Sequence[str] | None = None,
    *,
    config: LanConfig | None = None,
    packet: int = 4096,
    seed: int = 1,
) -> Iterator[Lab]:
    """A LAN on a topology; hosts: those that join; all by default.  packet: the fabric's MTU."""
    options = FabricOptions(buffer_bytes=128 << 10, mtu=packet)
    with (
        RealFabric(topology, seed=seed, options=options, flits=False) as fabric,
        RealLan(fabric, config or real_config()) as lan,
    ):
        fabric.start()
        made = Lab(lan)
        for host in hosts if hosts is not None else [node.name for node in topology.hosts]:
            made.add(host)
        yield made


def eventually(condition: Callable[[], Any], what: str, limit: float = 20.0) -> Any:
    """Wait until something is true; its value."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"it did not happen: {what}"
        time.sleep(0.01)
    return value


def frame(to: bytes, source: bytes, ethertype: int, payload: bytes) -> bytes:
    return to + source + ethertype.to_bytes(2, "big") + payload


def take(sock: socket.socket, wanted: Callable[[bytes], bool], limit: float = 10.0) -> bytes:
    """The first frame that is wanted."""
    end = time.monotonic() + limit
    while True:
        left = end - time.monotonic()
        assert left > 0, "the frame did not come"
        sock.settimeout(left)
        try:
            found = sock.recv(70_000)
        except TimeoutError:
            continue
        if wanted(found):
            return found


def quiet(sock: socket.socket, unwanted: Callable[[bytes], bool], seconds: float = 0.3) -> bool:
    """Does no such frame come?"""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if unwanted(sock.recv(70_000)):
                return False
        except TimeoutError:
            break
    return True


def tagged(sock: socket.socket) -> tuple[bytes, int]:
    """A frame and the tag that the kernel took off and tells beside it; 0 where there was none."""
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    data, extra, _, _ = sock.recvmsg(70_000, socket.CMSG_SPACE(20))
    for level, kind, found in extra:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tci, _ = struct.unpack("=IIIHHHH", found[:20])
            return data, tci if status & 1 << 4 else 0
    return data, 0


def needs(program: str) -> str | None:
    """Why a test cannot use a program; None if it can."""
    return None if shutil.which(program) else f"needs the program {program}"
