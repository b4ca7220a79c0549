"""Switches and lanes: tables, back pressure, deadlock, quality of service, partitions, limits, broken links."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.core.nets import Net, chain, packet, ring, star
from verbena import _pure, wire
from verbena.errors import InvalidAttributeError
from verbena.fabric.kinds import ReportKind, TraceKind

BOTH = pytest.mark.parametrize("flits", [False, True])


@pytest.mark.requirement("SWR-01")
@BOTH
def test_a_switch_forwards_by_dlid_and_changes_nothing(flits: bool) -> None:
    net = star(8, flits=flits)
    for lid in range(2, 9):
        net.core.inject(net.hosts[0], packet(lid, bytes([lid]) * 300), lid)
    net.core.inject(net.hosts[0], packet(77, b"nobody"))
    found = net.settle()
    for _, port, data, number, handle, tag in found:
        assert port == net.hosts[tag - 1]
        assert data[:-2] == packet(tag, bytes([tag]) * 300)
        assert data[-2:] == wire.vcrc(data[:-2]).to_bytes(2, "big")
        assert (number, handle) == (1, 0)
    assert sorted(d[5] for d in found) == list(range(2, 9))
    assert net.drops(net.switches[0]) == {"drop_lft": 1}
    assert net.balanced()


@pytest.mark.requirement("SWR-02")
@BOTH
@pytest.mark.parametrize("cut_through", [True, False])
def test_cut_through_is_possible(flits: bool, cut_through: bool) -> None:
    net = star(2, flits=flits, switch={"cut_through": cut_through})
    net.core.trace_on(TraceKind.SEND | TraceKind.SENT)
    net.core.inject(net.hosts[0], packet(2, bytes(4096)))
    net.settle()
    trace = net.core.take_trace()
    (first_out,) = [t[0] for t in trace if t[2] == TraceKind.SEND and t[1] == net.cables[1][1]]
    (last_in,) = [t[0] + 100_000 for t in trace if t[2] == TraceKind.SENT and t[1] == net.hosts[0]]
    assert (first_out < last_in) is cut_through


@pytest.mark.requirement("SWR-03")
def test_a_tree_of_a_thousand_endnodes() -> None:
    net = Net()
    top = net.switch()
    for _ in range(25):
        leaf = net.switch()
        net.link(leaf, top)
        for _ in range(40):
            net.host(leaf)
    net.route()
    rng = random.Random(3)
    pairs = [(rng.randrange(1000), rng.randrange(1000)) for _ in range(300)]
    for a, b in pairs:
        assert net.core.inject(net.hosts[a], packet(b + 1), b)
    assert sorted(d[5] for d in net.settle()) == sorted(b for _, b in pairs)


@pytest.mark.requirement("SWR-06")
@pytest.mark.requirement("SWR-07")
@pytest.mark.parametrize("per_input", [False, True])
def test_one_table_or_one_for_each_input(per_input: bool) -> None:
    net = star(4, switch={"per_input": per_input})
    node = net.switches[0]
    if per_input:
        net.core.set_lft(node, 9, bytes([3]), in_port=1)
        net.core.set_lft(node, 9, bytes([4]), in_port=2)
    else:
        net.core.set_lft(node, 9, bytes([3]))
        with pytest.raises(InvalidAttributeError, match="per_input"):
            net.core.set_lft(node, 9, bytes([4]), in_port=2)
    for host in net.hosts[:2]:
        net.core.inject(host, packet(9), host)
    ways = {d[5]: d[1] for d in net.settle()}
    other = net.hosts[3] if per_input else net.hosts[2]
    assert ways == {net.hosts[0]: net.hosts[2], net.hosts[1]: other}


@pytest.mark.requirement("LNK-13")
@BOTH
def test_a_frame_stays_on_its_lane(flits: bool) -> None:
    net = chain([1, 0, 1], flits=flits, lanes=4)
    net.core.set_sl2vl(net.hosts[0], bytes([3, 2, 1, 0] * 4))
    net.core.trace_on(TraceKind.SEND)
    for sl in range(4):
        net.core.inject(net.hosts[0], packet(2, sl=sl), sl)
    found = net.settle()
    assert {d[5]: d[2][0] >> 4 for d in found} == {0: 3, 1: 2, 2: 1, 3: 0}
    trace = net.core.take_trace()
    assert len(trace) == 16
    assert all(len({t[3] for t in trace if t[6] == i}) == 1 for i in {t[6] for t in trace})


@pytest.mark.requirement("LNK-14")
@pytest.mark.requirement("LNK-17")
@BOTH
def test_a_blocked_lane_does_not_stop_another(flits: bool) -> None:
    results = []
    for lanes, stalled in ((2, False), (2, True), (1, True)):
        net = chain([2, 2], flits=flits, lanes=lanes, buffer_bytes=4096)
        net.core.stall(net.hosts[2], stalled)
        net.core.add_source(
            net.hosts[0], mean_gap_ns=200, process="periodic", size=1022, destinations=[(3, 1)]
        )
        net.core.add_source(
            net.hosts[1], mean_gap_ns=200, process="periodic", size=1022, destinations=[(4, 0)]
        )
        net.run(100_000)
        results.append([net.core.port_counters(h)["delivered"] for h in net.hosts[2:]])
    free, two_lanes, one_lane = results
    assert two_lanes[0] == one_lane[0] == 0
    assert two_lanes[1] >= free[1] > 450
    assert one_lane[1] < 20  # the victim of the stalled flow, where they share a lane


@pytest.mark.requirement("LNK-15")
@BOTH
def test_a_reserved_lane_keeps_its_latency(flits: bool) -> None:
    net = star(4, flits=flits, lanes=2)
    for cable in net.cables:
        for port in cable:
            net.core.set_arbitration(port, [(1, 255)], [(0, 255)], 255)
    for host in net.hosts[:2]:  # best effort has no service level that leads to lane 1
        net.core.set_sl2vl(host, bytes([0] + [15] * 15))
        net.core.add_source(host, mean_gap_ns=50, process="periodic", size=4126, destinations=[(4, 0)])
    net.core.inject(net.hosts[0], packet(4, sl=1))
    assert net.core.port_counters(net.hosts[0])["drop_lane"] == 1
    net.run(50_000)
    times = []
    for i in range(20):
        start = net.core.now
        net.core.inject(net.hosts[2], packet(4, bytes(200), sl=1), i)
        (found,) = net.run(start + 5000)
        times.append(found[0] - start)
    empty = 100 + 150 + 100 + 30
    assert max(times) < empty + 2 * (4126 + 52 * 12) * 0.08  # at most what has begun already


def stuck_ring(lanes: int, flits: bool) -> Net:
    """Four switches in a circle, everybody sends to the opposite side, with room for one packet at each input."""
    net, row = ring(4, flits=flits, lanes=lanes, buffer_bytes=1088)
    for i, host in enumerate(net.hosts):
        across = (i + 2) % 4
        # Ways over the seam (from switch 3 to switch 0) begin on lane 1 and stay there.
        level = 1 if lanes == 2 and across < i else 0
        net.core.add_source(
            host,
            mean_gap_ns=20,
            process="periodic",
            size=1022,
            destinations=[(across + 1, level)],
            packets=200,
        )
    net.run(1_000_000)
    del row
    return net


@pytest.mark.requirement("LNK-16")
@BOTH
def test_a_ring_deadlocks_with_one_lane_and_not_with_two(flits: bool) -> None:
    net = stuck_ring(2, flits)
    assert net.core.statistics()["delivered"] == 800
    assert net.core.waiting() == []
    net = stuck_ring(1, flits)
    assert net.core.statistics()["delivered"] < 800
    wants = {port: output for port, _, _, output in net.core.waiting()}
    port = next(iter(p for p in wants if p not in net.hosts))
    cycle = []
    while port not in cycle:  # where it lies -> which output it wants -> the input at the other end
        cycle.append(port)
        port = net.core.peer_of(wants[port])
    assert len(cycle) == 4
    assert net.core.statistics()["inside"] > 0


@pytest.mark.requirement("LNK-19")
@BOTH
def test_contention_is_back_pressure_and_never_loss(flits: bool) -> None:
    net = star(9, flits=flits)
    count = 100 if flits else 500
    for host in net.hosts[:8]:
        net.core.add_source(
            host, mean_gap_ns=100, process="periodic", size=1022, destinations=[(9, 0)], packets=count
        )
    net.settle()
    assert net.core.statistics()["delivered"] == 8 * count
    assert net.core.statistics()["dropped"] == 0
    assert all(net.core.port_counters(host)["xmit_wait_ns"] > 10_000 for host in net.hosts[:8])


def test_lanes_share_by_their_weights() -> None:
    net = star(2, lanes=3, buffer_bytes=65536)
    net.core.set_arbitration(net.hosts[0], [], [(0, 64), (1, 128), (2, 192)], 0)
    for sl in range(3):
        net.core.add_source(
            net.hosts[0], mean_gap_ns=20, process="periodic", size=254, destinations=[(2, sl)]
        )
    net.run(500_000)
    lanes = net.core.port_counters(net.hosts[0])["lanes"]
    total = sum(lanes[v]["xmit_bytes"] for v in range(3))
    # An entry sends whole packets until its weight is used up.
    turns = [-(-weight * 64 // 254) for weight in (64, 128, 192)]
    for v in range(3):
        assert lanes[v]["xmit_bytes"] / total == pytest.approx(turns[v] / sum(turns), rel=0.01)
        assert lanes[v]["xmit_bytes"] / total == pytest.approx((v + 1) / 6, rel=0.05)


@BOTH
def test_multicast_reaches_all_but_its_sender(flits: bool) -> None:
    net = star(5, flits=flits)
    net.core.set_mft(net.switches[0], 0xC005, [1, 2, 4])
    net.core.inject(net.hosts[0], packet(0xC005, b"all"))
    net.core.inject(net.hosts[2], packet(0xC006, b"none"))
    found = net.settle()
    assert sorted(d[1] for d in found) == [net.hosts[1], net.hosts[3]]
    assert net.drops(net.switches[0]) == {"drop_mft": 1}
    assert net.core.occupancy(net.cables[0][1]) == [0, 0]
    assert net.balanced()


@BOTH
@pytest.mark.parametrize("closed", [1, 2, 3])
def test_an_output_that_takes_no_copy_has_dropped_one(flits: bool, closed: int) -> None:
    net = star(4, flits=flits)
    net.core.set_mft(net.switches[0], 0xC005, [1, 2, 3, 4])
    for host in range(1, closed + 1):
        net.core.disconnect(net.cables[host][1])
    before = net.core.statistics()
    net.core.inject(net.hosts[0], packet(0xC005, b"all"))
    found = net.settle()
    after = net.core.statistics()
    assert sorted(d[1] for d in found) == net.hosts[closed + 1 :]
    assert net.drops(net.switches[0]) == {"drop_link_down": closed}
    assert after["dropped"] - before["dropped"] == closed
    assert after["replicated"] - before["replicated"] == 2, "three go out, of which one is the original"
    assert net.balanced()


@BOTH
@pytest.mark.parametrize("way", ["in", "out"])
def test_foreign_partitions_are_dropped_and_reported(flits: bool, way: str) -> None:
    net = star(2, flits=flits)
    port = net.cables[0 if way == "in" else 1][1]
    net.core.set_pkeys(port, [0x8001, 0x0002], way == "in", way == "out")
    for key in (0x8001, 0x0001, 0x8002, 0x0002, 0x8003):
        net.core.inject(net.hosts[0], packet(2, pkey=key), key)
    assert sorted(d[5] for d in net.settle()) == [0x0001, 0x8001, 0x8002]
    assert [r for r in net.core.reports() if r[0] == ReportKind.PKEY_VIOLATION] == [
        (ReportKind.PKEY_VIOLATION, port, key) for key in (0x0002, 0x8003)
    ]
    assert net.drops(net.switches[0]) == {"drop_pkey": 2}


@BOTH
@pytest.mark.parametrize("limit", ["hoq", "lifetime"])
def test_a_head_that_waits_too_long_is_dropped(flits: bool, limit: str) -> None:
    net = star(3, flits=flits, buffer_bytes=1088)
    net.core.stall(net.hosts[1], True)
    if limit == "hoq":
        net.core.set_limits(net.cables[1][1], 5000)
    else:
        net.core.set_lifetime(net.switches[0], 5000)
    for tag in (2, 2, 3):
        net.core.inject(net.hosts[0], packet(tag, bytes(900)), tag)
    (found,) = net.run(100_000)
    assert (found[5], found[1]) == (3, net.hosts[2])
    assert net.drops(net.switches[0]) == {f"drop_{limit}": 1}
    assert net.balanced()


def test_states_let_pass_what_they_should() -> None:
    net = star(2)
    port = net.cables[1][1]
    net.core.set_state(port, 2)
    net.core.inject(net.hosts[0], packet(2))
    smp = packet(2)
    net.core.inject(net.hosts[0], bytes([0xF0 | smp[0]]) + smp[1:], 15)
    (found,) = net.settle()
    assert found[5] == 15
    assert net.drops(net.switches[0]) == {"drop_state": 1}


@BOTH
@settings(max_examples=60 if _pure.compiled() else 5, deadline=None)
@given(data=st.data())
def test_no_packet_is_lost_in_silence_when_links_flap(flits: bool, data: st.DataObject) -> None:
    net = chain([2, 1, 2], flits=flits, lanes=2)
    core: Any = net.core
    for switch in net.switches:
        core.set_lifetime(switch, 20_000)
    for host in net.hosts:
        everywhere = [(lid, lid % 2) for lid in range(1, 6)]
        core.add_source(host, mean_gap_ns=300, size=1022, destinations=everywhere, stop_ns=20_000)
    for _ in range(data.draw(st.integers(1, 6))):
        net.run(core.now + data.draw(st.integers(1, 3000)))
        a, b = data.draw(st.sampled_from(net.cables))
        if core.peer_of(a) < 0:
            core.connect(a, b, 100_000_000_000, 100)
            net.activate()
        elif data.draw(st.booleans()):
            core.disconnect(b)
        else:
            core.set_state(a, 1)
            net.activate()
        assert net.balanced()
    net.settle(50_000_000)
    assert core.statistics()["inside"] == 0
    assert net.balanced()
    for a, b in net.cables:
        assert core.occupancy(a)[:2] == core.occupancy(b)[:2] == [0, 0]


@pytest.mark.parametrize(
    ("flits", "digest"),
    [(False, "65cc9586bf41c8a4"), (True, "301b2da18df71f72")],
)
def test_a_seed_gives_the_same_run_everywhere(flits: bool, digest: str) -> None:
    """The digest was made once; compiled or not, on any machine, it is the same."""
    traces = []
    for _ in range(2):
        net = Net(flits=flits, seed=42)
        a, b = net.switch(), net.switch()
        for node in (a, a, b):
            net.host(node, lanes=2, ber=1e-5 if flits else 0)
        net.link(a, b, lanes=2)
        net.route()
        net.core.trace_on(127)
        for host in net.hosts:
            everywhere = [(1, 0), (2, 1), (3, 0)]
            net.core.add_source(host, mean_gap_ns=400, size=510, destinations=everywhere, packets=30)
        net.settle()
        traces.append(hashlib.sha256(repr(net.core.take_trace()).encode()).hexdigest()[:16])
    assert traces == [digest, digest]
