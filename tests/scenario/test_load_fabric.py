"""Fabric files with a fabric: what a right one gives, and that a wrong one names its line and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from verbena.errors import FabricFileError
from verbena.fabric.addressing import assign_lids, note_lids
from verbena.fabric.ibnetdiscover import write
from verbena.fabric.topology import PortId, Topology
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.load import load_fabric, parse_fabric
from verbena.scenario.topologies import open_topology

BY_HAND = """
name: hand
hosts:
  - {name: anna, adapters: [{name: anna0, ports: 2}, {name: anna1}]}
  - {name: bert, adapters: [{name: bert0}]}
fabric:
  switches:
    - {name: s1, ports: 4}
    - {name: s2, ports: 4, group: rack}
  routers:
    - {name: r1, ports: 3}
  link: {rate: 4xHDR, delay_ns: 20}
  links:
    - {from: "anna0[2]", to: "s1[3]"}
    - {from: "anna0[1]", to: s2, delay_ns: 5}
    - {from: anna1, to: s1, rate: 1xSDR}
    - {from: s1, to: s2, bit_error_rate: 1e-9}
    - {from: bert0, to: s2}
    - {from: r1, to: s2}
  lids: {bert0: 77, s1: 5}
workloads:
  - {kind: ping-pong, name: ping, client: anna0, server: bert0}
"""
TREE = """
name: tree
fabric:
  generate: fat-tree
  parameters: {k: 4}
  lanes: 2
workloads:
  - {kind: traffic, name: t, flows: [{pattern: uniform}]}
  - {kind: ping-pong, name: p, client: h0, server: h9}
"""


def topology_of(text: str) -> Topology:
    return build_topology(parse_fabric(text, "f.yaml"))


def wrong(text: str) -> str:
    """The message of a file that is wrong."""
    with pytest.raises(FabricFileError) as raised:
        parse_fabric(text, "f.yaml")
    return str(raised.value)


def with_line(text: str, old: str, new: str) -> tuple[str, int]:
    """The text with one line changed, and that line's number."""
    assert text.count(old) == 1
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


def test_a_topology_by_hand() -> None:
    topology = topology_of(BY_HAND)
    assert [node.name for node in topology.hosts] == ["anna0", "anna1", "bert0"]
    assert [node.host for node in topology.hosts] == ["anna", "anna", "bert"]
    assert topology.nodes["s2"].host == "rack"
    assert topology.peer(PortId("anna0", 2)) == PortId("s1", 3)
    assert topology.peer(PortId("anna0", 1)) == PortId("s2", 1)
    assert topology.peer(PortId("anna1", 1)) == PortId("s1", 1)
    links = {str(link.a): link for link in topology.links}
    assert (str(links["anna0[2]"].rate), links["anna0[2]"].delay_ns) == ("4xHDR", 20)
    assert (str(links["anna1[1]"].rate), links["anna0[1]"].delay_ns) == ("1xSDR", 5)
    assert links["s1[2]"].bit_error_rate == 1e-9
    assert topology.nodes["bert0"].lid(1) == (77, 0)
    assert topology.nodes["s1"].lid(0) == (5, 0)


def test_a_generated_topology_brings_its_hosts() -> None:
    fabric = parse_fabric(TREE)
    assert [host.name for host in fabric.hosts] == [f"h{i}" for i in range(16)]
    assert fabric.adapters()["h3"].ports == 1


WRONG_BY_HAND = [
    # a dangling link, a port beyond the switch, a port used twice, too many cables
    ("from: bert0, to: s2", "from: bert0, to: s9", "link to s9: there is no node s9"),
    ('to: "s1[3]"', 'to: "s1[5]"', "link to s1[5]: SWITCH s1 has ports 1 to 4"),
    ('to: "s1[3]"', 'to: "s1[0]"', "link to s1[0]: SWITCH s1 has ports 1 to 4"),
    ('from: "anna0[1]"', 'from: "anna0[2]"', "link to anna0[2]: the port is already connected, to s1[3]"),
    ("from: r1, to: s2", "from: bert0, to: s1", "link to bert0: all its 1 ports are connected"),
    ("from: bert0, to: s2", "from: bert0", "the key to is missing here"),
    ("rate: 1xSDR", "rate: 3xSDR", "rate: "),
    ("rate: 1xSDR", "rate: 100", "100 is no link rate: write for example 4xEDR"),
    # duplicate names, GUIDs, LIDs
    ("name: s2, ports: 4, group: rack", "name: s1, ports: 4", "there is a node s1 already"),
    ("name: r1, ports: 3", "name: anna0, ports: 3", "there is a node anna0 already"),
    ("name: s1, ports: 4", "name: s1, ports: 255", "ports: 255 is too large: at most 254"),
    ("bert0: 77, s1: 5", "bert0: 77, s1: 77", "LID 77 is bert0[1]'s already"),
    ("bert0: 77, s1: 5", "bert0: 77, s9: 5", "there is no node s9"),
    ("bert0: 77, s1: 5", 'bert0: 77, "s1[2]": 5', "s1[2] has no LID: a switch has its own at port 0"),
    ("bert0: 77, s1: 5", 'bert0: 77, "r1[2]": 5', "r1[2] has no LID: no cable is there"),
    ("bert0: 77, s1: 5", "bert0: 49152", "bert0: 49152 is too large: at most 49151"),
    ("link: {rate: 4xHDR", "link: {rat: 4xHDR", "unknown key 'rat': did you mean rate?"),
    ("client: anna0", "client: s1", "there is no adapter s1: one of anna0, anna1, bert0"),
    ("switches:", "switchs:", "unknown key 'switchs': did you mean switches?"),
]


@pytest.mark.parametrize("old, new, message", WRONG_BY_HAND, ids=[new for _, new, _ in WRONG_BY_HAND])
def test_wrong_topologies_by_hand(old: str, new: str, message: str) -> None:
    text, line = with_line(BY_HAND, old, new)
    found = [each for each in wrong(text).splitlines() if each.startswith(f"f.yaml:{line}: ")]
    assert any(message in each for each in found), wrong(text)


def test_duplicate_guids() -> None:
    text, _ = with_line(BY_HAND, "name: s1, ports: 4", "name: s1, ports: 4, guid: 0x1234")
    text, line = with_line(text, "ports: 4, group: rack", "ports: 4, guid: 0x1234")
    assert wrong(text) == f"f.yaml:{line}: SWITCH s2: GUID 0x0000000000001234 is s1's"
    text, line = with_line(BY_HAND, "[{name: bert0}]", "[{name: bert0, guid: 0x0276620000000101}]")
    assert wrong(text).startswith(
        f"f.yaml:{line}: CA bert0: GUID 0x0276620000000101 is anna0's"
    )  # of its port 1


def test_the_same_lid_in_two_subnets() -> None:
    text = """
name: two
fabric:
  generate: two-subnets
  lids: {host-256: 9, host-260: 9}
workloads:
  - {kind: ping-pong, name: p, client: host-256, server: host-258}
"""
    assert topology_of(text).nodes["host-260"].lid(1) == (9, 0)
    text, line = with_line(text, "host-256: 9, host-260: 9", "host-256: 9, host-258: 9")
    assert f"f.yaml:{line}: LID 9 is host-256[1]'s already" in wrong(text)


WRONG_TREES = [
    (
        "generate: fat-tree",
        "generate: fat-trie",
        "'fat-trie' is no kind of topology: write one of back-to-back",
    ),
    ("{k: 4}", "{k: 5}", "k is 5"),
    ("{k: 4}", "{q: 4}", "fat-tree has no parameter 'q'"),
    ("{k: 4}", "{k: 4, rate: 1xSDR}", "rate of all links stands under link"),
    ("generate: fat-tree", "dump: x.txt\n  generate: fat-tree", "generated or read from a dump: not both"),
    ("lanes: 2", "lanes: 16", "lanes: 16 is too large: at most 15"),
    ("lanes: 2", "routing: best", "'best' is not one of 'minhop'"),
    (
        "lanes: 2",
        "links: [{from: h0, to: h1}]",
        "links belong to a topology by hand, and this one has generate",
    ),
    ("lanes: 2", "buffer_bytes: 4 KiB", "holds no packet of MTU 4096: at least 4224"),
    ("lanes: 2", "managers: [h99]", "there is no adapter h99 that could run the subnet manager"),
    ("lanes: 2", "managers: [h1, h1]", "h1 runs a subnet manager already"),
    ("lanes: 2", "changes: [{at_us: 1, pull: s1-0}]", "name a port, such as s1-0[1]"),
    ("lanes: 2", 'changes: [{at_us: 1, pull: "s9[1]"}]', "there is no node s9"),
    ("lanes: 2", 'changes: [{at_us: 1, pull: "s1-0[9]"}]', "s1-0[9]: no cable is there"),
    ("lanes: 2", "changes: [{at_us: 1, power_off: s9}]", "there is no node s9"),
    ("lanes: 2", "changes: [{at_us: 1}]", "a change is one of pull, plug, power_off, power_on"),
    ("lanes: 2", "changes: [{at_us: -1, power_off: h0}]", "at_us: -1 is too small"),
    ("lanes: 2", "arbitration: {high: [[4, 1]]}", "there is no lane 4: lanes are 0 to 3"),
    ("lanes: 2", "arbitration: {high: [[0, 1]], low: [[1, 1]]}", "lane 2 has no weight in either table"),
    ("lanes: 2", "arbitration: {high: [[0]]}", "high"),
    ("lanes: 2", "arbitration: {high: [[0, 256]]}", "256 is too large"),
    ("lanes: 2", "wire: {}", "unknown key 'wire'"),
    ("name: t, flows", "name: t, warmup_us: 1000, flows", "nothing is left of 1000 us to measure"),
    ("pattern: uniform", "pattern: unifrm", "'unifrm' is not one of 'uniform'"),
    ("pattern: uniform", "pattern: uniform, bytes: 5000", "bytes: 5000 is too large: at most 4096"),
    ("pattern: uniform", "pattern: uniform, load: 0", "load: 0"),
    ("pattern: uniform", "pattern: uniform, lode: 1", "unknown key 'lode': did you mean load?"),
    ("pattern: uniform", "pattern: uniform, sources: [h16]", "there is no adapter h16"),
    ("pattern: uniform", "pattern: uniform, start_us: 2000", "it would end before it begins"),
    ("pattern: uniform", "pattern: incast", "incast: name the destinations"),
    ("pattern: uniform", "pattern: shift, by: 16", "shift by 16: of 16 hosts, that is to themselves"),
    ("server: h9", "server: h0", "h0 is the other end, too"),
]


@pytest.mark.parametrize("old, new, message", WRONG_TREES, ids=[new for _, new, _ in WRONG_TREES])
def test_wrong_fabrics(old: str, new: str, message: str) -> None:
    text, line = with_line(TREE, old, new)
    found = [each for each in wrong(text).splitlines() if each.startswith(f"f.yaml:{line}: ")]
    assert any(message in each for each in found), wrong(text)


def test_a_packet_larger_than_the_mtu() -> None:
    text, line = with_line(TREE, "lanes: 2", "mtu: 1024")
    assert wrong(text) == f"f.yaml:{line + 2}: bytes: 4096 do not fit the fabric's MTU, 1024"


def test_what_belongs_to_the_other_kind_of_file() -> None:
    text = TREE + "wire: {rate_bps: 1}\n"
    assert "a wire has no place beside it" in wrong(text)
    text = TREE + "hosts: [{name: h0, adapters: [{name: h0, address: 10.0.0.1}]}]\n"
    assert "an adapter on a fabric has no IP address" in wrong(text)
    text = TREE + "hosts: [{name: h0, adapters: [{name: h0}, {name: x}, {name: h9}]}]\n"
    assert "the topology has no host x; it has h0, h1" in wrong(text)
    plain = "name: t\nworkloads:\n  - {kind: traffic, name: t, flows: [{pattern: uniform}]}\n"
    assert "traffic needs a fabric to run through" in wrong(plain)
    assert "f.yaml:1: hosts: at least one is needed" in wrong(plain)


def test_changes_without_anybody_who_could_notice() -> None:
    text = TREE.replace("  - {kind: ping-pong, name: p, client: h0, server: h9}\n", "")
    text = text.replace("lanes: 2", "changes: [{at_us: 1, power_off: s1-0}]")
    assert "changes happen to workloads that move bytes, and here is only traffic" in wrong(text)


def test_traffic_stays_in_a_subnet() -> None:
    text, _ = with_line(TREE, "parameters: {k: 4}", "link: {delay_ns: 10}")
    text = text.replace("fat-tree", "two-subnets").replace("h0", "host-256").replace("h9", "host-258")
    assert "traffic runs within one subnet, and this topology has 2" in wrong(text)


def test_nobody_reaches_an_adapter_without_a_cable() -> None:
    """In a real fabric it would just be dark: a warning, but no workload can use it."""
    told: list[str] = []
    text, _ = with_line(BY_HAND, "    - {from: anna1, to: s1, rate: 1xSDR}\n", "")
    parse_fabric(text, "f.yaml", told.append)
    assert told == ["CA anna1: it is not connected to anything"]
    text, line = with_line(text, "client: anna0", "client: anna1")
    assert wrong(text) == f"f.yaml:{line}: no cable is plugged into anna1: nothing reaches it"


def test_parts_that_nothing_joins_are_a_warning() -> None:
    told: list[str] = []
    text, _ = with_line(BY_HAND, '    - {from: "anna0[1]", to: s2, delay_ns: 5}\n', "")
    text, _ = with_line(text, "    - {from: s1, to: s2, bit_error_rate: 1e-9}\n", "")
    text, _ = with_line(text, "server: bert0", "server: anna1")
    parse_fabric(text, "f.yaml", told.append)
    assert any("falls into 2 parts" in sentence for sentence in told)


# --- dumps --------------------------------------------------------------------------------------------------------


def dumped(folder: Path, text: str | None = None) -> Path:
    """A dump of a star, and a fabric file that refers to it."""
    topology = topology_of(TREE.replace("fat-tree", "star").replace("{k: 4}", "{hosts: 10}"))
    note_lids(topology, assign_lids(topology))
    lines = "".join(write(topology)) if text is None else text
    (folder / "cluster.txt").write_text(lines)
    file = folder / "f.yaml"
    file.write_text(TREE.replace("generate: fat-tree\n  parameters: {k: 4}", "dump: cluster.txt"))
    return file


def test_a_dump(tmp_path: Path) -> None:
    file = dumped(tmp_path)
    assert len(load_fabric(str(file)).hosts) == 10
    assert open_topology(str(file)).name == "tree"


def test_a_dump_that_is_cut_off(tmp_path: Path) -> None:
    whole = dumped(tmp_path)
    lines = (tmp_path / "cluster.txt").read_text().splitlines()
    dumped(tmp_path, "\n".join(lines[:-6]) + "\n")
    with pytest.raises(FabricFileError, match=r"f.yaml:4: .*cluster.txt:\d+: .*cut off"):
        load_fabric(str(whole))


def test_a_dump_with_two_lids_alike(tmp_path: Path) -> None:
    file = dumped(tmp_path)
    text = (tmp_path / "cluster.txt").read_text()
    topology = open_topology(str(file))
    first, second = (str(topology.nodes[name].lid(1)[0]) for name in ("h1", "h2"))
    assert first != second
    text = text.replace(f"lid {second} ", f"lid {first} ")
    dumped(tmp_path, text)
    with pytest.raises(FabricFileError, match=r"cluster.txt:\d+: .*LID"):
        load_fabric(str(file))


def test_a_dump_that_is_not_there(tmp_path: Path) -> None:
    file = dumped(tmp_path)
    (tmp_path / "cluster.txt").unlink()
    with pytest.raises(FabricFileError, match=r"f.yaml:4: .*cluster.txt: No such file"):
        load_fabric(str(file))


# --- show ---------------------------------------------------------------------------------------------------------


def test_show_takes_fabric_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from verbena.cli.show import show

    file = tmp_path / "hand.yaml"
    file.write_text(BY_HAND)
    assert show(str(file)) == 0
    assert "2 switches, 3 adapters, 1 router, 6 links, 1 subnet" in capsys.readouterr().out
    file.write_text(BY_HAND.replace("to: s2}", "to: s9}", 1))
    assert show(str(file)) == 2
    assert f"{file}:" in capsys.readouterr().err


def test_show_of_an_ideal_wire(tmp_path: Path) -> None:
    from scenario.fabrics import write as written

    with pytest.raises(FabricFileError, match="there is no topology to show"):
        open_topology(written(tmp_path))
