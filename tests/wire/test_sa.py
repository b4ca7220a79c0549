"""Subnet administration, notices and performance management: every record, bit by bit, and in tshark's eyes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena import wire
from verbena.wire import sa_nodes
from verbena.wire.layout import Layout
from verbena.wire.notice import ClassPortInfo, GmpNotice, InformInfo
from verbena.wire.pm import PM_DATA_OFFSET, PortCounters, PortCountersExtended, pm_mad
from verbena.wire.rmpp import RMPP_DATA, RmppFlags, RmppMad, joined, segment_length, segments
from verbena.wire.sa import (
    SA_DATA,
    SA_HEADER,
    Record,
    SaAttribute,
    SaHeader,
    SaMethod,
    component,
    component_mask,
    matches,
    named_components,
    offset_of,
    sa_mad,
    sa_message,
    sa_records,
    sa_table,
)
from verbena.wire.sa_nodes import RECORDS, NodeRecord, PortInfoRecord
from verbena.wire.sa_records import (
    RATE_CODE,
    LinkRecord,
    MCMemberRecord,
    MultiPathRecord,
    PathRecord,
    ServiceRecord,
    lifetime_code,
    lifetime_ns,
)
from verbena.wire.smp_attributes import NodeDescription, NodeInfo, Notice, PortInfo
from wire.samples import ETHERNET_V4, IPV4, layouts
from wire.test_tshark import tshark, write

KINDS = [
    *RECORDS.values(),
    MultiPathRecord,
    ClassPortInfo,
    InformInfo,
    GmpNotice,
    PortCounters,
    PortCountersExtended,
]
WORDS = {
    "NodeRecord": 14,
    "PortInfoRecord": 9,
    "SLtoVLMappingTableRecord": 2,
    "SwitchInfoRecord": 3,
    "LinearForwardingTableRecord": 9,
    "MulticastForwardingTableRecord": 9,
    "SMInfoRecord": 4,
    "LinkRecord": 1,
    "GUIDInfoRecord": 9,
    "ServiceRecord": 22,
    "PKeyTableRecord": 9,
    "PathRecord": 8,
    "VLArbitrationRecord": 9,
    "MCMemberRecord": 7,
    "InformInfoRecord": 8,
    "NoticeRecord": 11,
}
"""Sizes in words of eight bytes, as OpenSM's structures have them (PortInfo: with the extended speeds)."""


def values(kind: type) -> st.SearchStrategy:
    """Any value of a fixed-size format, or of a record made of several."""
    if issubclass(kind, Layout):
        return layouts(kind)
    return st.builds(kind, *(layouts(part) for _, part in kind.PARTS))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_records_round_trip(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(values(kind))
    raw = record.pack()
    assert len(raw) == kind.SIZE
    assert kind.unpack(b"\xaa" * 3 + raw, 3) == record
    for short in (0, 1, kind.SIZE - 1):
        with pytest.raises(wire.DecodeError) as caught:
            kind.unpack(raw[:short])
        assert caught.value.reason == "short"


@pytest.mark.parametrize("kind", RECORDS.values(), ids=lambda kind: kind.__name__)
def test_sizes_are_those_of_the_field(kind: type[Record]) -> None:
    assert offset_of(kind) == WORDS[kind.__name__]
    assert kind.SIZE % 8 == 0


@pytest.mark.parametrize("kind", RECORDS.values(), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_components_select(kind: type[Record], data: st.DataObject) -> None:
    """A record matches a template in the components that agree, and only in them."""
    one, other = data.draw(values(kind)), data.draw(values(kind))
    names = [name for name in kind.COMPONENTS if name is not None]
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    mask = component_mask(kind, *chosen)
    found = named_components(kind, mask)
    assert found is not None
    assert sorted(found) == sorted(chosen)
    assert matches(one, one, found)
    assert matches(one, other, found) is all(component(one, n) == component(other, n) for n in chosen)
    assert named_components(kind, 1 << len(kind.COMPONENTS)) is None


def test_bits_of_component_masks() -> None:
    """As Linux (ib_sa.h) and OpenSM (ib_types.h) number them."""
    for kind, name, bit in (
        (PathRecord, "dgid", 2),
        (PathRecord, "slid", 5),
        (PathRecord, "reversible", 11),
        (PathRecord, "numb_path", 12),
        (PathRecord, "pkey", 13),
        (PathRecord, "rate", 19),
        (PathRecord, "preference", 22),
        (MCMemberRecord, "qkey", 2),
        (MCMemberRecord, "join_state", 16),
        (MCMemberRecord, "proxy_join", 17),
        (ServiceRecord, "name", 6),
        (ServiceRecord, "data8_0", 7),
        (ServiceRecord, "data64_1", 36),
        (NodeRecord, "info.node_type", 4),
        (NodeRecord, "info.port_guid", 8),
        (NodeRecord, "description.text", 14),
        (PortInfoRecord, "info.lid", 5),
        (PortInfoRecord, "info.lmc", 20),
        (PortInfoRecord, "info.overrun_error_threshold", 48),
        (LinkRecord, "to_lid", 3),
        (sa_nodes.SwitchInfoRecord, "info.lids_per_port", 12),
        (sa_nodes.SMInfoRecord, "info.state", 6),
        (sa_nodes.InformInfoRecord, "info.producer_type", 15),
    ):
        assert component_mask(kind, name) == 1 << bit, (kind, name)
    with pytest.raises(wire.EncodeError, match="no component"):
        component_mask(PathRecord, "colour")


def test_numbers_in_service_data() -> None:
    record = ServiceRecord(data=bytes(range(64)))
    assert [component(record, name) for name in ("data8_3", "data16_1", "data32_3", "data64_1")] == [
        3,
        0x1213,
        0x2C2D2E2F,
        0x38393A3B3C3D3E3F,
    ]
    with pytest.raises(AttributeError):
        _ = record.colour


@given(payload=st.binary(max_size=3000), header=st.integers(0, RMPP_DATA - 1))
def test_transfers_join_again(payload: bytes, header: int) -> None:
    parts = segments(sa_mad(SaMethod.GET_TABLE_RESPONSE, 0x11), bytes(header), payload)
    assert joined([RmppMad.unpack(part.pack()) for part in parts], header) == payload
    flags = [part.rmpp_flags for part in parts]
    assert flags[0] & RmppFlags.FIRST
    assert flags[-1] & RmppFlags.LAST
    assert sum(bool(f & RmppFlags.FIRST) + bool(f & RmppFlags.LAST) for f in flags) == 2
    assert [part.data1 for part in parts] == list(range(1, len(parts) + 1))
    assert parts[0].data2 == sum(header + segment_length(part, header) for part in parts)


def test_payload_lengths_as_linux_writes_them() -> None:
    """PayloadLength counts the class's header in each segment."""
    parts = sa_table(
        sa_mad(SaMethod.GET_TABLE_RESPONSE, SaAttribute.LINK), LinkRecord, [LinkRecord().pack()] * 51
    )
    assert [part.data2 for part in parts] == [2 * 220 + 20 + 8, 0, 28]
    assert len(sa_table(sa_mad(0x92, SaAttribute.LINK), LinkRecord, [])) == 1


@given(payload=st.binary(max_size=500), offset=st.integers(0, 0xFFFF))
def test_tables_that_do_not_fit_are_refused(payload: bytes, offset: int) -> None:
    if payload and (offset == 0 or len(payload) % (8 * offset)):
        with pytest.raises(wire.DecodeError) as caught:
            list(sa_records(LinkRecord, payload, offset))
        assert caught.value.reason == "length"
    else:
        assert len(list(sa_records(LinkRecord, payload, offset))) * 8 * offset == len(payload)


@given(raw=st.binary(min_size=256, max_size=256))
def test_every_bit_of_a_datagram_is_kept(raw: bytes) -> None:
    mad = RmppMad.unpack(raw)
    assert mad.pack() == raw
    assert SaHeader.unpack(mad.data).pack() == raw[36:56]


def test_a_notice_of_a_trap() -> None:
    gid = bytes(range(16))
    notice = GmpNotice.of(Notice(trap=128, issuer_lid=5, details=b"\0\5"), gid)
    assert (notice.trap, notice.issuer_lid, notice.issuer_gid, notice.details[:2]) == (128, 5, gid, b"\0\5")
    assert GmpNotice.about_gid(64, gid, 1, gid).gid == gid


def test_lifetimes_and_rates() -> None:
    assert lifetime_ns(18) == 1_073_741_824
    for code in range(63):
        assert lifetime_code(lifetime_ns(code)) == code
        assert lifetime_code(lifetime_ns(code) + 1) == code + 1
    assert lifetime_code(1 << 80) == 63
    assert (RATE_CODE[2.5], RATE_CODE[10], RATE_CODE[100], RATE_CODE[400]) == (2, 3, 16, 21)


def test_counters_saturate_or_wrap() -> None:
    counters = PortCounters.saturated(1, {"symbol_error": 1 << 20, "link_downed": 256, "xmit_data": 5})
    assert (counters.symbol_error, counters.link_downed, counters.xmit_data) == (0xFFFF, 0xFF, 5)
    assert PortCountersExtended.wrapped(1, {"xmit_data": (1 << 64) + 7}).xmit_data == 7


# --- tshark -----------------------------------------------------------------------------------------------------


def gmp(mad: bytes, psn: int) -> wire.RocePacket:
    bth = wire.BTH(opcode=wire.Opcode.UD_SEND_ONLY, dest_qp=wire.GSI_QP, psn=psn)
    deth = wire.DETH(qkey=wire.GSI_QKEY, src_qp=wire.GSI_QP)
    transport = wire.TransportPacket.build(bth, deth, payload=mad)
    return wire.RocePacket(IPV4, wire.UDP(src_port=50000), transport, ETHERNET_V4).sealed()


def answer(record: Record, mask: int = 0) -> bytes:
    header = SaHeader(sm_key=0x1122, attribute_offset=offset_of(type(record)), component_mask=mask)
    return sa_message(
        sa_mad(SaMethod.GET_RESPONSE, record.ATTRIBUTE_ID, transaction_id=9), header, record
    ).pack()


GID = bytes.fromhex("fe80000000000000aabbccddeeff0011")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_records_alike(tmp_path: Path) -> None:
    node = NodeInfo(
        node_type=1, num_ports=2, node_guid=0xABC, port_guid=0xDEF, device_id=0x1003, vendor_id=0x2C9
    )
    path_record = PathRecord(
        dgid=GID,
        sgid=GID[::-1],
        dlid=7,
        slid=3,
        reversible=True,
        numb_path=5,
        pkey=0x8001,
        sl=4,
        mtu_selector=2,
        mtu=5,
        rate_selector=2,
        rate=16,
        packet_life=18,
        preference=1,
        flow_label=0x12345,
        hop_limit=64,
        tclass=9,
    )
    member = MCMemberRecord(
        mgid=b"\xff" * 16,
        port_gid=GID,
        qkey=0xB1B,
        mlid=0xC001,
        mtu=4,
        pkey=0xFFFF,
        rate=3,
        sl=2,
        flow_label=5,
        hop_limit=1,
        scope=2,
        join_state=1,
        proxy_join=True,
    )
    expected: list[tuple[bytes, dict[str, int]]] = [
        (answer(path_record, 0x2C), {
            "sa.smkey": 0x1122, "sa.attributeoffset": 8, "sa.componentmask": 0x2C, "pathrecord.dlid": 7,
            "pathrecord.slid": 3, "pathrecord.reversible": 1, "pathrecord.numbpath": 5, "pathrecord.p_key": 0x8001,
            "pathrecord.sl": 4, "pathrecord.mtuselector": 2, "pathrecord.mtu": 5, "pathrecord.rateselector": 2,
            "pathrecord.rate": 16, "pathrecord.packetlifetime": 18, "pathrecord.preference": 1,
            "pathrecord.flowlabel": 0x12345, "pathrecord.hoplimit": 64, "pathrecord.tclass": 9,
        }),
        (answer(member), {
            "mcmemberrecord.q_key": 0xB1B, "mcmemberrecord.mlid": 0xC001, "mcmemberrecord.mtu": 4,
            "mcmemberrecord.p_key": 0xFFFF, "mcmemberrecord.rate": 3, "mcmemberrecord.sl": 2,
            "mcmemberrecord.scope": 2, "mcmemberrecord.joinstate": 1, "mcmemberrecord.proxyjoin": 1,
        }),
        (answer(LinkRecord(3, 1, 9, 4)), {
            "linkrecord.fromlid": 3, "linkrecord.fromport": 1, "linkrecord.toport": 9, "linkrecord.tolid": 4,
        }),
        (answer(NodeRecord(sa_nodes.LidIdentifier(6), node, NodeDescription.of("node"))), {
            "sa.lid": 6, "nodeinfo.nodetype": 1, "nodeinfo.numports": 2, "nodeinfo.nodeguid": 0xABC,
            "nodeinfo.portguid": 0xDEF, "nodeinfo.deviceid": 0x1003, "nodeinfo.vendorid": 0x2C9,
        }),
        (answer(PortInfoRecord(sa_nodes.PortIdentifier(6, 2), PortInfo(lid=6, lmc=1, port_state=4))), {
            "sa.endportlid": 6, "sa.portnum": 2, "portinfo.lid": 6, "portinfo.lmc": 1,
        }),
        (answer(ServiceRecord(77, GID, 0xFFFF, lease=60, name=b"iblan")), {
            "linkrecord.serviceid": 77, "linkrecord.servicep_key": 0xFFFF, "linkrecord.servicelease": 60,
        }),
        (pm_mad(0x81, 0x12, PortCounters.saturated(3, {"symbol_error": 9, "xmit_data": 10, "rcv_pkts": 11,
                                                       "vl15_dropped": 12}).pack()).pack(), {
            "portcounters.portselect": 3, "portcounters.symbolerrorcounter": 9, "portcounters.portxmitdata": 10,
            "portcounters.portrcvpkts": 11, "portcounters.vl15dropped": 12,
        }),
        (pm_mad(0x81, 0x1D, PortCountersExtended.wrapped(3, {"xmit_data": 1 << 40, "multicast_rcv_pkts": 5})
                .pack()).pack(), {
            "portcounters_ext.portselect": 3, "portcounters_ext.portxmitdata": 1 << 40,
            "portcounters_ext.portmulticastrcvpkts": 5,
        }),
    ]  # fmt: skip
    parts = sa_table(
        sa_mad(SaMethod.GET_TABLE_RESPONSE, SaAttribute.LINK), LinkRecord, [LinkRecord().pack()] * 51
    )
    expected += [
        (part.pack(), {"rmpp.rmppversion": 1, "rmpp.rmpptype": 1, "rmpp.segmentnumber": number})
        for number, part in enumerate(parts, 1)
    ]
    report = sa_message(sa_mad(SaMethod.REPORT, 2), SaHeader(), GmpNotice.about_gid(64, GID, 1, GID))
    expected.append(
        (report.pack(), {"notice.trapnumberdeviceid": 64, "notice.issuerlid": 1, "notice.type": 3})
    )
    file = tmp_path / "sa.pcapng"
    write(file, [gmp(mad, psn) for psn, (mad, _) in enumerate(expected)])
    names = sorted({name for _, fields in expected for name in fields})
    rows = tshark(file, "_ws.malformed", *(f"infiniband.{name}" for name in names))
    assert len(rows) == len(expected)
    for number, (row, (_, fields)) in enumerate(zip(rows, expected, strict=True)):
        assert row[0] == "", number
        read = dict(zip(names, row[1:], strict=True))
        for name, value in fields.items():
            assert read[name], (number, name)
            assert int(read[name], 0) == value, (number, name)


def test_where_counters_stand_in_a_datagram() -> None:
    raw = pm_mad(1, 0x12, PortCounters(port_select=7).pack()).pack()
    assert raw[24 + PM_DATA_OFFSET + 1] == 7
    assert PM_DATA_OFFSET + 24 == 64
    assert SA_HEADER + SA_DATA == RMPP_DATA == 220
    assert replace(sa_mad(1, 2), data=b"x").data == b"x"
