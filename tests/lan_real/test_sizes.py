"""All sizes of packets against all sizes of frames, and frames that wait for segmentation, up to real interfaces."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from tap_lab import ALL_ONES, Lab, frame, lab, quiet, real_config, star, take
from verbena import _pure
from verbena.lan.host import Host
from verbena.lan.node import LanNode
from verbena.runtime.tap import LARGEST_MTU

pytestmark = [pytest.mark.network("netns", "tap", "raw"), pytest.mark.compiled]
KIND = 0x88B5
SIZES = (60, 61, 255, 256, 257, 1514, 4095, 4096, 4097, 9014, 32_768, 65_534, 65_535)
if not _pure.compiled():
    SIZES = SIZES[:10]  # a large frame in packets of 256 bytes takes long
TCP_BYTES = 4 << 20 if _pure.compiled() else 200 << 10


@pytest.fixture(scope="module", params=[256, 512, 1024, 2048, 4096])
def net(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lab(star("abc"), config=real_config(mtu=LARGEST_MTU), packet=request.param) as made:
        made.ping("a", made.ip("b"))
        yield made


@pytest.mark.requirement("LAN-11", "LAN-12", "LAN-13")
def test_frames_of_all_sizes_by_channel_and_by_datagrams(net: Lab, seed: int) -> None:
    rng = random.Random(seed)
    with net.packets("a") as here, net.packets("b", KIND) as there, net.packets("c", KIND) as also:
        for size in SIZES:
            for to, hearers in ((net.mac("b"), [there]), (ALL_ONES, [there, also])):
                sent = frame(to, net.mac("a"), KIND, rng.randbytes(size - 14))
                here.send(sent)
                for sock in hearers:
                    assert take(sock, lambda f: True) == sent, size
        with pytest.raises(OSError, match="too long"):
            here.send(frame(net.mac("b"), net.mac("a"), KIND, bytes(LARGEST_MTU + 1)))
        runt = frame(net.mac("b"), net.mac("a"), KIND, b"")
        here.send(runt)
        assert take(there, lambda f: True) == runt
        assert quiet(also, lambda f: f[:6] == net.mac("b"), 0.1)
    assert net.counters("a")["tx.fragmented"] > 0
    assert net.counters("a")["posts.channel"] > 0


def test_large_pings(net: Lab) -> None:
    for size in ("60", "1472", *(("20000", "65000") if _pure.compiled() else ())):
        assert " 0% packet loss" in net.ping("a", net.ip("b"), "-s", size)
        assert " 0% packet loss" in net.ping("b", net.ip6("c"), "-s", size)


def exchange(net: Lab, address: str, family: int, seed: int) -> None:
    """Some megabytes by TCP from a to b, and back."""
    data = random.Random(seed).randbytes(TCP_BYTES)
    with net.socket("b", family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        with net.socket("a", family, socket.SOCK_STREAM) as client:
            client.settimeout(60)
            client.connect(listener.getsockname()[:2])
            server, _ = listener.accept()
            with server:
                server.settimeout(60)
                for one, other in ((client, server), (server, client)):
                    for at in range(0, len(data), 100_000):
                        part = data[at : at + 100_000]
                        one.sendall(part)
                        got = b""
                        while len(got) < len(part):
                            got += other.recv(1 << 20)
                        assert got == part


@pytest.mark.parametrize("offloads", ["both", "none", "one"])
@pytest.mark.requirement("LAN-01")
def test_tcp_with_segmentation_left_to_whoever_can(offloads: str, seed: int) -> None:
    """Both hosts' cards take unfinished frames, or none does, or one: then the other's are finished on the way."""
    with lab(star("ab"), "a", config=real_config(offload=offloads != "none")) as net:
        net.lan.config = real_config(offload=offloads == "both")
        net.add("b")
        net.ping("a", net.ip("b"))
        exchange(net, net.ip("b"), socket.AF_INET, seed)
        exchange(net, net.ip6("b"), socket.AF_INET6, seed)
        whole = net.lan.members["b"].interface.counters
        largest = whole["rx.bytes"] / whole["rx.frames"]
        assert (largest > 2000) is (offloads == "both")
        assert (net.counters("a")["tx.finished"] > 0) is (offloads == "one")


def test_a_built_in_host_gets_finished_frames(seed: int) -> None:
    """Checksums that the system has left open are right when the frame reaches a host that does not know offloads."""
    with lab(star("ab"), "a") as net:
        context = net.fabric.open_device("b")
        with LanNode(context, config=real_config(offload=False)) as node:
            assert net.fabric.wait_until(lambda: node.card.link, 20)
            host = Host(node.card, context.adapter.clock, ipv4="10.88.0.9/24", ipv6="fd88::9/64")
            heard: list[bytes] = []
            with context.adapter.engine:
                host.listen(5000, lambda address, port, data: heard.append(data))
            net.ping("a", "10.88.0.9")
            with net.socket("a", socket.AF_INET, socket.SOCK_DGRAM) as sock:
                data = random.Random(seed).randbytes(1000)
                sock.sendto(data, ("10.88.0.9", 5000))
                net.ping("a", "10.88.0.9")
            assert heard == [data]
            assert not [name for name in host.counters if "checksum" in name]
        context.close()
