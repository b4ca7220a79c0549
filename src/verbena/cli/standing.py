"""Commands that stand until they are interrupted, or another command ends them: what `lan` and `vswitch` share."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verbena.runtime.registry import Registry

SWITCH_INTERVAL_S = 0.0002
"""How long a thread may keep others from running Python: frames wait for it."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that interrupts set; frames are what the process is for meanwhile."""
    from verbena.runtime.tap import keep_memory

    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in STOPS}
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_memory()
    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def teller(quiet: bool) -> Callable[[str], None]:
    """Says what happens, unless it shall be quiet."""

    def told(sentence: str) -> None:
        if not quiet:
            print(sentence, flush=True)

    return told


def ended(registry: Registry, name: str) -> str:
    """Take it down; what to say then."""
    removed = registry.end(name)
    return f"down: {name}" + (f"; removed what it had left: {', '.join(removed)}" if removed else "")
