"""Remote keys on reliable-datagram queue pairs: any node that holds the key may use it (document 003:878)."""

from __future__ import annotations

import pytest

from lab import pattern, statuses, take
from memory.keys_lab import REMOTE, bindable, refused
from transport.test_reliable_datagrams import mesh
from verbena import Access, InvalidAttributeError, QPState, WorkRequest, WROpcode
from verbena.runtime.meshes import QKEY, addressed


@pytest.mark.requirement("RKY-11", "RKY-14", "VRB-11")
@pytest.mark.parametrize("one_shot", [False, True])
def test_a_bound_key_serves_all_nodes(one_shot: bool) -> None:
    """Bound by a request of a datagram queue pair itself; a one-shot key serves one node's one operation."""
    lab, nodes = mesh(4, 1)
    target = nodes[0].sides[0]
    mr = bindable(target)
    (key,) = target.pd.allocate_rkey(one_shot=one_shot)
    target.qp.bind_rkey(key, mr.addr + 5, 7000, REMOTE, mr=mr)
    assert take(target.cq, 1)[0].ok
    before = bytes(mr.buf)
    expected = bytearray(before)
    found = []
    for i, node in enumerate(nodes[1:]):
        peer = node.sides[0]
        peer.mr.buf[:2000] = pattern(2000, i)
        write = WorkRequest(
            1,
            WROpcode.RDMA_WRITE,
            [peer.mr.sge(0, 2000)],
            remote_addr=mr.addr + 5 + 2000 * i,
            rkey=key.rkey,
        )
        peer.qp.post_send(addressed(write, node.contexts[0], target.qp, QKEY))
        found += [e.status.name for e in take(peer.cq, 1)]
        if found[-1] == "SUCCESS":
            expected[5 + 2000 * i : 2005 + 2000 * i] = pattern(2000, i)
    assert found == ["SUCCESS", *(["REM_ACCESS_ERR" if one_shot else "SUCCESS"] * 2)]
    lab.settle()
    assert bytes(mr.buf) == bytes(expected)
    assert refused(target.ctx) == ({"key_disabled": 2} if one_shot else {})
    assert [u.peer for u in target.ctx.adapter.memory.uses()] == [
        node.ctx.adapter.gid for node in nodes[1 : 2 if one_shot else 4]
    ]
    lab.check_laws()


@pytest.mark.requirement("RKY-11", "RKY-12")
def test_a_datagram_beyond_the_range_is_refused() -> None:
    lab, nodes = mesh(2, 1)
    target, peer = nodes[0].sides[0], nodes[1].sides[0]
    mr = bindable(target)
    (key,) = target.pd.allocate_rkey()
    with pytest.raises(InvalidAttributeError, match="invalid parameter"):
        target.qp.bind_rkey(key, mr.addr + 1, mr.length, mr=mr)
    target.qp.bind_rkey(key, mr.addr, 100, Access.REMOTE_READ, mr=mr)
    assert take(target.cq, 1)[0].ok
    before = bytes(mr.buf)
    for opcode, address, length in (
        (WROpcode.RDMA_READ, mr.addr + 1, 100),
        (WROpcode.RDMA_READ, mr.addr - 1, 100),
        (WROpcode.RDMA_WRITE, mr.addr, 1),
        (WROpcode.ATOMIC_FETCH_AND_ADD, mr.addr, 8),
    ):
        request = WorkRequest(
            1, opcode, [peer.mr.sge(0, length)], remote_addr=address, rkey=key.rkey, compare_add=1
        )
        peer.qp.post_send(addressed(request, nodes[1].contexts[0], target.qp, QKEY))
        assert statuses(take(peer.cq, 1)) == [(1, "REM_ACCESS_ERR")]
        peer.qp.modify(QPState.RTS)
    lab.settle()
    assert bytes(mr.buf) == before
    assert refused(target.ctx) == {"key_range": 2, "key_rights": 2}
    assert target.qp.state is QPState.RTS, "the receiver is not concerned"
