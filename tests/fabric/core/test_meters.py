"""What is read of a whole fabric at once agrees with what is read port by port, and adds up."""

from __future__ import annotations

from typing import Any

import pytest

from verbena.errors import InvalidAttributeError
from verbena.fabric.core import FabricCore

SIZE = 1050  # LRH to VCRC
WIRE = SIZE + 14 * 12
RATE = 100_000_000_000


def star(hosts: int, **source: Any) -> tuple[Any, list[int], list[int]]:
    """A core with hosts around a switch, whose LIDs count from 1; ports of the hosts, and of the switch."""
    core: Any = FabricCore(5, flits=False)
    switch = core.add_node(1, latency_ns=50)
    ends, inside = [], []
    for lid in range(1, hosts + 1):
        ends.append(core.add_port(core.add_node(0), lanes=2, buffer_bytes=8192))
        inside.append(core.add_port(switch, lanes=2, buffer_bytes=8192))
        core.connect(ends[-1], inside[-1], RATE, 10)
        core.set_lids(ends[-1], lid, 0)
    for port in (*ends, *inside):
        core.set_state(port, 4)
    core.set_lft(switch, 0, bytes([255, *range(1, hosts + 1)]))
    core.reports()
    return core, ends, inside


def test_counters_of_all() -> None:
    core, ends, inside = star(4)
    for port in ends:
        core.add_source(port, mean_gap_ns=200, size=SIZE, destinations=[(n, n % 2) for n in range(1, 5)])
    core.run(20_000)
    for name in ("xmit_packets", "rcv_bytes", "delivered"):
        everybody = core.counter_of_all(name)
        assert [everybody[port] for port in (*ends, *inside)] == [
            core.port_counters(port)[name] for port in (*ends, *inside)
        ]
        assert sum(everybody) > 0
    with pytest.raises(InvalidAttributeError, match="no counter 'xmit'"):
        core.counter_of_all("xmit")


def test_busy_times_are_those_of_the_packets_sent() -> None:
    """In the middle of a packet, its part; at a quiet moment, all packets' whole time; a cut packet's until the cut."""
    core, ends, _ = star(2)
    whole_ps = WIRE * 80
    core.inject_phantom(ends[0], SIZE, 2)
    core.run(30)
    assert core.busy_of_all()[ends[0]] == 30_000
    core.run(1000)
    assert core.busy_of_all()[ends[0]] == whole_ps
    core.inject_phantom(ends[0], SIZE, 2)
    core.run(1040)
    core.disconnect(ends[0])
    core.run(5000)
    assert core.busy_of_all()[ends[0]] == whole_ps + 40_000


def test_buffers_by_lane() -> None:
    """A stalled receiver: its own buffer is full, and behind it the switch's, on that lane only."""
    core, ends, inside = star(2)
    core.stall(ends[1], True)
    for _ in range(40):
        core.inject_phantom(ends[0], SIZE, 2, 1)
    core.run(50_000)
    packet = -(-SIZE // 64) * 64
    assert core.buffered()[:3] == [0, 8192 // packet * packet, 0]
    assert core.buffered()[1] == sum(sum(core.occupancy(port)[:2]) for port in inside)
    assert core.standstill() == []  # it is the receiver's doing, no circle
    core.stall(ends[1], False)
    core.run(200_000)
    assert sum(core.buffered()) == 0


def test_sources_are_balanced_at_any_time() -> None:
    """due = delivered + dropped + inside + unsent, while an overloaded fabric runs; and what was unsent was right: when
    the sources stop, so many packets come."""
    core, ends, _ = star(3)
    for at, process in enumerate(("poisson", "periodic", "bursty")):
        core.add_source(
            ends[at],
            mean_gap_ns=60,
            process=process,
            burst=3 if process == "bursty" else 1,
            size=SIZE,
            destinations=[(1 + (at + 1) % 3, 0), (9, 0)],  # LID 9 is nobody's: dropped
            stop_ns=20_000,
            group=at,
        )
    core.add_trace(ends[0], [(n * 30, 22 + 4 * (n % 5), 2, 1) for n in range(400)], group=2)
    due_at = {}
    for now in (1_000, 5_000, 20_000, 400_000):
        core.run(now)
        found, total = core.source_statistics(), core.statistics()
        made = sum(found["made"])
        assert made == total["offered"]
        assert made == sum(found["delivered"]) + sum(found["dropped"]) + total["inside"]
        due_at[now] = [a + b for a, b in zip(found["made"], found["unsent"], strict=True)]
    assert sum(found["unsent"]) == total["inside"] == 0
    assert due_at[20_000] == due_at[400_000]
    assert sum(due_at[5_000]) > sum(core.source_statistics()["made"]) / 6
    assert min(found["dropped"][:3]) > 0
    for group, sources in ((0, [0]), (1, [1]), (2, [2, 3]), (3, [])):
        counted = sum(number for *_, number in core.group_histogram(group))
        assert counted == sum(found["delivered"][i] for i in sources)
    assert sum(found["latency_sum_ps"]) == core.latency_histogram()["sum_ps"]
    assert max(found["latency_max_ps"]) == core.latency_histogram()["max_ps"]
    core.clear_statistics()
    assert core.group_histogram(0) == []
    assert set(core.source_statistics()["latency_sum_ps"]) == {0}


def test_groups_are_checked() -> None:
    core, ends, _ = star(2)
    with pytest.raises(InvalidAttributeError, match="a group of sources is 4096"):
        core.add_source(ends[0], mean_gap_ns=100, size=SIZE, destinations=[(2, 0)], group=4096)


@pytest.mark.parametrize("voq", [False, True])
def test_a_circle_is_found_and_nothing_else(voq: bool) -> None:
    """Three switches in a ring, everybody to the next but one, room for one packet: it stands, and the circle is told;
    with traffic to the next only, which waits just as long, nothing is."""
    for distance, stuck in ((2, True), (1, False)):
        core: Any = FabricCore(1, flits=False)
        switches = [core.add_node(1, latency_ns=10, voq=voq) for _ in range(4)]
        rooms = {"lanes": 1, "buffer_bytes": 17 * 64}
        ports = [[core.add_port(s, **rooms) for _ in range(3)] for s in switches]
        ends = [core.add_port(core.add_node(0), **rooms) for _ in switches]
        for i, end in enumerate(ends):
            core.connect(end, ports[i][0], RATE, 10)
            core.connect(ports[i][1], ports[(i + 1) % 4][2], RATE, 10)
            core.set_lids(end, i + 1, 0)
            core.set_lft(switches[i], 1, bytes(1 if j == i else 2 for j in range(4)))
        for port in (*ends, *(p for each in ports for p in each)):
            core.set_state(port, 4)
        core.reports()
        for i, end in enumerate(ends):
            to = [((i + distance) % 4 + 1, 0)]
            core.add_source(
                end, mean_gap_ns=50, process="periodic", size=SIZE, destinations=to, stop_ns=50_000
            )
        found = []
        for now in range(1000, 60_000, 1000):
            core.run(now)
            if found := core.standstill():
                break
        assert bool(found) is stuck
        if stuck:
            assert {(port, output) for port, _, output in found} == {(p[2], p[1]) for p in ports}
            before = core.statistics()["delivered"]
            core.run(500_000)
            assert core.statistics()["delivered"] == before  # it was right: nothing moves any more
            assert core.standstill() == found
