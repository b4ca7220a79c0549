"""Dumps of ibnetdiscover: what is read out of them, what is refused, what is written.

The dumps under `dumps` were made up for these tests, in the exact form that the tools of their times print.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verbena.errors import FabricFileError
from verbena.fabric.addressing import assign_lids, note_lids
from verbena.fabric.check import Severity, check
from verbena.fabric.generators import generate, generate_from
from verbena.fabric.ibnetdiscover import DumpError, read, write
from verbena.fabric.rates import LinkRate, Speed, Width
from verbena.fabric.topology import NodeKind, PortId, Topology, TopologyError

FOLDER = Path(__file__).parent / "dumps"
NAMES = ("edr", "grouped", "old", "full")


def dump(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text()


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def refused(text: str) -> DumpError:
    with pytest.raises(DumpError) as caught:
        read(lines(text))
    assert isinstance(caught.value, TopologyError)
    assert isinstance(caught.value, FabricFileError)
    assert "\n" not in str(caught.value)
    return caught.value


def told(topology: Topology, names: bool = True) -> tuple[object, object]:
    """All of a topology that a dump can tell, in a form that compares; or all but the names."""
    nodes = {
        node.guid: (
            (node.name, node.description) if names else "",
            node.kind,
            node.ports,
            node.system_guid,
            (node.vendor_id, node.device_id),
            [
                (number, node.port_guid(number), node.lid(number))
                for number in range(1, node.ports + 1)
                if PortId(node.name, number) in topology.at or node.kind is NodeKind.SWITCH
            ],
            node.extras.get("enhanced_port_0", False),
        )
        for node in topology.nodes.values()
        if topology.links_of(node.name)
    }
    links = {frozenset((link.a, link.b)): link.rate for link in topology.links}
    if names:
        return nodes, links
    return nodes, {
        frozenset((topology.nodes[end.node].guid, end.port) for end in ends): rate
        for ends, rate in links.items()
    }


# --- what real dumps look like ----------------------------------------------------------------------------------


def test_a_present_day_cluster() -> None:
    said: list[str] = []
    topology = read(lines(dump("edr")), name="quartz", warn=said.append)
    assert topology.name == "quartz"
    assert said == []
    assert (len(topology.switches), len(topology.hosts), len(topology.links)) == (2, 7, 9)
    switch = topology.nodes["MF0;edge-sw1:MSB7800/U1"]
    assert (switch.host, switch.ports, switch.lid(0)) == ("edge-sw1", 37, (1, 0))
    assert (switch.vendor_id, switch.device_id, switch.system_guid) == (0x2C9, 0xCB20, 0x248A0703004D7DA0)
    assert switch.extras == {"enhanced_port_0": True}
    assert topology.nodes["quartz03 HCA-1"].host == topology.nodes["quartz03 HCA-2"].host == "quartz03"
    assert topology.nodes["quartz02 mlx5_0"].host == "quartz02"
    own = topology.nodes["quartz01 HCA-1"]
    assert own.port_guid(1) == own.guid == 0x7CFE90030091A3C4
    login = topology.nodes['login "old" HCA-1 (rack #4)']
    assert login.lid(1) == (0, 0)
    assert login.lid(2) == (8, 0)
    assert str(topology.at[PortId(login.name, 2)].rate) == "4xFDR"
    both = [node.name for node in topology.hosts if "Aggregation" in node.description]
    assert both == ["H-248a0703004d7e28", "H-248a0703004d7da8"]  # of one description, so named by their GUIDs


def test_chassis() -> None:
    topology = read(lines(dump("grouped")))
    assert (len(topology.switches), len(topology.hosts), len(topology.links)) == (3, 2, 4)
    assert [node.extras.get("chassis") for node in topology.switches] == [1, 1, 1]
    assert topology.peer(PortId("amber1 HCA-1", 1)) == PortId("S-0008f10400412a10", 4)


def test_an_old_dump_with_indentation_and_debug_output() -> None:
    topology = read(lines(dump("old")))
    adapter = topology.nodes["H-0002c90200230a18"]
    assert [adapter.lid(1), adapter.lid(2)] == [(4, 1), (6, 1)]
    assert adapter.system_guid == 0
    assert topology.nodes["H-0002c90200230b04"].lid(1) == (8, 2)
    router = topology.nodes["Fabric router"]
    assert (router.kind, router.ports, router.port_guid(1)) == (NodeKind.ROUTER, 4, 0x66A01A0000412)
    assert [str(link.rate) for link in topology.links] == ["4xSDR", "4xDDR", "1xSDR", "12xQDR"]


def test_full_attributes_and_ends_that_do_not_know() -> None:
    said: list[str] = []
    topology = read(lines(dump("full")), warn=said.append)
    assert [str(topology.at[PortId(f"beryl{n} HCA-1", 1)].rate) for n in (1, 2, 3)] == [
        "4xFDR10",
        "4xFDR",
        "4xEDR",
    ]
    assert len(said) == 1
    assert said[0].startswith("line 16: SWITCH")
    assert "neither end tells the rate" in said[0]
    assert topology.nodes["beryl3 HCA-1"].lid(1) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_windows_line_ends_marks_and_blanks(name: str) -> None:
    topology = read(lines(dump(name)))
    windows = "\ufeff" + dump(name).replace("\n", "  \r\n")
    assert told(read(windows.split("\n"))) == told(topology)
    assert told(read(dump(name).replace("\t", "    ").split("\n"))) == told(topology)
    upper = dump(name).replace("lid 4 ", "lid 4 ").replace("caguid=0x", "caguid=0X")
    assert told(read(upper.split("\n"))) == told(topology)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_is_sound(name: str) -> None:
    assert [p for p in check(read(lines(dump(name)))) if p.severity is Severity.ERROR] == []


def test_an_unconnected_port_does_not_take_anothers_guid() -> None:
    """The GUID after an adapter's own is its port 1's or, where that is not connected, may be anybody's."""
    text = dump("edr").replace("f45214030072b113", "7cfe90030091a3c2")
    text = text.replace("f45214030072b110", "7cfe90030091a3c3")
    topology = read(lines(text))
    adapter = topology.nodes['login "old" HCA-1 (rack #4)']
    assert adapter.guid + 1 == topology.nodes["quartz01 HCA-1"].guid
    assert adapter.port_guid(1) >> 56 == 0x02
    assert [p for p in check(topology) if p.severity is Severity.ERROR] == []


# --- what is written ---------------------------------------------------------------------------------------------


def test_the_exact_text() -> None:
    topology = Topology()
    topology.add("spine", NodeKind.SWITCH, 36, guid=0x2C90200400D30).device_id = 0xC738
    topology.add("leaf", NodeKind.SWITCH, 8, guid=0x2C90200400D40, system_guid=0, description="a  \t“leaf”")
    topology.add("n1 HCA-1", NodeKind.CA, 2, guid=0x2C902F6AD0, port_guids={1: 0x2C902F6AD0})
    topology.add("gate", NodeKind.ROUTER, 2, guid=0x66A00)
    topology.nodes["spine"].extras["enhanced_port_0"] = True
    topology.connect(PortId("spine", 3), PortId("leaf", 8), rate="12xQDR")
    topology.connect(PortId("n1 HCA-1", 1), PortId("leaf", 1), rate="4xFDR10")
    topology.connect(PortId("n1 HCA-1", 2), PortId("gate", 1), rate="2xHDR")
    for port, lid, lmc in (("spine", 1, 0), ("leaf", 2, 0), ("n1 HCA-1", 4, 2), ("gate", 9, 0)):
        topology.nodes[port].set_lid(1, lid, lmc)
    text = "".join(write(topology, generated="Mon Jan  5 10:00:00 2026"))
    assert text == (
        "#\n"
        "# Topology file: generated on Mon Jan  5 10:00:00 2026\n"
        "#\n"
        "# Initiated from node 0000002c902f6ad0 port 0000002c902f6ad0\n"
        "\n"
        "vendid=0x766200\n"
        "devid=0xc738\n"
        "sysimgguid=0x2c90200400d30\n"
        "switchguid=0x2c90200400d30(2c90200400d30)\n"
        'Switch\t36 "S-0002c90200400d30"\t\t# "spine" enhanced port 0 lid 1 lmc 0\n'
        '[3]\t"S-0002c90200400d40"[8]\t\t# "a   leaf " lid 2 12xQDR\n'.replace("a   leaf ", "a    leaf ")
        + "\n"
        "vendid=0x766200\n"
        "devid=0x0\n"
        "switchguid=0x2c90200400d40(2c90200400d40)\n"
        'Switch\t8 "S-0002c90200400d40"\t\t# "a    leaf " base port 0 lid 2 lmc 0\n'
        '[1]\t"H-0000002c902f6ad0"[1](2c902f6ad0) \t\t# "n1 HCA-1" lid 4 4xFDR10\n'
        '[8]\t"S-0002c90200400d30"[3]\t\t# "spine" lid 1 12xQDR\n'
        "\n"
        "vendid=0x766200\n"
        "devid=0x0\n"
        "sysimgguid=0x2c902f6ad0\n"
        "caguid=0x2c902f6ad0\n"
        'Ca\t2 "H-0000002c902f6ad0"\t\t# "n1 HCA-1"\n'
        '[1](2c902f6ad0) \t"S-0002c90200400d40"[1]\t\t# lid 4 lmc 2 "a    leaf " lid 2 4xFDR10\n'
        '[2](2c902f6ad2) \t"R-0000000000066a00"[1] (66a01) \t\t# lid 0 lmc 0 "gate" lid 9 2xHDR\n'
        "\n"
        "vendid=0x766200\n"
        "devid=0x0\n"
        "sysimgguid=0x66a00\n"
        "rtguid=0x66a00\n"
        'Rt\t2 "R-0000000000066a00"\t\t# "gate"\n'
        '[1](66a01) \t"H-0000002c902f6ad0"[2] (2c902f6ad2) \t\t# lid 9 lmc 0 "n1 HCA-1" lid 0 2xHDR\n'
    )
    assert told(read(lines(text)))[1] == {
        frozenset((PortId("spine", 3), PortId("a    leaf", 8))): LinkRate.parse("12xQDR"),
        frozenset((PortId("a    leaf", 1), PortId("n1 HCA-1", 1))): LinkRate.parse("4xFDR10"),
        frozenset((PortId("gate", 1), PortId("n1 HCA-1", 2))): LinkRate.parse("2xHDR"),
    }


def test_a_dump_is_written_as_it_was_read() -> None:
    text = dump("edr")
    body = text.index("\nvendid")
    assert "".join(write(read(lines(text)))).partition("\nvendid")[2] == text[body + len("\nvendid") :]


@pytest.mark.parametrize("name", NAMES)
def test_reading_what_was_written_changes_nothing(name: str) -> None:
    topology = read(lines(dump(name)))
    assert told(read(write(topology))) == told(topology)


@pytest.mark.parametrize(
    "text",
    [
        "fat-tree k=4",
        "torus dimensions=3x3x2",
        "dragonfly p=1 a=3 h=1",
        "back-to-back ports=3",
        "san",
        "two-subnets",
        "star hosts=40 rate=1xSDR",
        "line switches=3 hosts=0",
    ],
)
def test_generated_fabrics_survive_the_round(text: str) -> None:
    topology = generate_from(text)
    note_lids(topology, assign_lids(topology, lmc=2))
    assert told(read(write(topology))) == told(topology)


@st.composite
def fabrics(draw: st.DrawFn) -> Topology:
    """Any nodes, wired anyhow, with any GUIDs, names and rates."""
    topology = Topology()
    guids = iter(draw(st.lists(st.integers(1, (1 << 52) - 1), min_size=8, max_size=8, unique=True)))
    letters = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
    names = draw(st.lists(letters.map(str.strip).filter(bool), min_size=1, max_size=8, unique=True))
    blanks = draw(st.sampled_from(["", " "]))
    for name in names:
        kind = draw(st.sampled_from(NodeKind))
        node = topology.add(
            name, kind, draw(st.integers(1, 6)), guid=next(guids) << 8, host=name, description=name + blanks
        )
        node.device_id = draw(st.integers(0, 0xFFFF))
        if kind is NodeKind.SWITCH and draw(st.booleans()):
            node.extras["enhanced_port_0"] = True
    free = [PortId(node.name, n) for node in topology.nodes.values() for n in range(1, node.ports + 1)]
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    rng.shuffle(free)
    for a, b in zip(free[::2], free[1::2], strict=False):
        if rng.random() < 0.8:
            topology.connect(a, b, rate=LinkRate(rng.choice(list(Width)), rng.choice(list(Speed))))
    if draw(st.booleans()):
        note_lids(topology, assign_lids(topology, lmc=draw(st.integers(0, 3))))
    return topology


@given(fabrics())
@settings(max_examples=200)
def test_any_fabric_survives_the_round(topology: Topology) -> None:
    hypothesis.assume(topology.links)
    text = "".join(write(topology))
    again = read(lines(text))
    assert told(again) == told(topology)
    assert sorted("".join(write(again)).split("\n\n")[1:]) == sorted(text.split("\n\n")[1:])


def test_one_subnet_is_what_the_tool_sees_from_there() -> None:
    topology = generate("two-subnets")
    note_lids(topology, assign_lids(topology))
    seen = read(write(topology, source=PortId("host-260", 1)))
    assert set(seen.nodes) == {
        *("switch-266a", "switch-266b", "switch-266c", "host-260", "host-262", "router-270a", "router-270b")
    }
    assert len(seen.links) == 7
    with pytest.raises(TopologyError, match=r"host-260\[2\] is not a connected adapter port"):
        list(write(topology, source=PortId("host-260", 2)))
    with pytest.raises(TopologyError, match="without links"):
        list(write(Topology()))


# --- what is refused ---------------------------------------------------------------------------------------------

SWITCH_1 = 'Switch\t37 "S-248a0703004d7da0"'


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("[19]\t", "[38]\t", 13, "port 38, and it has ports 1 to 37"),
        ("[19]\t", "[0]\t", 13, "port 0, and it has"),
        ("[20]\t", "[19]\t", 14, "port 19 is in line 13 already"),
        ('7da0"[19]', '7da0"[99]', 13, "port 99 of SWITCH"),
        ('7da0"[19]', '7da0"[18]', 13, "does not list the link at its port 18"),
        ('7da0"[19]', '7da0"[1]', 13, "which line 22 has connected elsewhere"),
        ('"S-248a0703004d7da0"[19]', '"S-248a0703004d7e20"[19]', 13, "it leads to itself"),
        ('"H-7cfe90030091a44c"[1]', '"H-7cfe90030091ffff"[1]', 11, "which is not in the file (cut off?)"),
        ('"H-7cfe90030091a44c"[1]', '"R-7cfe90030091a44c"[1]', 11, "which is CA"),
        ('"quartz03 HCA-1" lid 9 4xEDR', '"quartz03 HCA-1" lid 9 4xZDR', 11, "4xZDR"),
        ('"quartz03 HCA-1" lid 9 4xEDR', '"quartz03 HCA-1" lid 9', 11, "cut off or malformed"),
        ('"quartz03 HCA-1" lid 9', '"quartz03 HCA-1" lid 99', 11, "LID 99 at the other end"),
        ("[1](7cfe90030091a44c)", "[1](7cfe90030091a44f)", 11, "port GUID 0x7cfe90030091a44f"),
        ("Switch\t37", "Switch\t255", 10, "255 ports; it must have 1 to 254"),
        ("Switch\t37", "Switch\t0", 11, "ports 1 to 0"),
        ("Switch\t37", "Switch\t", 10, "the line of a node is cut off or malformed"),
        ('"S-248a0703004d7e20"\t', '"H-248a0703004d7e20"\t', 10, "cannot be called H-"),
        ("lid 2 lmc 0\n", "lid 2 lmc\n", 10, "there must follow: base port 0 lid N lmc N"),
        ("switchguid=0x248a0703004d7e20", "switchguid=0x248a0703004d7e21", 10, "it has switchguid"),
        ("switchguid=0x248a0703004d7e20", "caguid=0x248a0703004d7e20", 10, "it has caguid"),
        ("vendid=0x2c9", "vendid=0xg", 6, "it is no line of an ibnetdiscover dump"),
        ("\nvendid=0x2c9", "\nsome text\nvendid=0x2c9", 6, "it is no line of an ibnetdiscover dump"),
        ("\nvendid=0x2c9", "\n" + "x" * 5000 + "\nvendid=0x2c9", 6, "it is longer than 4096 characters"),
        (
            "\nvendid=0x2c9",
            '\n[1]\t"S-248a0703004d7da0"[1]\t\t# "x" lid 1 4xEDR\nvendid=0x2c9',
            6,
            "without a node",
        ),
        ("devid=0xcb20", "vendid=0x2c9", 7, "vendid once more"),
    ],
)
def test_a_contradiction_is_named_with_its_line(old: str, new: str, line: int, said: str) -> None:
    text = dump("edr")
    assert old in text
    error = refused(text.replace(old, new, 1))
    assert str(error).startswith(f"line {line}: ")
    assert error.line == line
    assert said in str(error)


def test_duplicates() -> None:
    text = dump("edr")
    record = text[text.rindex("\n\n") :]
    error = refused(text + record)
    assert str(error).startswith("line 83: CA ")
    assert "the GUID is that of CA in line 75" in str(error)
    twice = text.replace("7cfe90030091a44d) \t", "7cfe90030091a44c) \t")
    assert "its GUID 0x7cfe90030091a44c is another's" in str(refused(twice))
    same = text.replace("lid 9 ", "lid 10 ")
    assert "[1]: LID 0xa is quartz03 HCA-" in str(refused(same))
    assert "is not in 0x0001 to 0xbfff" in str(refused(text.replace("lid 9 ", "lid 49152 ")))
    assert "is not a multiple of 2" in str(refused(text.replace("lid 9 lmc 0", "lid 9 lmc 1")))
    chassis = dump("grouped")
    twice = chassis.replace("base port 0 lid 6", "base port 0 lid 7", 1)
    assert "the GUID is that of SWITCH in line" in str(refused(twice))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_cut_off_anywhere_is_refused(name: str) -> None:
    whole = lines(dump(name))
    last = max(number for number, line in enumerate(whole) if line.strip().startswith("["))
    for number in range(last + 1):
        error = refused("".join(whole[:number]))
        assert error.line is not None or "there is no node in the file" in str(error)


def test_a_line_cut_off_anywhere_is_refused() -> None:
    text = dump("edr").rstrip("\n")
    last = text.rindex("\n") + 1
    for end in range(last, len(text)):
        refused(text[:end])


def test_ends_that_tell_different_rates() -> None:
    """A link that is trained anew while the tool looks: the manual page's own example has two of them."""
    text = dump("edr").replace('"quartz03 HCA-1" lid 9 4xEDR', '"quartz03 HCA-1" lid 9 1xHDR', 1)
    said: list[str] = []
    topology = read(lines(text), warn=said.append)
    (sentence,) = (each for each in said if "at one end" in each)
    assert sentence.startswith("line 11: ")
    assert sentence.endswith("the link is 1xHDR at one end, 4xEDR at the other; it is taken for 1xEDR")
    assert str(topology.at[PortId("quartz03 HCA-1", 1)].rate) == "1xEDR"


def test_one_side_is_enough_if_asked_for() -> None:
    text = dump("old")
    cut = text[: text.rindex("   [1](66a01a0000412)")]
    assert "the file is cut off: no port is listed" in str(refused(cut))
    one_sided = "".join(line for line in lines(text) if not line.startswith("   [3]"))
    assert "does not list the link at its port 3 (cut off?)" in str(refused(one_sided))
    said: list[str] = []
    topology = read(lines(cut), both_ends=False, warn=said.append)
    assert topology.peer(PortId("Fabric router", 1)) == PortId("MT47396 Infiniscale-III", 1)
    assert topology.nodes["Fabric router"].port_guid(1) == 0x66A01A0000412
    assert len(said) == 1


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "\0", "Chassis 1\n", "Non-Chassis Nodes\n"])
def test_nothing_is_no_dump(text: str) -> None:
    refused(text)


@given(st.integers(0, 1 << 32), st.sampled_from(NAMES))
@settings(max_examples=400)
def test_a_mangled_dump_gives_a_topology_or_names_a_line(seed: int, name: str) -> None:
    rng = random.Random(seed)
    text = list(dump(name))
    for _ in range(rng.randrange(1, 6)):
        text = text or ["#"]
        at, width = rng.randrange(len(text)), rng.randrange(1, 40)
        match rng.randrange(6):
            case 0:
                text[at] = rng.choice('0123456789abcdef[]()"# \t\n\0\x85\u2028x=-ΩİSHR?')
            case 1:
                del text[at : at + width]
            case 2:
                text[at:at] = text[at : at + width]
            case 3:
                other = rng.randrange(len(text))
                text[at:at] = text[other : other + 10 * width]
            case 4:
                text = text[: max(at, 1)]
            case 5:
                text[at:at] = rng.choice(["9" * 30, '"' * 50, "[" * 50, "\n", " " * 200, "lid 70000 "])
    mangled = "".join(text)
    try:
        topology = read(lines(mangled))
    except DumpError as error:
        named = error.line is not None and str(error).startswith(f"line {error.line}: ")
        assert named or "no node in the file" in str(error)  # noqa: PT017
    else:
        assert [p for p in check(topology) if p.severity is Severity.ERROR] == []
        assert told(read(write(topology)), names=False) == told(topology, names=False)


@given(st.lists(st.text(max_size=60)))
def test_any_text_is_refused(text: list[str]) -> None:
    with contextlib.suppress(DumpError):
        read(text)


def test_a_great_dump_is_read_line_by_line() -> None:
    topology = generate("fat-tree", k=16)
    note_lids(topology, assign_lids(topology))
    assert told(read(write(topology))) == told(topology)
