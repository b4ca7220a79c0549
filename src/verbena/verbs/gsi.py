"""The general services interface: management datagrams through queue pair 1 (IBA vol. 1, 10.2.4.1 and 13.5.1).

An ordinary datagram queue pair with a fixed number and the well-known Q_Key.  Made when it is first needed.  Datagrams
are handed out by their management class.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from verbena.adapter.attributes import AddressVector, QPCapabilities
from verbena.adapter.gid import MAPPED, UNSPECIFIED, Gid
from verbena.errors import VerbError
from verbena.management.datagrams import MadAddress
from verbena.management.service_resolution import refusal
from verbena.memory.access import Access
from verbena.transport.kinds import CompletionFlags, QPType, WROpcode
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.memory import AddressHandle
from verbena.verbs.one_at_a_time import OneAtATime
from verbena.verbs.queue_pair import QueuePair
from verbena.wire import GSI_QKEY, GSI_QP, MAD_SIZE, ManagementClass, Method

if TYPE_CHECKING:
    from verbena.verbs.context import Context

log = logging.getLogger("verbena")

GRH_SPACE = 40
SLOT = GRH_SPACE + MAD_SIZE
RECEIVES = 256
SENDS = 128
BACKLOG = 8192  # datagrams that wait for a place in the send queue
SENT = 1 << 32  # marks the number of a send request
RESPONSE = 0x80  # of a MAD's method
ANY_PORT = 0
Servant = Callable[[MadAddress, bytes], None]


class GeneralServices:
    """Queue pair 1 of an adapter.

    receive: called with the source GID and the 256 bytes of each MAD of a class that nobody serves (`serve`); never
    twice at once.  `counters` tells what was dropped here.

    On InfiniBand a MAD of the same subnet shows its sender's LID only.  introduce: called with the bytes of one whose
    sender is not known; returns the GID that it says it is from, or None.
    """

    def __init__(
        self,
        context: Context,
        receive: Callable[[bytes, bytes], None],
        introduce: Callable[[bytes], bytes | None] = lambda mad: None,
    ) -> None:
        self.counters = {"dropped.length": 0, "dropped.send_queue": 0, "dropped.unknown_source": 0}
        self._introduce = introduce
        self._adapter: Any = context.adapter
        self._engine = context.adapter.engine
        self._receive = receive
        self._pd = context.alloc_pd()
        self._cq = context.create_cq(2 * (RECEIVES + SENDS))
        caps = QPCapabilities(SENDS, RECEIVES, 1, 1, 0)
        self._qp = QueuePair(self._pd, QPType.UD, self._cq, self._cq, caps, None, False, fixed_number=GSI_QP)
        self._inbox = self._pd.alloc_mr(RECEIVES * SLOT, Access.LOCAL_WRITE)
        self._out = self._pd.alloc_mr(SENDS * MAD_SIZE)
        self._free = list(range(SENDS))
        self._handles: dict[int, AddressHandle] = {}
        self._waiting: deque[tuple[bytes | MadAddress, bytes]] = deque()
        self._servants: dict[tuple[int, bool, int], Servant] = {}
        self._claims: list[Callable[[MadAddress, bytes], bool]] = []
        self._open = True
        self._qp.activate(qkey=GSI_QKEY)
        for place in range(RECEIVES):
            self._post(place)
        notified = OneAtATime(self._engine, self._take_entries)
        self._adapter.cq_sinks[self._cq.index] = lambda asked: notified()
        self._cq.req_notify()

    def _post(self, place: int) -> None:
        self._qp.post_recv(RecvRequest(place, [self._inbox.sge(place * SLOT, SLOT)]))

    def serve(
        self, management_class: int, receive: Servant, *, responses: bool = False, port: int = ANY_PORT
    ) -> None:
        """Hand datagrams of a class to `receive`: what is asked of an agent here, or with `responses` what comes back.

        Of subnet administration, reports count as responses: they are for its clients.  port: only those that came by
        it; they are not handed to whoever serves all ports.
        """
        self._servants[management_class, responses, port] = receive

    def claim(self, claim: Callable[[MadAddress, bytes], bool]) -> None:
        """Offer every message of the connection manager's class to `claim` first; it returns whether it took it."""
        self._claims.append(claim)

    def disclaim(self, claim: Callable[[MadAddress, bytes], bool]) -> None:
        """No longer."""
        if claim in self._claims:
            self._claims.remove(claim)

    def send(self, remote: bytes | MadAddress, mad: bytes) -> None:
        """Send a MAD to queue pair 1 of a GID, or to any address.

        What finds no place in a long queue is dropped, and counted.
        """
        with self._engine:
            if not self._open or len(self._waiting) >= BACKLOG:
                self.counters["dropped.send_queue"] += 1
                return
            self._waiting.append((remote, mad))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while True:
            with self._engine:  # nobody closes the queue pair meanwhile
                if not self._waiting or not self._free or not self._open:
                    return
                remote, mad = self._waiting.popleft()
                place = self._free.pop()
                try:
                    self._post_send(place, remote, mad)
                except VerbError:  # no path left: as if the network had lost it
                    self.counters["dropped.send_queue"] += 1
                    self._give_back(place)

    def _post_send(self, place: int, remote: bytes | MadAddress, mad: bytes) -> None:
        at = place * MAD_SIZE
        self._out.buf[at : at + MAD_SIZE] = mad
        if isinstance(remote, MadAddress):
            qpn, vector = remote.qpn, _vector(remote)
        else:
            qpn = GSI_QP
            vector = self._adapter.vector_to(Gid(remote), hop_limit=64, traffic_class=0, flow_label=0)
        handle = self._handles[place] = self._pd.create_ah(vector)
        self._qp.post_send(
            WorkRequest(
                wr_id=SENT | place,
                opcode=WROpcode.SEND,
                sg_list=[self._out.sge(at, MAD_SIZE)],
                ah=handle,
                remote_qpn=qpn,
                remote_qkey=GSI_QKEY,
            )
        )

    def _give_back(self, place: int) -> None:
        with self._engine:
            if handle := self._handles.pop(place, None):
                handle.close()
            self._free.append(place)

    def _take_entries(self) -> None:
        with self._engine:
            if self._open:
                self._cq.req_notify()
        while entries := self._poll():
            for entry in entries:
                try:
                    self._completed(entry)
                except Exception:
                    log.exception("a management datagram could not be handled")

    def _poll(self) -> list[Any]:
        with self._engine:
            found: list[Any] = self._engine.poll(self._cq.index, 64) if self._open else []
            return found

    def _completed(self, entry: Any) -> None:
        if entry.wr_id & SENT:
            self._give_back(entry.wr_id & ~SENT)
            self._send_waiting()
            return
        with self._engine:
            if not entry.ok or not self._open:
                return  # flushed: the queue pair is being closed
            at = entry.wr_id * SLOT
            raw = bytes(self._inbox.buf[at : at + SLOT])
            self._post(entry.wr_id)
        if entry.byte_len != SLOT:
            self.counters["dropped.length"] += 1
            return
        mad = raw[GRH_SPACE:]
        response = bool(mad[3] & RESPONSE) or (mad[1] == ManagementClass.SUBN_ADM and mad[3] == Method.REPORT)
        if mad[1] == ManagementClass.SUBN_ADM and mad[3] == Method.REPORT_RESPONSE:
            response = False
        servants = self._servants
        servant = servants.get((mad[1], response, entry.port)) or servants.get((mad[1], response, ANY_PORT))
        has_gid = self._adapter.native is None or bool(entry.flags & CompletionFlags.GRH)
        about_services = mad[1] == ManagementClass.COMMUNICATION
        if servant is not None or about_services:
            gid = _source(raw) if has_gid else None
            source = MadAddress(
                entry.slid, entry.src_qp, entry.sl, entry.path_bits, gid, port=entry.port or 1
            )
            if about_services and self._claimed(source, mad):
                return
            if servant is not None:
                servant(source, mad)
                return
        sender = self._global_source(entry, raw) if has_gid else self._local_source(entry, mad)
        if sender is None:
            self.counters["dropped.unknown_source"] += 1
            return
        self._receive(sender, mad)

    def _claimed(self, source: MadAddress, mad: bytes) -> bool:
        """Has somebody taken a message of the connection manager's class?

        As on Linux, who asks for a datagram service that nobody offers is told so at once, not left to time out.
        """
        if any(claim(source, mad) for claim in list(self._claims)):
            return True
        no = refusal(mad)
        if no is not None:
            self.send(source, no)
        return no is not None

    def _global_source(self, entry: Any, raw: bytes) -> bytes:
        """The GID of a global header; what comes from another subnet shows the way back there, too."""
        source = _source(raw)
        if self._adapter.native is not None:
            gid = Gid(source)
            way = AddressVector(
                gid, sl=entry.sl, port_num=entry.port, dlid=entry.slid, src_path_bits=entry.path_bits
            )
            if self._adapter.native.is_global(way):
                self._adapter.native.neighbours.learn_foreign(gid, way)
        return source

    def _local_source(self, entry: Any, mad: bytes) -> bytes | None:
        """The GID behind the LID that a datagram came from; None where nobody knows it."""
        neighbours = self._adapter.native.neighbours
        known: Gid | None = neighbours.gid_at(entry.port, entry.slid)
        if known is not None:
            return known.raw
        claimed = self._introduce(mad)
        if claimed is None:
            return None
        way = AddressVector(
            Gid(claimed), sl=entry.sl, port_num=entry.port, dlid=entry.slid, src_path_bits=entry.path_bits
        )
        return claimed if neighbours.learn(Gid(claimed), way) else None

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def close(self) -> None:
        """Close the queue pair and all that goes with it."""
        with self._engine:
            if not self._open:
                return
            self._open = False
        self._qp.close()
        for place in list(self._handles):
            self._give_back(place)
        self._inbox.close()
        self._out.close()
        self._cq.close()
        self._pd.close()


def _vector(remote: MadAddress) -> AddressVector:
    gid = UNSPECIFIED if remote.gid is None else Gid(remote.gid)
    if not remote.lid:
        return AddressVector(gid=gid)
    return AddressVector(
        gid=gid,
        sl=remote.sl,
        port_num=remote.port,
        dlid=remote.lid,
        src_path_bits=remote.path_bits,
        is_global=remote.gid is not None,
    )


def _source(grh: bytes) -> bytes:
    """The source GID of a received datagram: from an IPv6-shaped header, or an IPv4 header in its last 20 bytes."""
    if grh[0] >> 4 == 6:
        return grh[8:24]
    return MAPPED + grh[32:36]
