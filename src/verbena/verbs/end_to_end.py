"""End-to-end contexts: how reliable-datagram queue pairs reach other nodes (document 003:542; IBA vol. 1, 10.2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verbena.adapter.attributes import EEAttributes, Endpoint
from verbena.errors import ClosedError
from verbena.transport.kinds import QPState
from verbena.verbs.domains import Domain
from verbena.verbs.endpoints import Connectable, vector_to

if TYPE_CHECKING:
    from verbena.verbs.context import Context


class ReliableDatagramDomain(Domain):
    """A set of queue pairs and end-to-end contexts that may use one another (IBA vol. 1, 10.2.6).

    Made by `Context.alloc_rdd`; a context manager.  Closing it needs everything in it closed.
    """

    KIND = "reliable datagram domain"

    def __init__(self, context: Context) -> None:
        with context.adapter.engine:
            number = context.end_to_end.alloc_rdd()
        super().__init__(context, number)

    def create_eec(self) -> EndToEndContext:
        """A new end-to-end context of this domain, in RESET."""
        return EndToEndContext(self.checked())

    def _free(self) -> None:
        self._open = False
        self.context.end_to_end.free_rdd(self.number)


class EndToEndContext(Connectable):
    """What this adapter keeps of another one, for all queue pairs that send reliable datagrams to it.

    Made by `ReliableDatagramDomain.create_eec` (or `Context.create_eec`); a context manager.  ee_num: its 24-bit
    number, which a `WorkRequest` names, or the context itself.  It executes one message at a time for the queue pairs
    that use it, which take turns (IBA vol. 1, 9.7.8).
    """

    def __init__(self, rdd: ReliableDatagramDomain) -> None:
        context = rdd.context
        self.rdd = rdd
        self.context = context
        self._engine = context.adapter.engine
        self._table = context.end_to_end
        with self._engine:
            rdd.checked()
            self._index, self.ee_num = self._table.create(rdd.number)
            self._psn = context.adapter.random.getrandbits(24)
            self._open = True
            rdd.members.add(self)

    @property
    def _number(self) -> int:
        return self.ee_num

    def _checked(self) -> int:
        if not self._open:
            raise ClosedError(f"end-to-end context {self.ee_num:#x} is closed")
        return self._index

    @property
    def state(self) -> QPState:
        """The state it is in; never SQE."""
        return self.context.adapter.state(self._checked())

    def modify(self, state: QPState | None = None, **attributes: Any) -> None:
        """Move to a state, or change attributes within the present one.

        port_num, pkey_index, path_mtu (bytes), dest_ee_num (the peer's context), rq_psn, sq_psn, max_rd_atomic,
        max_dest_rd_atomic, timeout (4.096 us * 2^n; 0 = for ever), retry_cnt (0..7), ah_attr (an `AddressVector`),
        stripe_ah_attrs, reorder_ns (see `QueuePair.modify`).

        Which of them a transition needs and allows: `adapter.states.EE_TRANSITIONS`.  Raises `InvalidStateError`,
        `InvalidAttributeError`; then nothing was changed.
        """
        with self._engine:
            self._table.modify(self._checked(), state, attributes)

    def query(self) -> EEAttributes:
        """All attributes as they are now."""
        with self._engine:
            found = self._table.query(self._checked())
            return EEAttributes(ee_num=self.ee_num, state=self.state, **found)

    def connect(
        self,
        remote: Endpoint,
        *,
        mtu: int | None = None,
        max_rd_atomic: int = 16,
        timeout: int = 14,
        retry_cnt: int = 7,
        traffic_class: int = 0,
        hop_limit: int = 64,
        port_num: int | None = None,
        pkey_index: int = 0,
        sl: int = 0,
        src_path_bits: int = 0,
        sgid_index: int = 0,
        dlid: int | None = None,
        is_global: bool | None = None,
        **striping: Any,
    ) -> None:
        """Connect to the `endpoint` of the peer's context: RESET or INIT to RTS.  Both sides do it, in any order.

        The values are those of `modify` and of `QueuePair.connect`; both sides must agree on mtu (bytes, by default the
        port's).  striping: stripe_ah_attrs, reorder_ns.

        Raises `PortStateError` when the port is not ACTIVE or has no LID.
        """
        port = port_num or self._port()
        vector = vector_to(
            self.context.adapter,
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
            self.modify(QPState.INIT, port_num=port, pkey_index=pkey_index)
        self.modify(
            QPState.RTR,
            ah_attr=vector,
            path_mtu=mtu or self.context.adapter.mtu_of(port),
            dest_ee_num=remote.qp_num,
            rq_psn=remote.psn,
            max_dest_rd_atomic=max_rd_atomic,
            **striping,
        )
        self.modify(
            QPState.RTS, sq_psn=self._psn, timeout=timeout, retry_cnt=retry_cnt, max_rd_atomic=max_rd_atomic
        )

    def close(self) -> None:
        """Destroy the context: requests that wait for it end with INV_EEC_STATE_ERR."""
        with self._engine:
            if not self._open:
                return
            self.context.driver.kick()
            self._open = False
            self._table.destroy(self._index)
            self.rdd.members.discard(self)
        self.context.driver.kick()

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> EndToEndContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.state.name if self._open else "closed"
        return f"<EndToEndContext {self.ee_num:#x} {state}>"
