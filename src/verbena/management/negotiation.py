"""What two sides agree on when they connect: from offers to messages, and from messages to queue-pair attributes.

Rules from IBA vol. 1, 12.7 (fields of the messages) and 12.9.8; where those leave a choice, what Linux does.  The
starting PSN that a side tells is the one at which *the other* side shall begin to send.
"""

from __future__ import annotations

from dataclasses import dataclass

from verbena.wire import REP, REQ, IpCmHeader, RejectReason, TransportService, service_port

MTU_CODES = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
MTUS = {code: mtu for mtu, code in MTU_CODES.items()}
PERMISSIVE_LID = 0xFFFF  # RoCE ports have no LIDs; Linux fills in this one
RESPONSE_TIMEOUT = 17  # code: 4.096 us * 2^17 = 0.54 s until a message is sent again
MAX_RETRIES = 15
ACK_DELAY = 10  # code: 4 ms, how long this adapter takes to acknowledge
PACKET_LIFETIME = 13  # code: 34 ms, how long a packet is believed to be on its way
LONGEST_TIMEOUT = 24  # code: 69 s; longer timers than this are not believed
USUAL_HOP_LIMIT = 64


def timeout_ns(code: int) -> int:
    """4.096 us * 2^code, as all timeouts of the connection manager are told."""
    return 4096 << min(code, LONGEST_TIMEOUT)


def ack_timeout(lifetime: int, delay: int) -> int:
    """The code of twice a packet's lifetime and the peer's delay, rounded as Linux does (IBA vol. 1, 12.7.34)."""
    code = lifetime + 1
    if code >= delay:
        code += delay >= code - 1
    else:
        code = delay + (code >= delay - 1)
    return min(31, code)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side brings: its queue pair, and what it could do.

    psn: where the peer shall begin to send.  mtu: bytes.  responder_resources: READs and atomics that the peer may
    have outstanding here; initiator_depth: that this side would have outstanding there.
    """

    qpn: int
    psn: int
    service: TransportService = TransportService.RC
    mtu: int = 4096
    responder_resources: int = 16
    initiator_depth: int = 16
    retry_count: int = 7
    rnr_retry: int = 7
    srq: bool = False
    hop_limit: int = USUAL_HOP_LIMIT
    traffic_class: int = 0
    flow_label: int = 0
    local_lid: int = PERMISSIVE_LID
    remote_lid: int = PERMISSIVE_LID
    sl: int = 0
    subnet_local: bool = False


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a side gives its queue pair on the way to RTS; names as in `struct ibv_qp_attr`."""

    remote_gid: bytes
    dest_qp_num: int
    rq_psn: int
    sq_psn: int
    path_mtu: int
    timeout: int
    retry_cnt: int
    rnr_retry: int
    max_rd_atomic: int
    max_dest_rd_atomic: int
    hop_limit: int
    traffic_class: int
    flow_label: int


def request(
    offer: Offer, *, local_id: int, service_id: int, guid: int, local: bytes, remote: bytes, private: bytes
) -> REQ:
    """The REQ that makes an offer to a service."""
    return REQ(
        local_comm_id=local_id,
        service_id=service_id,
        local_ca_guid=guid,
        local_qpn=offer.qpn,
        responder_resources=offer.responder_resources,
        initiator_depth=offer.initiator_depth,
        remote_cm_response_timeout=RESPONSE_TIMEOUT,
        transport_service=offer.service,
        starting_psn=offer.psn,
        local_cm_response_timeout=RESPONSE_TIMEOUT,
        retry_count=offer.retry_count,
        path_mtu=MTU_CODES[offer.mtu],
        rnr_retry_count=offer.rnr_retry,
        max_cm_retries=MAX_RETRIES,
        srq=offer.srq,
        primary_local_lid=offer.local_lid,
        primary_remote_lid=offer.remote_lid,
        primary_sl=offer.sl,
        primary_subnet_local=offer.subnet_local,
        primary_local_gid=local,
        primary_remote_gid=remote,
        primary_flow_label=offer.flow_label,
        primary_traffic_class=offer.traffic_class,
        primary_hop_limit=offer.hop_limit,
        primary_local_ack_timeout=ack_timeout(PACKET_LIFETIME, ACK_DELAY),
        private_data=private,
    )


def reply(offer: Offer, req: REQ, *, local_id: int, guid: int, private: bytes) -> REP:
    """The REP with which an offer answers a REQ: of READs and atomics, no more than both sides can."""
    return REP(
        local_comm_id=local_id,
        remote_comm_id=req.local_comm_id,
        local_qpn=offer.qpn,
        starting_psn=offer.psn,
        responder_resources=min(offer.responder_resources, req.initiator_depth),
        initiator_depth=min(offer.initiator_depth, req.responder_resources),
        target_ack_delay=ACK_DELAY,
        rnr_retry_count=offer.rnr_retry,
        srq=offer.srq,
        local_ca_guid=guid,
        private_data=private,
    )


def fault(req: REQ, source: bytes, gid: bytes, mtu: int, pkey: int) -> tuple[RejectReason, bytes] | None:
    """Why the adapter at `gid` cannot grant a REQ from `source`, with what goes with the reason (12.6.7.2)."""
    if req.transport_service not in (TransportService.RC, TransportService.UC):
        return RejectReason.INVALID_TRANSPORT_SERVICE_TYPE, b""
    if req.primary_local_gid != source or req.pkey & 0x7FFF != pkey & 0x7FFF:
        return RejectReason.UNSUPPORTED_REQUEST, b""
    if req.primary_remote_gid != gid:
        return RejectReason.PRIMARY_REMOTE_GID, gid
    if not 1 <= req.path_mtu <= MTU_CODES[mtu]:
        return RejectReason.INVALID_PATH_MTU, bytes([MTU_CODES[mtu] << 4])
    if service_port(req.service_id) is not None:
        header = IpCmHeader.unpack(req.private_data)
        if header.major or header.ip_version not in (4, 6):
            return RejectReason.UNSUPPORTED_REQUEST, b""
    return None


def passive_agreement(offer: Offer, req: REQ) -> Agreement:
    """What the side that answers `req` with `offer` sets."""
    return Agreement(
        remote_gid=req.primary_local_gid,
        dest_qp_num=req.local_qpn,
        rq_psn=offer.psn,
        sq_psn=req.starting_psn,
        path_mtu=MTUS[req.path_mtu],
        # 0 would mean to wait for ever for an acknowledgement that was lost.
        timeout=req.primary_local_ack_timeout or ack_timeout(PACKET_LIFETIME, ACK_DELAY),
        retry_cnt=req.retry_count,
        rnr_retry=req.rnr_retry_count,
        max_rd_atomic=min(offer.initiator_depth, req.responder_resources),
        max_dest_rd_atomic=min(offer.responder_resources, req.initiator_depth),
        hop_limit=req.primary_hop_limit or USUAL_HOP_LIMIT,
        traffic_class=req.primary_traffic_class,
        flow_label=req.primary_flow_label,
    )


def active_agreement(offer: Offer, rep: REP, remote: bytes) -> Agreement:
    """What the side that got `rep` for its `offer` sets."""
    return Agreement(
        remote_gid=remote,
        dest_qp_num=rep.local_qpn,
        rq_psn=offer.psn,
        sq_psn=rep.starting_psn,
        path_mtu=offer.mtu,
        timeout=ack_timeout(PACKET_LIFETIME, rep.target_ack_delay),
        retry_cnt=offer.retry_count,
        rnr_retry=rep.rnr_retry_count,
        max_rd_atomic=min(offer.initiator_depth, rep.responder_resources),
        max_dest_rd_atomic=min(offer.responder_resources, rep.initiator_depth),
        hop_limit=offer.hop_limit,
        traffic_class=offer.traffic_class,
        flow_label=offer.flow_label,
    )
