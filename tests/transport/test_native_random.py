"""Random work over native packets that are lost, doubled, delayed and damaged, against the plain model of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest

from native_lab import RC, NativeLab, context_of, join
from transport.traffic import Traffic
from verbena import AddressVector, PathMigrationState
from verbena.runtime.pairs import make_side

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from transport.test_native_random import traced
print(traced(int(sys.argv[2])))
"""


def run(seed: int, rate: float, mtu: int, *, shut: bool = False, alternate: bool = False) -> NativeLab:
    """Three connections between two adapters of two ports; `shut`: their links stop now and then."""
    lab, random = NativeLab(seed), Random(seed)
    ends = [lab.adapter(2, subnets=("A", "B"), lmc=1, window_bytes=64 << 10) for _ in range(2)]
    connections = []
    for i in range(3):
        port = 1 if alternate else 1 + i % 2
        a, b = (make_side(context_of(ctx.driver), RC, 64) for ctx in ends)
        there, here = b.qp.endpoint_at(port, path_bits=i % 2), a.qp.endpoint_at(port)
        more = {"port_num": port, "sl": i, "mtu": mtu, "timeout": 5, "retry_cnt": 7, "rnr_retry": 7}
        a.qp.connect(there, **more)
        b.qp.connect(here, **more, src_path_bits=i % 2)
        if alternate:
            for side, ctx in ((a, ends[1]), (b, ends[0])):
                way = AddressVector(dlid=ctx.query_port(2).lid, port_num=2, sl=i)
                side.qp.modify(alt_ah_attr=way, path_mig_state=PathMigrationState.REARM)
        connections.append((a, b))
    traffic = Traffic(lab, random, connections, mtu, 3 * mtu)  # type: ignore[arg-type]
    lab.disturb(random, rate)
    if shut or alternate:
        _trouble(lab, random, shut, alternate)
    traffic.run(25)
    return lab


def _trouble(lab: NativeLab, random: Random, shut: bool, alternate: bool) -> None:
    def again(left: int) -> None:
        driver = random.choice(lab.drivers)
        if shut:
            driver.adapter.engine.set_open(random.choice((1, 2)), random.randrange(8) if left else 0xFFFF)
            driver.kick()
        if not left:
            for end in lab.drivers:
                for port in (1, 2):
                    end.adapter.engine.set_open(port, 0xFFFF)
                end.kick()
            return
        if alternate and left == 100:
            lab.cut |= {(end, 1) for end in lab.drivers}
        lab.clock.call_at(lab.clock.now() + random.randrange(3_000), lambda: again(left - 1))

    again(200)


@pytest.mark.parametrize("mtu", [256, 1024, 4096])
def test_faults_change_nothing(seed: int, mtu: int) -> None:
    lab = run(seed, 0.02, mtu)
    assert lab.lost > 0


def test_links_that_stop_now_and_then_change_nothing(seed: int) -> None:
    lab = run(seed, 0.0, 512, shut=True)
    assert sum(d.adapter.engine.read_counters()["tx.held"] for d in lab.drivers) > 0


@pytest.mark.requirement("TRN-08")
def test_a_path_that_fails_under_random_work_changes_nothing(seed: int) -> None:
    lab = run(seed, 0.005, 512, alternate=True)
    assert sum(d.adapter.engine.read_counters()["path.migrations"] for d in lab.drivers) == 6


def traced(seed: int) -> str:
    """A digest of every packet and its time, and every counter."""
    labs = [
        run(seed, 0.02, 256),
        run(seed, 0.01, 1024, shut=True),
        run(seed, 0.005, 512, alternate=True),
        itself(seed),
    ]
    return "\n".join(
        f"{lab.digest.hexdigest()} {lab.clock.now()} {[d.adapter.engine.read_counters() for d in lab.drivers]}"
        for lab in labs
    )


def itself(seed: int) -> NativeLab:
    """Queue pairs of one adapter, and one that is connected to itself."""
    lab, random = NativeLab(seed), Random(seed)
    ctx = lab.adapter(2)
    a, b, c = (make_side(context_of(ctx.driver), RC, 64) for _ in range(3))
    join(a, b)
    c.qp.connect(c.qp.endpoint)
    Traffic(lab, random, [(a, b)], 4096, 10_000).run(20)  # type: ignore[arg-type]
    return lab


def test_compiled_and_plain_send_the_same_native_packets_at_the_same_times(seed: int) -> None:
    here = traced(seed)
    assert traced(seed) == here, "a run can be repeated"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "VERBENA_PURE": "1"}
    command = [sys.executable, "-c", PROGRAM, tests, str(seed)]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
