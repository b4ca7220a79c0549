"""Runs of fabric files on a fabric in virtual time: real RDMA through switches, while cables are pulled."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path

import pytest

from scenario.fabrics import EXAMPLES
from verbena import InvalidAttributeError, QPType, RecvRequest, WorkRequest, WROpcode, _pure
from verbena.cli.run import run
from verbena.runtime.pairs import connect_sides, make_side
from verbena.scenario.fabric_run import make_fabric
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.load import parse_fabric
from verbena.wire import LinkType, decode, read_capture

Output = pytest.CaptureFixture[str]
HEAD = """
name: lab
fabric:
  generate: fat-tree
  parameters: {{k: 4}}
  lanes: 2
  routing: ftree
  changes: [{changes}]
workloads:
"""
WORK = """
  - {kind: file-transfer, name: file, from: h1, to: h9, bytes: 400 KiB, message_bytes: 32 KiB}
  - {kind: ping-pong, name: ping, client: h1, server: h9, iterations: 20, bytes: 5000}
  - {kind: atomic-counter, name: counter, server: h0, clients: [h1, h9], operations: 20}
  - {kind: ud-burst, name: burst, from: h9, to: h1, datagrams: 50}
  - {kind: traffic, name: load, duration_us: 5, samples: 5, flows: [{pattern: uniform, load: 0.3}]}
"""


def go(folder: Path, text: str, **options: object) -> tuple[int, dict[str, object]]:
    """Exit status and report."""
    file = folder / "lab.yaml"
    file.write_text(text)
    status = run(str(file), out=str(folder / "out"), **options)  # type: ignore[arg-type]
    return status, json.loads((folder / "out" / "report.json").read_text())


def test_all_kinds_of_workloads(tmp_path: Path, capsys: Output) -> None:
    status, report = go(tmp_path, HEAD.format(changes="") + WORK)
    output = capsys.readouterr()
    assert status == 0, output.out
    assert output.err == ""
    assert [w["ok"] for w in report["workloads"]] == [True] * 5  # type: ignore[index, attr-defined]
    assert all(each["left"] == each["right"] for each in report["balance"])  # type: ignore[attr-defined]
    assert output.out.count("load ...") == 1
    captured = re.search(r"has ([\d,]+) packets", (tmp_path / "out" / "report.md").read_text())
    assert captured is not None
    with (tmp_path / "out" / "capture.pcapng").open("rb") as file:
        packets = list(read_capture(file))
    assert len(packets) == int(captured[1].replace(",", "")) > 300
    assert {packet.link_type for packet in packets} == {LinkType.ERF}
    assert {packet.interface for packet in packets} >= {"h0[1]", "h1[1]", "h9[1]"}
    for packet in packets:
        decoded = decode(packet.data, packet.link_type)
        assert decoded is not None


@pytest.mark.requirement("SYS-06")
def test_a_cable_is_pulled_meanwhile(tmp_path: Path, capsys: Output) -> None:
    """Faults by configuration, and what they did, by port and reason: every acknowledged byte arrives all the same."""
    changes = '{at_us: 15, pull: "s0-0[3]"}, {at_us: 15, pull: "h1[1]"}, {at_us: 400, plug: "h1[1]"}'
    topology = build_topology(parse_fabric(HEAD.format(changes="") + WORK))
    name = next(str(link.a) for link in topology.links if "h" not in str(link.a) + str(link.b))
    status, report = go(tmp_path, HEAD.format(changes=changes.replace("s0-0[3]", name)) + WORK)
    output = capsys.readouterr()
    assert status == 0, output.out
    ports = json.loads((tmp_path / "out" / "ports.json").read_text())
    assert ports["h1[1]"]["link_downed"] == 1
    assert ports[name]["link_downed"] == 1
    lost = sum(c for counted in ports.values() for n, c in counted.items() if n.startswith("drop_link"))
    assert lost > 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| h1[1] | link_downed | 1 |" in text
    (balance,) = [each for each in report["balance"] if "by reason" in each["what"]]  # type: ignore[attr-defined]
    assert balance["left"] == balance["right"] >= lost
    counters = json.loads((tmp_path / "out" / "counters.json").read_text())
    assert counters["h1"]["tx.retransmitted"] + counters["h9"]["tx.retransmitted"] > 0


@pytest.mark.requirement("SYS-06")
def test_bit_errors_are_repaired_by_the_links(tmp_path: Path) -> None:
    """Damaged flits are counted and sent again at their link; nothing is retransmitted end to end."""
    text = HEAD.format(changes="").replace("lanes: 2", "lanes: 2\n  link: {bit_error_rate: 1e-6}") + WORK
    status, _ = go(tmp_path, text, quiet=True)
    assert status == 0
    ports = json.loads((tmp_path / "out" / "ports.json").read_text())
    assert sum(counted.get("bit_errors", 0) for counted in ports.values()) > 0
    assert sum(counted.get("flit_retries", 0) for counted in ports.values()) > 0
    counters = json.loads((tmp_path / "out" / "counters.json").read_text())
    assert all(counted["tx.retransmitted"] == 0 for counted in counters.values())


def test_a_routing_that_can_deadlock_is_told(tmp_path: Path, capsys: Output) -> None:
    """The fabric runs all the same, as a real one would."""
    text = """
name: lab
fabric: {generate: ring, parameters: {switches: 5}, lanes: 1, routing: minhop}
workloads:
  - {kind: ping-pong, name: ping, client: h0, server: h2, iterations: 3}
"""
    status, report = go(tmp_path, text)
    errors = capsys.readouterr().err
    assert status == 0
    assert (
        "warning: this routing can deadlock: packets can wait for each other in a circle: s0[1] -> s1[2]"
        in errors
    )
    assert report["warnings"]
    assert "this routing can deadlock" in (tmp_path / "out" / "report.md").read_text()
    status, report = go(tmp_path, text.replace("minhop", "updn"))
    assert (status, report["warnings"]) == (0, [])


def test_a_deadlock_fails_the_run(tmp_path: Path, capsys: Output) -> None:
    text = """
name: lab
fabric: {generate: ring, parameters: {switches: 5}, lanes: 1, buffer_bytes: 4352}
workloads:
  - {kind: traffic, name: round, duration_us: 1500, samples: 100, flows: [{pattern: shift, by: 2, load: 1}]}
"""
    status, report = go(tmp_path, text)
    output = capsys.readouterr()
    assert status == 1
    assert re.search(
        r"FAILED round: DEADLOCK: s\d\[\d\] lane 0 waits for s\d\[\d\] lane 0 waits for", output.out
    )
    assert "warning: round: this routing can deadlock" in output.err
    assert report["ok"] is False


@pytest.mark.skipif(
    bool(_pure.plain_modules()), reason="minutes uncompiled; the other tests do the same with less"
)
@pytest.mark.parametrize("name", ["fabric-cable", "fabric-figure-1", "fabric-fat-tree"])
def test_the_examples_run(name: str, tmp_path: Path, capsys: Output) -> None:
    assert run(str(EXAMPLES / f"{name}.yaml"), out=str(tmp_path / "out"), capture=False) == 0
    assert capsys.readouterr().err == ""


def test_real_time_has_no_traffic_without_bytes(capsys: Output) -> None:
    assert run(str(EXAMPLES / "fabric-fat-tree.yaml"), time="real") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "running uncompiled" not in line]
    assert line == "verbena run: --time real: traffic without bytes runs in virtual time only"


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    changes = '{at_us: 2, pull: "h1[1]"}, {at_us: 40, plug: "h1[1]"}'
    work = WORK.replace("400 KiB", "40 KiB").replace("iterations: 20", "iterations: 5")
    work = work.replace("operations: 20", "operations: 5").replace("datagrams: 50", "datagrams: 5")
    reports = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        go(tmp_path / name, HEAD.format(changes=changes) + work, quiet=True, seed=5)
        out = tmp_path / name / "out"
        reports.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert reports[0] == reports[1]


# --- the documents' systems ---------------------------------------------------------------------------------------


def system(kind: str) -> str:
    return (
        f"name: {kind}\nfabric: {{generate: {kind}, lanes: 2, routing: updn}}\n"
        "workloads:\n  - {kind: traffic, name: t, duration_us: 1, flows: [{pattern: uniform}]}\n"
    )


@pytest.mark.requirement("NOD-01")
@pytest.mark.parametrize("kind, nodes", [("san", 9), ("cascade", 6)])
def test_every_pair_of_a_documents_system_exchanges_a_message(kind: str, nodes: int) -> None:
    """Document 003, Figure 1, and document 001, Figure 1, from configuration; and a switch has no queue pair."""
    net = make_fabric(parse_fabric(system(kind)))
    names = [node.name for node in net.topology.hosts]
    assert len(names) == nodes
    contexts = {name: net.open_device(name) for name in names}
    for a, b in permutations(names, 2):
        x, y = make_side(contexts[a], QPType.RC, 64, depth=8), make_side(contexts[b], QPType.RC, 64, depth=8)
        connect_sides(x, y)
        message = f"{a} -> {b}".encode()
        x.mr.buf[: len(message)] = message
        y.qp.post_recv(RecvRequest(1, [y.mr.sge()]))
        x.qp.post_send(WorkRequest(2, WROpcode.SEND, [x.mr.sge(0, len(message))]))
        (received,) = y.cq.wait(timeout=1)
        (sent,) = x.cq.wait(timeout=1)
        assert sent.status.name == received.status.name == "SUCCESS"
        assert bytes(y.mr.buf[: received.byte_len]) == message
    switch = net.topology.switches[0].name
    with pytest.raises(InvalidAttributeError, match="is no host of this fabric"):
        net.open_device(switch)
