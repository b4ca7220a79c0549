"""RoCEv2 senders put UDP checksum 0 over IPv6, too: Linux' Soft-RoCE does, and cards do (annex A17)."""

from __future__ import annotations

import socket
import time

import pytest

import verbena

UDP_NO_CHECK6_TX = 101


@pytest.mark.loopback
def test_packets_without_a_udp_checksum_arrive() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("needs IPv6 on loopback")
        port = probe.getsockname()[1]
    with (
        verbena.open_device("::1", udp_port=port) as ctx,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, 1)
        sender.sendto(b"not a packet", ("::1", port))
        deadline = time.monotonic() + 10
        cq = ctx.create_cq(1)
        while not ctx.counters()["rx.packets"] and time.monotonic() < deadline:
            cq.wait(0.05)
        assert ctx.counters()["rx.packets"] == 1
