"""The connection manager in the place of either Linux side of the golden capture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from management.cm_net import SERVICE, Net, Program
from verbena import wire
from verbena.management.communication import Event, State
from verbena.management.negotiation import Offer
from verbena.wire import DREP, DREQ, REP, REQ, RTU, CmMessage, cm_mad

GOLDEN = Path(__file__).parent.parent / "golden" / "rping.pcap"


@pytest.fixture(scope="module")
def golden() -> dict[type, tuple[bytes, bytes, CmMessage, int]]:
    """Kind -> source GID, destination GID, message, transaction id."""
    found: dict[type, tuple[bytes, bytes, CmMessage, int]] = {}
    mapped = b"\0" * 10 + b"\xff\xff"
    for captured in wire.read_capture(GOLDEN.read_bytes()):
        packet = wire.decode(captured.data, captured.link_type)
        if isinstance(packet, wire.RocePacket) and packet.transport.bth.dest_qp == wire.GSI_QP:
            mad = wire.Mad.unpack(packet.transport.payload)
            message = wire.cm_message(mad)
            ends = (mapped + packet.ip.src, mapped + packet.ip.dst)
            found.setdefault(type(message), (*ends, message, mad.transaction_id))
    return found


def test_as_the_server(golden: dict[type, tuple[bytes, bytes, CmMessage, int]]) -> None:
    peer, own, req, transaction = golden[REQ]
    rep, rtu, dreq, drep = (golden[kind][2] for kind in (REP, RTU, DREQ, DREP))
    assert isinstance(req, REQ)
    assert isinstance(rep, REP)
    net = Net()
    server = Program(net.add(own))
    server.offer = Offer(
        qpn=rep.local_qpn, psn=rep.starting_psn, responder_resources=1, initiator_depth=1, rnr_retry=7
    )
    server.manager.listen(SERVICE, 1, server.on_request)
    server.manager.receive(peer, cm_mad(req, transaction).pack())

    (comm,) = server.requests
    agreed = server.manager.agreement(comm, server.offer)
    assert (agreed.remote_gid, agreed.dest_qp_num, agreed.path_mtu) == (peer, 0x1B, 4096)
    assert (agreed.sq_psn, agreed.rq_psn) == (5673205, 9740203)
    assert (agreed.max_rd_atomic, agreed.max_dest_rd_atomic, agreed.timeout) == (1, 1, 19)
    assert (agreed.retry_cnt, agreed.rnr_retry) == (7, 7)
    assert (agreed.hop_limit, agreed.traffic_class) == (64, 0)
    assert comm.ip is not None
    assert (str(comm.ip.source), comm.ip.src_port) == ("10.77.0.3", 0xDCC2)

    _, answer, number = net.sent[-1]
    assert isinstance(answer, REP)
    own_choice = dict.fromkeys(("local_comm_id", "local_ca_guid", "target_ack_delay"), 0)
    assert replace(answer, private_data=rep.private_data, **own_choice) == replace(rep, **own_choice)
    assert number == golden[REP][3] == transaction

    assert isinstance(rtu, RTU)
    server.manager.receive(peer, cm_mad(replace(rtu, remote_comm_id=comm.local_id), transaction).pack())
    assert comm.state is State.ESTABLISHED
    assert isinstance(dreq, DREQ)
    assert dreq.remote_qpn == answer.local_qpn
    server.manager.receive(peer, cm_mad(replace(dreq, remote_comm_id=comm.local_id), transaction).pack())
    _, last, number = net.sent[-1]
    assert isinstance(last, DREP)
    assert isinstance(drep, DREP)
    assert last.remote_comm_id == drep.remote_comm_id
    assert number == golden[DREP][3]
    assert server.kinds == [Event.ESTABLISHED, Event.DISCONNECTED, Event.ENDED]


def test_as_the_client(golden: dict[type, tuple[bytes, bytes, CmMessage, int]]) -> None:
    own, peer, req, _ = golden[REQ]
    rep, rtu, dreq = (golden[kind][2] for kind in (REP, RTU, DREQ))
    assert isinstance(req, REQ)
    assert isinstance(rep, REP)
    net = Net()
    client = Program(net.add(own))
    client.offer = Offer(
        qpn=req.local_qpn,
        psn=req.starting_psn,
        responder_resources=1,
        initiator_depth=1,
        flow_label=req.primary_flow_label,
    )
    comm = client.manager.connect(peer, SERVICE, client.offer, client.on_event, req.private_data)
    _, asked, _ = net.sent[-1]
    own_choice = dict.fromkeys(
        (
            "local_comm_id",
            "local_ca_guid",
            "remote_cm_response_timeout",
            "local_cm_response_timeout",
            "primary_local_ack_timeout",
            "primary_packet_rate",
            "reserved90",
        ),
        0,
    )
    assert isinstance(asked, REQ)
    assert replace(asked, **own_choice) == replace(req, **own_choice)

    client.manager.receive(peer, cm_mad(replace(rep, remote_comm_id=comm.local_id)).pack())
    agreed = client.manager.agreement(comm)
    assert (agreed.dest_qp_num, agreed.sq_psn, agreed.rq_psn) == (0x1D, 9740203, 5673205)
    assert (agreed.max_rd_atomic, agreed.max_dest_rd_atomic, agreed.path_mtu) == (1, 1, 4096)
    assert isinstance(rtu, RTU)
    assert net.sent[-1][1] == replace(
        rtu, local_comm_id=comm.local_id, private_data=net.sent[-1][1].private_data
    )
    client.manager.disconnect(comm)
    assert isinstance(dreq, DREQ)
    assert net.sent[-1][1] == replace(
        dreq, local_comm_id=comm.local_id, private_data=net.sent[-1][1].private_data
    )
