"""Virtual time: the event queue, links with rates and delays, adapters that come and go."""

from __future__ import annotations

import pytest

from lab import RC, Lab, drops, take, write
from verbena import DeadlockError, InvalidAttributeError, SystemLimitError, VirtualNetwork
from verbena.runtime.virtual import HEADERS
from verbena.runtime.virtual_time import VirtualClock


def test_events_happen_in_order_and_those_of_one_time_as_asked() -> None:
    clock, seen = VirtualClock(), []
    for name, when in (("c", 20), ("a", 10), ("b", 10), ("d", 20)):
        clock.call_at(when, lambda name=name: seen.append((clock.now(), name)))
    cancelled = clock.call_at(15, lambda: seen.append((clock.now(), "never")))
    cancelled.cancel()
    while clock.step():
        pass
    cancelled.cancel()
    assert seen == [(10, "a"), (10, "b"), (20, "c"), (20, "d")]
    clock.call_at(5, lambda: seen.append((clock.now(), "late")))
    assert clock.step()
    assert seen[-1] == (20, "late"), "time does not go back"
    assert not clock.step()


@pytest.mark.parametrize(("rate_bps", "delay_ns"), [(1e9, 0), (100e9, 1000), (0, 700), (10e6, 10)])
def test_a_packet_takes_its_time(rate_bps: float, delay_ns: int) -> None:
    lab = Lab(rate_bps=rate_bps, delay_ns=delay_ns)
    a, b = lab.pair(timeout=0)
    a.qp.post_send(write(a, b, 1000, 1))
    take(a.cq, 1)
    there, back = (len(tap.out[0].data) for tap in lab.taps)
    bits = [8 * (n + HEADERS) for n in (there, back)]
    want = sum(round(n * 1e9 / rate_bps) if rate_bps else 0 for n in bits) + 2 * delay_ns
    assert lab.net.now == want


def test_a_slow_link_is_used_in_turns() -> None:
    """Two queue pairs with much to send share the link's time."""
    lab = Lab(rate_bps=1e9)
    a, b = lab.pair(mtu=1024)
    c, d = lab.pair(mtu=1024)
    a.qp.post_send_many([write(a, b, 60_000, i) for i in range(5)])
    c.qp.post_send_many([write(c, d, 60_000, i) for i in range(5)])
    lab.net.run_for(2_000_000)
    counts = [sum(p.qpn == qp.qp_num for p in lab.taps[0].requests()) for qp in (b.qp, d.qp)]
    assert min(counts) > 0.7 * max(counts)
    lab.settle()
    lab.check_laws()


def test_time_passes_as_far_as_asked() -> None:
    net = VirtualNetwork()
    net.run_for(123)
    assert net.now == 123
    net.run_until_idle()
    assert net.now == 123
    net.clock.call_at(500, lambda: None)
    net.run_for(100)
    assert net.now == 223
    net.run_until_idle()
    assert net.now == 500

    def again() -> None:
        net.clock.call_at(net.now + 1, again)

    again()
    with pytest.raises(DeadlockError, match="100 events happened"):
        net.run_until_idle(100)


def test_what_a_network_refuses() -> None:
    net = VirtualNetwork()
    ctx = net.open_device("10.0.0.1")
    with pytest.raises(SystemLimitError, match=r"address in use: 10\.0\.0\.1"):
        net.open_device("10.0.0.1")
    with pytest.raises(InvalidAttributeError, match="mtu = 1500"):
        net.open_device("10.0.0.2", mtu=1500)
    with pytest.raises(InvalidAttributeError, match="is no IP address"):
        net.open_device("ten")
    for wrong in ({"delay_ns": -1}, {"rate_bps": -1.0}):
        with pytest.raises(InvalidAttributeError):
            VirtualNetwork(**wrong)
    ctx.close()
    net.open_device("10.0.0.1").close()


def test_a_peer_that_is_gone() -> None:
    """What is sent to an address where nobody is, is counted, and the retries end."""
    lab = Lab()
    a, b = lab.pair(timeout=4, retry_cnt=2)
    b.ctx.close()
    a.qp.post_send(write(a, b, 10, 1))
    assert [e.status.name for e in take(a.cq, 1)] == ["RETRY_EXC_ERR"]
    assert lab.net.wires[a.ctx.query_gid().raw].unreachable == 3


def test_a_peer_that_closed_its_queue_pair() -> None:
    lab = Lab()
    a, b = lab.pair(timeout=4, retry_cnt=2)
    b.qp.close()
    a.qp.post_send(write(a, b, 10, 1))
    assert [e.status.name for e in take(a.cq, 1)] == ["RETRY_EXC_ERR"]
    assert drops(b.ctx) == {"drop.no_qp": 3}
    lab.check_laws()


def test_a_thousand_queue_pairs() -> None:
    lab = Lab(record=False)
    ends = [
        lab.pair(RC, memory=8, sizes={"max_send_wr": 2, "max_recv_wr": 1}, timeout=16) for _ in range(300)
    ]
    for i, (a, b) in enumerate(ends):
        a.mr.buf[:] = i.to_bytes(8, "big")
        a.qp.post_send(write(a, b, 8, i))
    lab.settle()
    for i, (a, b) in enumerate(ends):
        assert [e.wr_id for e in a.cq.poll()] == [i]
        assert int.from_bytes(b.mr.buf, "big") == i
    lab.check_laws()
