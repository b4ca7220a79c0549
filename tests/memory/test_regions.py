"""Regions: which keys open which bytes to whom, against a plain model; and what can be registered."""

from __future__ import annotations

import array
import mmap
from multiprocessing import shared_memory
from random import Random
from typing import Any

import hypothesis
import numpy
import pytest
from hypothesis import strategies as st

from lab import RC, Lab, pattern, statuses, take, write
from verbena import (
    Access,
    ClosedError,
    Context,
    DeviceAttributes,
    InvalidAttributeError,
    RecvRequest,
    ResourceError,
    ScatterGatherEntry,
    WorkRequest,
    WROpcode,
    _pure,
)
from verbena.memory.table import RegionTable
from verbena.runtime.pairs import connect_sides, make_side

ALL = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


# --- what can be registered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["bytearray", "numpy", "array", "mmap", "shared memory", "slice", "2d", "float"]
)
def test_any_writable_buffer(kind: str) -> None:
    lab = Lab()
    a, b = lab.pair()
    shared = shared_memory.SharedMemory(create=True, size=4096) if kind == "shared memory" else None
    whole = bytearray(8192)
    buffer: Any = {
        "bytearray": lambda: bytearray(4096),
        "numpy": lambda: numpy.zeros(4096, numpy.uint8),
        "array": lambda: array.array("Q", bytes(4096)),
        "mmap": lambda: mmap.mmap(-1, 4096),
        "shared memory": lambda: shared and shared.buf,
        "slice": lambda: memoryview(whole)[100:4196],
        "2d": lambda: numpy.zeros((16, 16), numpy.uint64)[4:12].repeat(4, 0),
        "float": lambda: numpy.zeros(512),
    }[kind]()
    with b.pd.reg_mr(buffer, ALL) as mr:
        assert mr.length == memoryview(buffer).nbytes
        a.mr.buf[:1000] = pattern(1000)
        request = write(a, b, 1000)
        request.remote_addr, request.rkey = mr.addr + 3, mr.rkey
        a.qp.post_send(request)
        assert take(a.cq, 1)[0].ok
        assert memoryview(buffer).cast("B")[3:1003] == pattern(1000)
        assert mr.buf[3:1003] == pattern(1000)
    if kind == "slice":
        assert not any(whole[:103])
        assert not any(whole[1103:])
    del buffer
    if shared is not None:
        shared.close()
        shared.unlink()


def test_buffers_that_cannot_be_registered() -> None:
    lab = Lab()
    pd = lab.adapter().alloc_pd()
    with pytest.raises(InvalidAttributeError, match="a str has no buffer"):
        pd.reg_mr("text")
    with pytest.raises(InvalidAttributeError, match="must be contiguous"):
        pd.reg_mr(numpy.zeros((8, 8))[:, ::2])
    with pytest.raises(InvalidAttributeError, match="read-only buffer"):
        pd.reg_mr(b"constant", Access.LOCAL_WRITE)
    for rights in (Access.REMOTE_WRITE, Access.REMOTE_ATOMIC):
        with pytest.raises(InvalidAttributeError, match="need LOCAL_WRITE"):
            pd.reg_mr(bytearray(8), rights)
    with pytest.raises(InvalidAttributeError, match="unknown access rights"):
        pd.reg_mr(bytearray(8), 64)  # type: ignore[arg-type]
    for iova in (-1, (1 << 64) - 7):
        with pytest.raises(InvalidAttributeError, match="64 bits"):
            pd.reg_mr(bytearray(8), iova=iova)
    for length in (-1, 1.5, "8"):
        with pytest.raises(InvalidAttributeError, match="length"):
            pd.alloc_mr(length)  # type: ignore[arg-type]
    assert not pd.members


def test_constant_buffers_can_be_read() -> None:
    lab = Lab()
    a, b = lab.pair()
    source = a.pd.reg_mr(pattern(100), Access.NONE)
    a.qp.post_send(WorkRequest(1, WROpcode.RDMA_WRITE, [source.sge()], remote_addr=b.mr.addr, rkey=b.mr.rkey))
    assert take(a.cq, 1)[0].ok
    assert b.mr.buf[:100] == pattern(100)


def test_addresses_may_be_chosen() -> None:
    lab = Lab()
    a, b = lab.pair()
    for iova in (0, 5, (1 << 64) - 100, 1 << 63):
        mr = b.pd.alloc_mr(100, ALL, iova=iova)
        assert mr.addr == iova
        request = write(a, b, 100)
        request.remote_addr, request.rkey = iova, mr.rkey
        a.mr.buf[:100] = pattern(100, iova & 0xFF)
        a.qp.post_send(request)
        assert take(a.cq, 1)[0].ok
        assert mr.buf[:] == pattern(100, iova & 0xFF)


def test_empty_regions() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = b.pd.alloc_mr(0, ALL)
    assert (mr.length, len(mr.buf)) == (0, 0)
    a.qp.post_send(write(a, b, 0))
    assert take(a.cq, 1)[0].ok
    request = write(a, b, 1)
    request.remote_addr, request.rkey = mr.addr, mr.rkey
    a.qp.post_send(request)
    assert statuses(take(a.cq, 1)) == [(0, "REM_ACCESS_ERR")]
    mr.close()


def test_a_piece_of_a_region() -> None:
    mr = Lab().adapter().alloc_pd().alloc_mr(100)
    assert (mr.sge().addr, mr.sge().length) == (mr.addr, 100)
    assert (mr.sge(10).addr, mr.sge(10).length) == (mr.addr + 10, 90)
    assert (mr.sge(10, 5).length, mr.sge(100, 0).length) == (5, 0)
    for offset, length in ((-1, 5), (0, 101), (99, 2), (101, None), (5, -1)):
        with pytest.raises(InvalidAttributeError, match="not within the region's 100"):
            mr.sge(offset, length)
    with pytest.raises(InvalidAttributeError, match="scatter/gather entry"):
        ScatterGatherEntry(-1, 2, 3)


def test_limits_and_closing() -> None:
    ctx = Lab().adapter(limits=DeviceAttributes(max_mr=3, max_pd=2, max_qp=4, max_cq=4))
    pd = ctx.alloc_pd()
    regions = [pd.alloc_mr(10) for _ in range(3)]
    with pytest.raises(ResourceError, match="all 3 memory regions"):
        pd.alloc_mr(10)
    regions[1].close()
    regions[1].close()
    pd.alloc_mr(10)
    ctx.alloc_pd()
    with pytest.raises(ResourceError, match="all 2 protection domains"):
        ctx.alloc_pd()


def test_a_region_closes_while_an_array_looks_into_it() -> None:
    ctx = Lab().adapter()
    pd = ctx.alloc_pd()
    mr = pd.alloc_mr(64)
    view = numpy.frombuffer(mr.buf, numpy.uint8)
    mr.close()
    pd.close()
    assert view.sum() == 0


def test_a_buffer_is_held_until_its_region_closes() -> None:
    pd = Lab().adapter().alloc_pd()
    buffer = bytearray(10)
    mr = pd.reg_mr(buffer)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    mr.close()
    buffer.extend(b"more")


# --- keys, against a model ----------------------------------------------------------------------------------------


def test_keys_of_closed_regions_open_nothing_that_comes_after() -> None:
    table = RegionTable(2, Random(1))
    seen: set[int] = set()
    for _ in range(64):
        index, _, _, local, remote = table.register(bytearray(8), 1, int(ALL))
        assert local != remote
        assert not {local, remote} & seen
        seen |= {local, remote}
        table.deregister(index)
    with pytest.raises(InvalidAttributeError, match="not registered"):
        table.deregister(1)


class Model:
    """One side's regions as plain data; a remote key that was invalidated is None."""

    def __init__(self, ctx: Context) -> None:
        self.regions: list[dict[str, Any]] = []
        self.ctx = ctx

    def opens(
        self, key: str, value: int, pd: object, addr: int, n: int, need: Access
    ) -> dict[str, Any] | None:
        for r in self.regions:
            if (
                r[key] == value
                and r["pd"] is pd
                and need & r["access"] == need
                and r["addr"] <= addr
                and addr + n <= r["addr"] + r["length"]
            ):
                return r
        return None


KINDS = st.sampled_from(
    ["register", "close", "write", "write", "write", "read", "read", "atomic", "send", "invalidate"]
)
STEP = st.tuples(KINDS, st.integers(0, 1 << 30))


@pytest.mark.requirement("VRB-04", "VRB-14")
@hypothesis.settings(max_examples=60 if _pure.compiled() else 15)
@hypothesis.given(st.lists(STEP, min_size=5, max_size=40))
def test_regions_equal_a_plain_model(steps: list[tuple[str, int]]) -> None:
    """Random keys, ranges and rights, also wrong ones: bytes change if and only if the model says so."""
    lab = Lab(record=False)
    here, there = lab.adapter(), lab.adapter()
    domains = [there.alloc_pd(), there.alloc_pd()]
    model = Model(there)
    for kind, number in steps:
        random = Random(number)
        if kind == "register" or not model.regions:
            pd = random.choice(domains)
            rights = random.choice(
                (ALL, Access.LOCAL_WRITE, Access.REMOTE_READ, Access(3), Access(9), Access.NONE)
            )
            mr = pd.alloc_mr(random.choice((1, 8, 64, 100)), rights, iova=random.choice((None, 64, 1 << 40)))
            region = {
                "mr": mr,
                "pd": pd,
                "addr": mr.addr,
                "length": mr.length,
                "lkey": mr.lkey,
                "rkey": mr.rkey,
            }
            model.regions.append(region | {"access": rights, "bytes": bytearray(mr.length)})
            continue
        target = random.choice(model.regions)
        if kind == "close":
            model.regions.remove(target)
            target["mr"].close()
            continue
        attempt(lab, here, model, kind, target, random, random.choice(domains))
        for r in model.regions:
            assert bytes(r["mr"].buf) == bytes(r["bytes"])
    lab.settle()
    lab.check_laws()
    for ctx in (here, there):
        ctx.close()


def attempt(
    lab: Lab, here: Context, model: Model, kind: str, target: dict[str, Any], random: Random, pd: Any
) -> None:
    """One operation, perhaps with a wrong key, range or domain; the model is changed if it must succeed."""
    a = make_side(here, RC, 256)
    b_cq = model.ctx.create_cq(8)
    b = make_side(model.ctx, RC, 8)
    b.qp.close()
    b.qp = pd.create_qp(RC, b_cq)
    connect_sides(a, b, retry_cnt=1, timeout=2)
    n = 8 if kind == "atomic" else random.choice((0, 1, 8, target["length"], random.randrange(120)))
    addr = max(0, target["addr"] + random.choice((0, 0, 0, 8, -1, target["length"] - n, target["length"])))
    rkey = target["mr"].rkey
    key = random.choice((rkey, rkey, target["lkey"], rkey ^ 1, 0))
    data = random.randbytes(n)
    a.mr.buf[:n] = data
    request = WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, n)], remote_addr=addr, rkey=key)
    need = {"write": Access.REMOTE_WRITE, "read": Access.REMOTE_READ, "atomic": Access.REMOTE_ATOMIC}.get(
        kind
    )
    if need is not None:
        found = model.opens("rkey", key, pd, addr, n, need)
        fine = found is not None or (n == 0 and kind != "atomic")
        want = None if fine else "REM_ACCESS_ERR"
        if kind == "read":
            request.opcode = WROpcode.RDMA_READ
        if kind == "atomic":
            request.opcode, request.compare_add = WROpcode.ATOMIC_FETCH_AND_ADD, 77
            if addr % 8:
                fine, want = False, "REM_INV_REQ_ERR"
        a.qp.post_send(request)
        (entry,) = take(a.cq, 1)
        assert entry.status.name == (want or "SUCCESS"), (kind, n, addr, key)
        at = addr - found["addr"] if found else 0
        if fine and found and kind == "write":
            found["bytes"][at : at + n] = data
        if fine and found and kind == "read":
            assert a.mr.buf[:n] == found["bytes"][at : at + n]
        if fine and found and kind == "atomic":
            old = int.from_bytes(found["bytes"][at : at + 8], "little")
            found["bytes"][at : at + 8] = ((old + 77) % (1 << 64)).to_bytes(8, "little")
            assert int.from_bytes(a.mr.buf[:8], "little") == old
    else:
        local = random.choice((target["lkey"], target["lkey"], rkey, target["lkey"] ^ 1))
        found = model.opens("lkey", local, pd, addr, n, Access.LOCAL_WRITE)
        fine = n == 0 or found is not None
        b.qp.post_recv(RecvRequest(2, [ScatterGatherEntry(addr, n, local)]))
        request.opcode = WROpcode.SEND
        closes = None
        if kind == "invalidate":
            request.opcode, request.invalidate_rkey = WROpcode.SEND_WITH_INV, key
            closes = next((r for r in model.regions if r["rkey"] == key and r["pd"] is pd), None)
        a.qp.post_send(request)
        (entry,) = take(a.cq, 1)
        if fine and found:
            at = addr - found["addr"]
            found["bytes"][at : at + n] = data
        if fine and closes is not None:
            closes["rkey"] = None
        ok = fine and (kind == "send" or closes is not None)
        assert entry.status.name == ("SUCCESS" if ok else "REM_OP_ERR")
    for side in (a, b):
        side.qp.close()
    b_cq.close()


def test_domains_cannot_be_used_once_closed() -> None:
    ctx = Lab().adapter()
    pd = ctx.alloc_pd()
    pd.close()
    pd.close()
    for call in (
        lambda: pd.alloc_mr(1),
        lambda: pd.create_srq(1),
        lambda: pd.create_qp(RC, ctx.create_cq(1)),
    ):
        with pytest.raises(ClosedError, match="protection domain is closed"):
            call()
