"""Remote keys: give a peer a range of memory, byte for byte, and take it back; every refusal, as both sides see it.

    python examples/remote_keys.py

A target shares memory with a client, in virtual time.  The target binds keys to ranges by work requests, without a call
into the driver; the client's RDMA operations carry key and address; the target's adapter checks every byte.
"""

from collections.abc import Callable

from verbena import (
    Access,
    BindInfo,
    InvalidAttributeError,
    MemoryWindow,
    QPType,
    VirtualNetwork,
    WindowType,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side, connect_sides, make_side

READ, WRITE = Access.REMOTE_READ, Access.REMOTE_WRITE
PAGE = 4096
SPACE = 0x7000_0000_0000  # where the target's process has its eight pages


class Lab:
    """A client and a target, whose process has eight pages; connected anew after each attempt: a refusal ends it."""

    def __init__(self) -> None:
        net = VirtualNetwork()
        self.client, self.target = (
            make_side(net.open_device(address), QPType.RC, PAGE) for address in ("10.0.0.1", "10.0.0.2")
        )
        self.memory, self.first = self.target.ctx.adapter.memory, SPACE // PAGE
        self.space = self.memory.make_space()
        self.memory.add_range(self.space, self.first, 8)
        self.memory.set_pages(self.space, self.first, bytearray(8 * PAGE))
        self.target.pd.use_space(self.space)
        self.connect(self.target)

    def connect(self, side: Side) -> None:
        """A new connection of the client, to a protection domain of the target."""
        self.client.qp = self.client.pd.create_qp(QPType.RC, self.client.cq)
        side.qp = side.pd.create_qp(QPType.RC, side.cq)
        connect_sides(self.client, side)

    def bind(
        self, address: int, length: int, access: Access = READ | WRITE, *, one_shot: bool = False
    ) -> MemoryWindow:
        """AllocateRKey and BindRKey; the bind has completed."""
        (key,) = self.target.pd.allocate_rkey(one_shot=one_shot)
        self.target.qp.bind_rkey(key, address, length, access)
        self.target.cq.wait()
        return key

    def attempt(self, opcode: WROpcode, rkey: int, address: int, length: int) -> str:
        """One operation of the client; its status."""
        local = [self.client.mr.sge(0, length)]
        self.client.qp.post_send(WorkRequest(1, opcode, local, remote_addr=address, rkey=rkey))
        return self.client.cq.wait()[0].status.name

    def show(
        self, what: str, rkey: int, address: int, length: int, opcode: WROpcode = WROpcode.RDMA_WRITE
    ) -> None:
        """Print what becomes of an operation: at the client, and in the target's record."""
        before = len(self.memory.refusals())
        status = self.attempt(opcode, rkey, address, length)
        reasons = [refusal.reason for refusal in self.memory.refusals()[before:]]
        print(f"{what:<38} {status:<15} {reasons[0] if reasons else 'granted'}")
        self.connect(self.target)


def invalid(what: str, function: Callable[[], object]) -> None:
    """Print how a bind is refused that has no authority over its range."""
    try:
        function()
    except InvalidAttributeError as error:
        print(f"{what:<38} {error}")


lab = Lab()
target = lab.target

print("-- a key opens its bytes, and no others")
key = lab.bind(SPACE + 4090, 13)  # 13 bytes, across the border of two pages
lab.show("all 13 bytes", key.rkey, SPACE + 4090, 13)
lab.show("one byte before", key.rkey, SPACE + 4089, 1)
lab.show("one byte behind", key.rkey, SPACE + 4103, 1)
lab.show("past the top of the address space", key.rkey, (1 << 64) - 1, 2)

print("-- and only as its owner says")
reader = lab.bind(SPACE, PAGE, READ)
lab.show("a WRITE, bound for reading", reader.rkey, SPACE, 8)
lab.show("a READ", reader.rkey, SPACE, 8, WROpcode.RDMA_READ)
once = lab.bind(SPACE, PAGE, one_shot=True)
lab.show("a one-shot key", once.rkey, SPACE, 8)
lab.show("once more", once.rkey, SPACE, 8)
(unbound,) = target.pd.allocate_rkey()
lab.show("not bound", unbound.rkey, SPACE, 8)
old = reader.rkey
target.qp.bind_rkey(reader, SPACE, PAGE)
target.cq.wait()
lab.show("a key of an earlier bind", old, SPACE, 8)
target.qp.unbind_rkey(reader)
target.cq.wait()
lab.show("unbound again", reader.rkey, SPACE, 8)
target.pd.deallocate_rkey(reader)
lab.show("deallocated", reader.rkey, SPACE, 8)
lab.show("guessed", 0x12345678, SPACE, 8)

print("-- by queue pairs of its protection domain")
stranger = make_side(target.ctx, QPType.RC, PAGE)
lab.connect(stranger)
lab.show("another domain's queue pair", key.rkey, SPACE + 4090, 13)
target.qp.modify(access_flags=Access.LOCAL_WRITE | READ)
lab.show("one that allows no RDMA WRITE", key.rkey, SPACE + 4090, 13)
window = target.pd.alloc_mw(WindowType.TYPE_2B)
region = target.pd.alloc_mr(PAGE, Access.LOCAL_WRITE | Access.WINDOW_BIND)
owner = target.qp
owner.bind_mw(window, region, region.addr, 64)
target.cq.wait()
lab.show("a type 2 window, by its queue pair", window.rkey, region.addr, 8)
lab.show("by another one", window.rkey, region.addr, 8)
second = target.pd.alloc_mw(WindowType.TYPE_2B)
target.qp.bind_mw(second, region, region.addr, 64)
target.qp.invalidate(second.rkey)
target.cq.wait(n=2)
lab.show("invalidated", second.rkey, region.addr, 8)

print("-- while the memory is there")
whole = lab.bind(SPACE, 8 * PAGE)
lab.memory.protect_page(lab.space, lab.first + 3, writable=False)
lab.show("over a page that was made read-only", whole.rkey, SPACE + 3 * PAGE - 1, 2)
lab.memory.remove_range(lab.space, lab.first + 5, 1)
lab.show("over a segment that is gone", whole.rkey, SPACE + 5 * PAGE - 1, 2)
lab.memory.clear_page(lab.space, lab.first + 2)
while target.ctx.get_async_event(0):
    pass  # those of the queue pairs that were refused
lab.show("over a page that is out", whole.rkey, SPACE + 2 * PAGE - 1, 2)
event = target.ctx.get_async_event(0)
assert event is not None
print(f"its error handler is told:             {event.type.name}, address {event.address:#x}")

print("-- a bind without authority binds nothing")
qp = target.qp
invalid("a byte behind the segment", lambda: qp.bind_rkey(key, SPACE + 8 * PAGE - 1, 2))
invalid("a read-only page, for writing", lambda: qp.bind_rkey(key, SPACE + 3 * PAGE, 1))
invalid("a virtual address, by a user process", lambda: qp.bind_rkey(key, 0x9000, 1, virtual=True))
invalid("another domain's key", lambda: stranger.qp.unbind_rkey(key))
behind = BindInfo(None, SPACE + 8 * PAGE - 1, 2, READ)
qp.post_send(WorkRequest(1, WROpcode.BIND_MW, mw=key, bind=behind))
print(f"{'posted as a work request':<38} {target.cq.wait()[0].status.name}")
lab.connect(target)
lab.show("the key is as it was", key.query().rkey, SPACE + 4090, 13)

print("-- who used a key")
found = key.query()
use = lab.memory.uses()[-1]
print(f"{found.uses} uses, {found.bytes} bytes, {found.refusals} refusals; the last one granted:")
print(f"{use.length} bytes, {use.access.name}, from {use.peer}, queue pair {use.peer_qp_num:#x}")
before = target.ctx.counters()
for i in range(100):
    target.qp.bind_rkey(key, SPACE + i, 1)
    target.qp.unbind_rkey(key)
target.cq.wait(n=200)
after = target.ctx.counters()
binds, calls = (after[name] - before[name] for name in ("memory.binds", "memory.kernel_calls"))
print(f"{binds} binds, {calls} calls into the driver")
