"""Two hosts: network namespaces joined by a virtual Ethernet cable, and a foreign program that watches it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import drops_unexplained
from verbena.cli.dump import dump

pytestmark = pytest.mark.network("netns")

# One end of a transfer: writes `size` bytes to its peer, reads them back, and sends a message.  The two ends
# exchange their attributes through the test's pipes.
END = """
import hashlib, json, os, sys, verbena
from verbena import QPType, RecvRequest, WorkRequest, WROpcode, Gid, Endpoint
from verbena.runtime.pairs import make_side

address, size, mtu = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
with verbena.open_device(address, mtu=mtu) as ctx:
    side = make_side(ctx, QPType.RC, 2 * size + 4096)
    e = side.qp.endpoint
    print(json.dumps([str(e.gid.ip), e.qp_num, e.psn, side.mr.addr, side.mr.rkey]), flush=True)
    ip, qpn, psn, addr, rkey = json.loads(sys.stdin.readline())
    side.qp.connect(Endpoint(Gid.from_ip(ip), qpn, psn), mtu=min(ctx.query_port().active_mtu, 4096), timeout=12)
    side.qp.post_recv(RecvRequest(1, [side.mr.sge(2 * size, 4096)]))
    print("ready", flush=True)
    sys.stdin.readline()
    data = os.urandom(size)
    side.mr.buf[:size] = data
    seen = set()

    def until(wanted):
        while not wanted <= seen:
            entries = side.cq.wait(20)
            seen.update(c.raise_for_status().wr_id for c in entries)
            if not entries:
                raise SystemExit("no completion: " + json.dumps(ctx.counters()))

    for opcode, at in ((WROpcode.RDMA_WRITE, 0), (WROpcode.RDMA_READ, 0)):
        if opcode is WROpcode.RDMA_READ:
            side.mr.buf[:size] = bytes(size)
        side.qp.post_send(WorkRequest(2, opcode, [side.mr.sge(0, size)], remote_addr=addr + size, rkey=rkey))
        until({2})
        seen.discard(2)
    intact = bytes(side.mr.buf[:size]) == data
    side.qp.post_send(WorkRequest(3, WROpcode.SEND, [side.mr.sge(0, 100)]))
    until({1, 3})
    print(json.dumps({"intact": intact, "counters": ctx.counters(), "mtu": ctx.query_port().active_mtu}), flush=True)
    sys.stdin.readline()
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two namespaces, 10.66.0.1 / fd66::1 and 10.66.0.2 / fd66::2."""
    names = ("verbena-test-1", "verbena-test-2")
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        ip("netns", "add", name)
    try:
        ip("link", "add", "v1", "netns", names[0], "type", "veth", "peer", "name", "v2", "netns", names[1])
        for i, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.66.0.{i}/24", "dev", f"v{i}")
            ip("-n", name, "addr", "add", f"fd66::{i}/64", "dev", f"v{i}", "nodad")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"v{i}", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def run_ends(
    names: tuple[str, str], addresses: tuple[str, str], size: int, mtu: int = 0
) -> list[dict[str, Any]]:
    """Run both ends to their end; what they report."""
    ends = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", END, address, str(size), str(mtu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, address in zip(names, addresses, strict=True)
    ]

    def line(end: subprocess.Popen[str]) -> str:
        assert end.stdout
        assert end.stderr
        text = end.stdout.readline()
        assert text, end.stderr.read()
        return text

    def tell(end: subprocess.Popen[str], text: str) -> None:
        assert end.stdin
        end.stdin.write(text)
        end.stdin.flush()

    try:
        one, two = (line(e) for e in ends)
        tell(ends[0], two)
        tell(ends[1], one)
        assert [line(e) for e in ends] == ["ready\n"] * 2
        for end in ends:
            tell(end, "go\n")
        reports = [json.loads(line(e)) for e in ends]
        for end in ends:
            tell(end, "end\n")
            assert end.wait(30) == 0
        return reports
    finally:
        for end in ends:
            end.kill()
            for stream in (end.stdin, end.stdout, end.stderr):
                if stream:
                    stream.close()


def no_drops(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["intact"]
        assert not drops_unexplained(report["counters"])


@pytest.mark.parametrize("addresses", [("10.66.0.1", "10.66.0.2"), ("fd66::1", "fd66::2")])
def test_both_address_families_move_data(cable: tuple[str, str], addresses: tuple[str, str]) -> None:
    reports = run_ends(cable, addresses, 300_000)
    no_drops(reports)
    assert [r["mtu"] for r in reports] == [1024, 1024]


@pytest.mark.parametrize("segmentation", ["on", "off"])
def test_what_is_on_the_cable_is_right(cable: tuple[str, str], segmentation: str, tmp_path: Path) -> None:
    """A foreign program captures on the cable; every packet's invariant CRC fits the IP header that it really had."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    if segmentation == "off":
        if shutil.which("ethtool") is None:
            pytest.skip("ethtool is not installed")
        for i, name in enumerate(cable, 1):
            subprocess.run(
                ["ip", "netns", "exec", name, "ethtool", "-K", f"v{i}", "tx-udp-segmentation", "off"],
                check=True,
            )
    capture = tmp_path / "cable.pcapng"
    with subprocess.Popen(
        ["ip", "netns", "exec", cable[1], "tshark", "-q", "-i", "v2", "-w", capture, "-f", "udp port 4791"],
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stderr
        while "Capturing on" not in watcher.stderr.readline():
            assert watcher.poll() is None
        time.sleep(1)
        reports = run_ends(cable, ("10.66.0.1", "10.66.0.2"), 100_000, 512)
        time.sleep(1)
        watcher.terminate()
        watcher.wait(10)
    no_drops(reports)
    if segmentation == "off":
        assert dump(str(capture)) == 0
    fields = subprocess.run(
        [
            "tshark",
            "-r",
            capture,
            "-T",
            "fields",
            "-e",
            "ip.id",
            "-e",
            "infiniband.bth.opcode",
            "-e",
            "_ws.malformed",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(fields) > 20
    assert not [f for f in fields if f.split("\t")[2]]
