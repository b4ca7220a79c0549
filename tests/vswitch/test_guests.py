"""Two QEMU machines with Linux behind a switch, with a namespace and a program: nothing of theirs is lost, their own
queues fill.  The guest is built by ``examples/vswitch/guests/build.sh``; without it, these tests are skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from verbena import _pure

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "vswitch" / "guests"
IMAGE = Path(os.environ.get("VERBENA_GUEST", ROOT / "runs" / "guest"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network("netns", "tap", "raw"),
    pytest.mark.skipif(
        not _pure.compiled(), reason="machines that boot gain nothing from an uncompiled switch"
    ),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
    pytest.mark.skipif(
        not (IMAGE / "initrd.gz").exists(),
        reason=f"there is no guest in {IMAGE}: examples/vswitch/guests/build.sh builds one",
    ),
]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The program that users run."""
    spec = importlib.util.spec_from_file_location("guests_check", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.requirement("VSW-01", "VSW-17", "VSW-18", "VSW-19")
def test_machines_reach_one_another_and_their_own_queues_fill(check: ModuleType) -> None:
    with check.bench(IMAGE) as made:
        assert [pair for pair, came in made.pings() if not came] == []
        found = made.flood(3_000, sockets=4, slow_s=2.0)
    for name in check.MACHINES:
        assert found.sent[name] == found.came[name] == 12_000, "all of it came"
        assert found.waited[name], "senders waited in their send calls"
        assert found.waiting[name], "and frames in the queueing discipline: the card's ring was full"
        assert (found.dropped[name], found.refused[name]) == (0, 0)
    assert set(check.MACHINES) <= set(found.stopped), "the switch had stopped them"
    assert found.out_of_order == 0
    assert found.losses == {}
    assert found.sent["box"] - found.came["box"] == sum(found.kernel.values()), (
        "the rest is the kernel's loss"
    )
    assert found.ok
