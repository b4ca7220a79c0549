"""RDMA WRITE: data goes into the peer's memory; its program does nothing, and need not even notice."""

from verbena import QPType, RecvRequest, WorkRequest, WROpcode, connected_pair

with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    a.mr.buf[:6] = b"verbs!"
    # Where it goes: an address within b's region, and the region's remote key.
    write = WorkRequest(
        1, WROpcode.RDMA_WRITE, [a.mr.sge(0, 6)], remote_addr=b.mr.addr + 1000, rkey=b.mr.rkey
    )
    a.qp.post_send(write)
    (done,) = a.cq.wait(timeout=1)
    print(done.opcode.name, done.status.name, bytes(b.mr.buf[1000:1006]))
    print("completions at b:", len(b.cq))

    # With an immediate, the peer gets a completion, too.
    b.qp.post_recv(RecvRequest(7))
    write.opcode, write.imm_data = WROpcode.RDMA_WRITE_WITH_IMM, 42
    a.qp.post_send(write)
    (told,) = b.cq.wait(timeout=1)
    print(told.opcode.name, told.byte_len, "bytes, immediate", told.imm_data)

    # A key that opens nothing: the peer's adapter refuses, and the queue pair ends in ERR.
    a.cq.wait(timeout=1)
    write.opcode, write.rkey = WROpcode.RDMA_WRITE, b.mr.rkey ^ 1
    a.qp.post_send(write)
    (refused,) = a.cq.wait(timeout=1)
    print(refused.status.name, "and a is in", a.qp.state.name)
