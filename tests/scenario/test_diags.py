"""The exact text of infiniband-diags' tools, from plain data."""

from __future__ import annotations

import pytest

from verbena.errors import InvalidAttributeError
from verbena.fabric.rates import LinkRate, Speed, Width
from verbena.fabric.topology import NodeKind, Topology
from verbena.scenario.diags import (
    ADDITIONAL_EXTENDED,
    COUNTERS,
    EXTENDED_WIDTH,
    LINK_UP,
    POLLING,
    PORT_ACTIVE,
    PORT_INIT,
    AdapterStatus,
    CounterSet,
    Hop,
    LinkStatus,
    NodeLinks,
    PortStatus,
    ibhosts,
    iblinkinfo,
    ibrouters,
    ibstat,
    ibswitches,
    ibtracert,
    perfquery,
    perfquery_extended,
)

SWITCH, CA, ROUTER = 0x2C90200400D30, 0x2C902002F6AD0, 0x66A00A0000412
WIDTHS = frozenset({Width.X1, Width.X4})
SPEEDS = frozenset({Speed.SDR, Speed.DDR, Speed.QDR, Speed.FDR10, Speed.FDR, Speed.EDR})


def up(
    number: int, guid: int, lid: int, rate: str = "4xEDR", speeds: frozenset[Speed] = SPEEDS
) -> PortStatus:
    return PortStatus(
        number, guid, PORT_ACTIVE, LINK_UP, LinkRate.parse(rate), lid, widths=WIDTHS, speeds=speeds
    )


def test_iblinkinfo() -> None:
    host, port = up(1, CA + 1, 4), up(2, SWITCH, 2)
    nodes = [
        NodeLinks(
            NodeKind.SWITCH,
            SWITCH,
            "MF0;leaf:MSB7800/U1",
            [
                LinkStatus(PortStatus(1, SWITCH, lid=2)),
                LinkStatus(port, host, "node1 HCA-1"),
                LinkStatus(PortStatus(3, SWITCH, PORT_INIT, LINK_UP, LinkRate.parse("12xSDR"), 2)),
            ],
        ),
        NodeLinks(NodeKind.CA, CA, "node1 HCA-1", [LinkStatus(host, port, "MF0;leaf:MSB7800/U1")]),
    ]
    assert iblinkinfo(nodes) == (
        "Switch: 0x0002c90200400d30 MF0;leaf:MSB7800/U1:\n"
        '           2    1[  ] ==(                Down/ Polling)==>             [  ] "" ( )\n'
        '           2    2[  ] ==( 4X      25.78125 Gbps Active/  LinkUp)==>       4    1[  ] "node1 HCA-1" ( )\n'
        '           2    3[  ] ==(12X           2.5 Gbps Initialize/  LinkUp)==>      "Port not available"\n'
        "CA: node1 HCA-1:\n"
        "      0x0002c902002f6ad1      4    1[  ] ==( 4X      25.78125 Gbps Active/  LinkUp)==>  "
        '     2    2[  ] "MF0;leaf:MSB7800/U1" ( )\n'
    )
    assert iblinkinfo(nodes, down_only=True) == "".join(iblinkinfo(nodes).splitlines(keepends=True)[:2])
    assert iblinkinfo(nodes, line=True).splitlines()[1::2] == [
        '0x0002c90200400d30 "           MF0;leaf:MSB7800/U1"      2    2[  ] ==( 4X      25.78125 Gbps Active/  '
        'LinkUp)==>  0x0002c902002f6ad1      4    1[  ] "node1 HCA-1" ( )',
        '0x0002c902002f6ad1 "                   node1 HCA-1"      4    1[  ] ==( 4X      25.78125 Gbps Active/  '
        'LinkUp)==>  0x0002c90200400d30      2    2[  ] "MF0;leaf:MSB7800/U1" ( )',
    ]


@pytest.mark.parametrize(
    ("rate", "speeds", "shown", "could"),
    [
        ("4xEDR", SPEEDS, " 4X      25.78125 Gbps", "( )"),
        ("1xEDR", SPEEDS, " 1X      25.78125 Gbps", "(Could be 4X )"),
        ("4xQDR", SPEEDS, " 4X          10.0 Gbps", "( Could be 25.78125 Gbps)"),
        ("1xSDR", SPEEDS, " 1X           2.5 Gbps", "(Could be 4X Could be 25.78125 Gbps)"),
        ("4xFDR", SPEEDS - {Speed.EDR}, " 4X       14.0625 Gbps", "( )"),
        ("4xFDR10", SPEEDS - {Speed.EDR, Speed.FDR}, " 4X  10.0 Gbps (FDR10)", "( )"),
        ("4xDDR", SPEEDS - {Speed.EDR, Speed.FDR}, " 4X           5.0 Gbps", "( Could be FDR10)"),
        (
            "4xQDR",
            SPEEDS - {Speed.EDR, Speed.FDR},
            " 4X          10.0 Gbps",
            "( Could be FDR10 (Found link at QDR but expected speed is FDR10))",
        ),
        ("4xHDR", frozenset(), " 4X        53.125 Gbps", "( )"),
        ("2xNDR", frozenset(), " 2X        106.25 Gbps", "( )"),
    ],
)
def test_a_link_below_what_both_ends_can(rate: str, speeds: frozenset[Speed], shown: str, could: str) -> None:
    port = up(1, SWITCH, 1, rate, speeds if speeds else frozenset())
    if not speeds:
        port = PortStatus(1, SWITCH, PORT_ACTIVE, LINK_UP, LinkRate.parse(rate), 1)
    text = iblinkinfo([NodeLinks(NodeKind.SWITCH, SWITCH, "s", [LinkStatus(port, up(9, CA, 2), "h")])])
    assert (
        text.splitlines()[1]
        == f'           1    1[  ] ==({shown} Active/  LinkUp)==>       2    9[  ] "h" {could}'
    )


def test_states_that_are_none() -> None:
    port = PortStatus(1, SWITCH, 9, 12, lid=1)
    text = iblinkinfo([NodeLinks(NodeKind.SWITCH, SWITCH, "s", [LinkStatus(port)])])
    assert "  ?(9)/   ?(12))==>" in text
    assert "State: ???\nPhysical state: ???\n" in ibstat(AdapterStatus("v0", CA, CA, [port]), 1)


def test_ibstat() -> None:
    ports = [
        PortStatus(
            1,
            CA + 1,
            PORT_ACTIVE,
            LINK_UP,
            LinkRate.parse("4xFDR"),
            lid=4,
            lmc=1,
            sm_lid=1,
            capability_mask=0x2514868,
        ),
        PortStatus(2, CA + 2, 1, POLLING, LinkRate.parse("4xSDR"), link_layer="Ethernet"),
    ]
    adapter = AdapterStatus("mlx4_0", CA, CA + 3, ports, "MT4099", "2.42.5000", "1")
    assert ibstat(adapter) == (
        "CA 'mlx4_0'\n"
        "\tCA type: MT4099\n"
        "\tNumber of ports: 2\n"
        "\tFirmware version: 2.42.5000\n"
        "\tHardware version: 1\n"
        "\tNode GUID: 0x0002c902002f6ad0\n"
        "\tSystem image GUID: 0x0002c902002f6ad3\n"
        "\tPort 1:\n"
        "\t\tState: Active\n"
        "\t\tPhysical state: LinkUp\n"
        "\t\tRate: 56\n"
        "\t\tBase lid: 4\n"
        "\t\tLMC: 1\n"
        "\t\tSM lid: 1\n"
        "\t\tCapability mask: 0x02514868\n"
        "\t\tPort GUID: 0x0002c902002f6ad1\n"
        "\t\tLink layer: InfiniBand\n"
        "\tPort 2:\n"
        "\t\tState: Down\n"
        "\t\tPhysical state: Polling\n"
        "\t\tRate: 10\n"
        "\t\tBase lid: 0\n"
        "\t\tLMC: 0\n"
        "\t\tSM lid: 0\n"
        "\t\tCapability mask: 0x00000000\n"
        "\t\tPort GUID: 0x0002c902002f6ad2\n"
        "\t\tLink layer: Ethernet\n"
    )
    with pytest.raises(InvalidAttributeError, match="mlx4_0 has no port 3: it has 2"):
        ibstat(adapter, 3)
    alone = ibstat(adapter, 2).splitlines()
    assert alone[:3] == ["CA: 'mlx4_0'", "Port 2:", "State: Down"]


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        ("1xSDR", "2.5"),
        ("4xSDR", "10"),
        ("4xDDR", "20"),
        ("4xQDR", "40"),
        ("4xFDR10", "40 (FDR10)"),
        ("1xFDR", "14"),
        ("4xFDR", "56"),
        ("4xEDR", "100"),
        ("2xHDR", "100"),
        ("4xHDR", "200"),
        ("4xNDR", "400"),
        ("12xQDR", "120"),
    ],
)
def test_rates_as_linux_counts_them(rate: str, shown: str) -> None:
    port = PortStatus(1, CA, PORT_INIT, LINK_UP, LinkRate.parse(rate))
    text = ibstat(AdapterStatus("v0", CA, CA, [port]), 1)
    assert f"\nRate: {shown}\n" in text
    assert "\nState: Initializing\n" in text


def test_perfquery() -> None:
    values = {"PortXmitData": 55178210, "PortRcvData": 1 << 40, "PortXmitDiscards": 2, "PortXmitWait": 7}
    assert perfquery(CounterSet(6, 1, values, 0x1400)) == (
        "# Port counters: Lid 6 port 1 (CapMask: 0x1400)\n"
        "PortSelect:......................1\n"
        "CounterSelect:...................0x0000\n"
        "SymbolErrorCounter:..............0\n"
        "LinkErrorRecoveryCounter:........0\n"
        "LinkDownedCounter:...............0\n"
        "PortRcvErrors:...................0\n"
        "PortRcvRemotePhysicalErrors:.....0\n"
        "PortRcvSwitchRelayErrors:........0\n"
        "PortXmitDiscards:................2\n"
        "PortXmitConstraintErrors:........0\n"
        "PortRcvConstraintErrors:.........0\n"
        "CounterSelect2:..................0x00\n"
        "LocalLinkIntegrityErrors:........0\n"
        "ExcessiveBufferOverrunErrors:....0\n"
        "QP1Dropped:......................0\n"
        "VL15Dropped:.....................0\n"
        "PortXmitData:....................55178210\n"
        "PortRcvData:.....................4294967295\n"
        "PortXmitPkts:....................0\n"
        "PortRcvPkts:.....................0\n"
        "PortXmitWait:....................7\n"
    )


@pytest.mark.parametrize(("name", "bits"), COUNTERS.items())
def test_counters_stop_at_their_greatest_value(name: str, bits: int) -> None:
    shown = [
        line.rpartition(".")[2]
        for line in perfquery(CounterSet(1, 2, {name: 1 << bits})).splitlines()
        if line.startswith(f"{name}:.")
    ]
    assert shown == ["0xff" if name == "CounterSelect2" else str((1 << bits) - 1)]


def test_perfquery_extended() -> None:
    values = {"PortXmitData": 1 << 40, "PortUnicastXmitPkts": 3, "SymbolErrorCounter": 70000}
    first = (
        "PortSelect:......................255\n"
        "CounterSelect:...................0x0000\n"
        "PortXmitData:....................1099511627776\n"
        "PortRcvData:.....................0\n"
        "PortXmitPkts:....................0\n"
        "PortRcvPkts:.....................0\n"
    )
    head = "# Port extended counters: Lid 6 port 255 (CapMask: 0x400 CapMask2: 0x0000000)\n"
    assert perfquery_extended(CounterSet(6, 255, values, 0x400)) == head + first
    everything = perfquery_extended(CounterSet(6, 255, values, 0x400 | EXTENDED_WIDTH, ADDITIONAL_EXTENDED))
    assert everything == (
        "# Port extended counters: Lid 6 port 255 (CapMask: 0x600 CapMask2: 0x0000002)\n"
        + first
        + "PortUnicastXmitPkts:.............3\n"
        "PortUnicastRcvPkts:..............0\n"
        "PortMulticastXmitPkts:...........0\n"
        "PortMulticastRcvPkts:............0\n"
        "CounterSelect2:..................0x00000000\n"
        "SymbolErrorCounter:..............70000\n"
        "LinkErrorRecoveryCounter:........0\n"
        "LinkDownedCounter:...............0\n"
        "PortRcvErrors:...................0\n"
        "PortRcvRemotePhysicalErrors:.....0\n"
        "PortRcvSwitchRelayErrors:........0\n"
        "PortXmitDiscards:................0\n"
        "PortXmitConstraintErrors:........0\n"
        "PortRcvConstraintErrors:.........0\n"
        "LocalLinkIntegrityErrors:........0\n"
        "ExcessiveBufferOverrunErrors:....0\n"
        "VL15Dropped:.....................0\n"
        "PortXmitWait:....................0\n"
        "QP1Dropped:......................0\n"
    )


def test_ibtracert() -> None:
    hops = [
        Hop(0, NodeKind.CA, CA, CA + 1, 1, 4, 1, "node1 HCA-1"),
        Hop(1, NodeKind.SWITCH, SWITCH, SWITCH, 8, 2, 0, "leaf"),
        Hop(3, NodeKind.ROUTER, ROUTER, ROUTER + 1, 1, 12, 0, "gate"),
    ]
    assert ibtracert(hops) == (
        'From ca {0x0002c902002f6ad0} portnum 1 lid 4-5 "node1 HCA-1"\n'
        '[1] -> switch port {0x0002c90200400d30}[8] lid 2-2 "leaf"\n'
        '[3] -> router port {0x00066a00a0000413}[1] lid 12-12 "gate"\n'
        'To router {0x00066a00a0000412} portnum 1 lid 12-12 "gate"\n'
    )
    assert ibtracert(hops[:2], numeric=True) == (
        "From {0x0002c902002f6ad0}[1]\n[1] -> {0x0002c90200400d30}[8]\nTo {0x0002c90200400d30}[0]\n"
    )
    assert ibtracert(hops[1:2]) == (
        'From switch {0x0002c90200400d30} portnum 0 lid 2-2 "leaf"\n'
        'To switch {0x0002c90200400d30} portnum 0 lid 2-2 "leaf"\n'
    )


def test_lists_of_nodes() -> None:
    topology = Topology()
    topology.add("s", NodeKind.SWITCH, 36, guid=SWITCH, description="MF0;leaf:MSB7800/U1").set_lid(0, 3)
    topology.add("t", NodeKind.SWITCH, 8, guid=SWITCH + 16, description="a # b").extras["enhanced_port_0"] = (
        True
    )
    topology.add("h", NodeKind.CA, 2, guid=CA, description="node1\tHCA-1")
    topology.add("r", NodeKind.ROUTER, 4, guid=ROUTER, description="gate")
    nodes = topology.nodes.values()
    assert ibswitches(nodes) == (
        'Switch\t: 0x0002c90200400d30 ports 36 "MF0;leaf:MSB7800/U1" base port 0 lid 3 lmc 0\n'
        'Switch\t: 0x0002c90200400d40 ports 8 "a # b" enhanced port 0 lid 0 lmc 0\n'
    )
    assert ibhosts(nodes) == 'Ca\t: 0x0002c902002f6ad0 ports 2 "node1 HCA-1"\n'
    assert ibrouters(nodes) == 'Rt\t: 0x00066a00a0000412 ports 4 "gate"\n'
