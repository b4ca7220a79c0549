"""Hosts with modelled memory in fabric files, and the workload of ring buffers, in both times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenario.fabrics import EXAMPLES, NET
from scenario.test_runs import run
from verbena.errors import FabricFileError
from verbena.scenario.load import load_fabric, parse_fabric
from verbena.scenario.report import write_report
from verbena.scenario.ring_buffer import message

FILE = """
name: memory
hosts:
  - name: consumer
    memory:
      frames: 5
      page_in_ns: 1000
      page_table: plain
      segment_tables: copied
      page_tables: shared
      processes: [{name: ring}, {name: kernel, kernel: true}]
    adapters: [{name: c0, address: {real: NET.1, virtual: 10.0.0.1}}]
  - name: p
    memory: {store: memory, page_bytes: 8 KiB}
    adapters: [{name: p0, address: {real: NET.2, virtual: 10.0.0.2}}]
  - name: q
    memory: {}
    adapters: [{name: q0, address: {real: NET.3, virtual: 10.0.0.3}}]
workloads:
  - {kind: ring-buffer, name: ring, consumer: c0, producers: [p0, q0], messages: 24, bytes: 3000, slots: 3,
     page_out_every: 5}
""".replace("NET", NET)


def text(form: str = "plain", segments: str = "copied", pages: str = "shared") -> str:
    changes = (
        ("page_table: plain", form),
        ("segment_tables: copied", segments),
        ("page_tables: shared", pages),
    )
    found = FILE
    for old, new in changes:
        found = found.replace(old, f"{old.split()[0]} {new}")
    return found


@pytest.mark.requirement("MEM-11", "MEM-14", "MEM-18", "MEM-19", "MEM-21", "RKY-01", "RKY-11")
@pytest.mark.parametrize(
    "form,segments,pages,time",
    [
        ("plain", "copied", "shared", "virtual"),
        ("inverted", "copied", "private", "virtual"),
        ("plain", "shared", "private", "virtual"),
        ("inverted", "shared", "shared", "virtual"),
        pytest.param("inverted", "copied", "private", "real", marks=pytest.mark.loopback),
    ],
)
def test_ring_buffers(form: str, segments: str, pages: str, time: str, tmp_path: Path) -> None:
    """Two producers, a consumer with five frames: every byte is right, in all embodiments."""
    wanted = text(form, segments, pages)
    if time == "real":  # a process less to start
        before, _, rest = wanted.partition("  - name: q\n")
        wanted = before + rest[rest.index("workloads:") :].replace("[p0, q0]", "[p0]")
    fabric = parse_fabric(wanted)
    producers = ["p0", "q0"] if time == "virtual" else ["p0"]
    result = run(fabric, time, tmp_path, capture=False)
    (outcome,) = result.outcomes
    assert outcome.ok, outcome.verdict
    assert result.ok
    assert outcome.facts["memory"]["PageOut"] > 0
    consumer = result.memory["consumer"]
    (adapter,) = consumer["adapters"]
    assert adapter["protection"]["swap_ins"] > 0
    assert adapter["protection"]["page_table"] == pages
    assert {q["segment_table"] for q in adapter["protection"]["queue_pairs"]} == {segments}
    assert ("SegmentTableUpdate" in consumer["memory"]["verbs"]) == (segments == "copied")
    if form == "inverted":
        assert consumer["memory"]["table_size"] == adapter["protection"]["table_size"] == 5
    written = [key for key in adapter["keys"] if key["access"] == ["remote_write"]]
    assert [key["uses"] for key in written] == [24] * len(producers)
    assert {use["peer"] for use in adapter["uses"]} == {
        fabric.adapters()[name].address.at(time)  # type: ignore[union-attr]
        for name in producers
    }
    write_report(tmp_path, fabric, result)
    assert json.loads((tmp_path / "memory.json").read_text())["consumer"] == json.loads(json.dumps(consumer))


def test_a_run_in_virtual_time_can_be_repeated(tmp_path: Path) -> None:
    runs = [run(parse_fabric(text()), "virtual", tmp_path, capture=False) for _ in range(2)]
    assert runs[0].simulated_ns == runs[1].simulated_ns
    assert runs[0].memory == runs[1].memory


def test_the_example_runs(tmp_path: Path) -> None:
    fabric = load_fabric(str(EXAMPLES / "ring-buffer.yaml"))
    result = run(fabric, "virtual", tmp_path, capture=False)
    assert result.ok
    assert sum(c["faults.lost"] for c in result.counters.values()) > 0


def test_a_consumer_that_sees_wrong_bytes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer compares with what should come, not with what came."""
    import verbena.scenario.ring_buffer as ring_buffer

    calls = iter(range(1000))

    def sometimes(seed: int, producer: int, number: int, length: int) -> bytes:
        return message(seed + (next(calls) == 20), producer, number, length)

    monkeypatch.setattr(ring_buffer, "message", sometimes)
    result = run(parse_fabric(text()), "virtual", tmp_path, capture=False)
    assert not result.ok
    assert "48 of 48 messages, 1 of them wrong" in result.outcomes[0].verdict


@pytest.mark.parametrize(
    "old,new,what",
    [
        ("frames: 5", "frames: 0", "too small: at least 1"),
        ("frames: 5", "frame: 5", "frame"),
        ("page_bytes: 8 KiB", "page_bytes: 5000", "no power of two"),
        ("page_bytes: 8 KiB", "page_bytes: 2048", "4096"),
        ("page_table: plain", "page_table: hashed", "plain"),
        ("name: kernel, kernel", "name: ring, kernel", "stands here a second time"),
        ("    memory: {}\n", "", "has no modelled memory"),
        ("producers: [p0, q0]", "producers: [p0, c0]", "c0"),
        ("producers: [p0, q0]", "producers: [p0, z0]", "z0"),
        ("slots: 3", "slots: 0", "too small: at least 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(old: str, new: str, what: str) -> None:
    good = text()
    assert old in good
    with pytest.raises(FabricFileError, match=what):
        parse_fabric(good.replace(old, new, 1))
