"""DELAY: a send queue that keeps a distance between its messages."""

from verbena import QPType, WorkRequest, WROpcode, connected_pair

with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    for number in range(3):
        a.qp.post_send(
            WorkRequest(number, WROpcode.RDMA_WRITE, [a.mr.sge(0, 64)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
        )
        a.qp.post_send(WorkRequest(10 + number, WROpcode.DELAY, delay_ns=50_000_000))
    for _ in range(6):
        (entry,) = a.cq.wait(timeout=1, n=1)
        print(f"{pair.net.now / 1e6:7.3f} ms: {entry.opcode.name} {entry.wr_id}")
