"""Types of the work requests and completion entries, for type checkers: compiled classes do not show them."""

from typing import Any

from verbena.errors import CompletionStatus
from verbena.transport.kinds import CompletionFlags, CompletionOpcode

class ScatterGatherEntry:
    addr: int
    length: int
    lkey: int
    def __init__(self, addr: int = 0, length: int = 0, lkey: int = 0) -> None: ...

class WorkRequest:
    wr_id: int
    opcode: int
    sg_list: list[ScatterGatherEntry] | tuple[ScatterGatherEntry, ...]
    flags: int
    imm_data: int
    remote_addr: int
    rkey: int
    compare_add: int
    swap: int
    invalidate_rkey: int
    ah: Destination | None
    remote_qpn: int
    remote_qkey: int
    ee: Any
    delay_ns: int
    mw: Any
    bind: Any
    def __init__(
        self,
        wr_id: int = 0,
        opcode: int = 2,
        sg_list: list[ScatterGatherEntry] | tuple[ScatterGatherEntry, ...] = (),
        flags: int = 2,
        imm_data: int = 0,
        remote_addr: int = 0,
        rkey: int = 0,
        compare_add: int = 0,
        swap: int = 0,
        invalidate_rkey: int = 0,
        ah: Destination | None = None,
        remote_qpn: int = 0,
        remote_qkey: int = 0,
        ee: Any = None,
        delay_ns: int = 0,
        mw: Any = None,
        bind: Any = None,
    ) -> None: ...

class RecvRequest:
    wr_id: int
    sg_list: list[ScatterGatherEntry] | tuple[ScatterGatherEntry, ...]
    def __init__(
        self, wr_id: int = 0, sg_list: list[ScatterGatherEntry] | tuple[ScatterGatherEntry, ...] = ()
    ) -> None: ...

class CompletionQueueEntry:
    @property
    def wr_id(self) -> int: ...
    @property
    def byte_len(self) -> int: ...
    @property
    def qp_num(self) -> int: ...
    @property
    def src_qp(self) -> int: ...
    @property
    def slid(self) -> int: ...
    @property
    def sl(self) -> int: ...
    @property
    def path_bits(self) -> int: ...
    @property
    def port(self) -> int: ...
    def ee_num(self) -> int: ...
    @property
    def status(self) -> CompletionStatus: ...
    @property
    def opcode(self) -> CompletionOpcode: ...
    @property
    def flags(self) -> CompletionFlags: ...
    @property
    def imm_data(self) -> int | None: ...
    @property
    def invalidated_rkey(self) -> int | None: ...
    @property
    def ok(self) -> bool: ...
    def raise_for_status(self) -> CompletionQueueEntry: ...

class Destination:
    tables: Any
    path: int
    domain: int
    def __init__(self, tables: Any, path: int, domain: int) -> None: ...

class Work:
    def __init__(self, *arguments: Any, lock: Any = None) -> None: ...
    def post_send(self, index: int, request: WorkRequest) -> None: ...
    def post_recv(self, index: int, request: RecvRequest) -> None: ...
    def post_shared(self, index: int, request: RecvRequest) -> None: ...
    def poll(self, index: int, most: int) -> list[CompletionQueueEntry]: ...
    def pending(self, index: int) -> int: ...
    def arm(self, index: int, solicited_only: bool) -> None: ...
