"""Protection domains and memory regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verbena.adapter.attributes import AddressVector, QPCapabilities
from verbena.errors import ClosedError, InvalidAttributeError, InvalidStateError
from verbena.memory.access import Access
from verbena.transport.kinds import QPType
from verbena.transport.work import Destination, RecvRequest
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.domains import Domain
from verbena.verbs.queue_pair import QueuePair
from verbena.verbs.regions import FastMemoryRegion, MemoryRegion, PagedRegion
from verbena.verbs.windows import MemoryWindow, WindowType, require_window

if TYPE_CHECKING:
    from verbena.verbs.context import Context
    from verbena.verbs.end_to_end import ReliableDatagramDomain


class ProtectionDomain(Domain):
    """A set of queue pairs, regions and address handles that may use one another (IBA vol. 1, 11.2.1.5).

    Made by `Context.alloc_pd`.  A context manager: closing it needs everything in it closed.
    """

    KIND = "protection domain"

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.adapter.alloc_pd())

    def reg_mr(
        self, buffer: Any, access: Access = Access.LOCAL_WRITE, *, iova: int | None = None
    ) -> MemoryRegion:
        """Register a buffer: bytearray, numpy array, mmap, shared memory, anything contiguous (IBA vol. 1, 11.2.8.1).

        access: what may be done to it; the default allows only this process's own work requests.  iova: the address
        under which work requests and peers name its first byte; by default the adapter chooses one.

        Raises `InvalidAttributeError` for a buffer or rights that do not fit, `ResourceError` at the adapter's limit.
        """
        return MemoryRegion(self.checked(), buffer, access, iova)

    def alloc_mr(
        self, length: int, access: Access = Access.LOCAL_WRITE, *, iova: int | None = None
    ) -> MemoryRegion:
        """Register `length` bytes of new memory, all zero."""
        if not isinstance(length, int) or length < 0:
            raise InvalidAttributeError(f"length = {length!r}: a number of bytes, 0 or more")
        return MemoryRegion(self.checked(), bytearray(length), access, iova)

    def reg_space(
        self,
        address: int = 0,
        length: int | None = None,
        access: Access = Access.LOCAL_WRITE,
        *,
        iova: int | None = None,
    ) -> PagedRegion:
        """Register a range of the domain's address space; by default all of it, what comes into it later included.

        address: in the space.  iova: the address under which it is named; by default the same.  Nothing is pinned: see
        `PagedRegion`.  Raises `InvalidAttributeError` when the domain has no space, or not the whole range, or rights
        beyond it; `ResourceError`.
        """
        return PagedRegion(self.checked(), address, length, access, iova)

    def alloc_fast_reg_mr(self, max_pages: int, page_bits: int = 12) -> FastMemoryRegion:
        """A region for REG_MR work requests, of at most max_pages pages of 2^page_bits bytes."""
        return FastMemoryRegion(self.checked(), max_pages, page_bits)

    def use_space(self, space: int, virtual: int | None = None) -> None:
        """Tie the domain to an address space of the adapter (`ChannelAdapter.memory`), until the domain is closed.

        From then on work requests name its addresses by the reserved local key 0, and keys are bound to them without a
        region.  virtual: for kernel consumers, the space of virtual addresses, by the reserved local key 1.
        """
        self.context.adapter.memory.tie(self.checked().number, space, virtual)

    def alloc_mw(self, window_type: WindowType = WindowType.TYPE_1) -> MemoryWindow:
        """A memory window (IBA vol. 1, 11.2.8.9), bound to nothing.  Raises `ResourceError`."""
        return MemoryWindow(self.checked(), window_type)

    def allocate_rkey(self, n: int = 1, *, one_shot: bool = False) -> list[MemoryWindow]:
        """AllocateRKey (document 003:866): n remote keys, bound to nothing.

        one_shot: each is disabled by the first operation that uses it, until it is bound again (003:884).  Raises
        `ResourceError`, and then none was allocated.
        """
        if not isinstance(n, int) or n < 1:
            raise InvalidAttributeError(f"n = {n!r}: 1 or more keys")
        made: list[MemoryWindow] = []
        try:
            for _ in range(n):
                made.append(MemoryWindow(self.checked(), WindowType.RKEY, one_shot))
        except Exception:
            for window in made:
                window.close()
            raise
        return made

    def deallocate_rkey(self, key: MemoryWindow) -> None:
        """DeallocateRKey (document 003:880): retire a key; if it is bound, it is unbound by that.

        Raises `ClosedError` when it was retired before, `InvalidAttributeError` for a key of another domain.
        """
        require_window(key, self).close()

    def region_over(self, address: int, length: int) -> MemoryRegion | None:
        """An open region of the domain, registered with WINDOW_BIND, that holds the range; None if there is none."""
        for member in tuple(self.members):
            if (
                isinstance(member, MemoryRegion)
                and member.access & Access.WINDOW_BIND
                and member.addr <= address
                and address + length <= member.addr + member.length
            ):
                return member
        return None

    def create_qp(
        self,
        qp_type: QPType,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue | None = None,
        *,
        max_send_wr: int = 128,
        max_recv_wr: int = 128,
        max_send_sge: int = 4,
        max_recv_sge: int = 4,
        max_inline: int = 0,
        srq: SharedReceiveQueue | None = None,
        sq_sig_all: bool = False,
        rdd: ReliableDatagramDomain | None = None,
    ) -> QueuePair:
        """Create a queue pair in RESET (OpenQP of document 003; IBA vol. 1, 11.2.4.1).

        recv_cq defaults to send_cq.  max_…_wr: requests that a queue holds, max_…_sge: list entries of each,
        max_inline: bytes that INLINE may copy.  srq: take receive buffers from there.  sq_sig_all: every send request
        makes a completion entry, SIGNALED or not.  rdd: the domain of a reliable-datagram queue pair.

        Raises `InvalidAttributeError`, `ResourceError`; then no queue pair was made.
        """
        caps = QPCapabilities(max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline)
        return QueuePair(
            self.checked(),
            qp_type,
            send_cq,
            send_cq if recv_cq is None else recv_cq,
            caps,
            srq,
            sq_sig_all,
            rdd=rdd,
        )

    def create_srq(self, max_wr: int, max_sge: int = 4, limit: int = 0) -> SharedReceiveQueue:
        """Create a receive queue that several queue pairs take buffers from (IBA vol. 1, 11.2.3)."""
        return SharedReceiveQueue(self.checked(), max_wr, max_sge, limit)

    def require_srq(self, value: SharedReceiveQueue | None) -> SharedReceiveQueue | None:
        """The shared receive queue itself, or None; raises a `VerbError` unless it is an open one of this domain."""
        if value is None:
            return None
        if not isinstance(value, SharedReceiveQueue):
            raise InvalidAttributeError(f"srq: a SharedReceiveQueue is needed, not {type(value).__name__}")
        if value.pd is not self:
            raise InvalidAttributeError("srq belongs to another protection domain")
        if not value.is_open:
            raise ClosedError("srq is closed: create a new one")
        return value

    def create_ah(self, vector: AddressVector) -> AddressHandle:
        """An address handle: where datagrams go (IBA vol. 1, 11.2.2.1)."""
        return AddressHandle(self.checked(), vector)

    def _free(self) -> None:
        self.context.adapter.memory.untie(self.number)
        self._open = False
        self.context.adapter.free_pd(self.number)

    def _in_order(self) -> list[Any]:
        return sorted(super()._in_order(), key=_closing_order)


def _closing_order(member: object) -> int:
    """Who uses others is closed before them: queue pairs, then windows, then the rest."""
    return 0 if isinstance(member, QueuePair) else 1 if isinstance(member, MemoryWindow) else 2


class SharedReceiveQueue:
    """A receive queue of several queue pairs (IBA vol. 1, 10.2.9).  Made by `ProtectionDomain.create_srq`."""

    def __init__(self, pd: ProtectionDomain, max_wr: int, max_sge: int, limit: int) -> None:
        limits = pd.context.adapter.limits
        if not isinstance(max_wr, int) or not 1 <= max_wr <= limits.max_srq_wr:
            raise InvalidAttributeError(f"max_wr = {max_wr!r}: this adapter takes 1 to {limits.max_srq_wr}")
        if not isinstance(max_sge, int) or not 0 <= max_sge <= limits.max_sge:
            raise InvalidAttributeError(f"max_sge = {max_sge!r}: this adapter takes 0 to {limits.max_sge}")
        self.pd = pd
        self.max_wr = max_wr
        self.queue_pairs: set[QueuePair] = set()
        self._engine = pd.context.adapter.engine
        with self._engine:
            self.index: int = self._engine.make_recv_queue(max_wr, max_sge, pd.number, True)
        self._open = True
        pd.members.add(self)
        if limit:
            self.modify(limit=limit)

    def post_recv(self, request: RecvRequest) -> None:
        """Post a receive request.  Raises `QueueFullError`, `InvalidAttributeError`."""
        if not self._open:
            raise ClosedError("this shared receive queue is closed")
        self._engine.post_shared(self.index, request)
        self.pd.context.driver.kick()

    @property
    def is_open(self) -> bool:
        """Has it not been closed?"""
        return self._open

    def modify(self, *, limit: int) -> None:
        """Arm the limit: one SRQ_LIMIT_REACHED event when fewer than `limit` requests are left; 0 disarms.

        If fewer are left already, the event comes at once.
        """
        if not self._open:
            raise ClosedError("this shared receive queue is closed")
        if not isinstance(limit, int) or not 0 <= limit <= self.max_wr:
            raise InvalidAttributeError(f"limit = {limit!r}: 0 to max_wr = {self.max_wr}")
        with self._engine:
            self._engine.arm_limit(self.index, limit)
        self.pd.context.driver.kick()

    def __len__(self) -> int:
        """Requests that wait."""
        if not self._open:
            raise ClosedError("this shared receive queue is closed")
        return int(self._engine.queue_depth(self.index))

    def __bool__(self) -> bool:
        """True, also when it is empty."""
        return True

    def close(self) -> None:
        """Destroy it.  Raises `InvalidStateError` while queue pairs use it."""
        with self._engine:
            if not self._open:
                return
            if self.queue_pairs:
                raise InvalidStateError(
                    f"{len(self.queue_pairs)} queue pairs still receive from it: close them first"
                )
            self._open = False
            self._engine.free_recv_queue(self.index)
            self.pd.members.discard(self)

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> SharedReceiveQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AddressHandle(Destination):
    """Where datagrams go.  Made by `ProtectionDomain.create_ah`; a context manager."""

    def __init__(self, pd: ProtectionDomain, vector: AddressVector) -> None:
        adapter = pd.context.adapter
        adapter.check_vector(vector)
        super().__init__(adapter.engine, adapter.make_path(vector), pd.number)
        self.pd = pd
        self.vector = vector
        self._engine = adapter.engine
        self._open = True
        pd.members.add(self)

    def close(self) -> None:
        """Destroy it; datagrams posted with it still go where it pointed."""
        with self._engine:
            if not self._open:
                return
            self._open = False
            self._engine.free_path(self.path)
            self.path = -1
            self.pd.members.discard(self)

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> AddressHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
