"""Flit mode: the document's example, bit errors and their repair, credit, lanes that interleave."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from fabric.core.nets import RATE, Net, chain, packet, star
from verbena.fabric.kinds import ReportKind, TraceKind
from verbena.wire.flit import FlitKind, flits_of


def two_switches(**options: Any) -> Net:
    net = Net(flits=True)
    a, b = net.switch(), net.switch()
    net.host(a)
    net.host(b)
    net.link(a, b, **options)
    net.route()
    return net


def exchange(net: Net, requests: list[bytes]) -> list[Any]:
    """Send requests from the first host to the second, which answers each with an ACK packet."""
    core, (one, two) = net.core, net.hosts
    ack = packet(1)
    for request in requests:
        assert core.inject(one, request)
    found = []
    while core.next_time() >= 0:
        core.run(core.next_time())
        for delivery in core.deliveries():
            found.append(delivery)
            if delivery[1] == two:
                core.inject(two, ack)
    return found


@pytest.mark.requirement("LNK-10")
@pytest.mark.requirement("LNK-09")
@pytest.mark.requirement("LNK-05")
def test_the_example_transaction() -> None:
    """Document 003:672-708: two frames of four flits through two switches, and two ACK frames back."""
    net = two_switches()
    net.core.trace_on(TraceKind.FLIT_SENT | TraceKind.FLIT_RECEIVED)
    requests = [packet(2, bytes([i]) * 256) for i in (1, 2)]
    found = exchange(net, requests)
    trace = net.core.take_trace()
    sent = [t for t in trace if t[2] == TraceKind.FLIT_SENT]
    host, far, a_host, b_host, a_b, b_a = 2, 4, 3, 5, 6, 7
    assert (net.hosts, net.cables) == ([host, far], [(host, a_host), (far, b_host), (a_b, b_a)])
    count = Counter((t[1], FlitKind(t[7])) for t in sent)
    data, ack = FlitKind.DATA, FlitKind.ACK
    assert count == {
        **{(p, data): 8 for p in (host, a_b, b_host)},
        **{(p, data): 2 for p in (far, b_a, a_host)},
        **{(p, ack): 1 for p in (host, far, a_host, b_host, a_b, b_a)},
    }
    assert sum(count.values()) == 24 + 3 + 6 + 3
    # Causes precede effects: a flit leaves a switch after it came in, an acknowledgment after what it is for.
    arrival = {
        (t[1], t[6], t[3], t[4]): t[0] for t in trace if t[2] == TraceKind.FLIT_RECEIVED and t[7] == data
    }
    for port, before in ((a_b, a_host), (b_host, b_a)):
        out = [t for t in sent if t[1] == port and t[7] == data]
        into = sorted(v for k, v in arrival.items() if k[0] == before)
        assert all(left[0] >= came for left, came in zip(out, into, strict=True))
    for port in (a_host, b_a, far):
        (when,) = [t[0] for t in sent if t[1] == port and t[7] == ack]
        assert when >= max(v for k, v in arrival.items() if k[0] == port)
    # Flits are each hop's own: numbers begin at 0 on each link; the frames are not touched.
    for port in (host, a_b, b_host):
        assert [t[4] for t in sent if t[1] == port and t[7] == data] == list(range(8))
    assert [d[2][:-2] for d in found if d[1] == far] == requests
    assert [d[2][:-2] for d in found if d[1] == host] == [packet(1)] * 2


@pytest.mark.requirement("LNK-09")
@pytest.mark.parametrize("grh", [False, True])
def test_an_ack_frame_is_one_flit_and_acknowledgments_are_few(grh: bool) -> None:
    size = 8 + 12 + 4 + 4 + 2 + (40 if grh else 0)
    assert len(list(flits_of(bytes(size), 0))) == 1
    net = star(2, flits=True)
    for _ in range(20):
        net.core.inject(net.hosts[0], packet(2, bytes(2048)))
    net.settle()
    sender, receiver = (net.core.port_counters(p) for p in (net.hosts[0], net.cables[0][1]))
    assert 0 < receiver["xmit_acks"] <= sender["xmit_flits"] / 7


@pytest.mark.requirement("LNK-08")
def test_bit_errors_on_one_link_are_repaired_there() -> None:
    net = two_switches(ber=2e-5)
    core = net.core
    payloads = [bytes([i]) * 1024 for i in range(60)]
    for payload in payloads:
        core.inject(net.hosts[0], packet(2, payload))
    found = net.settle()
    assert [d[2][28:-6] for d in found] == payloads
    retries = {port: core.port_counters(port)["flit_retries"] for cable in net.cables for port in cable}
    assert retries.pop(net.cables[2][0]) > 0
    retries.pop(net.cables[2][1])
    assert set(retries.values()) == {0}
    assert core.port_counters(net.cables[2][1])["flit_errors"] > 0
    assert net.balanced()
    assert core.statistics()["dropped"] == 0


@pytest.mark.requirement("LNK-08")
def test_a_link_of_errors_alone_trains_again() -> None:
    net = two_switches(ber=0.05)
    net.core.inject(net.hosts[0], packet(2, bytes(256)))
    net.run(200_000)
    port = net.cables[2][0]
    counters = net.core.port_counters(port)
    assert counters["link_recovered"] >= 1
    assert counters["replays"] >= 4
    assert net.core.port_state(port) == 2
    kinds = [r[0] for r in net.core.reports() if r[1] == port]
    assert kinds[:2] == [ReportKind.LINK_DOWN, ReportKind.LINK_UP]
    assert net.balanced()


@pytest.mark.requirement("LNK-07")
@pytest.mark.parametrize("flits", [False, True])
def test_a_stalled_receiver_stops_the_sender_at_its_credit(flits: bool) -> None:
    size = len(packet(2, bytes(1024))) + 2
    blocks = -(-size // 64)
    net = Net(flits=flits)
    a, b = net.endpoint(buffer_bytes=64 * blocks * 3), net.endpoint(buffer_bytes=64 * blocks * 3)
    net.join(a, b)
    net.route()
    net.core.stall(b, True)
    for i in range(10):
        net.core.inject(a, packet(2, bytes([i]) * 1024))
    assert net.run(100_000) == []
    assert net.core.port_counters(a)["xmit_packets"] == 3
    assert net.core.occupancy(b)[0] == 64 * blocks * 3
    assert net.core.waiting() == [(a, 0, net.core.waiting()[0][2], a)]
    net.core.stall(b, False)
    found = net.run(200_000)
    assert [d[2][28] for d in found] == list(range(10))
    for port in (a, b):
        counters = net.core.port_counters(port)
        assert counters["sent_without_credit"] == counters["buffer_overrun"] == 0
    assert net.core.port_counters(a)["xmit_wait_ns"] > 90_000
    assert net.core.statistics()["dropped"] == 0


def test_lost_credits_heal() -> None:
    """Errors hit ACK, NAK and CREDIT flits, too; with a buffer of one packet each of them is needed."""
    size = len(packet(2, bytes(256))) + 2
    net = Net(flits=True)
    a, b = (net.endpoint(buffer_bytes=64 * -(-size // 64)) for _ in range(2))
    net.join(a, b, RATE, 50, 3e-4)
    net.route()
    for i in range(60):
        net.core.inject(a, packet(2, bytes([i]) * 256))
    found = net.settle()
    assert [d[2][28] for d in found] == list(range(60))
    assert net.core.port_counters(b)["xmit_credits"] > 60


@pytest.mark.requirement("LNK-18")
@pytest.mark.requirement("LNK-14")
def test_lanes_interleave_flit_by_flit_and_frames_of_a_lane_do_not() -> None:
    net = chain([2, 1], flits=True, lanes=3)
    net.core.trace_on(TraceKind.FLIT_SENT)
    for _ in range(5):
        for sl in range(3):
            for host in net.hosts[:2]:
                net.core.inject(host, packet(3, bytes(500), sl=sl))
    assert len(net.settle()) == 30
    trace = [t for t in net.core.take_trace() if t[7] == FlitKind.DATA]
    switched = 0
    for port in {t[1] for t in trace}:
        flits = [t for t in trace if t[1] == port]
        # One lane at a time: a flit begins when the one before it has ended.
        assert all(b[0] >= a[0] + a[5] * 80 for a, b in pairwise(flits))
        switched += sum(a[3] != b[3] for a, b in pairwise(flits))
        for lane in range(3):
            ids = [t[6] for t in flits if t[3] == lane]
            changes = sum(a != b for a, b in pairwise(ids))
            assert changes == len(set(ids)) - 1  # the flits of a frame are contiguous on its lane
    assert switched > 50
    # LNK-13: a frame's lane is the same on all its hops.
    assert all(len({t[3] for t in trace if t[6] == i}) == 1 for i in {t[6] for t in trace})


@pytest.mark.requirement("LNK-12")
def test_the_same_link_over_another_physical_layer() -> None:
    """Two fabrics joined by external ports, their flits carried as bytes; some carriers lose some."""
    sides = []
    for lid in (1, 2):
        net = Net(flits=True, seed=lid)
        port = net.endpoint()
        net.core.set_lids(port, lid, 0)
        net.core.make_external(port, RATE)
        net.core.set_state(port, 4)
        sides.append((net, port))
    (one, a), (two, b) = sides
    for i in range(40):
        assert one.core.inject(a, packet(2, bytes([i]) * 600))
        assert two.core.inject(b, packet(1, bytes([i]) * 600))
    found: dict[int, list[int]] = {1: [], 2: []}
    carried = 0
    for now in range(0, 2_000_000, 500):
        for (source, port), (target, other), key in ((sides[0], sides[1], 2), (sides[1], sides[0], 1)):
            found[3 - key] += [d[2][28] for d in source.run(now)]
            octets = source.core.take_flits(port)
            carried += bool(octets)
            if octets and carried % 7:  # every seventh datagram is lost
                target.core.put_flits(other, octets)
            elif octets and carried % 2:
                target.core.put_flits(other, octets[:-3])
    assert found == {1: list(range(40)), 2: list(range(40))}
    assert one.balanced()
    assert two.balanced()
    assert one.core.port_counters(a)["flit_retries"] > 0


@pytest.mark.requirement("LNK-12")
def test_both_directions_at_full_rate() -> None:
    net = star(2)
    for host, other in zip(net.hosts, (2, 1), strict=True):
        net.core.add_source(host, mean_gap_ns=10, process="periodic", size=4130, destinations=[(other, 0)])
    net.run(1_000_000)
    wire_bytes = 4130 + 12 * 52
    for host in net.hosts:
        assert net.core.port_counters(host)["xmit_packets"] * wire_bytes * 80 >= 995_000_000


def test_hostile_flits_are_counted_and_nothing_else() -> None:
    net = Net(flits=True)
    port = net.endpoint()
    net.core.make_external(port, RATE)
    net.core.set_state(port, 4)
    for octets in (b"", b"\0", b"\xff" * 12, b"\x10\x7f" + bytes(300), bytes(500)):
        net.core.put_flits(port, octets)
        net.run(net.core.now + 1000)
    lying = packet(1, bytes(100))
    lying = lying[:4] + b"\x07\xff" + lying[6:] + b"\0\0"
    flits = list(flits_of(lying, 9))  # of a lane that the port has not
    flits += list(flits_of(lying, 0, len(flits)))
    for flit in flits:
        net.core.put_flits(port, flit.encode())
    assert net.run(100_000) == []
    assert net.core.port_counters(port)["flit_errors"] >= 4
    assert net.core.statistics()["inside"] == 0
    assert net.balanced()
