"""The whole path from socket to socket: every stage holds back, and where control is off, frames are lost there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.clock import Clock
from verbena.errors import InvalidAttributeError
from verbena.runtime.virtual_time import VirtualTime
from verbena.vswitch.path import FAR, NEAR, LossRow, Path, loss_table
from verbena.vswitch.path_machine import POINTS, PathConfig, datagram
from verbena.vswitch.queue import Item
from verbena.wire.errors import DecodeError
from verbena.wire.vxlan import OVERHEAD, VXLAN_PORT, decapsulate, encapsulate

CONFIG = PathConfig(frames=600)


def run(build: Callable[[Clock], Path]) -> Path:
    time = VirtualTime()
    path = build(time.clock)
    path.start()
    time.run_until_idle()
    return path


@cache
def table() -> list[LossRow]:
    return loss_table(CONFIG, run)


@pytest.mark.requirement("VSW-01", "VSW-16", "VSW-17", "VSW-18", "VSW-21", "VSW-22")
def test_with_all_controls_on_nothing_is_lost_and_the_senders_wait() -> None:
    path = run(lambda clock: Path(clock, CONFIG))
    assert sum(path.losses().values()) == 0
    assert path.received == {n: list(range(600)) for n in (1, 2, 3)}
    assert path.blocked() > 0, "the slow reader is felt in the send call, on the other server"
    for stage in path.machines[0].stages():
        assert stage.counts.dropped == 0
    card = path.machines[0].card
    assert card.counts.stops == card.counts.starts > 0
    assert card.counts.peak_bytes <= card.marks.octets[1] + 1000, "stopped one MTU below the maximum"


@pytest.mark.requirement("VSW-01", "VSW-17", "VSW-22")
@pytest.mark.parametrize("point", POINTS)
def test_without_its_control_a_meeting_point_loses_there_and_nowhere_else(point: str) -> None:
    row = next(row for row in table() if row.off == (point,))
    assert list(row.lost) == [point]
    assert row.sent == row.delivered + row.lost[point]


def test_the_table_of_loss_points() -> None:
    first, *_, last = table()
    assert (first.off, first.lost, first.sent) == ((), {}, first.delivered)
    assert last.off == POINTS
    assert len(last.lost) > 1
    assert last.sent == last.delivered + sum(last.lost.values())
    with pytest.raises(InvalidAttributeError, match="no meeting point"):
        PathConfig(off=frozenset({"the moon"}))


@pytest.mark.requirement("VSW-22")
def test_a_reader_that_sleeps_for_a_second_stops_the_senders_at_the_far_end() -> None:
    time = VirtualTime()
    path = Path(time.clock, PathConfig(machines=2, frames=500, asleep_ns=1_000_000_000))
    path.start()
    time.run_for(900_000_000)
    assert path.delivered == 0
    assert path.sent < 1000
    assert all(machine.stages()[0].stopped() for machine in path.machines), "both senders wait"
    time.run_until_idle()
    assert path.delivered == 1000
    assert path.in_order()
    assert sum(path.losses().values()) == 0


@pytest.mark.requirement("VSW-16")
def test_a_send_on_a_full_socket_says_so_and_takes_nothing() -> None:
    time = VirtualTime()
    path = Path(time.clock, PathConfig(machines=1))
    socket = path.machines[0].applications[0].socket
    item = Item(datagram(1, 9000, 0, 1000), 1000)
    for mover in path.machines[0].movers:
        mover._busy = True  # nothing moves on
    taken = 0
    while socket.send(item):
        taken += 1
    assert taken == len(socket)
    assert not socket.send(item)
    assert len(socket) == taken
    assert socket.counts.dropped == 0


@pytest.mark.requirement("VSW-17")
def test_the_discipline_holds_what_all_sockets_can() -> None:
    config = PathConfig(machines=1, sockets=8, frames=100, read_gap_ns=50_000)
    path = run(lambda clock: Path(clock, config))
    (machine,) = path.machines
    room = sum(application.socket.marks.octets[2] for application in machine.applications)
    assert machine.discipline.marks.octets[2] >= room
    assert machine.discipline.counts.dropped == 0
    assert machine.discipline.counts.peak > 8 * 20
    assert machine.card.counts.stops == machine.card.counts.starts > 0
    assert path.delivered == 800
    assert path.in_order()
    short = run(lambda clock: Path(clock, replace(config, off=frozenset({"queueing discipline"}))))
    assert short.losses()["queueing discipline"] > 0


@pytest.mark.requirement("VSW-18")
def test_the_chain_reaction_from_the_switch_to_the_sender() -> None:
    """The receiver takes nothing: each queue on the way fills and stops the one before it, in this order."""
    time = VirtualTime()
    path = Path(time.clock, PathConfig(machines=1, frames=5000, asleep_ns=10**12))
    machine = path.machines[0]
    stopped: list[str] = []
    for queue in (
        path.socket,
        path.card,
        path.card_rx,
        path.card_tx,
        machine.card,
        machine.discipline,
        machine.stages()[0],
    ):
        before = queue.on_stop
        queue.on_stop = lambda c, q=queue, before=before: (stopped.append(q.name), before(c))  # type: ignore[misc]
    path.start()
    time.run_for(200_000_000)
    firsts = list(dict.fromkeys(stopped))
    order = [
        "socket RX buffer",
        "card RX ring",
        "physical link",
        "physical card TX",
        "card TX ring",
        "send call",
    ]
    assert [name for name in firsts if name in order] == order
    assert machine.blocked > 0


@pytest.mark.requirement("VSW-21")
def test_without_a_socket_for_its_port_a_datagram_is_filtered() -> None:
    time = VirtualTime()
    path = Path(time.clock, PathConfig(machines=1, frames=1))
    path.start()
    path.machines[0].card.arrive(Item(datagram(1, 9999, 7, 200), 200))
    time.run_until_idle()
    assert path.filtered == 1
    assert path.delivered == 1
    assert sum(path.losses().values()) == 0, "that is no loss"


@pytest.mark.requirement("VSW-20")
def test_a_bad_outer_header_is_counted_and_not_delivered() -> None:
    time = VirtualTime()
    path = Path(time.clock, PathConfig(machines=1, frames=3))
    path.start()
    inner = datagram(1, 9000, 99, 300)
    good = encapsulate(inner, 0x2A, NEAR, FAR)
    other_network = encapsulate(inner, 0x2B, NEAR, FAR)
    for bad in (good[:20], good[:-1], good[:24] + b"\x00\x00" + good[26:], other_network):
        path.card_rx.arrive(Item(bad, len(bad)))
    time.run_until_idle()
    assert path.bad_outer == 4
    assert path.received[1] == [0, 1, 2]


# --- VXLAN --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("VSW-20")
@given(st.binary(min_size=14, max_size=1514), st.integers(0, (1 << 24) - 1), st.integers(0, 7))
def test_the_inner_frame_arrives_as_it_was(inner: bytes, vni: int, priority: int) -> None:
    outer = encapsulate(inner, vni, NEAR, FAR, priority)
    assert len(outer) == len(inner) + OVERHEAD + (4 if priority else 0)
    assert decapsulate(outer, FAR) == (vni, inner)
    with pytest.raises(DecodeError):
        decapsulate(outer, NEAR)


@given(st.binary(max_size=120), st.integers(0, 63))
def test_no_bytes_break_the_bridge(data: bytes, at: int) -> None:
    good = encapsulate(bytes(60), 1, NEAR, FAR)
    damaged = good[:at] + data + good[at + len(data) :]
    for frame in (data, damaged):
        try:
            decapsulate(frame, FAR)
        except DecodeError:
            continue


def test_a_vxlan_frame_byte_by_byte() -> None:
    """RFC 7348, 5: UDP port 4789, checksum zero, flags 08, the identifier in bytes 4 to 6."""
    outer = encapsulate(bytes(range(14)), 0x123456, NEAR, FAR)
    assert outer[12:14] == b"\x08\x00"
    assert outer[23] == 17
    assert int.from_bytes(outer[36:38], "big") == VXLAN_PORT
    assert outer[40:42] == b"\0\0"
    assert outer[42:50].hex() == "0800000012345600"
    assert outer[50:] == bytes(range(14))
