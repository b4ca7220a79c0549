"""Unmodified programs on an emulated LAN: their hosts are network namespaces, whose only way out is a TAP device."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tap_lab import ALL_ONES, Lab, eventually, frame, lab, needs, quiet, star, tagged, take
from verbena import _pure

pytestmark = pytest.mark.network("netns", "tap", "raw")
TRANSFER = 32 << 20 if _pure.compiled() else 256 << 10


@pytest.fixture(scope="module")
def net() -> Iterator[Lab]:
    with lab(star("abc")) as made:
        yield made


@pytest.mark.requirement("LAN-01", "LAN-24")
def test_ping_and_ping6(net: Lab) -> None:
    for a, b in ("ab", "ba", "ca"):
        assert " 0% packet loss" in net.ping(a, net.ip(b))
        assert " 0% packet loss" in net.ping(a, net.ip6(b))
    assert " 0% packet loss" in net.ping("a", net.ip("c"), "-s", "20000")  # in fragments of the system's own
    failed = net.try_run("a", "ping", "-c", "1", "-W", "4", "10.88.0.99")
    assert failed.returncode
    assert "Unreachable" in failed.stdout  # nobody answers the system's ARP requests


@pytest.mark.requirement("LAN-05", "LAN-06")
def test_the_system_resolves_by_plain_arp(net: Lab) -> None:
    for host in "ab":
        net.run(host, "ip", "neigh", "flush", "dev", "lan0")
    watch = {host: net.packets(host, 0x0806) for host in "bc"}
    net.ping("a", net.ip("b"))
    for sock in watch.values():  # everybody hears the request: RFC 826, opcode 1, to all
        request = take(sock, lambda f: f[20:22] == b"\0\1" and f[:6] == ALL_ONES)
        assert request[6:12] == request[22:28] == net.mac("a")
    assert quiet(watch["c"], lambda f: f[20:22] == b"\0\2" and f[28:32] == socket.inet_aton(net.ip("b")))
    table = net.run("a", "ip", "neigh", "show", "dev", "lan0").stdout
    assert f"{net.ip('b')} lladdr {net.mac('b').hex(':')}" in table
    lid = net.lan.members["b"].context.query_port(1).lid
    assert net.mac("b")[4:] == lid.to_bytes(2, "big")
    assert net.lan.members["a"].interface.neighbours()[net.ip("b")] == net.mac("b").hex(":")
    for sock in watch.values():
        sock.close()


@pytest.mark.skipif(needs("iperf3") is not None, reason="needs the program iperf3")
def test_iperf3_both_ways(net: Lab) -> None:
    for address in (net.ip("b"), net.ip6("b")):
        server = net.start("b", "iperf3", "-s", "-1", "--forceflush")
        assert server.stdout
        eventually(lambda s=server: "listening" in s.stdout.readline(), "iperf3 listens")
        told = net.run("a", "iperf3", "-c", address, "-n", str(TRANSFER), "--bidir", "-J", timeout=120).stdout
        server.communicate(timeout=30)
        sums = json.loads(told)["end"]
        assert sums["sum_received"]["bytes"] > 0
        assert sums["sum_received_bidir_reverse"]["bytes"] > 0
    assert net.lan.members["a"].interface.counters["tx.bytes"] >= TRANSFER


@pytest.mark.skipif(needs("curl") is not None, reason="needs the program curl")
def test_curl(net: Lab, tmp_path: Path, seed: int) -> None:
    data = random.Random(seed).randbytes(TRANSFER // 4)
    (tmp_path / "file").write_bytes(data)
    server = net.start(
        "b", sys.executable, "-u", "-m", "http.server", "8080", "--bind", "::", "-d", str(tmp_path)
    )
    try:
        assert server.stdout
        eventually(lambda: "Serving" in server.stdout.readline(), "the server listens")
        for address in (f"[{net.ip6('b')}]", net.ip("b")):
            got = tmp_path / "got"
            net.run("a", "curl", "-sS", "-o", str(got), f"http://{address}:8080/file", timeout=120)
            assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(data).digest()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.skipif(needs("sshd") is not None or os.geteuid() != 0, reason="needs sshd, as root")
def test_ssh_and_scp(net: Lab, tmp_path: Path, seed: int) -> None:
    for key in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)], check=True, timeout=60
        )
    config = f"""
        Port 2222
        HostKey {tmp_path}/host
        AuthorizedKeysFile {tmp_path}/user.pub
        StrictModes no
        PermitRootLogin yes
        PidFile none
        Subsystem sftp internal-sftp
    """
    (tmp_path / "config").write_text(config)
    Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in before anybody has logged in
    options = [
        "-i",
        f"{tmp_path}/user",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ]
    data = random.Random(seed).randbytes(TRANSFER // 8)
    (tmp_path / "data").write_bytes(data)
    sshd = shutil.which("sshd")
    assert sshd is not None
    server = net.start("b", sshd, "-D", "-e", "-f", str(tmp_path / "config"))
    try:
        assert server.stdout
        eventually(lambda: "listening on ::" in server.stdout.readline(), "sshd listens")
        for client, address in ((net.ip("a"), net.ip("b")), (net.ip6("a"), net.ip6("b"))):
            told = net.run(
                "a", "ssh", "-p", "2222", *options, f"root@{address}", "echo $SSH_CONNECTION"
            ).stdout
            assert told.split()[::2] == [client, address]
        net.run(
            "a",
            "scp",
            "-P",
            "2222",
            *options,
            f"root@{net.ip('b')}:{tmp_path}/data",
            f"{tmp_path}/got",
            timeout=120,
        )
        assert (tmp_path / "got").read_bytes() == data
    finally:
        server.kill()
        server.communicate()


# --- DHCP (RFC 2131): a server and a client of a few lines, on ordinary UDP sockets --------------------------------

MAGIC = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
OFFERED = "10.88.0.200"


def dhcp_message(op: int, transaction: int, mac: bytes, kind: int, given: str = "0.0.0.0") -> bytes:
    head = struct.pack("!BBBBIHH", op, 1, 6, 0, transaction, 0, 0x8000)  # the answer shall be a broadcast
    addresses = bytes(4) + socket.inet_aton(given) + bytes(8)
    return head + addresses + mac.ljust(16, b"\0") + bytes(192) + MAGIC + bytes((53, 1, kind, 255))


def dhcp_kind(message: bytes) -> int:
    assert message[236:240] == MAGIC
    return message[242]


def dhcp_socket(net: Lab, host: str, port: int) -> socket.socket:
    sock = net.socket(host, socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan0")
    sock.bind(("0.0.0.0", port))
    return sock


def serve_dhcp(sock: socket.socket) -> None:
    for _ in range(2):
        asked = sock.recv(2048)
        kind = {DISCOVER: OFFER, REQUEST: ACK}[dhcp_kind(asked)]
        transaction = int.from_bytes(asked[4:8], "big")
        answer = dhcp_message(2, transaction, asked[28:34], kind, OFFERED)
        sock.sendto(answer, ("255.255.255.255", 68))


def test_dhcp(net: Lab) -> None:
    """A host without an address gets one: broadcasts from 0.0.0.0 to 255.255.255.255, both ways."""
    net.run("c", "ip", "addr", "flush", "dev", "lan0", "scope", "global")
    net.run("c", "ip", "route", "add", "default", "dev", "lan0")
    server, client = dhcp_socket(net, "a", 67), dhcp_socket(net, "c", 68)
    thread = threading.Thread(target=serve_dhcp, args=(server,))
    thread.start()
    try:
        for kind, expected in ((DISCOVER, OFFER), (REQUEST, ACK)):
            client.sendto(dhcp_message(1, 0x1234, net.mac("c"), kind), ("255.255.255.255", 67))
            answer = client.recv(2048)
            assert dhcp_kind(answer) == expected
            assert answer[28:34] == net.mac("c")
            assert socket.inet_ntoa(answer[16:20]) == OFFERED
    finally:
        thread.join()
        server.close()
        client.close()
    net.run("c", "ip", "addr", "add", f"{OFFERED}/24", "dev", "lan0")
    assert " 0% packet loss" in net.ping("a", OFFERED)
    net.run("c", "ip", "addr", "add", f"{net.ip('c')}/24", "dev", "lan0")


# --- frames that are nobody's protocol -----------------------------------------------------------------------------


@pytest.mark.requirement("LAN-02")
@pytest.mark.parametrize(
    ("ethertype", "what"),
    [(0x88B5, "an experimental EtherType"), (0x809B, "AppleTalk"), (0x6003, "DECnet"), (None, "802.2 LLC")],
)
def test_any_protocol_byte_for_byte(net: Lab, ethertype: int | None, what: str, seed: int) -> None:
    payload = random.Random(seed).randbytes(301)
    kind = len(payload) + 3 if ethertype is None else ethertype
    inner = (b"\xe0\xe0\x03" if ethertype is None else b"") + payload  # NetWare's 802.2 header
    there = {host: net.packets(host) for host in "bc"}
    with net.packets("a") as here:
        for to, hearers in ((net.mac("b"), "b"), (ALL_ONES, "bc"), (b"\x01\0\x5e\0\0\x77", "bc")):
            sent = frame(to, net.mac("a"), kind, inner)
            here.send(sent)
            for host, sock in there.items():
                if host in hearers:
                    assert take(sock, lambda f, s=sent: f[:6] == s[:6] and f[12:14] == s[12:14]) == sent
                else:
                    assert quiet(sock, lambda f, s=sent: f[:14] == s[:14])
    for sock in there.values():
        sock.close()


@pytest.mark.requirement("LAN-02")
def test_vlan_tags_cross(net: Lab) -> None:
    """By packet sockets: some kernels have no VLAN devices."""
    payload = bytes(range(200))
    with net.packets("a") as here, net.packets("b") as there:
        for tags in (b"\x81\x00\x20\x2a", b"\x88\xa8\x00\x07\x81\x00\x20\x2a"):
            sent = net.mac("b") + net.mac("a") + tags + b"\x88\xb5" + payload
            here.send(sent)
            while True:
                data, tci = tagged(there)
                if tci:
                    break
            assert tci == int.from_bytes(tags[2:4], "big")
            assert data == sent[:12] + sent[16:]  # the kernel shows the outer tag beside the frame


@pytest.mark.requirement("LAN-07")
def test_what_the_filter_lets_through(net: Lab) -> None:
    before = dict(net.counters("a"))
    foreign = net.mac("a")[:4] + b"\x7f\xff"  # a LID that nobody has
    with net.packets("a") as here, net.packets("b") as there:
        here.send(frame(foreign, net.mac("a"), 0x88B5, bytes(50)))
        assert quiet(there, lambda f: f[12:14] == b"\x88\xb5")
    assert net.counters("a")["drop.tx.no_such_lid"] > before.get("drop.tx.no_such_lid", 0)


def test_a_forged_source_goes_nowhere(net: Lab) -> None:
    before = net.counters("a")["drop.tx.forged_source"]
    with net.packets("a") as here, net.packets("b") as there:
        here.send(frame(ALL_ONES, net.mac("c"), 0x88B5, bytes(50)))
        assert quiet(there, lambda f: f[12:14] == b"\x88\xb5")
    eventually(lambda: net.counters("a")["drop.tx.forged_source"] > before, "it is counted")
    assert " 0% packet loss" in net.ping("a", net.ip("c"))


def test_the_interface_is_as_the_card(net: Lab) -> None:
    shown = net.run("a", "ip", "-o", "link", "show", "lan0").stdout
    assert re.search(r"link/ether " + net.mac("a").hex(":"), shown)
    assert "mtu 1500" in shown
