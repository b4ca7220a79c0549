"""Hosts with modelled memory, adapters and processes, joined by a network in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab import Lab, take
from verbena import (
    Access,
    AsyncEventType,
    CompletionQueue,
    Context,
    MemoryWindow,
    QPType,
    QueuePair,
    RecvRequest,
    ScatterGatherEntry,
    WorkRequest,
    WROpcode,
)
from verbena.adapter.protection_options import DEFAULT_PROTECTION, AddressKind, ProtectionOptions
from verbena.memory.process import Process
from verbena.runtime.host_memory import HostMemory
from verbena.verbs.process_domain import ProcessDomain

PAGE = 4096
REMOTE = Access.REMOTE_READ | Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
OPERATIONS = {
    "write": WROpcode.RDMA_WRITE,
    "read": WROpcode.RDMA_READ,
    "fetch_add": WROpcode.ATOMIC_FETCH_AND_ADD,
}


@dataclass
class End:
    """A queue pair of a process, with what belongs to it."""

    memory: HostMemory
    ctx: Context
    process: Process
    pd: ProcessDomain
    cq: CompletionQueue
    qp: QueuePair

    def sge(self, address: int, length: int, kind: AddressKind = AddressKind.EFFECTIVE) -> ScatterGatherEntry:
        return self.pd.sge(address, length, kind)

    def bind(self, address: int, length: int, access: Access = REMOTE, **options: Any) -> MemoryWindow:
        """A remote key, bound; its bind has completed."""
        (key,) = self.pd.allocate_rkey()
        self.qp.bind_rkey(key, address, length, access, **options)
        assert take(self.cq, 1)[0].ok
        return key

    def send(self, address: int, length: int, kind: AddressKind = AddressKind.EFFECTIVE) -> None:
        self.qp.post_send(WorkRequest(2, WROpcode.SEND, [self.sge(address, length, kind)]))

    def receive(self, address: int, length: int, kind: AddressKind = AddressKind.EFFECTIVE) -> None:
        self.qp.post_recv(RecvRequest(1, [self.sge(address, length, kind)]))

    def operate(self, kind: str, local: int, length: int, remote: int, rkey: int, **more: Any) -> None:
        """Post an RDMA operation between local bytes and remote ones."""
        n = 8 if kind == "fetch_add" else length
        self.qp.post_send(
            WorkRequest(
                7,
                OPERATIONS[kind],
                [self.sge(local, n)],
                remote_addr=remote,
                rkey=rkey,
                compare_add=1,
                **more,
            )
        )

    def attempt(self, kind: str, local: int, length: int, remote: int, rkey: int) -> str:
        """The status that such an operation ends with."""
        self.operate(kind, local, length, remote, rkey)
        return take(self.cq, 1)[0].status.name

    def page_faults(self) -> list[Any]:
        """The asynchronous errors that came since they were last asked for."""
        found = []
        while (event := self.ctx.get_async_event(0)) is not None:
            if event.type is AsyncEventType.PAGE_FAULT:
                found.append(event)
        return found


def add_end(
    ctx: Context, memory: HostMemory, process: Process, service: QPType = QPType.RC, **sizes: Any
) -> End:
    pd = ctx.alloc_pd(process)
    cq = ctx.create_cq(1024)
    return End(memory, ctx, process, pd, cq, pd.create_qp(service, cq, **sizes))


def another(end: End, service: QPType = QPType.RC, **sizes: Any) -> End:
    """One more queue pair of the same process and domain."""
    cq = end.ctx.create_cq(64)
    return End(end.memory, end.ctx, end.process, end.pd, cq, end.pd.create_qp(service, cq, **sizes))


def connect(a: End, b: End, **attributes: Any) -> None:
    there, here = b.qp.endpoint, a.qp.endpoint
    a.qp.connect(there, **attributes)
    b.qp.connect(here, **attributes)


def host(
    lab: Lab, options: ProtectionOptions = DEFAULT_PROTECTION, **memory: Any
) -> tuple[HostMemory, Context]:
    """A host: its memory, and an adapter that is attached to it."""
    made = HostMemory(**memory)
    ctx = lab.adapter()
    ctx.attach_memory(made, options)
    return made, ctx


def two_ends(
    lab: Lab,
    options: ProtectionOptions = DEFAULT_PROTECTION,
    *,
    frames: int = 64,
    kernel: bool = False,
    connection: Any = None,
    **memory: Any,
) -> tuple[End, End]:
    """Processes a and b, each on a host of its own, with connected queue pairs; `options` are those of b's host."""
    first, one = host(lab)
    second, two = host(lab, options, frames=frames, **memory)
    a = add_end(one, first, first.create_process("a"))
    b = add_end(two, second, second.create_process("b", kernel=kernel))
    connect(a, b, **(connection or {}))
    return a, b


def fresh(a: End, b: End) -> tuple[End, End]:
    """Another connection between the same processes: an access that was refused ended the last one."""
    pair = another(a), another(b)
    connect(*pair)
    return pair


def tried(a: End, b: End, kind: str, local: int, length: int, remote: int, rkey: int) -> str:
    """The status of an operation on a connection of its own."""
    here, there = fresh(a, b)
    status = here.attempt(kind, local, length, remote, rkey)
    there.qp.close()
    here.qp.close()
    return status


def settle(lab: Lab) -> None:
    """Nothing is on its way any more, and every packet is accounted for."""
    lab.settle()
    lab.check_laws()
