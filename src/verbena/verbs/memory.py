"""Protection domains and memory regions."""

from __future__ import annotations

import contextlib
from types import NoneType
from typing import TYPE_CHECKING, Any

from verbena.adapter.attributes import AddressVector, QPCapabilities
from verbena.errors import ClosedError, InvalidAttributeError, InvalidStateError
from verbena.memory.access import Access
from verbena.transport.kinds import QPType
from verbena.transport.work import Destination, RecvRequest, ScatterGatherEntry
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.queue_pair import QueuePair

if TYPE_CHECKING:
    from verbena.verbs.context import Context
    from verbena.verbs.end_to_end import ReliableDatagramDomain


class ProtectionDomain:
    """A set of queue pairs, regions and address handles that may use one another (IBA vol. 1, 11.2.1.5).

    Made by `Context.alloc_pd`.  A context manager: closing it needs everything in it closed.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.number = context.adapter.alloc_pd()
        self.members: set[Any] = set()
        self._open = True
        context.hold(self)

    def checked(self) -> ProtectionDomain:
        """Itself; raises `ClosedError` when it is closed."""
        if not self._open:
            raise ClosedError("this protection domain is closed")
        return self

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

    def close(self) -> None:
        """Free the domain.  Raises `InvalidStateError` while something in it is open."""
        with self.context.adapter.engine:
            self._close()

    def _close(self) -> None:
        if not self._open:
            return
        if self.members:
            kinds = ", ".join(sorted({type(m).__name__ for m in self.members}))
            raise InvalidStateError(
                f"the protection domain still holds {len(self.members)} objects ({kinds})"
            )
        self._open = False
        self.context.adapter.free_pd(self.number)
        self.context.let_go(self)

    def abandon(self) -> None:
        """`close` in the child of a fork, with all that is in it."""
        self._open = False
        for member in self.members:
            member.abandon()
        self.members.clear()

    def __enter__(self) -> ProtectionDomain:
        return self

    def __exit__(self, *_: object) -> None:
        members = tuple(self.members)  # other threads may still open and close some
        for member in sorted(members, key=lambda m: not isinstance(m, QueuePair)):
            member.close()
        self.close()


class MemoryRegion:
    """A registered buffer.  Made by `ProtectionDomain.reg_mr` and `alloc_mr`; a context manager.

    addr: the I/O virtual address of its first byte (not the process's pointer).  length: bytes.  lkey, rkey: what
    work requests and peers show to use it.  buf: its bytes.
    """

    def __init__(self, pd: ProtectionDomain, buffer: Any, access: Access, iova: int | None) -> None:
        self.pd = pd
        self._engine = pd.context.adapter.engine
        self._table = pd.context.adapter.regions
        if not isinstance(access, int):
            raise InvalidAttributeError(f"access = {access!r}: combine members of Access")
        if iova is not None and not isinstance(iova, int):
            raise InvalidAttributeError(f"iova = {iova!r}: a 64-bit address, or None")
        try:
            view = memoryview(buffer)
        except TypeError:
            raise InvalidAttributeError(
                f"a {type(buffer).__name__} has no buffer to register: use a bytearray, numpy array, mmap, …"
            ) from None
        except (BufferError, ValueError) as error:  # a closed mmap, an array of dates, …
            raise InvalidAttributeError(
                f"this {type(buffer).__name__} gives no access to its bytes: {error}"
            ) from None
        if "O" in view.format:
            raise InvalidAttributeError(
                "an array of Python objects cannot be registered: peers exchange bytes"
            )
        with self._engine:
            pd.checked()
            self._index, self.addr, self.length, self.lkey, self.rkey = self._table.register(
                view, pd.number, int(access), iova
            )
        self.access = Access(access)
        self.buf: memoryview = view.cast("B") if view.nbytes else memoryview(bytearray())
        self._view = view
        self._open = True
        pd.members.add(self)

    def sge(self, offset: int = 0, length: int | None = None) -> ScatterGatherEntry:
        """A piece of the region for a work request's list; by default all of it.  Raises `InvalidAttributeError`."""
        if not self._open:
            raise ClosedError("this memory region is closed")
        if not isinstance(offset, int) or not isinstance(length, (int, NoneType)):
            raise InvalidAttributeError(f"offset = {offset!r}, length = {length!r}: numbers of bytes")
        if length is None:
            length = self.length - offset
        if offset < 0 or length < 0 or offset + length > self.length:
            raise InvalidAttributeError(
                f"bytes {offset} to {offset + length} are not within the region's {self.length}"
            )
        return ScatterGatherEntry(self.addr + offset, length, self.lkey)

    def close(self) -> None:
        """Deregister: its keys open nothing from now on."""
        with self._engine:
            if not self._open:
                return
            self._open = False
            self._table.deregister(self._index)
            self.pd.members.discard(self)
            for view in (self.buf, self._view):
                with contextlib.suppress(
                    BufferError
                ):  # the program looks into it, through an array for example
                    view.release()

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> MemoryRegion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MemoryRegion {self.length} bytes at {self.addr:#x}, rkey {self.rkey:#x}, {self.access!r}>"


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
