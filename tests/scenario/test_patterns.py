"""Traffic patterns: each sends to whom it promises, and as often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.errors import VerbenaError
from verbena.scenario.fabric_schema import Flow
from verbena.scenario.patterns import check_flow, read_trace, streams

HOSTS = [f"h{i}" for i in range(12)]


def flow(pattern: str, **keys: object) -> Flow:
    return Flow.model_validate({"pattern": pattern, **keys})


def pairs(pattern: str, seed: int = 0, hosts: list[str] = HOSTS, **keys: object) -> dict[str, list[str]]:
    """Destinations by source."""
    made = streams(flow(pattern, **keys), hosts, Random(seed))
    assert len({stream.source for stream in made}) == len(made)
    return {stream.source: list(stream.destinations) for stream in made}


def test_uniform_is_everybody_to_everybody_else() -> None:
    for source, to in pairs("uniform").items():
        assert to == [host for host in HOSTS if host != source]
    only = pairs("uniform", sources=["h1", "h2"], destinations=["h2", "h3"])
    assert only == {"h1": ["h2", "h3"], "h2": ["h3"]}


def test_all_to_all_is_cyclic_and_begins_at_the_next() -> None:
    made = streams(flow("all-to-all"), HOSTS, Random(0))
    assert all(stream.cyclic for stream in made)
    assert {stream.destinations[0] for stream in made} == set(HOSTS)
    for at, stream in enumerate(made):
        assert list(stream.destinations) == HOSTS[at + 1 :] + HOSTS[:at]


@given(st.integers(2, 40), st.integers(0, 1000))
def test_permutation_has_no_fixed_point(hosts: int, seed: int) -> None:
    names = [f"h{i}" for i in range(hosts)]
    to = pairs("permutation", seed, names)
    assert set(to) == {destination for (destination,) in to.values()} == set(names)
    assert all(destination != source for source, (destination,) in to.items())


def test_every_permutation_is_drawn() -> None:
    """Three hosts have two of them without a fixed point."""
    drawn = Counter(
        tuple(pairs("permutation", seed, ["a", "b", "c"]).values().__iter__().__next__())
        for seed in range(200)
    )
    assert set(drawn) == {("b",), ("c",)}
    assert min(drawn.values()) > 60


@given(st.integers(2, 40), st.integers(1, 100))
def test_shift_is_a_permutation(hosts: int, by: int) -> None:
    names = [f"h{i}" for i in range(hosts)]
    if by % hosts == 0:
        with pytest.raises(VerbenaError, match="to themselves"):
            check_flow(flow("shift", by=by), names)
        return
    to = pairs("shift", 0, names, by=by)
    assert all(to[names[i]] == [names[(i + by) % hosts]] for i in range(hosts))


def test_incast_has_many_senders() -> None:
    assert pairs("incast", destinations=["h3"]) == {h: ["h3"] for h in HOSTS if h != "h3"}
    assert set(pairs("incast", destinations=["h3"], sources=["h1", "h2"])) == {"h1", "h2"}


def test_hotspot_divides_the_load() -> None:
    made = streams(flow("hotspot", destinations=["h0"], share=0.25, load=0.8), HOSTS, Random(0))
    of: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for stream in made:
        of.setdefault(stream.source, []).append((stream.destinations, stream.load))
    for source, parts in of.items():
        assert sum(load for _, load in parts) == pytest.approx(0.8)
        if source != "h0":
            assert parts[0] == (("h0",), pytest.approx(0.2))
        assert source not in parts[-1][0]
    assert [load for _, load in of["h0"]] == [pytest.approx(0.8)]  # it has no hot spot but itself


def test_pairs() -> None:
    assert pairs("pairs", sources=["h1", "h2"], destinations=["h2", "h1"]) == {"h1": ["h2"], "h2": ["h1"]}


@pytest.mark.parametrize(
    "pattern, keys, message",
    [
        ("pairs", {"sources": ["h1"]}, "as many sources as destinations"),
        ("pairs", {"sources": ["h1"], "destinations": ["h1"]}, "h1 cannot send to itself"),
        ("incast", {}, "name the destinations"),
        ("hotspot", {}, "name the destinations"),
        ("uniform", {"sources": ["nobody"]}, "there is no host nobody"),
        ("uniform", {"sources": ["h1", "h1"]}, "each source once"),
        ("permutation", {"sources": ["h1"]}, "at least 2 hosts"),
        ("shift", {"destinations": ["h1"]}, "the sources are the destinations"),
        ("trace", {}, "a trace needs a file"),
        ("uniform", {"file": "x"}, "nothing else has one"),
    ],
)
def test_what_does_not_fit(pattern: str, keys: dict[str, object], message: str) -> None:
    with pytest.raises(VerbenaError, match=message):
        streams(flow(pattern, **keys), HOSTS, Random(0))


def trace(folder: Path, *lines: str, head: str = "time_ns,source,destination,bytes") -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_trace(tmp_path: Path) -> None:
    events = read_trace(trace(tmp_path, "70,h1,h2,100", "20,h2,h3,0"), HOSTS)
    assert [(e.time_ns, e.source, e.destination, e.bytes) for e in events] == [
        (20, "h2", "h3", 0),
        (70, "h1", "h2", 100),
    ]


@pytest.mark.parametrize(
    "lines, message",
    [
        (["1,h1,h2,3", "x,h1,h2,3"], ":3: time_ns and bytes are whole numbers"),
        (["1,h1"], ":2: time_ns and bytes are whole numbers"),
        (["1,h1,h99,3"], ":2: there is no host h99"),
        (["1,h1,h1,3"], ":2: h1 sends to itself"),
        (["-1,h1,h2,3"], ":2: time_ns is 0 to"),
        (["1,h1,h2,4097"], "bytes 0 to 4096"),
        ([], "the trace is empty"),
    ],
)
def test_wrong_traces(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(VerbenaError, match=message):
        read_trace(trace(tmp_path, *lines), HOSTS)


def test_traces_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(VerbenaError, match=r":1: the column bytes is missing"):
        read_trace(trace(tmp_path, head="time_ns,source,destination"), HOSTS)
    with pytest.raises(VerbenaError, match="cannot be read"):
        read_trace(tmp_path / "none.csv", HOSTS)
    (tmp_path / "raw.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VerbenaError):
        read_trace(tmp_path / "raw.csv", HOSTS)
