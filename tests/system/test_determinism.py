"""The same seed gives the same run: in one process, and compiled as uncompiled."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from system.world import MS, UC, Link, World, finish, write

HERE = Path(__file__).resolve()


def digest(seed: int, flits: bool) -> str:
    """Real traffic over a small fabric with errors and a pulled cable: every packet that passed any port, with its
    time, and all counters."""
    world = World("ring switches=3", seed=seed, flits=flits)
    for port in world.assembly.ports.values():
        world.core.tap(port, True)
    seen = sha256()
    pairs = [world.pair("h0", "h1"), world.pair("h1", "h2"), world.pair("h2", "h0", UC)]
    cable = next(
        link for link in world.topology.links if link.a.node.startswith("s") and link.b.node[0] == "s"
    )
    world.pull(str(cable.a))
    world.run_for(100 * MS)
    world.plug(Link(cable.a, cable.b, cable.rate, cable.delay_ns, 3e-6 if flits else 0.0))
    world.run_for(100 * MS)
    for round_ in range(2):
        for number, (a, b) in enumerate(pairs):
            write(a, b, 12_000, seed=10 * round_ + number)
        for a, _ in pairs:
            assert finish(a) == ["SUCCESS"]
        if not round_:
            write(*pairs[0], 30_000)
            world.run_for(1_500)
            link = world.pull(str(cable.a))
            world.run_for(80 * MS)
            world.plug(link)
            assert finish(pairs[0][0]) == ["SUCCESS"]
    world.settle()
    world.check_laws()
    for time, port, outbound, packet in world.core.take_taps():
        seen.update(b"%d %d %d " % (time, port, outbound) + packet)
    for number in world.assembly.ports.values():
        seen.update(repr(world.core.port_counters(number)).encode())
    for name in ("h0", "h1", "h2"):
        seen.update(repr(world.device(name).counters()).encode())
    seen.update(repr((world.now, world.core.statistics())).encode())
    return seen.hexdigest()


@pytest.mark.parametrize("flits", [True, False])
def test_same_seed_same_run(flits: bool) -> None:
    first = digest(7, flits)
    assert digest(7, flits) == first
    assert digest(8, flits) != first


@pytest.mark.parametrize("flits", [True, False])
def test_compiled_and_uncompiled_run_alike(flits: bool) -> None:
    """The other kind of interpreter, in a process of its own, sees the same packets at the same picoseconds."""
    pure = os.environ.get("VERBENA_PURE", "") not in ("", "0")
    environment = {**os.environ, "VERBENA_PURE": "0" if pure else "1"}
    environment["PYTHONPATH"] = str(HERE.parent.parent)
    code = f"from system.test_determinism import digest; print(digest(7, {flits}))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == digest(7, flits)
