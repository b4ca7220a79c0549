"""The simulator and the software at its ports: buffers that are kept, queues with room again, sources, odd cables."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fabric.core.nets import RATE, Net, packet, star
from verbena.errors import InvalidAttributeError
from verbena.fabric.kinds import ReportKind, TraceKind

BOTH = pytest.mark.parametrize("flits", [False, True])


def pair(flits: bool, packets: int, payload: int = 1024) -> Net:
    """Two hosts on one cable, with room for so many packets."""
    blocks = -(-(len(packet(2, bytes(payload))) + 2) // 64)
    net = Net(flits=flits)
    net.join(*(net.endpoint(buffer_bytes=64 * blocks * packets) for _ in range(2)))
    net.route()
    return net


@pytest.mark.requirement("LNK-07")
@BOTH
def test_a_packet_that_is_held_keeps_its_place_until_it_is_released(flits: bool) -> None:
    net = pair(flits, 2)
    core, (a, b) = net.core, net.hosts
    core.hold(b, True)
    for tag in range(5):
        core.inject(a, packet(2, bytes(1024)), tag)
    first = net.run(50_000)
    assert [d[5] for d in first] == [0, 1]  # no more than the buffer holds, however long one waits
    assert core.occupancy(b)[0] == 2 * 17 * 64
    handles = [d[4] for d in first]
    assert 0 not in handles
    assert len(set(handles)) == 2
    core.release(handles[1])
    (third,) = net.run(100_000)
    assert third[5] == 2
    assert third[0] > 50_000
    with pytest.raises(InvalidAttributeError, match="handle"):
        core.release(handles[1])
    core.hold(b, False)  # from now on; what is held stays held
    core.release(handles[0])
    assert [d[5] for d in net.run(200_000)] == [3, 4]
    assert core.occupancy(b)[0] == 17 * 64
    core.release(third[4])
    assert core.occupancy(b)[0] == 0
    counters = core.port_counters(a)
    assert counters["sent_without_credit"] == core.port_counters(b)["buffer_overrun"] == 0
    assert net.balanced()


@BOTH
def test_a_full_send_queue_reports_when_it_has_room(flits: bool) -> None:
    net = star(2, flits=flits, lanes=2)
    core, a = net.core, net.hosts[0]
    core.set_send_queue(a, 3)
    taken = 0
    while core.inject(a, packet(2, bytes(512), sl=1), taken):
        taken += 1
    assert taken == 4  # one is on its way out, three wait
    assert not core.room(a, 1)
    assert core.room(a, 0)
    assert core.inject(a, packet(2, sl=0))
    core.run(1_000_000)
    while not (reports := core.reports()):
        core.run(1_000_000)
    assert reports == [(ReportKind.ROOM, a, 1 << 1)]
    assert core.now < 200  # as soon as a packet has left, not when all have
    assert core.room(a, 1)
    assert core.inject(a, packet(2, bytes(512), sl=1), taken)
    net.settle()
    assert core.reports() == []  # nobody was refused since
    assert core.statistics()["delivered"] == 6


@BOTH
def test_a_trace_is_sent_as_it_says(flits: bool) -> None:
    net = star(3, flits=flits)
    core = net.core
    entries = [(1000, 130, 2, 0), (1000, 258, 3, 0), (7000, 514, 2, 0), (60_000, 66, 3, 0)]
    core.trace_on(TraceKind.SEND)
    core.add_trace(net.hosts[0], entries)
    net.settle()
    sent = [t for t in core.take_trace() if t[1] == net.hosts[0]]
    assert [t[5] for t in sent] == [130, 258, 514, 66]
    times = [t[0] for t in sent]
    assert times == [1_000_000, 1_000_000 + (130 + 24) * 80, 7_000_000, 60_000_000]
    assert [core.port_counters(h)["delivered"] for h in net.hosts] == [0, 2, 2]
    for wrong in ([], [(5, 130, 2, 0), (4, 130, 2, 0)], [(5, 131, 2, 0)], [(5, 130, 0, 0)]):
        with pytest.raises(InvalidAttributeError):
            core.add_trace(net.hosts[0], wrong)


def test_a_bursty_source_sends_its_packets_together() -> None:
    net = star(2)
    core, a = net.core, net.hosts[0]
    core.trace_on(TraceKind.SEND)
    gap, burst, size = 2000, 5, 258
    core.add_source(
        a, mean_gap_ns=gap, process="bursty", burst=burst, size=size, destinations=[(2, 0)], packets=5000
    )
    net.settle()
    times = [t[0] for t in core.take_trace() if t[1] == a]
    assert len(times) == 5000
    serial = (size + 12 * 4) * 80
    apart = [after - before for before, after in pairwise(times)]
    inside = [apart[i] for i in range(len(apart)) if i % burst != burst - 1]
    between = apart[burst - 1 :: burst]
    assert set(inside) == {serial}
    mean = sum(between) / len(between) + (burst - 1) * serial
    # 1,000 exponential intervals: the mean's deviation is 3 %; a burst that meets the one before it waits.
    assert mean == pytest.approx(burst * gap * 1000, rel=0.1)


@BOTH
def test_a_cable_between_two_ports_of_one_switch(flits: bool) -> None:
    """A loop: a packet goes round by it once, because the second time it comes in by another port."""
    net = Net(flits=flits)
    node = net.switch(per_input=True)
    net.host(node)
    net.host(node)
    out, back = net.link(node, node)
    net.route()
    core = net.core
    numbers = {port: core.port_number(port) for port in (out, back, net.cables[0][1], net.cables[1][1])}
    for port in numbers:
        to = out if port == net.cables[0][1] else net.cables[1][1]
        core.set_lft(node, 2, bytes([numbers[to]]), in_port=numbers[port])
    core.trace_on(TraceKind.SEND)
    core.inject(net.hosts[0], packet(2, bytes(300)), 9)
    (found,) = net.settle()
    assert (found[1], found[5]) == (net.hosts[1], 9)
    assert [t[1] for t in core.take_trace()] == [net.hosts[0], out, net.cables[1][1]]
    assert core.occupancy(back) == core.occupancy(out) == [0, 0]


@BOTH
def test_a_host_whose_ports_are_connected_with_each_other(flits: bool) -> None:
    net = Net(flits=flits)
    node = net.core.add_node(0)
    ports = [net.core.add_port(node) for _ in range(2)]
    for lid, port in enumerate(ports, 1):
        net.core.set_lids(port, lid, 0)
    net.join(*ports, RATE, 5)
    net.route()
    net.core.inject(ports[0], packet(2, bytes(100)), 1)
    net.core.inject(ports[1], packet(1, bytes(100)), 2)
    assert sorted((d[1], d[5]) for d in net.settle()) == [(ports[0], 2), (ports[1], 1)]
    with pytest.raises(InvalidAttributeError, match="itself"):
        net.core.connect(ports[0], ports[0], RATE, 5)
