"""Queue pairs: the send and receive queues that a program posts work to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from verbena.adapter.attributes import AddressVector, Endpoint, QPAttributes, QPCapabilities
from verbena.adapter.gid import Gid
from verbena.errors import ClosedError, InvalidAttributeError
from verbena.memory.access import Access
from verbena.transport.kinds import PathMigrationState, QPState, QPType, SendFlags, WROpcode
from verbena.transport.local import BindInfo
from verbena.transport.work import RecvRequest, WorkRequest
from verbena.verbs.completion import CompletionQueue, require_cq
from verbena.verbs.endpoints import Connectable, vector_to
from verbena.verbs.windows import REMOTE, MemoryWindow, bind_request

if TYPE_CHECKING:
    from verbena.verbs.end_to_end import ReliableDatagramDomain
    from verbena.verbs.memory import ProtectionDomain, SharedReceiveQueue
    from verbena.verbs.regions import RegisteredMemory

FIXED = frozenset(("type", "qp_num", "capabilities", "pd", "context", "send_cq", "recv_cq", "srq", "rdd"))
RAW = (QPType.RAW_IPV6, QPType.RAW_ETHERTYPE)
ALL_REMOTE = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


class QueuePair(Connectable):
    """A send queue and a receive queue (IBA vol. 1, 10.2.3; document 003, "Queue Pairs").

    Made by `ProtectionDomain.create_qp`.  A context manager.  Its service never changes; its state does, by `modify`
    (state by state, as the standard has it), or by `connect` and `activate` (all the way to RTS).
    """

    def __init__(
        self,
        pd: ProtectionDomain,
        qp_type: QPType,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue,
        caps: QPCapabilities,
        srq: SharedReceiveQueue | None,
        sq_sig_all: bool,
        fixed_number: int = 0,
        rdd: ReliableDatagramDomain | None = None,
    ) -> None:
        try:
            self.type = QPType(qp_type)
        except ValueError:
            raise InvalidAttributeError(
                f"qp_type = {qp_type!r}: one of {', '.join(t.name for t in QPType)}"
            ) from None
        context = pd.context
        if (self.type is QPType.RD) != (rdd is not None):
            raise InvalidAttributeError(
                "a reliable-datagram queue pair, and no other, belongs to a domain: rdd=Context.alloc_rdd()"
            )
        self.rdd = None if rdd is None else context.require_rdd(rdd)
        self.pd = pd
        self.context = context
        self.send_cq = require_cq(send_cq, "send_cq", context)
        self.recv_cq = require_cq(recv_cq, "recv_cq", context)
        self.srq = pd.require_srq(srq)
        self.capabilities = caps
        self._adapter = context.adapter
        self._engine = context.adapter.engine
        self._kick = context.driver.kick
        with self._engine:  # nobody closes the domain or the shared queue meanwhile
            pd.checked().require_srq(srq)
            self._index, self.qp_num = self._adapter.create_qp(
                self.type,
                pd.number,
                self.send_cq.index,
                self.recv_cq.index,
                caps,
                shared_queue=None if srq is None else srq.index,
                all_signaled=sq_sig_all,
                fixed_number=fixed_number,
                rdd=0 if rdd is None else rdd.checked().number,
            )
            self._psn = context.adapter.random.getrandbits(24)
            self._open = True
            self._when_closed: Callable[[], None] | None = None
            pd.members.add(self)
            context.queue_pairs[self._index] = self
            if srq is not None:
                srq.queue_pairs.add(self)
            if self.rdd is not None:
                self.rdd.members.add(self)

    def __setattr__(self, name: str, value: object) -> None:
        """What was given at creation stays: the adapter owns the queue pair's state, no handle alters it."""
        if name in FIXED and name in self.__dict__:
            raise AttributeError(f"{name} of a queue pair is fixed when it is created")
        super().__setattr__(name, value)

    @property
    def _number(self) -> int:
        return self.qp_num

    def _checked(self) -> int:
        if not self._open:
            raise ClosedError(f"queue pair {self.qp_num:#x} is closed")
        return self._index

    @property
    def is_open(self) -> bool:
        """Has it not been closed?"""
        return self._open

    def checked(self) -> int:
        """Its place in the adapter's tables; raises `ClosedError` when it is closed."""
        return self._checked()

    # --- state --------------------------------------------------------------------------------------------

    @property
    def state(self) -> QPState:
        """The state it is in."""
        return self._adapter.state(self._checked())

    def modify(self, state: QPState | None = None, **attributes: Any) -> None:
        """Move to a state, or change attributes within the present one; names as in `struct ibv_qp_attr`.

        port_num, pkey_index, qkey, access_flags, path_mtu (bytes), dest_qp_num, rq_psn, sq_psn, max_rd_atomic,
        max_dest_rd_atomic, min_rnr_timer (code 0..31), timeout (4.096 us * 2^n; 0 = for ever), retry_cnt (0..7),
        rnr_retry (0..7; 7 = for ever), ah_attr (an `AddressVector`), stripe_ah_attrs (up to three more: packets leave
        by all these paths at once, RC only), reorder_ns (how long one may then be missing before it counts as lost).
        On InfiniBand also the alternate path of a connection that is not striped: alt_ah_attr, alt_pkey_index,
        alt_port_num, alt_timeout, and path_mig_state: REARM lets the adapter migrate to it when it must, MIGRATED
        migrates now, if it is armed (IBA vol. 1, 17.2.8).

        Which of them a transition needs and allows: `adapter.states.TRANSITIONS`.  Raises `InvalidStateError`,
        `InvalidAttributeError`; then nothing was changed.
        """
        with self._engine:  # nobody closes it meanwhile
            self._adapter.modify_qp(self._checked(), self.type, state, attributes)

    def query(self) -> QPAttributes:
        """All attributes as they are now."""
        with self._engine:
            found = self._adapter.query_qp(self._checked())
            state = self.state
        found["access_flags"] = Access(found["access_flags"])
        return QPAttributes(
            qp_num=self.qp_num,
            qp_type=self.type,
            state=state,
            capabilities=self.capabilities,
            completion_handlers=(self.send_cq.handler, self.recv_cq.handler),
            **found,
        )

    def connect(
        self,
        remote: Endpoint,
        *,
        mtu: int | None = None,
        access: Access = ALL_REMOTE,
        max_rd_atomic: int = 16,
        timeout: int = 14,
        retry_cnt: int = 7,
        rnr_retry: int = 7,
        min_rnr_timer: int = 12,
        traffic_class: int = 0,
        hop_limit: int = 64,
        port_num: int | None = None,
        pkey_index: int = 0,
        sl: int = 0,
        src_path_bits: int = 0,
        sgid_index: int = 0,
        dlid: int | None = None,
        is_global: bool | None = None,
        alternate: AddressVector | None = None,
        **striping: Any,
    ) -> None:
        """Connect to the peer's `endpoint`: RESET or INIT to RTS (RC and UC).  Both sides do it, in any order.

        mtu: path MTU in bytes, by default the port's.  The other values are those of `modify`; both sides must agree
        on mtu.  striping: stripe_ah_attrs, reorder_ns (RC only).

        On InfiniBand port_num, pkey_index, sl, src_path_bits, sgid_index say how packets leave; dlid, by default the
        endpoint's LID, is that of the router where the peer is in another subnet.  alternate: another path, which the
        connection migrates to when this one fails; both sides must give one.

        Raises `PortStateError` when the port is not ACTIVE or has no LID.
        """
        if self.type not in (QPType.RC, QPType.UC):
            raise InvalidAttributeError("a datagram queue pair has no peer: use activate()")
        port = port_num or self._port()
        vector = vector_to(
            self._adapter,
            remote,
            port_num=port,
            sl=sl,
            src_path_bits=src_path_bits,
            sgid_index=sgid_index,
            dlid=dlid,
            is_global=is_global,
            traffic_class=traffic_class,
            hop_limit=hop_limit,
        )
        if self.state is QPState.RESET:
            self.modify(QPState.INIT, port_num=port, pkey_index=pkey_index, access_flags=access)
        path: dict[str, Any] = {
            "ah_attr": vector,
            "path_mtu": mtu or self._adapter.mtu_of(port),
            "dest_qp_num": remote.qp_num,
            "rq_psn": remote.psn,
            **striping,
        }
        if self.type is QPType.RC:
            self.modify(QPState.RTR, **path, max_dest_rd_atomic=max_rd_atomic, min_rnr_timer=min_rnr_timer)
            self.modify(
                QPState.RTS,
                sq_psn=self._psn,
                timeout=timeout,
                retry_cnt=retry_cnt,
                rnr_retry=rnr_retry,
                max_rd_atomic=max_rd_atomic,
            )
        else:
            self.modify(QPState.RTR, **path)
            self.modify(QPState.RTS, sq_psn=self._psn)
        if alternate is not None:
            self.modify(alt_ah_attr=alternate, path_mig_state=PathMigrationState.REARM)

    def activate(
        self,
        qkey: int = 0x11111111,
        *,
        port_num: int = 1,
        pkey_index: int = 0,
        access: Access = ALL_REMOTE,
        rnr_retry: int = 7,
        min_rnr_timer: int = 12,
    ) -> None:
        """Bring a datagram queue pair from RESET to RTS; `qkey` is what senders must show (raw ones: no keys).

        access, rnr_retry, min_rnr_timer: for reliable datagrams only; the values are those of `modify`.
        """
        if self.type in RAW:
            self.modify(QPState.INIT, port_num=port_num)
            self.modify(QPState.RTR)
            self.modify(QPState.RTS)
            return
        if self.type is QPType.RD:
            self.modify(
                QPState.INIT, port_num=port_num, pkey_index=pkey_index, qkey=qkey, access_flags=access
            )
            self.modify(QPState.RTR, min_rnr_timer=min_rnr_timer)
            self.modify(QPState.RTS, rnr_retry=rnr_retry)
            return
        if self.type is not QPType.UD:
            raise InvalidAttributeError(f"a {self.type.name} queue pair needs a peer: use connect()")
        self.modify(QPState.INIT, port_num=port_num, pkey_index=pkey_index, qkey=qkey)
        self.modify(QPState.RTR)
        self.modify(QPState.RTS, sq_psn=self._psn)

    def attach_mcast(self, gid: Gid, lid: int = 0) -> None:
        """Attach a datagram queue pair to a multicast group (IBA vol. 1, 11.3.1): its GID, and LID (0: any).

        Packets for the group that arrive at the queue pair's port come to all that are attached, those that this
        adapter sends included.
        """
        self._multicast(gid, lid)
        with self._engine:
            self._engine.attach(self._checked(), gid.raw, lid)

    def detach_mcast(self, gid: Gid, lid: int = 0) -> None:
        """Detach it again, named as it was attached; raises `InvalidAttributeError` when it was not."""
        self._multicast(gid, lid)
        with self._engine:
            if not self._engine.detach(self._checked(), gid.raw, lid):
                raise InvalidAttributeError(f"the queue pair is not attached to {gid}, LID {lid:#x}")

    def _multicast(self, gid: Gid, lid: int) -> None:
        if self._adapter.native is None or self.type is not QPType.UD:
            raise InvalidAttributeError("only datagram queue pairs of InfiniBand ports have multicast groups")
        if not isinstance(gid, Gid) or gid.raw[0] != 0xFF:
            raise InvalidAttributeError(f"gid = {gid}: a multicast GID begins with ff")
        if not isinstance(lid, int) or (lid and not 0xC000 <= lid <= 0xFFFE):
            raise InvalidAttributeError(
                f"lid = {lid!r}: a multicast LID is 0xc000 to 0xfffe, 0 stands for any"
            )

    # --- work ---------------------------------------------------------------------------------------------

    def post_send(self, request: WorkRequest) -> None:
        """Post a request to the send queue.

        Raises `InvalidStateError` (not connected), `QueueFullError`, `InvalidAttributeError`; then nothing was
        posted.  What goes wrong later comes as a completion.
        """
        if not self._open:
            self._checked()
        self._engine.post_send(self._index, request)
        self._kick()

    def post_send_many(self, requests: Iterable[WorkRequest]) -> None:
        """Post several requests, and only then let the adapter send: they share packets' bursts.

        If one raises, those before it are posted.
        """
        index = self._checked()
        post = self._engine.post_send
        try:
            for request in requests:
                post(index, request)
        finally:
            self._kick()

    def post_recv(self, request: RecvRequest) -> None:
        """Post a receive buffer.  Raises `InvalidStateError`, `QueueFullError`, `InvalidAttributeError`."""
        self._engine.post_recv(self._checked(), request)
        if self._engine.has_reports():  # in ERR, the request was flushed at once
            self._kick()

    def post_recv_many(self, requests: Iterable[RecvRequest]) -> None:
        """Post several receive buffers; if one raises, those before it are posted."""
        index = self._checked()
        for request in requests:
            self._engine.post_recv(index, request)
        if self._engine.has_reports():
            self._kick()

    # --- remote keys ----------------------------------------------------------------------------------------

    def bind_rkey(
        self,
        key: MemoryWindow,
        address: int,
        length: int,
        access: Access = REMOTE,
        *,
        mr: RegisteredMemory | None = None,
        virtual: bool = False,
        renew: bool = True,
        wr_id: int = 0,
        flags: SendFlags = SendFlags.SIGNALED,
    ) -> int:
        """BindRKey (document 003:868): let peers that show `key` use `length` bytes at `address`; returns the key.

        The adapter executes it in its turn of the send queue.  mr: the region that the range lies in; without it, that
        is the domain's address space, or else a region of the domain with WINDOW_BIND.  virtual: a virtual address,
        for kernel consumers.  renew: the key gets a new value, so that who holds the old one is locked out; False: its
        value stays.

        Raises `InvalidAttributeError` (the document's "invalid parameter") when the program has no authority over the
        range now; nothing was bound.  Should that be lost until the request's turn, it ends with MW_BIND_ERR.
        """
        parent = mr
        if mr is None and not virtual and not self._adapter.has_space(self.pd.number):
            parent = self.pd.region_over(address, length)
            if parent is None:
                raise InvalidAttributeError(
                    f"invalid parameter: no region of the domain with WINDOW_BIND holds {length} bytes at {address:#x}"
                )
        if not length:
            raise InvalidAttributeError("length = 0: a key is bound to 1 byte or more; see unbind_rkey")
        what = BindInfo(parent, address, length, access, virtual, None, renew)
        self.post_send(bind_request(self.pd, key, what, wr_id=wr_id, flags=flags, check=True))
        return int(key.rkey)

    def unbind_rkey(
        self, key: MemoryWindow, *, wr_id: int = 0, flags: SendFlags = SendFlags.SIGNALED
    ) -> None:
        """UnbindRKey (document 003:872): a bind with a null address and zero length."""
        self.post_send(bind_request(self.pd, key, BindInfo(), wr_id=wr_id, flags=flags, check=False))

    def bind_mw(
        self,
        window: MemoryWindow,
        mr: RegisteredMemory,
        address: int,
        length: int,
        access: Access = REMOTE,
        *,
        rkey: int | None = None,
        wr_id: int = 0,
        flags: SendFlags = SendFlags.SIGNALED,
    ) -> int:
        """Bind a memory window (IBA vol. 1, 11.2.8.11); returns its remote key from then on.

        address: within the region, which needs WINDOW_BIND.  access: with ZERO_BASED, peers count from 0.  rkey: for
        type 2, the key that it shall have.  A bind that is not granted ends with MW_BIND_ERR, and the queue with it.
        """
        what = BindInfo(mr, address, length, access, False, rkey)
        self.post_send(bind_request(self.pd, window, what, wr_id=wr_id, flags=flags, check=False))
        return int(window.rkey)

    def invalidate(self, rkey: int, *, wr_id: int = 0, flags: SendFlags = SendFlags.SIGNALED) -> None:
        """Local invalidate (IBA vol. 1, 10.6.5): a type 2 window, or a region, is closed to its remote key."""
        self.post_send(WorkRequest(wr_id, WROpcode.LOCAL_INV, invalidate_rkey=rkey, flags=flags))

    def close(self) -> None:
        """Destroy the queue pair: what is posted is flushed to its completion queues first (VRB-18)."""
        with self._engine:
            if not self._open:
                return
            self._kick()  # what was received is acknowledged, even if nobody asks again
            if self.state is not QPState.RESET:
                self._engine.fail_qp(self._index)
            self._open = False
            queue = None if self.srq is not None else self._engine.recv_queue_of(self._index)
            self._adapter.destroy_qp(self._index, queue)
            self.context.queue_pairs.pop(self._index, None)
            self.pd.members.discard(self)
            if self.rdd is not None:
                self.rdd.members.discard(self)
            if self.srq is not None:
                self.srq.queue_pairs.discard(self)
        self._kick()  # those who wait for the flushed requests shall hear of them
        if self._when_closed is not None:
            self._when_closed()

    def when_closed(self, function: Callable[[], None]) -> None:
        """Call `function` after it was closed."""
        self._when_closed = function

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> QueuePair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            state = self.state.name
        except ClosedError:
            state = "closed"
        return f"<QueuePair {self.qp_num:#x} {self.type.name} {state}>"
