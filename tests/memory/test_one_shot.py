"""One-shot keys: the first operation disables them, whatever becomes of it (document 003:884)."""

from __future__ import annotations

from random import Random

import pytest

from lab import Lab, Packet, pattern, sealed, take
from memory.keys_lab import attempt, bindable, bound, more_pairs, one, refused, request
from verbena import Faults, InvalidAttributeError, QPType, RecvRequest, WindowType, WorkRequest, WROpcode

KINDS = ("write", "read", "fetch_add", "swap")


@pytest.mark.requirement("RKY-14", "RKY-09")
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_operation_is_refused_and_a_bind_makes_it_usable_again(kind: str) -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 64, 8192, one_shot=True)
    for round_ in range(2):
        a.mr.buf[:8000] = pattern(8000, round_)
        before = bytes(mr.buf)
        mine, _ = more_pairs(lab, a, b)
        assert attempt(mine, kind, key.rkey, mr.addr + 64, 8000) == "SUCCESS"
        lab.settle()
        assert (bytes(mr.buf) != before) == (kind in ("write", "fetch_add"))
        if kind == "write":
            assert mr.buf[64:8064] == a.mr.buf[:8000]
        assert key.query().state == "used"
        before = bytes(mr.buf)
        for again in KINDS:
            mine, _ = more_pairs(lab, a, b)
            assert attempt(mine, again, key.rkey, mr.addr + 64, 8) == "REM_ACCESS_ERR"
        assert bytes(mr.buf) == before
        b.qp.bind_rkey(key, mr.addr + 64, 8192, mr=mr)
        assert one(b).ok
    assert refused(b.ctx) == {"key_disabled": 8}
    assert key.query().uses == 2
    with pytest.raises(InvalidAttributeError, match="only keys of allocate_rkey"):
        type(key)(b.pd, WindowType.TYPE_1, True)


@pytest.mark.requirement("RKY-14")
@pytest.mark.parametrize("kind", ["write", "read"])
@pytest.mark.parametrize("mtu", [256, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_an_operation_of_many_packets_that_are_lost_and_sent_again(kind: str, mtu: int, seed: int) -> None:
    """A READ of several requests, too: it is longer than half a window."""
    lab = Lab(seed=seed, faults=Faults(loss=0.03, duplication=0.02, reordering=0.02))
    lab.adapter(window_bytes=1 << 15), lab.adapter(window_bytes=1 << 15)
    a, b = lab.pair(mtu=mtu, timeout=10, memory=1 << 17)
    mr = bindable(b, 1 << 17)
    key = bound(b, mr, 5, 100_001, one_shot=True)
    a.mr.buf[:] = pattern(1 << 17)
    before = bytes(mr.buf)
    assert attempt(a, kind, key.rkey, mr.addr + 5, 100_001) == "SUCCESS"
    lab.settle()
    if kind == "write":
        assert bytes(mr.buf) == before[:5] + pattern(1 << 17)[:100_001] + before[100_006:]
    else:
        assert bytes(mr.buf) == before
        assert a.mr.buf[:100_001] == before[5:100_006]
    assert key.query().state == "used"
    assert b.ctx.counters()["rx.duplicate"] > 0
    assert attempt(a, kind, key.rkey, mr.addr + 5, 1) == "REM_ACCESS_ERR"
    lab.settle()
    lab.check_laws()


@pytest.mark.requirement("RKY-14")
@pytest.mark.parametrize("kind", ["write", "read", "fetch_add"])
def test_of_racing_users_exactly_one_wins(kind: str) -> None:
    for seed in range(8):
        lab = Lab(seed=seed, faults=Faults(delay=0.5, delay_ns=3000))
        a, b = lab.pair()
        mr = bindable(b)
        key = bound(b, mr, 0, 8192, one_shot=True)
        users = [more_pairs(lab, a, b)[0] for _ in range(4)]
        before = bytes(mr.buf)
        for i in Random(seed).sample(range(4), 4):
            a.mr.buf[2000 * i : 2000 * i + 2000] = bytes([i + 1]) * 2000
            users[i].qp.post_send(request(users[i], kind, key.rkey, mr.addr, 2000, at=2000 * i))
        found = [one(user).status.name for user in users]
        lab.settle()
        assert sorted(found) == ["REM_ACCESS_ERR"] * 3 + ["SUCCESS"]
        winner = found.index("SUCCESS")
        if kind == "write":
            assert bytes(mr.buf) == bytes([winner + 1]) * 2000 + before[2000:]
        assert refused(b.ctx) == {"key_disabled": 3}


@pytest.mark.requirement("RKY-14")
def test_two_operations_of_one_queue() -> None:
    """Posted together, the second is refused, also where it goes on exactly where the first ended."""
    for kind in ("write", "read"):
        for n in (1, 1024, 65_536):  # the last is half a window
            lab = Lab()
            lab.adapter(window_bytes=1 << 17), lab.adapter(window_bytes=1 << 17)
            a, b = lab.pair(mtu=1024, memory=1 << 17)
            mr = bindable(b, 1 << 17)
            key = bound(b, mr, 0, 1 << 17, one_shot=True)
            before = bytes(mr.buf)
            a.qp.post_send_many(
                [request(a, kind, key.rkey, mr.addr, n), request(a, kind, key.rkey, mr.addr + n, n, at=n)]
            )
            assert [e.status.name for e in take(a.cq, 2)] == ["SUCCESS", "REM_ACCESS_ERR"], (kind, n)
            lab.settle()
            assert mr.buf[n:] == before[n:]
            assert not any(a.mr.buf[n:])


@pytest.mark.requirement("RKY-14")
@pytest.mark.parametrize("kind", ["write", "read"])
def test_an_operation_that_fails_half_way_has_used_the_key(kind: str) -> None:
    lab = Lab()
    a, b = lab.pair(mtu=256, timeout=8, retry_cnt=1)
    mr = bindable(b)
    key = bound(b, mr, 0, 4096, one_shot=True)

    def cut(packet: Packet) -> list[bytes]:
        return [packet.data] if packet.name.endswith(("_FIRST", "_REQUEST")) else []

    lab.taps[0].gate = cut
    if kind == "read":
        lab.taps[1].gate = lambda packet: []
    assert attempt(a, kind, key.rkey, mr.addr, 4096) == "RETRY_EXC_ERR"
    lab.taps[0].gate = lab.taps[1].gate = None
    assert key.query().state == "used"
    mine, _ = more_pairs(lab, a, b)
    assert attempt(mine, kind, key.rkey, mr.addr, 1) == "REM_ACCESS_ERR"


@pytest.mark.requirement("RKY-14", "RKY-12")
def test_what_is_refused_does_not_use_the_key() -> None:
    """Nor does an operation that has to come again because no receive request waits."""
    lab = Lab()
    a, b = lab.pair(min_rnr_timer=1)
    mr = bindable(b)
    key = bound(b, mr, 100, 100, one_shot=True)
    for address, n in ((99, 2), (199, 2), (100, 101), (0, 1)):
        mine, _ = more_pairs(lab, a, b)
        assert attempt(mine, "write", key.rkey, mr.addr + address, n) == "REM_ACCESS_ERR"
    assert key.query().state == "bound"
    write = request(a, "write", key.rkey, mr.addr + 100, 100, imm_data=5)
    write.opcode = WROpcode.RDMA_WRITE_WITH_IMM
    a.qp.post_send(write)
    lab.net.run_for(50_000)
    assert key.query().state == "bound"
    b.qp.post_recv(RecvRequest(1))
    assert one(a).ok
    assert key.query().state == "used"


@pytest.mark.requirement("RKY-14", "RKY-12")
def test_a_forged_repetition_of_a_read_reads_nothing_else() -> None:
    """Asked for again, the one operation may be read; other bytes of the key's range may not."""
    for skew, extent in ((0, 64), (64, 64), (0, 65), (-1, 64)):
        lab = Lab()
        a, b = lab.pair()
        mr = bindable(b)
        key = bound(b, mr, 0, 4096, one_shot=True)
        assert attempt(a, "read", key.rkey, mr.addr + 1000, 64) == "SUCCESS"
        lab.settle()
        (asked,) = [p for p in lab.taps[0].out if p.name.endswith("READ_REQUEST")]
        answers = len(lab.taps[1].out)
        forged = bytearray(asked.data)
        forged[12:20] = (mr.addr + 1000 + skew).to_bytes(8, "big")
        forged[24:28] = extent.to_bytes(4, "big")
        data = sealed(bytes(forged), asked.burst.source, asked.burst.destination, asked.burst.first_ident)
        engine = lab.contexts[1].adapter.engine
        engine.receive(bytearray(data), 0, asked.burst.source, 4791, lab.net.now, asked.burst.first_ident)
        lab.contexts[1].driver.kick()
        lab.settle()
        new = lab.taps[1].out[answers:]
        fine = (skew, extent) == (0, 64)
        assert [p.name for p in new if "RESPONSE" in p.name] == (
            ["RC RDMA_READ_RESPONSE_ONLY"] if fine else []
        )
        if not fine:
            assert refused(b.ctx) == {"key_disabled": 1}


@pytest.mark.requirement("RKY-14")
def test_one_shot_by_unreliable_connection_and_a_lost_packet() -> None:
    lab = Lab()
    a, b = lab.pair(QPType.UC, mtu=256)
    mr = bindable(b)
    key = bound(b, mr, 0, 4096, one_shot=True)
    before = bytes(mr.buf)
    lab.taps[0].gate = lambda p: [] if p.name.endswith("MIDDLE") else [p.data]
    a.mr.buf[:1024] = b"\xee" * 1024
    for _ in range(2):
        assert attempt(a, "write", key.rkey, mr.addr, 1024) == "SUCCESS"
        lab.settle()
        assert bytes(mr.buf) == b"\xee" * 256 + before[256:]
    assert key.query().state == "used"


def test_one_shot_keys_are_not_disabled_by_messages() -> None:
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 4096, one_shot=True)
    b.qp.post_recv(RecvRequest(1))
    a.qp.post_send(WorkRequest(1, WROpcode.SEND))
    assert one(a).ok
    assert key.query().state == "bound"


@pytest.mark.parametrize("kind", ["write", "read"])
def test_an_operation_of_no_bytes_touches_nothing_and_uses_no_key(kind: str) -> None:
    """Its key is not looked at (IBA vol. 1, C9-88)."""
    lab = Lab()
    a, b = lab.pair()
    mr = bindable(b)
    key = bound(b, mr, 0, 4096, one_shot=True)
    before = bytes(mr.buf)
    for rkey, address in ((key.rkey, mr.addr), (key.rkey, mr.addr - 1), (key.rkey ^ 1, mr.addr), (0, 0)):
        assert attempt(a, kind, rkey, address, 0) == "SUCCESS"
    lab.settle()
    assert bytes(mr.buf) == before
    assert (key.query().state, key.query().uses) == ("bound", 0)
