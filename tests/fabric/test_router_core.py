"""A router on the simulated fabric: credits hold its senders back, nothing is lost, lanes do not stop one another."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.routers import A, B, gid, native
from verbena.fabric.core import FabricCore
from verbena.fabric.router import Hop, Router, RouterAttachment, RouterPort
from verbena.runtime.virtual import VirtualClock
from verbena.wire import decode_infiniband

ACTIVE = 4
HOST_A, HOST_B = gid(A, 0xA), gid(B, 0xB)


class Fabric:
    """host A - router - host B, with buffers of a few packets; the router asks nobody for lanes but SL 0 and 1."""

    def __init__(self, lanes: int = 2, buffer_bytes: int = 1024, seed: int = 1, flits: bool = False) -> None:
        self.core = core = FabricCore(seed=seed, flits=flits)
        nodes = [core.add_node(0) for _ in range(3)]
        self.a, self.r1, self.r2, self.b = (
            core.add_port(nodes[i], lanes=lanes, buffer_bytes=buffer_bytes, mtu=1024) for i in (0, 1, 1, 2)
        )
        core.connect(self.a, self.r1, 100_000_000_000, 100)
        core.connect(self.r2, self.b, 25_000_000_000, 100)
        for port, lid in ((self.a, 10), (self.r1, 1), (self.r2, 1), (self.b, 11)):
            core.set_lids(port, lid, 0)
            core.set_send_queue(port, 4)
            for state in (2, 3, ACTIVE):
                core.set_state(port, state)
        self.link = RouterAttachment(core, {1: self.r1, 2: self.r2})
        self.sl = {HOST_B: 0, gid(B, 0xC): 1}
        self.router = self.link.router = Router(
            "r",
            [
                RouterPort(
                    n,
                    0x100 + n,
                    prefix,
                    lid=1,
                    mtu=1024,
                    active=True,
                    sl2vl=bytes([0, lanes - 1] + [15] * 14),
                )
                for n, prefix in ((1, A), (2, B))
            ],
            clock=VirtualClock(),
            resolve=lambda port, target: Hop(11, self.sl.get(target, 0)),
            output=self.link.output,
            release=self.link.release,
        )
        self.got: list[bytes] = []
        self.handles: list[tuple[int, int]] = []

    def run(self, duration_ns: int = 1_000_000) -> None:
        end = self.core.now + duration_ns
        while self.core.now < end:
            self.core.run(end)
            for _, port, packet, _, handle, _ in self.core.deliveries():
                if not self.link.deliver(port, packet, handle):
                    self.got.append(packet)
                    self.handles.append((packet[0] >> 4, handle))
            for kind, port, detail in self.core.reports():
                self.link.report(kind, port, detail)

    def offer(self, packets: list[bytes]) -> int:
        """As many as A's send queue takes now."""
        for n, packet in enumerate(packets):
            if not self.core.inject(self.a, packet):
                return n
        return len(packets)

    def check(self) -> None:
        c = self.router.counters
        assert c["received"] == c["sent"] + self.router.dropped + self.router.waiting
        for port in (self.a, self.r1, self.r2, self.b):
            counters = self.core.port_counters(port)
            assert not any(n for name, n in counters.items() if name.startswith("drop") and n), counters


def numbered(n: int, target: bytes = HOST_B, size: int = 500, sl: int = 0) -> bytes:
    return native(HOST_A, target, n.to_bytes(4, "big") + bytes(size), sl=sl)


@pytest.mark.requirement("SWR-04")
@pytest.mark.parametrize("flits", [False, True])
def test_packets_cross_and_are_changed_where_they_must(flits: bool) -> None:
    fabric = Fabric(flits=flits)
    before = numbered(1)
    assert fabric.core.inject(fabric.a, before)
    fabric.run()
    (after,) = fabric.got
    packet = decode_infiniband(after)
    assert packet.vcrc_ok
    assert packet.icrc_ok
    assert packet.encode()[16:-2] == before[16:], "from the source GID on, the same bits"
    assert (packet.lrh.slid, packet.lrh.dlid, packet.grh.hop_limit) == (1, 11, 63)
    fabric.check()


@pytest.mark.requirement("SWR-04")
def test_a_receiver_that_takes_nothing_holds_back_the_sender_in_the_other_subnet() -> None:
    fabric = Fabric()
    fabric.core.stall(fabric.b, True)
    packets = [numbered(i) for i in range(60)]
    left = packets[fabric.offer(packets) :]
    for _ in range(20):
        fabric.run(100_000)
        left = left[fabric.offer(left) :]
    assert fabric.got == []
    assert len(left) > 40, "buffers and queues on the way are full, and A is told so"
    assert fabric.router.waiting > 0
    fabric.check()
    fabric.core.stall(fabric.b, False)
    for _ in range(200):
        fabric.run(10_000)
        left = left[fabric.offer(left) :]
    numbers = [int.from_bytes(decode_infiniband(p).transport.payload[:4], "big") for p in fabric.got]
    assert numbers == list(range(60)), "all, and in order"
    assert fabric.router.waiting == 0
    fabric.check()


@pytest.mark.requirement("SWR-04")
def test_a_lane_that_is_held_up_behind_the_router_does_not_stop_the_other() -> None:
    fabric = Fabric()
    fabric.core.hold(fabric.b, True)
    slow = [numbered(i, HOST_B, sl=0) for i in range(30)]
    fast = [numbered(100 + i, gid(B, 0xC), sl=1) for i in range(30)]
    for _ in range(200):
        slow, fast = slow[fabric.offer(slow) :], fast[fabric.offer(fast) :]
        fabric.run(10_000)
        for lane, handle in fabric.handles:
            if lane == 1:
                fabric.core.release(handle)
        fabric.handles = [h for h in fabric.handles if h[0] == 0]
    lanes = [p[0] >> 4 for p in fabric.got]
    assert lanes.count(1) == 30, "the fast lane is through"
    assert lanes.count(0) < 5
    assert slow
    fabric.check()


@given(st.integers(0, 2**32), st.integers(1, 2), st.sampled_from([1024, 4096]))
@settings(max_examples=15, deadline=None)
def test_whatever_the_receiver_does_every_packet_arrives_once(
    seed: int, lanes: int, buffer_bytes: int
) -> None:
    random = Random(seed)
    fabric = Fabric(lanes, buffer_bytes, seed)
    packets = [
        numbered(i, random.choice([HOST_B, gid(B, 0xC)]), random.choice([0, 4, 300, 900])) for i in range(80)
    ]
    for _ in range(60):
        fabric.core.stall(fabric.b, random.random() < 0.5)
        packets = packets[fabric.offer(packets) :]
        fabric.run(random.randrange(1, 3000))
        fabric.check()
    fabric.core.stall(fabric.b, False)
    while packets:
        packets = packets[fabric.offer(packets) :]
        fabric.run(10_000)
    fabric.run()
    numbers = [int.from_bytes(decode_infiniband(p).transport.payload[:4], "big") for p in fabric.got]
    assert sorted(numbers) == list(range(80))
    fabric.check()
