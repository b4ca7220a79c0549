"""The connection manager's protocol (IBA vol. 1, chapter 12; RDMA IP CM, annex A11), without I/O.

Management datagrams go in by `receive` and out by the `send` it was given; time is the `Clock`'s.  The states and what
leads from one to the next stand in `communication.TRANSITIONS`, what is negotiated in `negotiation`.

All methods may be called from any thread, and from within `send` and the notifications: the state changes under the
lock; what follows from it to the outside (datagrams, notifications) happens after it, in order, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError, SystemLimitError
from verbena.management import negotiation
from verbena.management.communication import UNDECIDED, WAITING, Communication, Event, Input, Notify, State
from verbena.management.connection_table import ConnectionTable, Listening
from verbena.management.negotiation import MTU_CODES, MTUS, Agreement, Offer, timeout_ns
from verbena.wire import (
    DREP,
    DREQ,
    MRA,
    REJ,
    REP,
    REQ,
    RTU,
    CmMessage,
    DecodeError,
    IpCmHeader,
    Mad,
    MessageRejected,
    RejectReason,
    cm_message,
    service_port,
)

if TYPE_CHECKING:
    pass

REQ_PRIVATE_DATA = 92 - IpCmHeader.SIZE
REP_PRIVATE_DATA = 196
REJ_PRIVATE_DATA = 148
PATIENCE = 24  # code of the time that an MRA asks for: 69 s, as Linux does
MOST_CONNECTIONS = 1 << 20


class _Dropped(Exception):
    """A message that is of no use; `reason` names the counter."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class ConnectionManager(ConnectionTable):
    """The connections of one adapter.

    gid: the adapter's.  guid: its node GUID.  mtu: the port's active MTU.  send: called with a peer's GID and a MAD of
    256 bytes.  lock: a re-entrant one.  `counters` tells what was sent, taken and dropped; of MADs received,
    ``mads == accepted + all dropped.*``.
    """

    # --- calls --------------------------------------------------------------------------------------------

    def listen(self, service_id: int, backlog: int, notify: Callable[[Communication], None]) -> Listening:
        """Let a service be connected to; `notify` is called with each connection in REQ_RCVD."""
        if not isinstance(backlog, int) or backlog < 1:
            raise InvalidAttributeError(f"backlog = {backlog!r}: 1 or more requests")
        with self._work():
            if service_id in self._services:
                raise SystemLimitError(
                    f"port {service_port(service_id)} is in use: another listener of this adapter has it"
                )
            made = self._services[service_id] = Listening(service_id, backlog, notify)
        return made

    def knows(self, local_id: int) -> bool:
        """Is a connection of this number here?"""
        return local_id in self._connections

    def is_listening(self, service_id: int) -> bool:
        return service_id in self._services

    def stop_listening(self, listening: Listening) -> None:
        """End a service; requests that nobody has decided on are rejected."""
        with self._work():
            self._stop_listening(listening)

    def _stop_listening(self, listening: Listening) -> None:
        if self._services.get(listening.service_id) is listening:
            del self._services[listening.service_id]
        for comm in list(listening.undecided):
            self._reject(comm, RejectReason.CONSUMER_REJECT)

    def connect(
        self, remote: bytes, service_id: int, offer: Offer, notify: Notify, private: bytes
    ) -> Communication:
        """Ask for a connection; its owner hears of what becomes of it by `notify`."""
        with self._work():
            if not self._open:
                raise InvalidStateError("the connection manager is closed")
            if len(self._connections) >= MOST_CONNECTIONS:
                raise ResourceError(f"{MOST_CONNECTIONS} connections are open: close some")
            comm = Communication(
                remote, service_id, self._new_id(), self._random.getrandbits(64), True, notify=notify
            )
            comm.offer = replace(offer, mtu=min(offer.mtu, self.mtu))
            comm.retries = negotiation.MAX_RETRIES
            comm.interval_ns = timeout_ns(negotiation.RESPONSE_TIMEOUT)
            comm.step(Input.CONNECT)
            comm.req = negotiation.request(
                comm.offer,
                local_id=comm.local_id,
                service_id=service_id,
                guid=self.guid,
                local=self.gid,
                remote=remote,
                private=private,
            )
            self._connections[comm.local_id] = comm
            self._say(comm, comm.req)
            self._set_timer(comm, comm.interval_ns)
        return comm

    def agreement(self, comm: Communication, offer: Offer | None = None) -> Agreement:
        """What the queue pair is to be set to: before `accept` of `offer`, or in REP_RCVD."""
        if comm.active:
            assert comm.offer is not None
            assert comm.rep is not None
            return negotiation.active_agreement(comm.offer, comm.rep, comm.remote)
        assert offer is not None
        assert comm.req is not None
        return negotiation.passive_agreement(offer, comm.req)

    def accept(self, comm: Communication, offer: Offer, notify: Notify, private: bytes) -> None:
        """Accept a request whose queue pair is up."""
        with self._work():
            assert comm.req is not None
            comm.step(Input.ACCEPT)
            self._decided(comm)
            comm.offer, comm.notify = offer, notify
            comm.retries = comm.req.max_cm_retries
            # Not before the peer says that it can have answered.
            comm.interval_ns = timeout_ns(
                max(negotiation.RESPONSE_TIMEOUT, comm.req.local_cm_response_timeout)
            )
            comm.rep = negotiation.reply(
                offer, comm.req, local_id=comm.local_id, guid=self.guid, private=private
            )
            self._say(comm, comm.rep)
            self._set_timer(comm, comm.interval_ns)

    def reject(
        self, comm: Communication, reason: int = RejectReason.CONSUMER_REJECT, private: bytes = b""
    ) -> None:
        """Refuse a request, or the reply to one's own."""
        with self._work():
            self._reject(comm, reason, private)

    def _reject(self, comm: Communication, reason: int, private: bytes = b"") -> None:
        before = comm.step(Input.REJECT)
        rejected = MessageRejected.REQ if before in UNDECIDED else MessageRejected.REP
        self._decided(comm)
        self._disown_qp(comm)  # it was never connected: the peer may ask with it again
        self._say(comm, self._rejection(comm, rejected, reason, private=private))
        self._linger(comm)

    def ready(self, comm: Communication) -> bool:
        """The queue pair is up: the connection is made.  False if it was broken off meanwhile."""
        with self._work():
            if not comm.may(Input.READY):
                return False
            comm.step(Input.READY)
            self._say(comm, RTU(comm.local_id, comm.remote_id or 0))
            self._tell(comm, Event.ESTABLISHED)
            return True

    def disconnect(self, comm: Communication) -> None:
        """Begin to end a connection; does nothing if it is ending already."""
        with self._work():
            if comm.may(Input.DISCONNECT):
                comm.step(Input.DISCONNECT)
                self._say_disconnect(comm)

    def _say_disconnect(self, comm: Communication) -> None:
        remote_qpn = comm.remote_qp[2] if comm.remote_qp else 0
        comm.retries = negotiation.MAX_RETRIES
        comm.interval_ns = timeout_ns(negotiation.RESPONSE_TIMEOUT)
        self._say(comm, DREQ(comm.local_id, comm.remote_id or 0, remote_qpn))
        self._set_timer(comm, comm.interval_ns)

    def release(self, comm: Communication) -> None:
        """The queue pair is down."""
        with self._work():
            if comm.may(Input.RELEASE):
                comm.step(Input.RELEASE)
                self._say(comm, DREP(comm.local_id, comm.remote_id or 0))
                self._linger(comm)
                self._tell(comm, Event.ENDED)

    def abort(self, comm: Communication) -> None:
        """Give up a connection that is being made, as if its retries were over; disconnect one that is made."""
        with self._work():
            self._abort(comm)

    def _abort(self, comm: Communication) -> None:
        comm.notify = None
        if comm.may(Input.DISCONNECT):
            comm.step(Input.DISCONNECT)
            self._say_disconnect(comm)
        elif comm.may(Input.REJECT):
            self._reject(comm, RejectReason.CONSUMER_REJECT)
        elif comm.state in WAITING and comm.state is not State.DREQ_SENT:
            self._expire(comm)

    def close(self) -> None:
        """End everything, saying so once to each peer."""
        with self._work():
            self._open = False
            for listening in list(self._services.values()):
                self._stop_listening(listening)
            for comm in list(self._connections.values()):
                self._abort(comm)
                self._forget(comm)

    # --- messages in --------------------------------------------------------------------------------------

    def receive(self, source: bytes, data: bytes) -> None:
        """Take a MAD from the GID `source`.  Never raises for what is in it; what cannot be used is counted."""
        with self._work():
            self.counters["mads"] += 1
            try:
                mad = Mad.unpack(data)
                message = cm_message(mad)
                if not self._open:
                    raise _Dropped("closed")
                if isinstance(message, REQ):
                    self._on_req(source, message, mad.transaction_id)
                else:
                    self._on_answer(source, message, mad.transaction_id)
                self.counters["accepted"] += 1
            except (DecodeError, _Dropped) as error:
                self.counters[f"dropped.{error.reason}"] += 1

    def _on_req(self, source: bytes, req: REQ, transaction: int) -> None:
        known = self._peers.get((source, req.local_comm_id))
        if known is not None:
            self._again(known, Input.REQ)
            return
        listening = self._services.get(req.service_id)
        fault = self._fault(source, req, listening)
        if fault is not None or listening is None:
            reason, info = fault or (RejectReason.INVALID_SERVICE_ID, b"")
            self.counters[f"refused.{reason.name.lower()}"] += 1
            refusal = REJ(remote_comm_id=req.local_comm_id, info_length=len(info), reason=reason, info=info)
            self._send(source, refusal, transaction)
            return
        comm = Communication(source, req.service_id, self._new_id(), transaction, False)
        comm.step(Input.REQ)
        comm.remote_id, comm.req, comm.listening = req.local_comm_id, req, listening
        comm.private_data = req.private_data.rstrip(b"\0")
        if service_port(req.service_id) is not None:
            comm.ip = IpCmHeader.unpack(req.private_data)
            comm.private_data = req.private_data[IpCmHeader.SIZE :].rstrip(b"\0")
        self._connections[comm.local_id] = self._peers[source, req.local_comm_id] = comm
        comm.remote_qp = (source, req.local_ca_guid, req.local_qpn)
        self._remote_qps[comm.remote_qp] = comm
        listening.undecided.add(comm)
        self._outbox.append(lambda: listening.notify(comm))

    def _fault(
        self, source: bytes, req: REQ, listening: Listening | None
    ) -> tuple[RejectReason, bytes] | None:
        """Why a REQ cannot be granted, with the additional information that goes with the reason (12.6.7.2)."""
        if listening is None:
            return RejectReason.INVALID_SERVICE_ID, b""
        fault = negotiation.fault(req, source, self.gid, self.mtu, self.pkey)
        if fault is not None:
            return fault
        if self._is_stale((source, req.local_ca_guid, req.local_qpn)):
            return RejectReason.STALE_CONNECTION, b""
        if len(listening.undecided) >= listening.backlog or len(self._connections) >= MOST_CONNECTIONS:
            return RejectReason.NO_RESOURCES, b""
        return None

    def _is_stale(self, remote_qp: tuple[bytes, int, int]) -> bool:
        """Does the peer ask with a queue pair that is still connected here (12.9.8.3.1)?

        If so, the old connection is ended.  A request that nobody has decided on only makes room.
        """
        old = self._remote_qps.get(remote_qp)
        if old is None:
            return False
        undecided = old.state in UNDECIDED
        if old.may(Input.STALE):
            before = old.step(Input.STALE)
            self._break_off(old, before)
        return not undecided

    def _on_answer(self, source: bytes, message: CmMessage, transaction: int) -> None:
        assert not isinstance(message, REQ)
        comm = self._connections.get(message.remote_comm_id)
        if comm is None and isinstance(message, REJ) and message.remote_comm_id == 0:
            # The peer gives up before it has heard of this side's number.
            comm = self._peers.get((source, message.local_comm_id))
        if comm is None or comm.remote != source:
            self._on_unknown(source, message, transaction)
            return
        if comm.remote_id is not None and message.local_comm_id != comm.remote_id:
            raise _Dropped("comm_id")
        match message:
            case REP():
                self._on_rep(comm, message)
            case RTU():
                self._on_rtu(comm, message)
            case REJ():
                self._on_rej(comm, message)
            case MRA():
                self._on_mra(comm, message)
            case DREQ():
                self._on_dreq(comm, transaction)
            case DREP():
                if comm.may(Input.DREP):
                    comm.step(Input.DREP)
                    self._linger(comm)
                    self._tell(comm, Event.ENDED)
                else:
                    raise _Dropped("state")

    def _on_unknown(self, source: bytes, message: CmMessage, transaction: int) -> None:
        """A message about a connection that is not, or no longer, known: let a peer that waits come to an end."""
        if isinstance(message, DREQ):
            self._send(source, DREP(message.remote_comm_id, message.local_comm_id), transaction)
        elif isinstance(message, REP):
            refusal = REJ(
                message.remote_comm_id,
                message.local_comm_id,
                MessageRejected.REP,
                reason=RejectReason.INVALID_COMM_ID,
            )
            self._send(source, refusal, transaction)
        raise _Dropped("comm_id")

    def _on_rep(self, comm: Communication, rep: REP) -> None:
        if not comm.active or not comm.may(Input.REP):
            raise _Dropped("state")
        if comm.state in (State.REQ_SENT, State.MRA_REQ_RCVD):
            comm.step(Input.REP)
            self._stop_timer(comm)
            comm.rep, comm.remote_id = rep, rep.local_comm_id
            comm.private_data = rep.private_data.rstrip(b"\0")
            comm.remote_qp = (comm.remote, rep.local_ca_guid, rep.local_qpn)
            self._remote_qps.setdefault(comm.remote_qp, comm)
            self._tell(comm, Event.REPLIED)
        else:
            self._again(comm, Input.REP)

    def _on_rtu(self, comm: Communication, rtu: RTU) -> None:
        if not comm.may(Input.RTU):
            raise _Dropped("state")
        comm.step(Input.RTU)
        self._stop_timer(comm)
        self._tell(comm, Event.ESTABLISHED)

    def _on_mra(self, comm: Communication, mra: MRA) -> None:
        awaited = MessageRejected.REQ if comm.active else MessageRejected.REP
        if mra.message != awaited or not comm.may(Input.MRA):
            raise _Dropped("state")
        comm.step(Input.MRA)
        self._set_timer(comm, timeout_ns(mra.service_timeout) + comm.interval_ns)

    def _on_rej(self, comm: Communication, rej: REJ) -> None:
        if not comm.may(Input.REJ):
            raise _Dropped("state")
        if comm.state in (State.REQ_SENT, State.MRA_REQ_RCVD) and self._ask_again(comm, rej):
            return
        else:
            before = comm.step(Input.REJ)
            comm.reason = rej.reason
            comm.private_data = rej.private_data.rstrip(b"\0")
            self._break_off(comm, before)

    def _ask_again(self, comm: Communication, rej: REJ) -> bool:
        """Mend what a REQ was refused for, where that can be done; False where it cannot.

        A stale connection is on its way out at the peer (12.9.8.3.1): ask again after a while.  A path MTU that is too
        large: take the one that the peer proposes.
        """
        assert comm.offer is not None
        if comm.retries == 0:
            return False
        offer, wait = comm.offer, True
        if rej.reason == RejectReason.INVALID_PATH_MTU:
            proposed = MTUS.get(rej.info[0] >> 4) or MTUS.get(rej.info[0] & 0xF)
            if not rej.info_length or proposed is None or proposed >= comm.offer.mtu:
                return False
            offer, wait = replace(offer, mtu=proposed), False
        elif rej.reason != RejectReason.STALE_CONNECTION:
            return False
        del self._connections[comm.local_id]
        comm.local_id, comm.offer, comm.retries = self._new_id(), offer, comm.retries - 1
        self._connections[comm.local_id] = comm
        assert comm.req is not None
        comm.req = replace(comm.req, local_comm_id=comm.local_id, path_mtu=MTU_CODES[offer.mtu])
        comm.message = comm.req
        if not wait:
            self._say(comm, comm.req)
        self._set_timer(comm, comm.interval_ns)
        return True

    def _on_dreq(self, comm: Communication, transaction: int) -> None:
        if not comm.may(Input.DREQ):
            raise _Dropped("state")
        before = comm.step(Input.DREQ)
        if before in (State.DREQ_SENT, State.TIMEWAIT):
            self._send(comm.remote, DREP(comm.local_id, comm.remote_id or 0), transaction)
            if before is State.DREQ_SENT:
                self._linger(comm)
                self._tell(comm, Event.ENDED)
        elif before is not State.DREQ_RCVD:
            self._stop_timer(comm)
            comm.transaction = transaction
            if before is not State.ESTABLISHED:
                self._tell(comm, Event.ESTABLISHED)
            self._tell(comm, Event.DISCONNECTED)

    # --- what several of them do --------------------------------------------------------------------------

    def _again(self, comm: Communication, happens: Input) -> None:
        """Answer a duplicate: with the same message as before, or with the request to wait."""
        answered = {State.REP_SENT, State.MRA_REP_RCVD, State.ESTABLISHED}
        if not comm.may(happens):
            raise _Dropped("state")
        comm.step(happens)
        self.counters["duplicates"] += 1
        if comm.state in (State.MRA_REQ_SENT, State.MRA_REP_SENT):
            message = MessageRejected.REQ if happens is Input.REQ else MessageRejected.REP
            wait = MRA(comm.local_id, comm.remote_id or 0, message, service_timeout=PATIENCE)
            self._send(comm.remote, wait, comm.transaction)
        elif comm.message is not None and (comm.state in answered or isinstance(comm.message, REJ)):
            self._send(comm.remote, comm.message, comm.transaction)

    def _break_off(self, comm: Communication, before: State) -> None:
        """A connection ended, or was not made, by the peer's doing."""
        self._decided(comm)
        if comm.state is State.DREQ_SENT:
            self._say_disconnect(comm)
        elif comm.state is State.IDLE:
            self._forget(comm)
        else:
            self._linger(comm)
        made = before in (State.ESTABLISHED, State.DREQ_SENT)
        self._tell(comm, Event.DISCONNECTED if made else Event.REFUSED)
        if comm.state is State.TIMEWAIT and made:
            self._tell(comm, Event.ENDED)
