"""The golden captures: decoded, encoded to the same bytes, CRCs verified, and read as tshark reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from verbena import wire
from wire.samples import CAPTURES

ROCE_PACKETS = {
    "atomic_fadd": {"RC FETCH_ADD": 5, "RC ATOMIC_ACKNOWLEDGE": 5},
    "rc_pingpong": {"RC SEND_FIRST": 6, "RC SEND_MIDDLE": 24, "RC SEND_LAST": 6, "RC ACKNOWLEDGE": 6},
    "read_lat": {
        "RC RDMA_READ_REQUEST": 5,
        "RC RDMA_READ_RESPONSE_FIRST": 5,
        "RC RDMA_READ_RESPONSE_MIDDLE": 5,
        "RC RDMA_READ_RESPONSE_LAST": 5,
    },
    "ud_pingpong": {"UD SEND_ONLY": 6},
}


def _decoded(path: Path) -> list[tuple[bytes, wire.Packet]]:
    return [(c.data, wire.decode(c.data, c.link_type)) for c in wire.read_capture(path.read_bytes())]


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_every_packet_round_trips_with_a_right_icrc(path: Path) -> None:
    kinds: Counter[str] = Counter()
    for data, packet in _decoded(path):
        assert packet.encode() == data
        if isinstance(packet, wire.RocePacket):
            kinds[packet.transport.info.name] += 1
            assert packet.icrc_ok
            assert packet.sealed().encode() == data
            assert len(packet.transport.payload) + len(packet.transport.pad) <= 4096
    assert kinds
    if path.stem in ROCE_PACKETS:
        assert kinds == ROCE_PACKETS[path.stem]


def test_messages_of_the_connection_manager() -> None:
    messages: list[wire.CmMessage] = []
    for _, packet in _decoded(next(path for path in CAPTURES if path.stem == "rping")):
        if isinstance(packet, wire.RocePacket) and packet.transport.bth.dest_qp == wire.GSI_QP:
            deth = packet.transport.get(wire.DETH)
            assert deth is not None
            assert deth.qkey == wire.GSI_QKEY
            mad = wire.Mad.unpack(packet.transport.payload)
            message = wire.cm_message(mad)
            assert message.pack() == mad.data
            assert wire.cm_mad(message, mad.transaction_id) == mad
            messages.append(message)
    assert [type(message).__name__ for message in messages[:3]] == ["REQ", "REP", "RTU"]
    assert {type(message) for message in messages[3:]} == {wire.DREQ, wire.DREP}
    req, rep = messages[:2]
    assert isinstance(req, wire.REQ)
    assert isinstance(rep, wire.REP)
    assert wire.service_port(req.service_id) == 7174
    assert (req.local_qpn, rep.local_qpn) == (0x1B, 0x1D)
    assert (req.path_mtu, req.transport_service, req.pkey) == (5, wire.TransportService.RC, 0xFFFF)
    assert req.primary_local_gid[-4:] == bytes((10, 77, 0, 3))
    assert req.reserved4 == req.reserved24 == req.reserved90 == req.reserved94 == req.reserved95 == 0
    header = wire.IpCmHeader.unpack(req.private_data)
    assert (str(header.source), str(header.destination)) == ("10.77.0.3", "10.77.0.2")
    assert rep.remote_comm_id == req.local_comm_id
