"""Subnet management packets and attributes: round trips, limits, damage, and what tshark makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.wire import BTH, LRH, Mad, NativePacket, Opcode, decode_infiniband, vcrc
from verbena.wire.errors import DecodeError, EncodeError
from verbena.wire.layout import Layout
from verbena.wire.smp import (
    PACKET_SIZE,
    AttributeId,
    Smp,
    directed_smp,
    lid_routed_smp,
    parse_smp_packet,
    smp_packet,
)
from verbena.wire.smp_attributes import (
    ATTRIBUTES,
    BadKeyDetails,
    BadMkeyDetails,
    CapabilityDetails,
    LinearForwardingTable,
    LinkStateDetails,
    NodeDescription,
    NodeInfo,
    PKeyTable,
    PortDetails,
    PortInfo,
    PortState,
    SLtoVLMappingTable,
    SMInfo,
    SwitchInfo,
    VLArbitrationTable,
)

DETAILS = (LinkStateDetails, PortDetails, CapabilityDetails, BadMkeyDetails, BadKeyDetails)
LAYOUTS = [kind for kind in ATTRIBUTES.values() if issubclass(kind, Layout)] + list(DETAILS)
TABLES = [kind for kind in ATTRIBUTES.values() if not issubclass(kind, Layout)]


@given(
    st.sampled_from(LAYOUTS).flatmap(
        lambda k: st.tuples(st.just(k), st.binary(min_size=k.SIZE, max_size=k.SIZE))
    )
)
def test_no_bit_of_an_attribute_is_lost(drawn: tuple[Any, bytes]) -> None:
    kind, raw = drawn
    assert kind.unpack(raw).pack() == raw


@given(st.sampled_from(TABLES), st.binary(min_size=64, max_size=64))
def test_no_entry_of_a_table_is_lost(kind: Any, raw: bytes) -> None:
    if kind is VLArbitrationTable:  # four reserved bits before each lane
        raw = bytes(byte & 15 if at % 2 == 0 else byte for at, byte in enumerate(raw))
    assert kind.unpack(raw).pack() == raw[: kind.SIZE]


@pytest.mark.parametrize("kind", ATTRIBUTES.values(), ids=lambda kind: kind.__name__)
def test_attributes_fit_an_smp_and_a_short_buffer_is_refused(kind: Any) -> None:
    assert kind.SIZE <= 64
    with pytest.raises(DecodeError):
        kind.unpack(bytes(kind.SIZE - 1))


def test_every_attribute_has_its_id() -> None:
    assert set(ATTRIBUTES) == set(AttributeId)


def test_a_table_refuses_what_does_not_fit() -> None:
    for bad in (
        LinearForwardingTable((256,)),
        LinearForwardingTable((0,) * 65),
        PKeyTable((0x10000,)),
        SLtoVLMappingTable((0,) * 15),
        SLtoVLMappingTable((16,) * 16),
        VLArbitrationTable(((16, 1),)),
        VLArbitrationTable(((0, 1),) * 33),
    ):
        with pytest.raises(EncodeError):
            bad.pack()


def test_a_description_is_cut_between_characters() -> None:
    assert str(NodeDescription.of("é" * 40)) == "é" * 32
    assert str(NodeDescription.of("a" + "é" * 40)) == "a" + "é" * 31
    assert str(NodeDescription.unpack(b"\xff" * 64)) == "\N{REPLACEMENT CHARACTER}" * 64


@given(st.binary(min_size=256, max_size=256))
def test_no_bit_of_an_smp_is_lost(raw: bytes) -> None:
    smp = Smp.unpack(raw)
    assert smp.pack() == raw
    common = Mad.unpack(raw)  # the general format, its own implementation
    assert (smp.method, smp.attribute_id, smp.attribute_modifier) == (
        common.method,
        common.attribute_id,
        common.attribute_modifier,
    )
    assert common.status == smp.status | smp.direction << 15
    assert common.class_specific == smp.hop_pointer << 8 | smp.hop_count


def test_the_constructors_of_smps() -> None:
    smp = Smp.unpack(directed_smp(1, 0x11, 7, (3, 1, 2), data=b"x", mkey=9, transaction_id=5))
    assert smp.is_directed
    assert (smp.path, smp.hop_pointer, smp.hop_count, smp.direction) == ((3, 1, 2), 0, 3, False)
    assert (smp.mkey, smp.transaction_id, smp.attribute_modifier, smp.data[:1]) == (9, 5, 7, b"x")
    assert smp.dr_slid == smp.dr_dlid == 0xFFFF
    assert not Smp.unpack(lid_routed_smp(1, 0x11, 7)).is_directed
    for path, data in (((1,) * 64, b""), ((1,), bytes(65))):
        with pytest.raises(EncodeError):
            directed_smp(1, 0x11, 0, path, data=data)
    with pytest.raises(EncodeError):
        lid_routed_smp(1, 0x11, 0, data=bytes(65))
    for wrong in (Smp(data=bytes(65)), Smp(status=0x8000), Smp(method=256), Smp(mkey=1 << 64)):
        with pytest.raises(EncodeError):
            wrong.pack()


@given(
    st.binary(min_size=256, max_size=256),
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 15))
    | st.just((0xFFFF, 0xFFFF, 0)),
)
@pytest.mark.requirement("SUB-01")
def test_an_smp_travels_as_a_datagram_on_lane_15(mad: bytes, route: tuple[int, int, int]) -> None:
    """Management frames are UD: checked with the general decoder of packets."""
    data = smp_packet(mad, *route)
    assert len(data) == PACKET_SIZE
    packet = decode_infiniband(data + vcrc(data).to_bytes(2, "big"))
    assert isinstance(packet, NativePacket)
    assert packet.icrc_ok
    assert packet.vcrc_ok
    assert (packet.lrh.slid, packet.lrh.dlid, packet.lrh.sl, packet.lrh.vl) == (*route, 15)
    assert packet.transport.bth.opcode == Opcode.UD_SEND_ONLY
    assert packet.transport.bth.dest_qp == 0
    assert packet.transport.payload == mad
    assert parse_smp_packet(data) == parse_smp_packet(data + b"xx") == (*route, mad)


@given(st.integers(0, PACKET_SIZE * 8 - 1))
def test_a_damaged_packet_is_refused_unless_the_bit_may_change_on_the_way(bit: int) -> None:
    """The ICRC does not cover the lane nor the congestion bits and reserved bits beside them."""
    damaged = bytearray(smp_packet(bytes(range(256)), 1, 2))
    damaged[bit // 8] ^= 0x80 >> bit % 8
    if bit // 8 == LRH.SIZE + 4:
        assert parse_smp_packet(damaged).mad == bytes(range(256))
    else:
        with pytest.raises(DecodeError):
            parse_smp_packet(damaged)


@given(st.binary(max_size=300))
def test_garbage_is_no_packet(data: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_smp_packet(data)
    with pytest.raises(EncodeError):
        smp_packet(data + bytes(257))


def test_bth_and_lengths_must_be_right() -> None:
    good = bytearray(smp_packet(bytes(256)))
    for at, value in (
        (8, 0x04),
        (8 + 7, 1),
        (8 + 1, 0x10),
        (8 + 1, 0x01),
        (27, 1),
        (0, 0),
        (1, 3),
        (5, 0x47),
    ):
        bad = bytearray(good)
        bad[at] = value
        with pytest.raises(DecodeError):
            parse_smp_packet(bad)
    assert BTH.unpack(good, LRH.SIZE).dest_qp == 0


# --- an independent decoder -----------------------------------------------------------------------------------

NODE = NodeInfo(
    1, 1, 2, 36, 0x1122334455667788, 0x2122334455667788, 0x3122334455667788, 128, 0xBD36, 0xA1, 7, 0x2C9
)
SWITCH = SwitchInfo(
    49152, 0, 1024, 777, 255, 254, 253, 18, True, 1, 0, 32, True, True, False, False, True, 0, 0, 0xC012
)
PORT = PortInfo(
    mkey=0x0102030405060708,
    gid_prefix=0xFE80000000000000,
    lid=0x1234,
    master_sm_lid=0x0021,
    capability_mask=0x0251086A,
    mkey_lease_period=60,
    local_port_num=3,
    link_width_enabled=3,
    link_width_supported=7,
    link_width_active=2,
    link_speed_supported=7,
    port_state=PortState.ARMED,
    port_physical_state=5,
    link_down_default_state=2,
    mkey_protect_bits=1,
    lmc=3,
    link_speed_active=4,
    link_speed_enabled=7,
    neighbor_mtu=5,
    master_sm_sl=2,
    vl_cap=4,
    vl_high_limit=11,
    vl_arbitration_high_cap=8,
    vl_arbitration_low_cap=16,
    mtu_cap=5,
    vl_stall_count=7,
    hoq_life=18,
    operational_vls=3,
    partition_enforcement_inbound=True,
    mkey_violations=1,
    pkey_violations=2,
    qkey_violations=3,
    guid_cap=8,
    client_reregister=True,
    subnet_timeout=18,
    response_time_value=16,
    local_physical_error_threshold=8,
    overrun_error_threshold=9,
)
SM = SMInfo(0xAABBCCDD00112233, 0x5, 99, 14, 3)
READ: dict[str, tuple[Any, Any]] = {
    "infiniband.nodeinfo.nodetype": (NODE, "node_type"),
    "infiniband.nodeinfo.numports": (NODE, "num_ports"),
    "infiniband.nodeinfo.systemimageguid": (NODE, "system_image_guid"),
    "infiniband.nodeinfo.nodeguid": (NODE, "node_guid"),
    "infiniband.nodeinfo.portguid": (NODE, "port_guid"),
    "infiniband.nodeinfo.partitioncap": (NODE, "partition_cap"),
    "infiniband.nodeinfo.deviceid": (NODE, "device_id"),
    "infiniband.nodeinfo.revision": (NODE, "revision"),
    "infiniband.nodeinfo.localportnum": (NODE, "local_port_num"),
    "infiniband.nodeinfo.vendorid": (NODE, "vendor_id"),
    "infiniband.switchinfo.linearfdbcap": (SWITCH, "linear_fdb_cap"),
    "infiniband.switchinfo.multicastfdbcap": (SWITCH, "multicast_fdb_cap"),
    "infiniband.switchinfo.linearfdbtop": (SWITCH, "linear_fdb_top"),
    "infiniband.switchinfo.defaultport": (SWITCH, "default_port"),
    "infiniband.switchinfo.lifetimevalue": (SWITCH, "life_time_value"),
    "infiniband.switchinfo.portstatechange": (SWITCH, "port_state_change"),
    "infiniband.switchinfo.partitionenforcementcap": (SWITCH, "partition_enforcement_cap"),
    "infiniband.switchinfo.inboundenforcementcap": (SWITCH, "inbound_enforcement_cap"),
    "infiniband.switchinfo.enhancedportzero": (SWITCH, "enhanced_port0"),
    "infiniband.portinfo.m_key": (PORT, "mkey"),
    "infiniband.portinfo.guid": (PORT, "gid_prefix"),
    "infiniband.portinfo.lid": (PORT, "lid"),
    "infiniband.portinfo.mastersmlid": (PORT, "master_sm_lid"),
    "infiniband.portinfo.capabilitymask": (PORT, "capability_mask"),
    "infiniband.portinfo.m_keyleaseperiod": (PORT, "mkey_lease_period"),
    "infiniband.portinfo.localportnum": (PORT, "local_port_num"),
    "infiniband.portinfo.linkwidthenabled": (PORT, "link_width_enabled"),
    "infiniband.portinfo.linkwidthsupported": (PORT, "link_width_supported"),
    "infiniband.portinfo.linkwidthactive": (PORT, "link_width_active"),
    "infiniband.portinfo.linkspeedsupported": (PORT, "link_speed_supported"),
    "infiniband.portinfo.portstate": (PORT, "port_state"),
    "infiniband.portinfo.portphysicalstate": (PORT, "port_physical_state"),
    "infiniband.portinfo.linkdowndefaultstate": (PORT, "link_down_default_state"),
    "infiniband.portinfo.m_keyprotectbits": (PORT, "mkey_protect_bits"),
    "infiniband.portinfo.lmc": (PORT, "lmc"),
    "infiniband.portinfo.linkspeedactive": (PORT, "link_speed_active"),
    "infiniband.portinfo.linkspeedenabled": (PORT, "link_speed_enabled"),
    "infiniband.portinfo.neighbormtu": (PORT, "neighbor_mtu"),
    "infiniband.portinfo.mastersmsl": (PORT, "master_sm_sl"),
    "infiniband.portinfo.vlcap": (PORT, "vl_cap"),
    "infiniband.portinfo.vlhighlimit": (PORT, "vl_high_limit"),
    "infiniband.portinfo.vlarbitrationhighcap": (PORT, "vl_arbitration_high_cap"),
    "infiniband.portinfo.vlarbitrationlowcap": (PORT, "vl_arbitration_low_cap"),
    "infiniband.portinfo.mtucap": (PORT, "mtu_cap"),
    "infiniband.portinfo.vlstallcount": (PORT, "vl_stall_count"),
    "infiniband.portinfo.hoqlife": (PORT, "hoq_life"),
    "infiniband.portinfo.operationalvls": (PORT, "operational_vls"),
    "infiniband.portinfo.partitionenforcementinbound": (PORT, "partition_enforcement_inbound"),
    "infiniband.portinfo.m_keyviolations": (PORT, "mkey_violations"),
    "infiniband.portinfo.p_keyviolations": (PORT, "pkey_violations"),
    "infiniband.portinfo.q_keyviolations": (PORT, "qkey_violations"),
    "infiniband.portinfo.guidcap": (PORT, "guid_cap"),
    "infiniband.portinfo.clientreregister": (PORT, "client_reregister"),
    "infiniband.portinfo.subnettimeout": (PORT, "subnet_timeout"),
    "infiniband.portinfo.localphyerrors": (PORT, "local_physical_error_threshold"),
    "infiniband.portinfo.overrunerrors": (PORT, "overrun_error_threshold"),
    "infiniband.sminfo.guid": (SM, "guid"),
    "infiniband.sminfo.sm_key": (SM, "sm_key"),
    "infiniband.sminfo.actcount": (SM, "act_count"),
    "infiniband.sminfo.priority": (SM, "priority"),
    "infiniband.sminfo.smstate": (SM, "state"),
}


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("directed", [True, False])
def test_tshark_reads_the_attributes(tmp_path: Path, directed: bool) -> None:
    from wire.test_tshark import tshark, write

    def packet(attribute: Any) -> NativePacket:
        arguments = (0x81, attribute.ATTRIBUTE_ID, 0x1020304)
        mad = (
            directed_smp(*arguments, (1, 2, 3), data=attribute.pack(), mkey=0x77, transaction_id=42)
            if directed
            else lid_routed_smp(*arguments, data=attribute.pack(), mkey=0x77, transaction_id=42)
        )
        data = smp_packet(mad) if directed else smp_packet(mad, 5, 6)
        decoded = decode_infiniband(data + vcrc(data).to_bytes(2, "big"))
        assert isinstance(decoded, NativePacket)
        return decoded

    attributes = [NODE, SWITCH, PORT, SM]
    path = tmp_path / "smp.pcapng"
    write(path, [packet(attribute) for attribute in attributes])
    fields = list(READ)
    rows = tshark(path, "_ws.malformed", "infiniband.mad.mgmtclass", "infiniband.mad.transactionid", *fields)
    assert len(rows) == len(attributes)
    for row, attribute in zip(rows, attributes, strict=True):
        assert row[0] == ""
        assert int(row[1], 0) == (0x81 if directed else 0x01)
        assert int(row[2], 0) == 42
        for field, text in zip(fields, row[3:], strict=True):
            if READ[field][0] is attribute:
                value = {"True": "1", "False": "0"}.get(text, text)
                assert int(value.replace(":", ""), 0 if "0x" in value or value.isdigit() else 16) == getattr(
                    attribute, READ[field][1]
                ), (field, text)
