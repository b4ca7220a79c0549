"""Random work under loss, duplication, reordering, corruption and delay, against a plain model of memory."""

from __future__ import annotations

from random import Random

import pytest

from lab import Lab
from transport.traffic import Traffic
from verbena import AckPolicy, Faults, QPType, _pure
from verbena.runtime.pairs import connect_sides, make_side

FAST = _pure.compiled()
MILD = Faults(loss=0.02, duplication=0.02, reordering=0.02, corruption=0.02, delay=0.02, delay_ns=100_000)
ROUGH = Faults(loss=0.06, duplication=0.1, reordering=0.1, corruption=0.04, delay=0.1, delay_ns=200_000)


def run(
    seed: int,
    faults: Faults | None,
    *,
    mtu: int = 1024,
    adapters: int = 2,
    connections: int = 3,
    operations: int = 60,
    largest: int = 12_000,
    policy: AckPolicy = AckPolicy.COALESCED,
    window_bytes: int = 1 << 20,
    max_rd_atomic: int = 4,
) -> Lab:
    random = Random(seed)
    lab = Lab(seed, faults)
    contexts = [lab.adapter(ack_policy=policy, window_bytes=window_bytes) for _ in range(adapters)]
    pairs = []
    for _ in range(connections):
        a, b = random.sample(contexts, 2)
        ends = [make_side(ctx, QPType.RC, 64) for ctx in (a, b)]
        for end in ends:
            end.qp._psn = random.choice((random.getrandbits(24), 0xFFFFFF - random.randrange(40)))
        connect_sides(
            *ends,
            mtu=mtu,
            timeout=8,
            retry_cnt=7,
            rnr_retry=7,
            min_rnr_timer=1,
            max_rd_atomic=max_rd_atomic,
        )
        pairs.append((ends[0], ends[1]))
    Traffic(lab, random, pairs, mtu, largest).run(operations)
    return lab


@pytest.mark.requirement("TRN-06", "TRN-07")
@pytest.mark.parametrize("mtu", [256, 1024, 4096])
def test_memory_equals_the_model_without_faults(seed: int, mtu: int) -> None:
    lab = run(seed, None, mtu=mtu)
    assert all(ctx.counters()["timeouts"] == 0 for ctx in lab.contexts)


@pytest.mark.requirement("TRN-06", "TRN-07")
@pytest.mark.parametrize("policy", list(AckPolicy))
@pytest.mark.parametrize("mtu", [256, 1024, 4096])
def test_memory_equals_the_model_under_mild_faults(seed: int, mtu: int, policy: AckPolicy) -> None:
    run(seed, MILD, mtu=mtu, policy=policy, operations=80 if FAST else 30)


@pytest.mark.requirement("TRN-06", "TRN-07")
@pytest.mark.parametrize("policy", list(AckPolicy))
@pytest.mark.parametrize("round_", range(6))
def test_memory_equals_the_model_under_rough_faults(seed: int, round_: int, policy: AckPolicy) -> None:
    random = Random(seed)
    run(
        seed,
        ROUGH,
        mtu=random.choice((256, 512, 1024, 2048, 4096)),
        adapters=3,
        connections=5,
        policy=policy,
        operations=60 if FAST else 20,
        window_bytes=random.choice((1 << 12, 1 << 15, 1 << 20)),
        max_rd_atomic=random.choice((1, 2, 4, 16)),
    )
