"""Asynchronous events: what happens to a queue pair or a completion queue beside its work."""

from verbena import QPState, QPType, RecvRequest, WorkRequest, WROpcode, connected_pair

with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    # Nobody may write there: b's adapter answers with a NAK and tells b's program, which asked for nothing.
    readonly = b.pd.alloc_mr(100)
    b.qp.post_recv(RecvRequest(9))
    a.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, 8)], remote_addr=readonly.addr, rkey=readonly.rkey)
    )
    (entry,) = a.cq.wait(timeout=1)
    print("a:", entry.status.name)
    while event := b.ctx.get_async_event(timeout=0.01):
        print("b:", event.type.name)
    print("b is in", b.qp.state.name)
    for flushed in b.cq.poll():
        print("b: request", flushed.wr_id, "ended with", flushed.status.name)
    # Back to work, from the start.
    for side in (a, b):
        side.qp.modify(QPState.RESET)
    print("a is in", a.qp.state.name)
