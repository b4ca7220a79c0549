"""The rate that a shaper is given: slower than what is taken while something waits, faster again when nothing does."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from verbena.errors import InvalidAttributeError
from verbena.runtime.pacing import (
    BURST_NS,
    FRAME_BYTES,
    IDLE_NS,
    LEAST_BURST,
    MOST_BURST,
    Bucket,
    Pacer,
)

MS = 1_000_000


def test_the_rate_follows_what_is_taken() -> None:
    pacer = Pacer(1_000_000, 1_000, first=1_000, low=100, high=1_000)
    pacer.rate = 1_000_000
    assert pacer.step(500, MS, 2_000, True)
    assert pacer.rate == 250_000, "half of 500,000 bytes/s, so that the backlog goes"
    assert pacer.step(200, MS, 500, True)
    assert pacer.rate == 180_000, "a tenth less than is taken"
    assert not pacer.step(170, MS, 50, True), "between nothing and low: it stays"
    assert pacer.step(180, MS, 0, True)
    assert pacer.rate == 225_000, "nothing waits: a quarter more"
    assert not pacer.step(50, MS, 0, True), "less than a fourth is used: nothing shows that more is possible"
    assert pacer.step(100, MS, 0, False)
    assert pacer.rate == 90_000, "read late: the device's queue fills"
    assert pacer.step(0, MS, 5_000, True)
    assert pacer.rate == 1_000, "nothing is taken: as slow as possible"
    assert not pacer.step(0, MS, 5_000, True), "a change gives a full bucket: none without need"


def test_a_producer_is_never_told_to_be_faster_while_something_waits() -> None:
    pacer = Pacer(1_000_000, 1_000, low=100, high=1_000)
    pacer.step(10, MS, 5_000, True)
    slow = pacer.rate
    pacer.step(900, MS, 500, True)
    assert pacer.rate <= slow


def test_a_reader_that_is_quick_again_finds_its_producer_soon() -> None:
    pacer = Pacer()
    first = pacer.rate
    pacer.step(0, MS, pacer.high + 1, True)
    assert pacer.rate == pacer.least
    pacer.step(0, MS, 1, True)
    assert pacer.rate == pacer.least, "something still waits"
    for _ in range(12):
        pacer.step(0, MS, 0, True)
    assert pacer.rate == first, "within twelve steps, though most of them saw no frame"


def test_a_rate_that_nobody_uses_any_more_is_forgotten() -> None:
    pacer = Pacer()
    first = pacer.rate
    while pacer.rate < 8 * first:
        pacer.step(pacer.rate // 1000, MS, 0, True)
    for _ in range(IDLE_NS // MS - 1):
        assert not pacer.step(pacer.rate // 1000 // 10, MS, 0, True), "a pause: it may go on as it was"
    high = pacer.rate
    for _ in range(IDLE_NS // MS):
        assert not pacer.step(pacer.rate // 1000 // 6, MS, 0, True), "it is used a little, and stays"
    for _ in range(IDLE_NS // MS):
        pacer.step(0, MS, 0, True)
    assert pacer.rate == high // 2
    for _ in range(10):
        pacer.step(0, MS, 0, True)
    assert pacer.rate == first, "not below the first one: nothing shows that this is too fast"


@given(
    st.integers(1_000_000, 100_000_000_000), st.lists(st.tuples(st.integers(0, MS), st.integers(60, 65_000)))
)
def test_never_more_goes_than_the_rate_allows(rate_bps: int, steps: list[tuple[int, int]]) -> None:
    """What went is at most the rate's part of the time, one burst and one frame; who waits until `ready` may send."""
    now = gone = longest = 0
    bucket = Bucket(rate_bps, now)
    for pause, size in steps:
        now += pause
        if bucket.available(now) <= 0:
            now = max(now, bucket.ready())
            assert bucket.available(now) > 0
        bucket.spend(size)
        gone, longest = gone + size, max(longest, size)
        assert gone <= (now + BURST_NS) * rate_bps / 8e9 + 2 * FRAME_BYTES + longest + 1
    with pytest.raises(InvalidAttributeError):
        Bucket(0, now)


@example([(13, 105, (1 << 20) + 1, False)])  # to a little less than the first rate
@given(
    st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(1, 10**9), st.integers(0, 10**8), st.booleans()),
        max_size=30,
    )
)
def test_rate_and_burst_stay_within_their_limits(steps: list[tuple[int, int, int, bool]]) -> None:
    pacer = Pacer()
    for step in steps:
        before = pacer.rate
        assert pacer.step(*step) == (pacer.rate != before)
        assert pacer.least <= pacer.rate <= pacer.most
        assert LEAST_BURST <= pacer.burst <= MOST_BURST
    for _ in range(200):
        pacer.step(pacer.rate, 1_000 * MS, 0, True)
    assert pacer.rate == pacer.most, "after a congestion all of the rate comes back"


def test_marks_that_cannot_be() -> None:
    for given_ in ({"most": 10, "least": 20}, {"low": 5, "high": 5}, {"least": 0}):
        with pytest.raises(InvalidAttributeError):
            Pacer(**given_)  # type: ignore[arg-type]
