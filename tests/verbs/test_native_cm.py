"""Connections through the connection manager, between InfiniBand ports."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from native_lab import RC, UC, NativeLab
from verbena import (
    AddressVector,
    Context,
    Gid,
    InvalidAttributeError,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.errors import ConnectionTimeout
from verbena.runtime.pairs import make_side
from verbena.verbs.cm import introduce
from verbena.wire import REQ, Mad, cm_mad

PREFIX = 0xFEC0_0000_0000_0005


def directory(lab: NativeLab, *contexts: Context, **more: Any) -> None:
    """Each adapter is told where the others' first ports are, as a subnet administration would."""
    known = {c.gids[0]: AddressVector(c.gids[0], dlid=c.query_port().lid, **more) for c in contexts}
    for ctx in contexts:
        assert ctx.adapter.native is not None
        ctx.adapter.native.neighbours.resolve = known.get


def serve(lab: NativeLab, ctx: Context, service: Any, port: int = 7000) -> list[Any]:
    """A listener that accepts whoever comes; what it has accepted."""
    listener = ctx.listen(port)
    accepted: list[Any] = []

    def look() -> None:
        with suppress(ConnectionTimeout):
            request = listener.get_request(timeout=0)
            side = make_side(ctx, service)
            accepted.append((request.accept(side.qp, b"welcome"), side))
        if not accepted and lab.clock.now() < 10_000_000:
            lab.clock.call_at(lab.clock.now() + 1000, look)

    look()
    return accepted


@pytest.mark.parametrize("service", [RC, UC])
@pytest.mark.parametrize("abroad", [False, True])
def test_connect_by_address_send_and_disconnect(service: Any, abroad: bool) -> None:
    lab = NativeLab()
    a = lab.adapter()
    b = lab.adapter(prefix=PREFIX) if abroad else lab.adapter()
    if abroad:
        a.adapter.ports[0].gid_prefix = PREFIX + 1
        a.adapter.port_changed(1)
    directory(lab, a, b, sl=2)
    accepted = serve(lab, b, service)
    x = make_side(a, service)
    connection = a.connect(str(b.gids[0].ip), 7000, x.qp, b"hello")
    assert connection.private_data[:7] == b"welcome"
    ((theirs, y),) = accepted
    assert theirs.peer[0] == str(a.gids[0].ip)
    y.qp.post_recv(RecvRequest(1, [y.mr.sge(0, 100)]))
    x.qp.post_send(WorkRequest(1, WROpcode.SEND, [x.mr.sge(0, 100)]))
    assert x.cq.wait(1)[0].ok
    assert y.cq.wait(1)[0].byte_len == 100
    assert all((s.packet.grh is not None) is abroad for s in lab.log)
    assert all(s.packet.lrh.sl == 2 for s in lab.log if s.driver is a.driver)
    connection.disconnect()
    lab.run()
    assert theirs.wait_disconnected(1)
    request = next(s for s in lab.log if s.bth.dest_qp == 1)
    req = REQ.unpack(Mad.unpack(request.packet.transport.payload).data)
    assert (req.primary_local_lid, req.primary_remote_lid) == (a.query_port().lid, b.query_port().lid)
    assert (req.primary_sl, req.primary_subnet_local) == (2, not abroad)


def test_the_passive_side_learns_the_way_back() -> None:
    lab = NativeLab()
    a, b = lab.adapter(lmc=1), lab.adapter()
    known = {b.gids[0]: AddressVector(b.gids[0], dlid=b.query_port().lid, src_path_bits=1, sl=3)}
    assert a.adapter.native is not None
    a.adapter.native.neighbours.resolve = known.get
    accepted = serve(lab, b, RC)
    x = make_side(a, RC)
    a.connect(str(b.gids[0].ip), 7000, x.qp)
    back = accepted[0][1].qp.query().ah_attr
    assert (back.gid, back.dlid, back.sl) == (a.gids[0], a.query_port().lid + 1, 3)


def test_nowhere_to_connect_to() -> None:
    lab = NativeLab()
    a, b = lab.adapter(), lab.adapter()
    x = make_side(a, RC)
    with pytest.raises(InvalidAttributeError, match="no path to"):
        a.connect(str(b.gids[0].ip), 7000, x.qp)
    assert x.qp.state.name == "RESET"
    directory(lab, a, b)
    lab.cut.add((b.driver, 1))  # type: ignore[arg-type]
    with pytest.raises(ConnectionTimeout):
        a.connect(str(b.gids[0].ip), 7000, x.qp, timeout=1)


def test_who_claims_anothers_address_is_not_believed() -> None:
    lab = NativeLab()
    a, b, thief = lab.adapter(), lab.adapter(), lab.adapter()
    directory(lab, a, b)  # b knows where a is
    serve(lab, b, RC)
    assert thief.adapter.native is not None
    thief.adapter.native.neighbours.resolve = {
        b.gids[0]: AddressVector(b.gids[0], dlid=b.query_port().lid)
    }.get
    stolen = REQ(local_comm_id=1, primary_local_gid=a.gids[0].raw, primary_remote_gid=b.gids[0].raw)
    thief.serve_connections()
    thief._cm().gsi.send(b.gids[0].raw, cm_mad(stolen, 5).pack())
    lab.run()
    assert b.counters()["cm.gsi.dropped.unknown_source"] == 1
    assert not [s for s in lab.log if s.driver is b.driver]


def test_only_requests_introduce_their_senders() -> None:
    req = REQ(local_comm_id=1, primary_local_gid=bytes(range(16)))
    assert introduce(cm_mad(req, 5).pack()) == bytes(range(16))
    assert introduce(bytes(256)) is None
    assert Gid(bytes(range(16))).raw == introduce(cm_mad(req, 6).pack())
