"""Real ports for tests: switches in threads, shared-memory cards as the programs beside them, waiting with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from verbena.runtime.shm_port import VirtualCard, card_pair
from verbena.runtime.vswitch_loop import SwitchLoop
from verbena.vswitch.config import Marks, PortConfig
from vswitch.lab import mac, number_of

SMALL = Marks(4, 8, 10)


def eventually(condition: Callable[[], Any], what: str, limit: float = 30.0) -> Any:
    """Wait until something is true; its value."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"it did not happen: {what}"
        time.sleep(0.01)
    return value


def card(loop: SwitchLoop, name: str, station: int, marks: Marks = SMALL, ring: int = 1 << 13) -> VirtualCard:
    """A program's card at a port of a switch, with one station behind it."""
    driver, made = card_pair(ring)
    loop.add(driver, PortConfig(name, (mac(station),), input=marks, output=marks))
    return made


def numbers(made: VirtualCard, total: int, timeout: float = 30.0) -> list[int]:
    """Read so many frames; their numbers."""
    found: list[int] = []
    while len(found) < total:
        got = made.receive_many(64)
        found += [number_of(data) for data in got]
        if not got:
            assert made.wait_frames(timeout), f"no more frames come after {len(found)} of {total}"
    return found
