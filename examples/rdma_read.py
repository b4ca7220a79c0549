"""RDMA READ: data comes out of the peer's memory."""

from verbena import QPType, SendFlags, WorkRequest, WROpcode, connected_pair

with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    b.mr.buf[:10_000] = bytes(range(250)) * 40
    read = WorkRequest(1, WROpcode.RDMA_READ, [a.mr.sge(500, 10_000)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    a.qp.post_send(read)
    (done,) = a.cq.wait(timeout=1)
    print(done.opcode.name, done.status.name, done.byte_len, "bytes")
    print("equal:", a.mr.buf[500:10_500] == b.mr.buf[:10_000])

    # FENCE: what follows waits for READs before it; here the SEND-side buffer is what was just read.
    again = WorkRequest(3, WROpcode.RDMA_WRITE, [a.mr.sge(500, 10)], SendFlags.SIGNALED | SendFlags.FENCE)
    again.remote_addr, again.rkey = b.mr.addr + 20_000, b.mr.rkey
    read.wr_id = 2
    a.qp.post_send_many([read, again])
    seen = []
    while len(seen) < 2:
        seen += [entry.wr_id for entry in a.cq.wait(timeout=1)]
    print("in order:", seen, bytes(b.mr.buf[20_000:20_010]).hex())
