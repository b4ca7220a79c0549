"""Random histories of keys, with packets lost and sent again, beside the plain reference of who may touch what.

Each round, the owner binds, unbinds, invalidates, deallocates and makes keys, pages come and go, and then peers use
keys, all at once: right ones, stale ones, guessed ones, by all kinds of queue pairs; now and then while the owner takes
one away.  Every byte of both sides is compared after each round, and every refusal is counted.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from lab import Lab, take
from memory.key_reference import ATOMIC, NEEDED, READ, WRITE, Key, Space
from memory.keys_lab import bindable, more_pairs, one, refused, request
from memory.test_spaces import BASE, PAGE, Process
from verbena import (
    Access,
    Faults,
    InvalidAttributeError,
    MemoryWindow,
    QPState,
    WindowType,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.runtime.pairs import Side

SIZE = 8 * PAGE
SLOT = SIZE // 8  # where concurrent operations may write: one slot each
KINDS = {
    "rkey": WindowType.RKEY,
    "type 1": WindowType.TYPE_1,
    "type 2A": WindowType.TYPE_2A,
    "type 2B": WindowType.TYPE_2B,
}
REFUSED = ("REM_ACCESS_ERR", "RETRY_EXC_ERR")  # the NAK may be lost, and then nobody answers any more
MTU = 256


class Checker:
    """Two domains at the target, one over a region, one over an address space; two connections to each."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.lab = Lab(
            seed=seed,
            faults=Faults(loss=0.02, duplication=0.02, reordering=0.02, delay=0.02, delay_ns=20_000),
        )
        self.a, self.b = self.lab.pair(mtu=MTU, memory=SIZE)
        self.domains = [self.b, self.another_domain()]
        self.region = bindable(self.b, SIZE)
        self.process = Process(self.domains[1])
        for i, frame in enumerate(self.process.frames.values()):
            frame[:] = self.random.randbytes(PAGE)
            assert i < 8
        self.spaces = [Space(self.region.addr, SIZE), Space(BASE, SIZE)]
        self.model = [bytearray(self.region.buf), bytearray(self.process.read(0, SIZE))]
        self.pairs = [[self.connect(d) for _ in range(2)] for d in range(2)]
        self.keys: list[tuple[Key, MemoryWindow]] = []
        self.stale: list[tuple[int, Key]] = []
        self.refusals = 0
        self.granted = 0
        for kind in KINDS:
            for domain in range(2):
                self.make(kind, domain)
        for domain in range(2):
            self.make("rkey", domain)
            self.make("rkey", domain)

    def another_domain(self) -> Side:
        pd = self.b.ctx.alloc_pd()
        cq = self.b.ctx.create_cq(64)
        return Side(self.b.ctx, pd, cq, self.b.qp, self.b.mr)

    def connect(self, domain: int) -> tuple[Any, Any]:
        return more_pairs(self.lab, self.a, self.domains[domain], mtu=MTU, timeout=8, retry_cnt=7)

    # --- what the owner does ------------------------------------------------------------------------------

    def make(self, kind: str, domain: int) -> None:
        one_shot = kind == "rkey" and self.random.random() < 0.6
        if kind == "rkey":
            (window,) = self.domains[domain].pd.allocate_rkey(one_shot=one_shot)
        else:
            window = self.domains[domain].pd.alloc_mw(KINDS[kind])
        self.keys.append((Key(kind, domain, window.rkey, one_shot), window))

    def owner(self) -> None:
        key, window = self.random.choice(self.keys)
        what = self.random.choice(["bind"] * 7 + ["unbind", "invalidate", "deallocate"])
        qp = self.random.choice(self.pairs[key.domain])[1]
        if what == "bind":
            self.bind(key, window, qp)
        elif what == "unbind" and not key.second:
            qp.qp.unbind_rkey(window)
            assert one(qp).ok
            self.unbound(key, window)
        elif what == "invalidate" and key.second and key.state == "bound":
            (mine,) = [p for pair in self.pairs for p in pair if p[1].qp.qp_num == key.queue_pair]
            mine[1].qp.invalidate(key.value)
            assert one(mine[1]).ok
            key.state = "disabled"
        elif what == "deallocate":
            self.domains[key.domain].pd.deallocate_rkey(window)
            self.keys.remove((key, window))
            self.stale.append((key.value, key))
            key.state = "gone"
            self.make(key.kind, key.domain)

    def unbound(self, key: Key, window: MemoryWindow) -> None:
        key.state = "unbound"
        if key.kind == "type 1":  # gets a new key with each bind, and an unbind is one
            assert window.rkey != key.value
            self.stale.append((key.value, key))
            key.value = window.rkey

    def bind(self, key: Key, window: MemoryWindow, end: Any) -> None:
        space = self.spaces[key.domain]
        length = self.random.choice([1, 13, PAGE + 1, SIZE - 3, SIZE, SIZE, self.random.randint(1, SIZE)])
        address = space.base + self.random.choice([0, SIZE - length, self.random.randint(0, SIZE - length)])
        address += self.random.choice([0] * 8 + [-1, 1])
        access = self.random.choice([WRITE, READ, ATOMIC, 14, 14, 14])
        fine = key.may_bind(space, address, length, access)
        parent = self.region if key.domain == 0 else None
        old = key.value
        if key.second and key.state == "bound":
            return
        try:
            end.qp.bind_rkey(window, address, length, Access(access), mr=parent)
        except InvalidAttributeError:
            assert not fine, (key, address - space.base, length, access)
            assert window.rkey == old
            return
        assert fine, (key, address - space.base, length, access)
        assert one(end).ok
        self.stale.append((old, key))
        key.bind(window.rkey, address, length, access, end.qp.qp_num)

    def pages(self) -> None:
        """The host changes the second domain's pages."""
        space, memory = self.spaces[1], self.process.memory
        page = self.random.randrange(8)
        number = self.process.first + page
        what = self.random.choice(["out", "in", "constant", "in", "in"])
        if what == "out":
            memory.clear_page(self.process.space, number)
            space.missing.add(page)
        else:
            memory.set_page(self.process.space, number, self.process.frames[number], writable=what == "in")
            space.missing.discard(page)
            (space.constant.discard if what == "in" else space.constant.add)(page)

    # --- what peers do ------------------------------------------------------------------------------------

    def target(self, slot: int, domain: int, number: int) -> tuple[Key, str, int, int, int]:
        """A key, an operation, the value shown for the key, and a range within a slot.

        Mostly such that it is granted, as far as the slot and the queue pair (`number`) allow.
        """
        kind = self.random.choice(["write", "write", "read", "fetch_add"])
        begin = [space.base + slot * SLOT for space in self.spaces]
        good = [
            k
            for k, _ in self.keys
            if k.state == "bound"
            and k.domain == domain
            and k.queue_pair in (0, number)
            and k.access & NEEDED[kind]
            and k.address < begin[domain] + SLOT
            and k.address + k.length > begin[domain]
        ]
        key = self.random.choice([k for k, _ in self.keys])
        if good and self.random.random() < 0.85:
            key = self.random.choice(good)
        value = key.value
        if self.random.random() < 0.08 and self.stale:
            value, key = self.random.choice(self.stale)
        elif self.random.random() < 0.04:
            value ^= 1 << self.random.randrange(32)
        low = max(begin[key.domain], key.address)
        high = min(begin[key.domain] + SLOT, key.address + key.length)
        if high <= low or self.random.random() < 0.1:
            low, high = begin[key.domain], begin[key.domain] + SLOT
        length = self.random.choice([1, high - low, self.random.randint(1, high - low)])
        address = self.random.choice([low, high - length, self.random.randint(low, high - length)])
        return key, kind, value, address, length

    def round(self) -> None:
        for _ in range(self.random.randrange(8)):
            self.owner()
        for _ in range(self.random.randrange(2)):
            self.pages()
        ends = [(d, mine, theirs) for d in range(2) for mine, theirs in self.pairs[d]]
        race = self.random.random() < 0.3
        shared = self.random.choice(self.keys)[0]
        posted = []
        for number, (domain, mine, theirs) in enumerate(ends):
            slot = 2 * number + self.random.randrange(2)
            key, kind, value, address, length = self.target(slot, domain, theirs.qp.qp_num)
            if race and shared.state == "bound" and shared.one_shot:
                key, value, address, length = shared, shared.value, shared.address, min(shared.length, SLOT)
                kind = "read"
            if kind == "fetch_add":
                address, length = address & ~7, 8
            data = self.random.randbytes(length)
            self.a.mr.buf[slot * SLOT : slot * SLOT + length] = data
            fine = key.grants(value, self.spaces[key.domain], domain, theirs.qp.qp_num, kind, address, length)
            mine.qp.post_send(request(mine, kind, value, address, length, at=slot * SLOT))
            posted.append((key, kind, address, length, slot, data, fine, mine))
        took_away = self.take_away() if self.random.random() < 0.2 else None
        winners: set[int] = set()
        before = [bytes(m) for m in self.model]
        for key, kind, address, length, slot, data, fine, mine in posted:
            status = one(mine).status.name
            if took_away is key and fine and status in REFUSED:
                if kind != "fetch_add":
                    data = self.accept_prefix(key.domain, kind, address, slot, data)
                fine = False
            elif key.one_shot and fine:
                if status in REFUSED:
                    assert id(key) in winners or self.wins(posted, key), "a one-shot key served nobody"
                    fine = False
                else:
                    assert id(key) not in winners, "a one-shot key served two"
                    winners.add(id(key))
            assert status in (("SUCCESS",) if fine else REFUSED), (key, kind, address, length)
            self.apply(fine, key, kind, address, length, slot, data, before)
        self.lab.settle()
        for key, *_, fine, _mine in posted:
            if fine and (not key.one_shot or id(key) in winners):
                key.used()
        if took_away is not None:
            self.unbound(took_away, next(w for k, w in self.keys if k is took_away))
        self.compare()
        self.renew()

    @staticmethod
    def wins(posted: list[Any], key: Key) -> bool:
        """May another operation of the same round have used the key?"""
        return sum(entry[0] is key and entry[6] for entry in posted) > 1

    def take_away(self) -> Key | None:
        """The owner unbinds a key while peers use it, sometime."""
        candidates = [(k, w) for k, w in self.keys if not k.second and not k.one_shot and k.state == "bound"]
        if not candidates:
            return None
        key, window = self.random.choice(candidates)
        self.lab.net.run_for(self.random.randrange(30_000))
        end = next((theirs for _, theirs in self.pairs[key.domain] if theirs.qp.state is QPState.RTS), None)
        if end is None:
            return None
        end.qp.post_send(WorkRequest(9, WROpcode.DELAY, delay_ns=1, flags=0))
        end.qp.unbind_rkey(window)
        taken = key
        entry = take(end.cq, 1)[0]
        assert entry.ok or end.qp.state is QPState.ERR
        return taken if entry.ok else None

    def accept_prefix(self, domain: int, kind: str, address: int, slot: int, data: bytes) -> bytes:
        """What was placed while it was allowed: whole packets, from the first on.  Returns what is here now then."""
        at, n = address - self.spaces[domain].base, len(data)
        target = self.memory(domain)[at : at + n]
        local = bytes(self.a.mr.buf[slot * SLOT : slot * SLOT + n])
        source, sink = (target, local) if kind == "read" else (local, target)
        known = 0
        while known < n and source[known : known + MTU] == sink[known : known + MTU]:
            known = min(known + MTU, n)
        if kind == "read":
            return target[:known] + data[known:]
        self.model[domain][at : at + known] = data[:known]
        return data

    def apply(
        self, fine: bool, key: Key, kind: str, address: int, length: int, slot: int, data: bytes, before: Any
    ) -> None:
        local = bytes(self.a.mr.buf[slot * SLOT : slot * SLOT + length])
        if not fine:
            assert local == data, "a refused operation brought something back"
            return
        self.granted += 1
        model, at = self.model[key.domain], address - self.spaces[key.domain].base
        if kind == "write":
            model[at : at + length] = data
        elif kind == "read":
            assert local == before[key.domain][at : at + length]
        else:
            old = int.from_bytes(before[key.domain][at : at + 8], "little")
            assert int.from_bytes(local, "little") == old
            model[at : at + 8] = ((old + 5) % (1 << 64)).to_bytes(8, "little")

    def memory(self, domain: int) -> bytes:
        return self.process.read(0, SIZE) if domain else bytes(self.region.buf)

    def compare(self) -> None:
        for domain in range(2):
            assert self.memory(domain) == self.model[domain]
        for key, window in self.keys:
            found = window.query()
            assert found.state == key.state
            assert found.rkey == key.value
            if key.state == "bound":
                assert (found.address, found.length) == (key.address, key.length)

    def renew(self) -> None:
        """Connections that ended with a refusal are made again; what they alone could use is closed."""
        for domain in range(2):
            for i, (mine, theirs) in enumerate(self.pairs[domain]):
                if mine.qp.state is QPState.RTS and theirs.qp.state is QPState.RTS:
                    continue
                for key, _ in self.keys:
                    if key.queue_pair == theirs.qp.qp_num and key.state == "bound":
                        key.state = "disabled"
                for end in (mine, theirs):
                    end.qp.close()
                    end.cq.close()
                self.pairs[domain][i] = self.connect(domain)


@pytest.mark.requirement("RKY-05", "RKY-07", "RKY-09", "RKY-10", "RKY-12", "RKY-14")
@pytest.mark.parametrize("seed", range(10))
def test_random_histories(seed: int) -> None:
    checker = Checker(seed)
    for _ in range(150 if _pure.compiled() else 40):
        checker.round()
    checker.lab.settle()
    assert checker.granted > (60 if _pure.compiled() else 12)
    assert len(refused(checker.b.ctx)) > 5, "refusals of many kinds"
    checker.lab.check_laws()
