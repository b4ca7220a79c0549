"""Directed routes, step by step; and what queue pair 0 makes of packets that nobody should send."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from management.sm_net import Net, redundant_topology
from verbena.management.smi import BY_LID, DISCARD, LOCAL, step
from verbena.wire.smp import Smp, directed_smp, lid_routed_smp, smp_packet


@given(st.lists(st.tuples(st.integers(1, 254), st.integers(1, 254)), max_size=63))
def test_there_and_back_again(hops: list[tuple[int, int]]) -> None:
    """hops: the port by which each node is left, and that by which the next is entered."""
    mad = bytearray(directed_smp(1, 0x11, 0, tuple(out for out, _ in hops)))
    at_port = 0
    for number, (out, into) in enumerate(hops):
        assert step(mad, at_port, is_switch=number > 0) == out
        assert mad[6] == number + 1
        at_port = into
    assert step(mad, at_port, is_switch=False) == LOCAL
    smp = Smp.unpack(mad)
    assert smp.hop_pointer == len(hops) + 1
    assert tuple(smp.return_path[1 : len(hops) + 1]) == tuple(into for _, into in hops)
    mad[3], mad[4] = 0x81, 0x80
    for number, (_, into) in enumerate(reversed(hops)):
        assert step(mad, 0, is_switch=number > 0) == into
    assert step(mad, 1, is_switch=False) == LOCAL
    assert mad[6] == 0


def test_adapters_do_not_forward_and_nobody_else_starts() -> None:
    mad = bytearray(directed_smp(1, 0x11, 0, (1, 2)))
    assert step(bytearray(mad), 3, is_switch=True) == DISCARD  # pointer 0, but it came over a link
    mad[6] = 1
    assert step(bytearray(mad), 3, is_switch=False) == DISCARD
    assert step(bytearray(mad), 3, is_switch=True) == 2
    mad[6] = 4
    assert step(bytearray(mad), 3, is_switch=True) == DISCARD
    mad[6], mad[7] = 1, 64
    assert step(bytearray(mad), 3, is_switch=True) == DISCARD
    back = bytearray(directed_smp(0x81, 0x11, 0, (1, 2)))
    back[4], back[6] = 0x80, 2
    assert step(bytearray(back), 3, is_switch=False) == DISCARD
    assert step(bytearray(back), 3, is_switch=True) == DISCARD  # its return path is empty


def test_routes_that_go_on_by_lid() -> None:
    mad = bytearray(directed_smp(1, 0x11, 0, (1,)))
    mad[6], mad[34:36] = 1, b"\0\5"
    assert step(bytearray(mad), 3, is_switch=True) == BY_LID
    assert step(bytearray(mad), 3, is_switch=False) == DISCARD
    mad[4], mad[32:34] = 0x80, b"\0\5"
    assert step(bytearray(mad), 3, is_switch=True) == BY_LID
    assert step(bytearray(mad), 3, is_switch=False) == DISCARD


@settings(max_examples=300)
@given(st.binary(min_size=256, max_size=256), st.integers(0, 255), st.booleans())
def test_any_bytes(data: bytes, port: int, is_switch: bool) -> None:
    mad = bytearray(data)
    assert -2 <= step(mad, port, is_switch) <= 255
    assert len(mad) == 256


def test_what_is_dropped_is_counted_by_reason() -> None:
    net = Net(redundant_topology())
    interface = net.interfaces["h1"]
    good = smp_packet(lid_routed_smp(1, 0x11, 0), 5, 6)
    damaged = bytearray(good)
    damaged[100] ^= 1
    for packet in (
        b"",
        damaged,
        smp_packet(bytes([1, 7, 1, 1]) + bytes(252), 5, 6),  # another class
        smp_packet(directed_smp(1, 0x11, 0, (1,)), 5, 6),  # a directed route with LIDs around it
        smp_packet(directed_smp(1, 0x11, 0, (1, 2))),  # starts here, says it
        smp_packet(lid_routed_smp(0x81, 0x11, 0), 5, 6),  # an answer that nobody waits for
    ):
        interface.receive(packet, 1)
    assert interface.counters == {
        "drop.length": 1,
        "drop.icrc": 1,
        "drop.class": 1,
        "drop.lid": 1,
        "drop.route": 1,
        "drop.no_manager": 1,
    }
    assert net.agents["h1"].counters["get"] == 0
    interface.receive(good, 1)
    assert net.agents["h1"].counters["get"] == 1
