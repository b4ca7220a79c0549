"""An overlay between two switches: credits end to end, what is lost on the way, forged and broken datagrams."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.processes import two_addresses
from verbena import _pure
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.overlay_credits import CreditLedger
from verbena.runtime.overlay_port import OverlayPort
from verbena.runtime.udp_socket import udp_text
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.scenario.vswitch_ports import LiveModel, live_problems, udp_address
from verbena.vswitch.config import PortConfig
from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.overlay import CLASSES, SIZE, OverlayCredits, is_credits
from verbena.wire.vxlan import VxlanHeader
from vswitch.lab import frame, number_of
from vswitch.real_lab import SMALL, card, eventually, numbers

PORT = 4789
VNI = 77
counts = st.tuples(*[st.integers(0, (1 << 64) - 1)] * CLASSES)


# --- the message ----------------------------------------------------------------------------------------------------


@given(st.integers(1, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), counts, counts)
def test_credits_survive_the_wire(
    session: int, echo: int, sent: tuple[int, ...], limit: tuple[int, ...]
) -> None:
    message = OverlayCredits(session, echo, sent, limit)
    assert OverlayCredits.unpack(message.pack()) == message
    assert is_credits(message.pack())


@given(st.binary(max_size=200))
def test_other_frames_are_no_credits(data: bytes) -> None:
    assert not is_credits(frame(1, 2, 3) + data)
    with pytest.raises(DecodeError):
        OverlayCredits.unpack(data)


def test_credits_that_are_wrong() -> None:
    good = OverlayCredits(1, 0, (0,) * 8, (0,) * 8).pack()
    for bad in (good[: SIZE - 1], good[:18] + b"\2" + good[19:], good[:22] + bytes(4) + good[26:]):
        with pytest.raises(DecodeError):
            OverlayCredits.unpack(bad)
    for session, sent in ((0, (0,) * 8), (1, (0,) * 7), (1, (1 << 64,) * 8)):
        with pytest.raises(EncodeError):
            OverlayCredits(session, 0, sent, (0,) * 8).pack()


# --- both ends, without sockets -------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 32), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5]))
def test_never_more_than_the_window_waits_and_losses_are_found(seed: int, window: int, loss: float) -> None:
    """A network that loses data and messages, but keeps their order, as one path does."""
    chance = random.Random(seed)
    ends = CreditLedger(11, window), CreditLedger(22, window)
    ways: tuple[deque[object], deque[object]] = (deque(), deque())
    waiting = [0, 0]
    arrived, lost = [0, 0], [0, 0]
    for step in range(400):
        me = chance.randrange(2)
        ledger, out, back = ends[me], ways[me], ways[1 - me]
        action = chance.randrange(4)
        if action == 0 and ledger.may_send(0):
            ledger.send(0)
            if chance.random() < loss:
                lost[me] += 1
            else:
                out.append(step)
        elif action == 1:
            message = ledger.say()
            if chance.random() >= loss:
                out.append(message)
        elif action == 2 and back:
            thing = back.popleft()
            if isinstance(thing, OverlayCredits):
                ledger.hear(thing)
            else:
                assert ledger.receive(0), "what was granted has room"
                waiting[me] += 1
                arrived[1 - me] += 1
                assert waiting[me] <= window
        elif action == 3 and waiting[me]:
            ledger.take(0)
            waiting[me] -= 1
    for me in (0, 1):
        for thing in ways[1 - me]:
            if isinstance(thing, OverlayCredits):
                ends[me].hear(thing)
            else:
                assert ends[me].receive(0)
                arrived[1 - me] += 1
                waiting[me] += 1
        ways[1 - me].clear()
        for _ in range(waiting[me]):
            ends[me].take(0)
    for _ in range(2):  # the last word: sessions, then limits
        for me in (0, 1):
            ends[me].hear(ends[1 - me].say())
    for me in (0, 1):
        assert ends[me].lost == lost[1 - me]
        assert arrived[me] + lost[me] == ends[me].sent[0]
        assert ends[me].limit[0] == ends[me].sent[0] + window, "in the end all of the window is free again"


def test_nothing_may_be_sent_before_the_peer_was_heard_nor_by_an_old_grant() -> None:
    ledger = CreditLedger(5, 4)
    assert ledger.closed == 0xFF
    assert not ledger.receive(0), "nobody was granted anything"
    assert ledger.hear(OverlayCredits(9, 4, (0,) * 8, (100,) * 8)), "a grant for another session: answer it"
    assert ledger.closed == 0xFF
    ledger.hear(OverlayCredits(9, 5, (0,) * 8, (0, 2, *(0,) * 6)))
    assert ledger.closed == 0xFF & ~2
    ledger.hear(OverlayCredits(9, 5, (0,) * 8, (0, 1, *(0,) * 6)))
    assert ledger.limit[1] == 2, "grants that were overtaken take nothing back"
    for session, window in ((0, 1), (1 << 32, 1), (1, 0)):
        with pytest.raises(InvalidAttributeError):
            CreditLedger(session, window)


def test_a_late_datagram_makes_up_for_the_one_that_was_counted_lost() -> None:
    ledger = CreditLedger(5, 4)
    ledger.hear(OverlayCredits(9, 5, (0,) * 8, (0,) * 8))
    ledger.hear(OverlayCredits(9, 5, (1, *(0,) * 7), (0,) * 8))
    assert ledger.lost == 1
    assert ledger.receive(0)
    ledger.take(0)
    ledger.hear(OverlayCredits(9, 5, (1, *(0,) * 7), (0,) * 8))
    assert ledger.lost == 0
    assert ledger.say().limit[0] == 5


# --- two switches ---------------------------------------------------------------------------------------------------


def overlay(loop: SwitchLoop, local: str, peer: str, vni: int = VNI) -> OverlayPort:
    driver = OverlayPort((local, PORT), (peer, PORT), vni=vni)
    loop.add(driver, PortConfig("far", input=SMALL, output=SMALL), physical=True)
    return driver


@contextmanager
def two_hosts() -> Iterator[tuple[SwitchLoop, SwitchLoop, OverlayPort, OverlayPort]]:
    one, two = two_addresses()
    with SwitchLoop() as here, SwitchLoop() as there:
        yield here, there, overlay(here, one, two), overlay(there, two, one)


@pytest.mark.loopback
@pytest.mark.requirement("VSW-13", "VSW-20")
def test_a_reader_that_sleeps_stops_the_sender_on_the_other_host() -> None:
    total = 4000 if _pure.compiled() else 1500
    with two_hosts() as (here, there, near, far):
        sender, other = card(here, "sender", 1), card(here, "other", 3)
        reader, quick = card(there, "reader", 2), card(there, "quick", 4)
        batch = [frame(1, 2, n, 200) for n in range(total)]
        sent = sender.send_all(batch, timeout=1.0)
        assert sent < total, "rings, queues and the window are full"
        assert sent > 20
        window = near.ledger.window
        assert far.counters()["waiting_frames"] <= window
        rest = threading.Thread(target=lambda: sender.send_all(batch[sent:], timeout=60))
        rest.start()
        assert numbers(reader, total) == list(range(total)), "all of them, in order"
        rest.join(60)
        assert here.switch.losses() == there.switch.losses() == {}
        assert far.ledger.lost == 0
        other.send(frame(3, 4, 9, 60))
        assert numbers(quick, 1) == [9]
        quick.send(frame(4, 3, 8, 60))
        assert number_of(wait(other)) == 8, "and back"
        for each in (sender, other, reader, quick):
            each.close()


def wait(made: object) -> bytes:
    from verbena.runtime.shm_port import VirtualCard

    assert isinstance(made, VirtualCard)
    assert made.wait_frames(30)
    return made.receive() or b""


@pytest.mark.loopback
@pytest.mark.requirement("VSW-15")
def test_a_stopped_class_stops_no_other_on_the_overlay() -> None:
    with two_hosts() as (here, there, near, _):
        with here._locked() as switch:
            switch.set_lossless(frozenset({0, 5}))
        with there._locked() as switch:
            switch.set_lossless(frozenset({0, 5}))
        eventually(lambda: near.ledger.closed == 0, "credits for all classes come")
        sender = card(here, "sender", 1)
        reader = card(there, "reader", 2)
        with there._locked() as switch:
            switch.ports["reader"].pause(1 << 5)
        five = [frame(1, 2, n, 60, priority=5) for n in range(near.ledger.window + 200)]
        stopped = sender.send_all(five, timeout=0.5)
        assert stopped < len(five)
        # In its own card the class blocks; another machine's of another class goes on.
        other = card(here, "other", 3)
        other.send_all([frame(3, 2, n, 60) for n in range(50)], timeout=10)
        assert numbers(reader, 50) == list(range(50))
        with there._locked() as switch:
            switch.ports["reader"].pause(0)
        assert numbers(reader, stopped) == list(range(stopped))
        for each in (sender, reader, other):
            each.close()


@pytest.mark.loopback
def test_what_the_network_loses_is_counted_and_its_room_comes_back() -> None:
    with two_hosts() as (here, there, near, far):
        eventually(lambda: near.ledger.closed == 0, "credits come")
        sender, reader = card(here, "sender", 1), card(there, "reader", 2)
        with here._locked():
            real = near._transmit
            dropped = 0

            def lossy(inner: bytes) -> int:
                nonlocal dropped
                if not is_credits(inner) and number_of(inner) % 3 == 0:
                    dropped += 1
                    return 0
                return real(inner)

            near._transmit = lossy  # type: ignore[method-assign]
        total = 3 * near.ledger.window
        threading.Thread(
            target=lambda: sender.send_all([frame(1, 2, n, 60) for n in range(total)], timeout=60),
            daemon=True,
        ).start()
        expected = [n for n in range(total) if n % 3]
        assert numbers(reader, len(expected)) == expected
        eventually(lambda: far.ledger.lost == dropped == total // 3, "all losses are found")
        assert far.counters()["lost_on_the_way"] == total // 3
        sender.close()
        reader.close()


@pytest.mark.loopback
@pytest.mark.requirement("VSW-20")
def test_datagrams_that_are_forged_or_broken_are_counted_and_not_delivered() -> None:
    with two_hosts() as (here, there, near, far):
        reader, sender = card(there, "reader", 2), card(here, "sender", 1)
        eventually(lambda: near.ledger.closed == 0, "credits come")
        stranger, _ = two_addresses()
        good = VxlanHeader(vni=VNI).pack()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
            foreign.bind((stranger, 0))
            foreign.sendto(good + frame(1, 2, 1), far.local)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind((near.local[0], 0))  # another port of the right address, as RFC 7348 has it
            for datagram in (
                b"",
                b"\x08",
                good,
                good + bytes(13),
                VxlanHeader(instance=False, vni=VNI).pack() + frame(1, 2, 1),
                VxlanHeader(vni=VNI + 1).pack() + frame(1, 2, 1),
                good + OverlayCredits(1, 0, (0,) * 8, (0,) * 8).pack()[:-1],
            ):
                peer.sendto(datagram, far.local)
        told = eventually(
            lambda: (c := far.counters()).get("malformed", 0) >= 6 and c, "all of them are counted"
        )
        assert (told["foreign"], told["malformed"], told["other_vni"]) == (1, 6, 1)
        sender.send(frame(1, 2, 42))
        assert numbers(reader, 1) == [42]
        sender.close()
        reader.close()


@pytest.mark.loopback
def test_a_peer_that_was_restarted_is_known_again() -> None:
    one, two = two_addresses()
    with SwitchLoop() as here:
        near = overlay(here, one, two)
        sender = card(here, "sender", 1)
        for start in (0, 1000):
            session = near.ledger.peer
            with SwitchLoop() as there:
                overlay(there, two, one)
                reader = card(there, "reader", 2)
                eventually(lambda: near.ledger.peer not in (0, session), "it is heard")  # noqa: B023
                eventually(lambda: near.ledger.closed == 0, "credits come")
                sender.send_all([frame(1, 2, start + n, 60) for n in range(100)], timeout=30)
                assert numbers(reader, 100) == list(range(start, start + 100))
                reader.close()
        sender.close()


@pytest.mark.loopback
@pytest.mark.requirement("VSW-20")
@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
def test_an_overlay_over_ipv6() -> None:
    """Two hosts with one address, ::1, and ports of their own; a slow reader stops the far sender, nothing is lost."""
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(2):
            probe = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            try:
                probe.bind(("::1", 0))
            except OSError as error:
                pytest.skip(f"there is no ::1: {error}")
            ends.append(("::1", probe.getsockname()[1]))
    one, two = ends
    with SwitchLoop() as here, SwitchLoop() as there:
        for loop, local, peer in ((here, one, two), (there, two, one)):
            loop.add(
                OverlayPort(local, peer, vni=VNI),
                PortConfig("far", (), input=SMALL, output=SMALL),
                physical=True,
            )
        near, far = here.drivers["far"], there.drivers["far"]
        assert isinstance(near, OverlayPort)
        assert isinstance(far, OverlayPort)
        reader, sender = card(there, "reader", 2), card(here, "sender", 1)
        total = 3 * near.ledger.window
        threading.Thread(
            target=lambda: sender.send_all([frame(1, 2, n, 60) for n in range(total)], timeout=60),
            daemon=True,
        ).start()
        eventually(lambda: near.ledger.closed & 1, "the grants end while nobody reads")
        assert numbers(reader, total) == list(range(total))
        assert far.counters()["lost_on_the_way"] == far.counters().get("foreign", 0) == 0
        assert udp_text(near.local) == f"[::1]:{one[1]}"
        sender.close()
        reader.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", PORT)),
        ("192.0.2.1:99", ("192.0.2.1", 99)),
        ("2001:DB8:0::1", ("2001:db8::1", PORT)),
        ("[2001:db8::1]", ("2001:db8::1", PORT)),
        ("[2001:db8::1]:99", ("2001:db8::1", 99)),
    ],
)
def test_addresses_as_they_are_written(text: str, address: tuple[str, int]) -> None:
    assert udp_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "[192.0.2.1",
        "[192.0.2.1.9]:1",
        "2001:db8::1:2:3:4:5:6:7",
    ],
)
def test_what_is_no_address_of_an_overlay(text: str) -> None:
    with pytest.raises(InvalidAttributeError, match="no address of an overlay"):
        udp_address(text)


def test_a_file_whose_overlay_has_addresses_of_two_kinds() -> None:
    port = {"name": "far", "kind": "overlay", "local": "192.0.2.1", "peer": "2001:db8::2", "vni": VNI}
    (problem,) = live_problems("s", LiveModel.model_validate({"ports": [port]}))
    assert problem == (
        ("vswitch", "live", "ports", 0),
        "192.0.2.1 and 2001:db8::2: both are IPv4 addresses, or both IPv6 ones",
    )
    port["local"] = "[2001:db8::1]:8472"
    live = LiveModel.model_validate({"ports": [port]})
    assert list(live_problems("s", live)) == []
    assert live.ports[0].place("s").where == "[2001:db8::1]:8472 to [2001:db8::2]:4789, VNI 77"


def test_addresses_that_cannot_be_had() -> None:
    with pytest.raises(InvalidAttributeError, match="both are IPv4"):
        OverlayPort(("127.0.0.1", PORT), ("::1", PORT), vni=1)
    with pytest.raises(SystemLimitError, match="cannot be had"):
        OverlayPort(("192.0.2.1", PORT), ("192.0.2.2", PORT), vni=1)
    with pytest.raises(InvalidAttributeError, match="vni"):
        OverlayPort(("127.0.0.1", PORT), ("127.0.0.2", PORT), vni=1 << 24)
