"""Shared-memory cards: rings between processes, no lost wake-up, full rings, programs that die, memory that lies."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from verbena import _pure
from verbena.errors import ClosedError, InvalidAttributeError, SystemLimitError
from verbena.runtime.shm_port import CardListener, VirtualCard, card_pair, open_card
from verbena.runtime.shm_ring import HEADER, Ring
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import Marks, PortConfig
from verbena.wire.pause import PauseFrame
from vswitch.lab import frame, mac, number_of

SCALE = 1 if _pure.compiled() else 20


def rings(size: int = 1 << 13) -> tuple[Ring, Ring, mmap.mmap]:
    memory = mmap.mmap(-1, HEADER + size)
    return Ring(memoryview(memory)), Ring(memoryview(memory)), memory


def test_a_ring_keeps_order_and_bytes_whatever_the_sizes(seed: int) -> None:
    writer, reader, _ = rings()
    random = Random(seed)
    waiting: list[bytes] = []
    for _ in range(500):
        batch = [
            random.randbytes(random.choice((0, 1, 7, 8, 9, 60, 1500))) for _ in range(random.randrange(8))
        ]
        waiting += batch[: writer.push_many(batch)]
        found = reader.pop_many(random.randrange(10))
        assert found == waiting[: len(found)]
        del waiting[: len(found)]
    assert reader.pop_many(10_000) == waiting
    assert reader.is_empty()


def test_a_full_ring_takes_no_more_and_loses_nothing() -> None:
    writer, reader, _ = rings()
    taken = writer.push_many([bytes(100)] * 1000)
    assert 70 < taken < 80
    assert writer.push_many([bytes(100)]) == 0
    assert len(reader.pop_many(1000)) == taken
    with pytest.raises(InvalidAttributeError, match="power of two"):
        Ring(memoryview(bytearray(HEADER + 5000)))


@pytest.mark.parametrize("where, value", [(128, 1 << 40), (128, 12345), (HEADER, 1 << 20), (HEADER, 5000)])
def test_what_the_other_side_wrote_is_not_believed(where: int, value: int) -> None:
    writer, reader, memory = rings()
    writer.push_many([bytes(100)])
    memory[where : where + 8] = value.to_bytes(8, "little")
    assert reader.pop_many(10) in ([], [bytes(100)])
    reader.pop_many(10)
    assert reader.broken


def in_threads(*work: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"
    assert failures == []


def consume(card: VirtualCard, total: int, random: Random | None = None) -> dict[int, int]:
    """Read frames, checking the order from each source; returns how many came from each."""
    last: dict[int, int] = {}
    count = 0
    while count < total:
        found = card.receive_many(random.randrange(1, 64) if random else 256)
        for data in found:
            assert number_of(data) == last.get(data[11], -1) + 1
            last[data[11]] = number_of(data)
        count += len(found)
        if not found:
            assert card.wait_frames(30), "no frame comes any more"
    return {source: number + 1 for source, number in last.items()}


@pytest.mark.requirement("VSW-26")
def test_three_producers_at_full_speed_and_one_consumer_lose_nothing(seed: int) -> None:
    each = 20_000 // SCALE
    marks = Marks(16, 64, 80)
    with SwitchLoop() as loop:
        cards = []
        for n in range(4):
            port, card = card_pair(1 << 14)
            loop.add(port, PortConfig(f"p{n}", (mac(n),), input=marks, output=marks))
            cards.append(card)
        counts: dict[int, int] = {}

        def produce(n: int) -> None:
            for start in range(0, each, 100):
                cards[n].send_all([frame(n, 3, start + i, 64 + i) for i in range(100)])

        in_threads(
            *(lambda n=n: produce(n) for n in range(3)),  # type: ignore[misc]
            lambda: counts.update(consume(cards[3], 3 * each, Random(seed))),
        )
        assert counts == {0: each, 1: each, 2: each}
        status = loop.status()
        assert loop.switch.losses() == {}
        assert status["ports"]["p0"]["input"][0]["stops"] > 0
        assert len(set(loop.switch.balance())) == 1
        for card in cards:
            card.close()


@pytest.mark.requirement("VSW-26")
def test_sleepers_on_both_sides_are_always_woken(seed: int) -> None:
    """One frame at a time, to and fro, with everybody asleep in between."""
    rounds = 2_000 // SCALE
    with SwitchLoop() as loop:
        (pa, a), (pb, b) = card_pair(1 << 12), card_pair(1 << 12)
        loop.add(pa, PortConfig("a", (mac(1),)))
        loop.add(pb, PortConfig("b", (mac(2),)))

        def answer() -> None:
            for _ in range(rounds):
                assert b.wait_frames(30)
                b.send_all([frame(2, 1, number_of(d)) for d in b.receive_many()])

        def ask() -> None:
            for n in range(rounds):
                a.send(frame(1, 2, n))
                assert a.wait_frames(30)
                assert [number_of(d) for d in a.receive_many()] == [n]

        in_threads(ask, answer)


def test_other_processes_get_cards_and_vanish(tmp_path: Path) -> None:
    gone: list[str] = []
    listener = CardListener(str(tmp_path / "switch"), 1 << 14)
    with SwitchLoop(on_gone=gone.append) as loop:
        ours, card = card_pair(1 << 14)
        loop.add(ours, PortConfig("here", (mac(1),)))
        child = os.fork()
        if child == 0:  # a program in another process: sends, receives the answer, dies without a word
            status = 1
            try:
                other = open_card(listener.path)
                other.send_all([frame(2, 1, n) for n in range(200)], timeout=30)
                status = 0 if other.wait_frames(30) and number_of(other.receive() or b"") == 4711 else 2
            finally:
                os._exit(status)
        loop.add(listener.accept(30), PortConfig("there", (mac(2),)))
        assert consume(card, 200) == {2: 200}
        card.send(frame(1, 2, 4711))
        assert os.waitpid(child, 0)[1] == 0
        for _ in range(3000):
            if gone:
                break
            threading.Event().wait(0.01)
        assert gone == ["there"]
        assert "there" not in loop.status()["ports"]
        assert loop.status()["gone"]["there"]["rx_frames"] == 200
        card.send(PauseFrame(10).pack())
        card.send(frame(1, 1, 0))
        while loop.status()["ports"]["here"].get("drop.hairpin") is None:
            threading.Event().wait(0.01)
        assert loop.status()["ports"]["here"]["drop.reserved"] == 1, "a forged pause ends here"
    listener.close()
    with pytest.raises(ClosedError):
        card.send(frame(1, 2))
    with pytest.raises(SystemLimitError, match="no switch at"):
        open_card(listener.path)


def test_a_reader_that_does_not_read_stops_its_senders_and_only_them() -> None:
    marks = Marks(4, 8, 10)
    with SwitchLoop() as loop:
        cards = []
        for n in range(3):
            port, card = card_pair(1 << 12)
            loop.add(port, PortConfig(f"p{n}", (mac(n),), input=marks, output=marks))
            cards.append(card)
        batch = [frame(0, 1, n) for n in range(1000)]
        sent = cards[0].send_all(batch, timeout=0.5)
        assert sent < 1000
        assert cards[0].refused > 0
        cards[2].send(frame(2, 0, 5))
        assert cards[0].wait_frames(30)
        assert number_of(cards[0].receive() or b"") == 5, "the other direction is free"
        in_threads(
            lambda: cards[0].send_all(batch[sent:], timeout=30),
            lambda: consume(cards[1], 1000),
        )
        assert loop.switch.losses() == {}


def test_a_closed_card_says_so() -> None:
    _, card = card_pair(1 << 12)
    card.close()
    card.close()
    for call in (lambda: card.send(bytes(60)), card.receive, card.wait_frames, card.wait_room):
        with pytest.raises(ClosedError):
            call()


def test_a_frame_that_no_ring_can_hold_is_refused() -> None:
    _, card = card_pair(1 << 12)
    with pytest.raises(InvalidAttributeError, match="up to"):
        card.send(bytes(5000))
