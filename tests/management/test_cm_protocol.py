"""The connection manager's protocol between two managers, message by message, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from management.cm_net import SERVICE, A, B, C, Net, Program, pair
from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.management.communication import Event, State
from verbena.management.negotiation import Offer, ack_timeout
from verbena.wire import (
    MRA,
    REJ,
    REP,
    REQ,
    RTU,
    CmMessage,
    MessageRejected,
    RejectReason,
    TransportService,
    cm_mad,
)

SECOND = 1_000_000_000


def lose(kind: type, times: int = 1) -> Callable[[CmMessage], list[int]]:
    left = times

    def decide(message: CmMessage) -> list[int]:
        nonlocal left
        if isinstance(message, kind) and left:
            left -= 1
            return []
        return [0]

    return decide


def checked(net: Net) -> None:
    for manager in net.managers.values():
        counters = manager.counters
        dropped = sum(count for name, count in counters.items() if name.startswith("dropped."))
        assert counters["mads"] == counters["accepted"] + dropped


def test_a_connection_is_made_and_ended() -> None:
    net, client, server = pair()
    comm = client.connect(B)
    net.run()
    assert net.names() == ["REQ", "REP", "RTU"]
    assert client.kinds == [Event.REPLIED, Event.ESTABLISHED]
    assert server.kinds == [Event.ESTABLISHED]
    (request,) = server.requests
    assert request.private_data == b"hello"
    assert request.ip is not None
    assert (str(request.ip.source), request.ip.src_port) == ("10.77.0.2", 40_000)
    assert comm.private_data == b"welcome"
    assert (comm.state, request.state) == (State.ESTABLISHED, State.ESTABLISHED)
    client.manager.disconnect(comm)
    net.run()
    assert net.names()[3:] == ["DREQ", "DREP"]
    assert client.kinds[2:] == [Event.ENDED]
    assert server.kinds[1:] == [Event.DISCONNECTED, Event.ENDED]
    assert client.manager.known == server.manager.known == 0
    assert len({transaction for _, _, transaction in net.sent}) == 1
    checked(net)


def test_what_is_agreed_on_is_the_less_of_both_sides() -> None:
    net, client, server = pair(accepts=False)
    offer = Offer(
        qpn=7, psn=0xABCDEF, responder_resources=4, initiator_depth=9, rnr_retry=3, retry_count=5, mtu=1024
    )
    comm = client.connect(B, offer=replace(offer, traffic_class=5, hop_limit=9, flow_label=77))
    net.run(10_000)
    (request,) = server.requests
    mine = Offer(qpn=8, psn=1, responder_resources=2, initiator_depth=6, rnr_retry=6)
    there = server.manager.agreement(request, mine)
    server.manager.accept(request, mine, server.on_event, b"")
    net.run()
    here = client.manager.agreement(comm)
    assert (there.dest_qp_num, there.sq_psn, there.rq_psn) == (7, 0xABCDEF, 1)
    assert (here.dest_qp_num, here.sq_psn, here.rq_psn) == (8, 1, 0xABCDEF)
    assert here.path_mtu == there.path_mtu == 1024
    assert (here.max_rd_atomic, here.max_dest_rd_atomic) == (2, 4)
    assert (there.max_rd_atomic, there.max_dest_rd_atomic) == (4, 2)
    assert here.retry_cnt == there.retry_cnt == 5
    assert (here.rnr_retry, there.rnr_retry) == (6, 3)
    assert (there.traffic_class, there.hop_limit, there.flow_label) == (5, 9, 77)
    assert (here.remote_gid, there.remote_gid) == (B, A)


@pytest.mark.parametrize("times", [1, 3, 15])
@pytest.mark.parametrize("kind", ["REQ", "REP", "RTU"])
def test_a_lost_message_is_sent_again(kind: str, times: int) -> None:
    net, client, server = pair()
    net.filter = lose({"REQ": REQ, "REP": REP, "RTU": RTU}[kind], times)
    comm = client.connect(B)
    net.run()
    assert comm.state is State.ESTABLISHED
    assert client.kinds == [Event.REPLIED, Event.ESTABLISHED]
    assert server.kinds == [Event.ESTABLISHED]
    assert len(server.requests) == 1
    checked(net)


def test_every_message_twice_is_as_good_as_once() -> None:
    net, client, server = pair()
    net.filter = lambda message: [0, 500]
    comm = client.connect(B)
    net.run()
    client.manager.disconnect(comm)
    net.run()
    assert client.kinds == [Event.REPLIED, Event.ESTABLISHED, Event.ENDED]
    assert server.kinds == [Event.ESTABLISHED, Event.DISCONNECTED, Event.ENDED]
    assert client.manager.known == server.manager.known == 0
    checked(net)


def test_a_peer_that_is_silent_is_reported_and_told() -> None:
    net, client, _ = pair()
    net.filter = lambda message: [] if isinstance(message, REQ) else [0]
    client.connect(B)
    net.run()
    assert client.kinds == [Event.TIMED_OUT]
    assert net.names() == ["REQ"] * 16 + ["REJ"]
    assert client.manager.known == 0


def test_a_server_whose_reply_stays_unanswered_gives_up() -> None:
    net, client, server = pair()
    net.filter = lambda message: [] if isinstance(message, REP) else [0]
    client.connect(B)
    net.run()
    assert client.kinds[-1] in (Event.TIMED_OUT, Event.REFUSED)
    assert server.kinds[-1] in (Event.TIMED_OUT, Event.REFUSED)
    assert client.manager.known == server.manager.known == 0
    checked(net)


def test_a_slow_program_has_the_client_wait() -> None:
    net, client, server = pair(accepts=False)
    comm = client.connect(B)
    net.run(30 * SECOND)
    assert "MRA" in net.names(B)
    assert comm.state is State.MRA_REQ_RCVD
    assert len(server.requests) == 1
    server.manager.accept(server.requests[0], server.offer, server.on_event, b"")
    net.run()
    assert comm.state is State.ESTABLISHED


def test_a_slow_client_has_the_server_wait() -> None:
    net, client, server = pair()
    client.on_event = lambda comm, event: client.events.append((comm, event))  # type: ignore[method-assign]
    comm = client.connect(B)
    net.run(30 * SECOND)
    assert comm.state is State.MRA_REP_SENT
    assert server.requests[0].state is State.MRA_REP_RCVD
    client.manager.ready(comm)
    net.run()
    assert comm.state is server.requests[0].state is State.ESTABLISHED


def test_nobody_listens() -> None:
    net, client, server = pair()
    comm = client.connect(B, service=SERVICE + 1)
    net.run()
    assert client.kinds == [Event.REFUSED]
    assert comm.reason == RejectReason.INVALID_SERVICE_ID == 8
    assert client.manager.known == server.manager.known == 0


def test_a_program_refuses_with_words_of_its_own() -> None:
    net, client, server = pair(accepts=False)
    comm = client.connect(B)
    net.run(10_000)
    server.manager.reject(server.requests[0], private=b"not today")
    net.run(10_000)
    assert client.kinds == [Event.REFUSED]
    assert (comm.reason, comm.private_data) == (RejectReason.CONSUMER_REJECT, b"not today")
    net.run()
    assert client.manager.known == server.manager.known == 0


def test_a_duplicate_of_a_rejected_request_is_rejected_again() -> None:
    net, client, server = pair(accepts=False)
    net.filter = lambda message: [0, 20_000] if isinstance(message, REQ) else [0]
    client.connect(B)
    net.run(10_000)
    server.manager.reject(server.requests[0])
    net.run()
    assert net.names(B) == ["REJ", "REJ"]
    assert len(server.requests) == 1


def test_the_backlog_is_the_most_that_waits() -> None:
    net, client, server = pair(accepts=False, backlog=3)
    comms = [client.connect(B, offer=Offer(qpn=64 + i, psn=1)) for i in range(5)]
    net.run(10_000)
    assert len(server.requests) == 3
    assert [c.reason for c in comms] == [0, 0, 0, RejectReason.NO_RESOURCES, RejectReason.NO_RESOURCES]
    server.manager.reject(server.requests[0])
    client.connect(B, offer=Offer(qpn=80, psn=1))
    net.run(10_000)
    assert len(server.requests) == 4


def test_what_nobody_decided_on_is_rejected_when_the_service_ends() -> None:
    net, client, server = pair(accepts=False)
    comm = client.connect(B)
    net.run(10_000)
    listening = next(iter(server.manager._services.values()))
    server.manager.stop_listening(listening)
    net.run()
    assert comm.reason == RejectReason.CONSUMER_REJECT
    assert server.manager.known == 0


def test_a_client_that_gives_up_takes_its_request_back() -> None:
    net, client, server = pair(accepts=False)
    comm = client.connect(B)
    net.run(10_000)
    server.requests[0].notify = server.on_event
    client.manager.abort(comm)
    net.run()
    assert server.kinds == [Event.REFUSED]
    assert server.requests[0].reason == RejectReason.TIMEOUT
    assert client.manager.known == server.manager.known == 0


def test_both_sides_disconnect_at_once() -> None:
    net, client, server = pair()
    comm = client.connect(B)
    net.run()
    client.manager.disconnect(comm)
    server.manager.disconnect(server.requests[0])
    net.run()
    assert client.kinds[-1] is server.kinds[-1] is Event.ENDED
    assert client.manager.known == server.manager.known == 0
    checked(net)


def test_a_disconnect_without_an_answer_ends_all_the_same() -> None:
    net, client, server = pair()
    comm = client.connect(B)
    net.run()
    net.filter = lambda message: []
    client.manager.disconnect(comm)
    net.run()
    assert client.kinds[-1] is Event.ENDED
    assert client.manager.known == 0
    assert server.requests[0].state is State.ESTABLISHED  # nobody told it


def test_a_lost_rtu_followed_by_a_disconnect() -> None:
    net, client, server = pair()
    net.filter = lose(RTU)
    comm = client.connect(B)
    net.run(10_000)
    client.manager.disconnect(comm)
    net.run()
    assert server.kinds == [Event.ESTABLISHED, Event.DISCONNECTED, Event.ENDED]
    assert client.manager.known == server.manager.known == 0


def test_a_restarted_client_is_connected_once_the_stale_connection_is_gone() -> None:
    net, client, server = pair()
    client.connect(B)
    net.run()
    again = Program(net.add(A))  # the same adapter, with no memory of the connection
    comm = again.connect(B)
    net.run()
    assert net.names(B).count("REJ") == 1
    assert comm.state is State.ESTABLISHED
    assert Event.DISCONNECTED in server.kinds
    assert server.manager.known == 1
    checked(net)


def test_a_smaller_mtu_is_proposed_and_taken() -> None:
    net = Net()
    client, server = Program(net.add(A)), Program(net.add(B, mtu=1024))
    server.manager.listen(SERVICE, 4, server.on_request)
    comm = client.connect(B)
    net.run()
    assert comm.state is State.ESTABLISHED
    assert client.manager.agreement(comm).path_mtu == 1024
    assert net.names() == ["REQ", "REJ", "REQ", "REP", "RTU"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transport_service": TransportService.RD}, RejectReason.INVALID_TRANSPORT_SERVICE_TYPE),
        ({"primary_local_gid": C}, RejectReason.UNSUPPORTED_REQUEST),
        ({"primary_remote_gid": C}, RejectReason.PRIMARY_REMOTE_GID),
        ({"path_mtu": 0}, RejectReason.INVALID_PATH_MTU),
        ({"path_mtu": 6}, RejectReason.INVALID_PATH_MTU),
        ({"pkey": 0x8001}, RejectReason.UNSUPPORTED_REQUEST),
        ({"private_data": b"\x10\x40"}, RejectReason.UNSUPPORTED_REQUEST),
        ({"service_id": 5}, RejectReason.INVALID_SERVICE_ID),
    ],
)
def test_a_request_that_cannot_be_granted(change: dict[str, object], reason: RejectReason) -> None:
    net, client, server = pair()
    client.connect(B)
    req = net.sent[0][1]
    assert isinstance(req, REQ)
    bad = replace(req, local_comm_id=99, local_qpn=99, **change)  # type: ignore[arg-type]
    net.run()
    server.manager.receive(A, cm_mad(bad, 5).pack())
    _, answer, transaction = net.sent[-1]
    assert isinstance(answer, REJ)
    assert (answer.reason, answer.remote_comm_id, transaction) == (reason, 99, 5)
    assert len(server.requests) == 1


def test_messages_of_somebody_else_are_dropped() -> None:
    net, client, server = pair()
    comm = client.connect(B)
    net.run()
    request = server.requests[0]
    for _, message, transaction in list(net.sent):
        if not isinstance(message, REQ):
            net.managers[A].receive(C, cm_mad(message, transaction).pack())
            net.managers[B].receive(C, cm_mad(message, transaction).pack())
    wrong = REJ(request.remote_id or 0, (comm.remote_id or 0) + 1, MessageRejected.OTHER, reason=28)
    net.managers[B].receive(A, cm_mad(wrong).pack())
    wrong = REJ((request.remote_id or 0) + 1, comm.remote_id or 0, MessageRejected.OTHER, reason=28)
    net.managers[B].receive(A, cm_mad(wrong).pack())
    assert comm.state is request.state is State.ESTABLISHED
    checked(net)


def test_an_mra_does_not_stop_the_clock() -> None:
    net, client, server = pair(accepts=False)
    comm = client.connect(B)
    net.run(10_000)
    request = server.requests[0]
    patience = MRA(request.local_id, comm.local_id, MessageRejected.REQ, service_timeout=31)
    client.manager.receive(B, cm_mad(patience).pack())
    net.managers.pop(B)
    net.run()
    assert client.kinds == [Event.TIMED_OUT]
    assert net.clock.now() < 90 * SECOND


def test_closing_tells_every_peer() -> None:
    net, client, server = pair()
    client.connect(B)
    net.run()
    client.manager.close()
    net.run()
    assert server.kinds[-2:] == [Event.DISCONNECTED, Event.ENDED]
    assert client.manager.known == server.manager.known == 0


def test_a_port_is_listened_to_once() -> None:
    _, _, server = pair()
    with pytest.raises(SystemLimitError, match="port 7174 is in use"):
        server.manager.listen(SERVICE, 1, server.on_request)
    with pytest.raises(InvalidAttributeError, match="backlog"):
        server.manager.listen(SERVICE + 1, 0, server.on_request)


def test_ack_timeouts_are_rounded_as_in_linux() -> None:
    assert ack_timeout(18, 15) == 19  # what the golden capture shows of rxe
    assert ack_timeout(13, 15) == 16
    assert ack_timeout(13, 10) == 14
    assert ack_timeout(31, 31) == 31
