"""Random histories of a host's memory and of remote operations on it, over a lossy network, against a plain reference.

Segments come, go, grow, shrink and are withdrawn; pages are put out, brought in and protected; keys are bound, unbound,
used once, used wrongly and by the wrong queue pairs; packets are lost, doubled and reordered meanwhile.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from lab import Lab, take
from memory.host_lab import PAGE, End, add_end, another, connect, host
from memory.plain_reference import Key, Piece, Reference, View
from verbena import (
    Access,
    Faults,
    InvalidAttributeError,
    MemoryWindow,
    QPState,
    ResourceError,
)
from verbena._pure import plain_modules
from verbena.adapter.protection_options import ProtectionOptions
from verbena.errors import AddressFault
from verbena.memory.addresses import AddressFormat
from verbena.memory.protection import Protection

SMALL = AddressFormat(segment_bits=8, upper_bits=12, page_number_bits=2, offset_bits=12)
READ, BOTH, NONE = Protection.READ, Protection.READ_WRITE, Protection.NONE
RIGHTS = {"read": Access.REMOTE_READ, "write": Access.REMOTE_WRITE, "fetch_add": Access.REMOTE_ATOMIC}
LOSSY = Faults(loss=0.03, duplication=0.03, reordering=0.03, delay=0.05, delay_ns=20_000)
LOCAL = 16 * PAGE
# The target ends its queue pair when it refuses; when that answer is lost, the peer only sees that nobody answers.
REFUSED = ("REM_ACCESS_ERR", "RETRY_EXC_ERR")
OPTIONS = [
    ProtectionOptions(),
    ProtectionOptions(segment_tables="shared", page_tables="private", inverted=True),
    ProtectionOptions(page_tables="private", page_faults="error"),
]
STEPS = 120 if plain_modules() else 300


class World:
    """A host with two processes, each with two queue pairs whose peers are those of one process of another host."""

    def __init__(self, options: ProtectionOptions, seed: int) -> None:
        self.random = Random(seed)
        self.options = options
        self.lab = Lab(seed, LOSSY, record=False)
        self.memory, ctx = host(
            self.lab,
            options,
            frames=10,
            form=SMALL,
            page_in_ns=5_000,
            inverted=seed % 2 == 1,
            replacement=("clock", "lru")[seed // 2 % 2],
        )
        far, there = host(self.lab)
        peer = far.create_process("peer")
        self.local = peer.allocate(LOCAL)
        self.peer = peer
        self.processes = [self.memory.create_process(name) for name in ("a", "b")]
        first = add_end(there, far, peer)
        self.ends = [add_end(ctx, self.memory, process) for process in self.processes]
        self.idle: list[tuple[End, End, int]] = []
        for number, end in enumerate(self.ends):
            self.idle += [self.connected(first, end, number) for _ in range(2)]
        self.first = first
        self.plain = Reference()
        self.keys: list[tuple[Key, MemoryWindow]] = []
        self.outcomes: dict[str, int] = {}

    def connected(self, peer: End, end: End, number: int) -> tuple[End, End, int]:
        pair = another(peer), another(end)
        connect(*pair, timeout=9)
        return (*pair, number)

    def note(self, what: str) -> None:
        self.outcomes[what] = self.outcomes.get(what, 0) + 1

    # --- steps ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        changes = ["allocate", "resize", "free", "share", "segment", "protect", "page_out", "page_out"]
        keys = ["bind"] * 8 + ["unbind", "retire"] + ["race", "withdraw", "busy"] * 3
        name = self.random.choice([*changes, "page_in", "store", *keys, *["operate"] * 20])
        if not self.plain.views():
            name = "allocate"
        # A late duplicate of a READ that meets a key bound anew is refused, and ends the connection that it came by.
        self.lab.settle()
        getattr(self, name)()

    def view(self) -> View:
        return self.random.choice(self.plain.views())

    def allocate(self) -> None:
        if len(self.plain.pieces) >= 6:
            return
        owner, count = self.random.randrange(2), self.random.randint(1, 9)
        usual = self.random.choice([BOTH, BOTH, BOTH, READ])
        address = self.processes[owner].allocate(count * PAGE, usual)
        piece = Piece(owner, usual, bytearray(count * PAGE), [usual] * count)
        piece.views.append(View(owner, piece, address, usual))
        self.plain.pieces.append(piece)

    def resize(self) -> None:
        view, count = self.view(), self.random.randint(1, 9)
        piece = view.piece
        if piece.owner != view.process:
            return
        try:
            self.processes[view.process].resize(view.address, count * PAGE)
        except ResourceError:
            return
        more = count - len(piece.pages)
        piece.pages = piece.pages[:count] + [piece.usual] * more
        piece.data = piece.data[: count * PAGE] + bytes(max(0, more) * PAGE)

    def free(self) -> None:
        view = self.view()
        self.processes[view.process].free(view.address)
        view.piece.views.remove(view)
        if view.piece.owner == view.process:
            view.piece.owner = None
        if not view.piece.views:
            self.plain.pieces.remove(view.piece)

    def share(self) -> None:
        view, protection = self.view(), self.random.choice([READ, BOTH])
        to = 1 - view.process
        if len(view.piece.views) > 2 or to == view.piece.owner or protection & ~view.protection:
            return
        address = self.memory.share(
            view.address, self.processes[view.process], self.processes[to], protection
        )
        view.piece.views.append(View(to, view.piece, address, protection))

    def segment(self) -> None:
        view = self.view()
        view.valid, view.protection = self.random.random() < 0.8, self.random.choice([BOTH, BOTH, BOTH, READ])
        self.memory.set_segment(
            self.processes[view.process], view.address, valid=view.valid, protection=view.protection
        )

    def protect(self) -> None:
        view = self.view()
        count = len(view.piece.pages)
        first = self.random.randrange(count)
        number = self.random.randint(1, count - first)
        protection = self.random.choice([NONE, READ, BOTH, BOTH, BOTH])
        if view.valid and view.piece.owner == view.process:
            self.memory.protect(
                self.processes[view.process], view.address + first * PAGE, number * PAGE, protection
            )
            view.piece.pages[first : first + number] = [protection] * number

    def page_out(self) -> None:
        view = self.view()
        if view.valid:
            first = self.random.randrange(len(view.piece.pages))
            self.memory.page_out(
                self.processes[view.process],
                view.address + first * PAGE,
                len(view.piece.data) - first * PAGE,
            )

    def page_in(self) -> None:
        view = self.view()
        if view.valid:
            page = self.random.randrange(len(view.piece.pages))
            self.memory.page_in(self.processes[view.process], view.address + page * PAGE)

    def store(self) -> None:
        process, address, length = self.some_range(self.random.randint(1, 3 * PAGE))
        data = self.random.randbytes(length)
        if self.plain.may(process, address, length, True):
            self.processes[process].write(address, data)
            self.plain.put(process, address, data)
        else:
            with pytest.raises((AddressFault, InvalidAttributeError)):
                self.processes[process].write(address, data)

    def some_range(self, length: int) -> tuple[int, int, int]:
        """A range near a view's beginning or end: process, address, length."""
        view = self.view()
        room = max(1, len(view.piece.data) - length)
        offset = self.random.choice([0, self.random.randrange(room), room, room + self.random.choice([0, 1])])
        return view.process, view.address + offset, length

    # --- keys -------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        lengths = [1, 8, 13, PAGE, self.random.randint(1, 5 * PAGE), self.random.randint(1, 9 * PAGE)]
        for _ in range(5):  # most of them shall be right
            process, address, length = self.some_range(self.random.choice(lengths))
            if self.plain.may(process, address, length, True):
                break
        access = Access(self.random.choice([2, 4, 6, 14, 14, 14, 14]))
        mine = [pair for pair in self.keys if pair[0].process == process]
        if len(mine) < 4:
            one_shot = self.random.random() < 0.3
            (window,) = self.ends[process].pd.allocate_rkey(one_shot=one_shot)
            mine = [(Key(process, one_shot), window)]
            self.keys += mine
        key, window = self.random.choice(mine)
        end = self.random.choice([e for _, e, p in self.idle if p == process])
        if not self.plain.may_bind(process, address, length, access):
            self.note("bind refused")
            with pytest.raises(InvalidAttributeError, match="invalid parameter"):
                end.qp.bind_rkey(window, address, length, access)
            return
        self.note("bind")
        end.qp.bind_rkey(window, address, length, access)
        assert take(end.cq, 1)[0].ok
        key.bound, key.spent = (address, length, access), False

    def unbind(self) -> None:
        if self.keys:
            key, window = self.random.choice(self.keys)
            end = self.random.choice([e for _, e, p in self.idle if p == key.process])
            end.qp.unbind_rkey(window)
            assert take(end.cq, 1)[0].ok
            key.bound = None

    def retire(self) -> None:
        if self.keys and self.random.random() < 0.5:
            at = self.random.randrange(len(self.keys))
            key, window = self.keys[at]
            self.ends[key.process].pd.deallocate_rkey(window)
            old = window.rkey
            # What it was opens nothing; and nobody gets it back by asking for a new one.
            del self.keys[at]
            assert self.attempt(self.random.randrange(4), "read", 0, 1, 1 << 28, old) in REFUSED

    # --- operations -------------------------------------------------------------------------------------------

    def attempt(self, at: int, kind: str, local: int, length: int, address: int, rkey: int) -> str:
        """The status of one operation by one of the connections; that is made anew if it fails.

        The target counts one refusal for each that is refused, and none else.
        """
        peer = self.idle[at][0]
        before = self.refusals()
        peer.operate(kind, self.local + local, length, address, rkey)
        status: str = take(peer.cq, 1)[0].status.name
        self.renew(at)
        assert self.refusals() - before == (status != "SUCCESS")
        return status

    def refusals(self) -> int:
        counters = self.ends[0].ctx.counters()
        return sum(n for name, n in counters.items() if name.startswith("memory.refused."))

    def renew(self, at: int) -> None:
        peer, end, number = self.idle[at]
        if peer.qp.state is QPState.RTS:
            return
        self.lab.settle()
        for each in (peer, end):
            each.qp.close()
            each.cq.close()
        self.idle[at] = self.connected(self.first, self.ends[number], number)

    def request(self) -> tuple[str, Key, MemoryWindow, int, int]:
        """Something to try with a key: often right, else wrong by a little."""
        ready = [pair for pair in self.keys if pair[0].bound is not None and not pair[0].spent]
        key, window = self.random.choice(ready if ready and self.random.random() < 0.9 else self.keys)
        kind = self.random.choice(["read", "write", "write", "fetch_add"])
        begin, size, _ = key.bound or (1 << 28, 100, Access.NONE)
        length = min(self.random.choice([1, size, self.random.randint(1, size)]), LOCAL)
        offset = self.random.randint(0, size - length)
        if self.random.random() < 0.2:
            offset = self.random.choice([-1, size - length + 1])
        if kind == "fetch_add":
            length, offset = 8, offset - (begin + offset) % 8
        return kind, key, window, max(0, begin + offset), length

    def bring_in(self, process: int, address: int, length: int) -> None:
        """Where nothing is brought in for a peer, its pages are in memory more often than not."""
        wanted = self.options.page_faults == "error" and self.random.random() < 0.7
        if wanted and self.plain.parts(process, address, length) is not None:
            self.memory.page_in(self.processes[process], address, length)

    def resident(self, process: int, address: int, length: int) -> bool:
        return all(
            self.memory.resident(self.processes[process], page)
            for page in range(address - address % PAGE, address + length, PAGE)
        )

    def expected(self, key: Key, process: int, kind: str, address: int, length: int) -> bool:
        fine = self.plain.may_use(key, process, address, length, RIGHTS[kind])
        if fine and self.options.page_faults == "error":
            return self.resident(process, address, length)
        return fine

    def operate(self) -> None:
        if not self.keys:
            return
        kind, key, window, address, length = self.request()
        at = self.random.randrange(len(self.idle))
        if self.random.random() < 0.8:
            at = self.random.choice([i for i, each in enumerate(self.idle) if each[2] == key.process])
        process = self.idle[at][2]
        self.bring_in(key.process, address, length)
        fine = self.expected(key, process, kind, address, length)
        far = self.random.randrange(LOCAL - length + 1)
        if kind == "fetch_add":
            far &= ~7
        data = self.random.randbytes(length)
        self.peer.write(self.local + far, data)
        status = self.attempt(at, kind, far, length, address, window.rkey)
        self.note(f"{kind} {status}")
        assert status == "SUCCESS" if fine else status in REFUSED, (
            kind,
            key,
            process,
            address,
            length,
            status,
        )
        if not fine:
            assert self.peer.read(self.local + far, length) == data  # nothing came back
            return
        key.spent = key.one_shot
        self.done(kind, process, address, length, far, data)

    def done(self, kind: str, process: int, address: int, length: int, far: int, data: bytes) -> None:
        """The reference does what was done."""
        if kind == "write":
            self.plain.put(process, address, data)
            return
        old = self.plain.get(process, address, length)
        if kind == "read":
            assert self.peer.read(self.local + far, length) == old
            return
        # At both hosts, words are in the machine's order; this host's is little-endian.
        assert self.peer.read(self.local + far, 8) == old
        value = (int.from_bytes(old, "little") + 1) % (1 << 64)
        self.plain.put(process, address, value.to_bytes(8, "little"))

    def race(self) -> None:
        """Two peers use a key at once: of a one-shot key, exactly one gets through."""
        usable = [(k, w) for k, w in self.keys if k.bound is not None and not k.spent]
        if not usable:
            return
        key, window = self.random.choice(usable)
        assert key.bound is not None
        address, length, _ = key.bound
        length = min(length, LOCAL // 2)
        self.bring_in(key.process, address, length)
        fine = self.expected(key, key.process, "write", address, length)
        both = [i for i, each in enumerate(self.idle) if each[2] == key.process]
        datas = [self.random.randbytes(length) for _ in both]
        for i, at in enumerate(both):
            self.peer.write(self.local + i * length, datas[i])
            self.idle[at][0].operate("write", self.local + i * length, length, address, window.rkey)
        found = [take(self.idle[at][0].cq, 1)[0].status.name for at in both]
        self.lab.settle()
        for at in both:
            self.renew(at)
        if not fine:
            assert all(status in REFUSED for status in found), found
            return
        assert found.count("SUCCESS") == (1 if key.one_shot else 2), found
        self.note("race")
        key.spent = key.one_shot
        now = self.now(key.process, address, length)
        if key.one_shot:
            assert now == datas[found.index("SUCCESS")]
        else:  # both wrote: each byte is one's or the other's
            assert all(x in (y, z) for x, y, z in zip(now, *datas, strict=True))
        self.plain.put(key.process, address, now)

    def now(self, process: int, address: int, length: int) -> bytes:
        """The bytes that are there."""
        if self.plain.may(process, address, length, False):
            return self.processes[process].read(address, length)
        return self.plain.get(process, address, length)

    def busy(self) -> None:
        """Pages are put out and brought in while an operation is on its way: that changes nothing but the time."""
        chosen = self.usable_write()
        if chosen is None or self.options.page_faults == "error":
            return
        key, window, address, length = chosen
        at, data = self.start(key, window, address, length)
        for _ in range(6):
            self.lab.net.clock.call_at(
                self.lab.net.now + self.random.randint(0, 200_000),
                self.random.choice([self.page_out, self.page_out, self.page_in]),
            )
        (entry,) = take(self.idle[at][0].cq, 1)
        assert entry.status.name == "SUCCESS", entry
        self.lab.settle()
        self.note("busy")
        key.spent = key.one_shot
        self.plain.put(key.process, address, data)

    def usable_write(self) -> tuple[Key, MemoryWindow, int, int] | None:
        usable = [
            (k, w)
            for k, w in self.keys
            if k.bound is not None
            and self.expected(k, k.process, "write", k.bound[0], min(k.bound[1], LOCAL))
        ]
        if not usable:
            return None
        key, window = self.random.choice(usable)
        assert key.bound is not None
        return key, window, key.bound[0], min(key.bound[1], LOCAL)

    def start(self, key: Key, window: MemoryWindow, address: int, length: int) -> tuple[int, bytes]:
        """Post a write over all of a key's range, and do not wait for it."""
        at = self.random.choice([i for i, each in enumerate(self.idle) if each[2] == key.process])
        data = self.random.randbytes(length)
        self.peer.write(self.local, data)
        self.idle[at][0].operate("write", self.local, length, address, window.rkey)
        return at, data

    def withdraw(self) -> None:
        """Memory is withdrawn in the middle of an operation: from that moment on no byte changes."""
        chosen = self.usable_write()
        if chosen is None:
            return
        key, window, address, length = chosen
        parts = self.plain.parts(key.process, address, length)
        assert parts is not None
        view = parts[0][0]
        if not self.plain.may(key.process, address, length, False):
            return
        before = self.processes[key.process].read(address, length)
        if self.options.page_faults == "error" and not self.resident(key.process, address, length):
            return
        at, data = self.start(key, window, address, length)
        self.lab.net.run(asyncio.sleep(self.random.randint(0, 12_000) / 1e9))
        self.memory.set_segment(self.processes[view.process], view.address, protection=READ)
        at_that_moment = self.processes[key.process].read(address, length)
        (entry,) = take(self.idle[at][0].cq, 1)
        self.lab.settle()
        self.renew(at)
        inside = parts[0][2]
        final = self.processes[key.process].read(address, length)
        assert final[:inside] == at_that_moment[:inside]
        assert all(x in (y, z) for x, y, z in zip(final, before, data, strict=True))
        assert final == data if entry.status.name == "SUCCESS" else entry.status.name in REFUSED
        self.note(f"withdraw {entry.status.name}")
        self.memory.set_segment(self.processes[view.process], view.address, protection=view.protection)
        self.plain.put(key.process, address, final)
        state = window.query().state
        assert not key.one_shot or state in ("used", "bound")
        key.spent = state == "used"

    # --- checks -----------------------------------------------------------------------------------------------

    def check_bytes(self) -> None:
        """Every byte of every piece is what the reference says."""
        for piece in self.plain.pieces:
            view = piece.views[0]
            process = self.processes[view.process]
            self.memory.set_segment(process, view.address, valid=True, protection=BOTH)
            for page in range(len(piece.pages)):
                if piece.pages[page] & READ:
                    data = process.read(view.address + page * PAGE, PAGE)
                    assert data == piece.data[page * PAGE : (page + 1) * PAGE]
            self.memory.set_segment(process, view.address, valid=view.valid, protection=view.protection)

    def check_tables(self) -> None:
        """What was saved for queue pairs is the memory manager's table; every frame holds one page."""
        seen = self.memory.snapshot()
        tables = {p.name: p.segments for p in seen.processes}
        for adapter in seen.adapters:
            for state in adapter.queue_pairs:
                assert state.segments == tables[state.process]
        valid = [page for page in seen.pages if page.valid]
        assert seen.free_frames + len(valid) == seen.frames
        assert len({page.frame for page in valid}) == len(valid)


@pytest.mark.requirement("MEM-08", "MEM-09", "MEM-13", "MEM-17", "RKY-05", "RKY-09", "RKY-12", "RKY-14")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("number", range(3))
def test_random_histories_over_a_lossy_network(options: ProtectionOptions, number: int, seed: int) -> None:
    world = World(options, seed + number)
    for step in range(STEPS):
        world.step()
        world.check_tables()
        if step % 20 == 19:
            world.check_bytes()
    world.lab.settle()
    world.check_bytes()
    world.lab.check_laws()
    seen = world.outcomes
    assert seen.get("write SUCCESS", 0) + seen.get("read SUCCESS", 0) > STEPS // 20, seen
    assert sum(n for name, n in seen.items() if name.endswith("_ERR")) > 0, seen
    print(sorted(seen.items()))
