"""SEND and receive: a message arrives in the buffer that the receiver has posted."""

from verbena import Access, QPType, RecvRequest, SendFlags, WorkRequest, WROpcode, connected_pair

with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    b.qp.post_recv(RecvRequest(wr_id=7, sg_list=[b.mr.sge(0, 100)]))
    a.mr.buf[:5] = b"hello"
    a.qp.post_send(WorkRequest(1, WROpcode.SEND_WITH_IMM, [a.mr.sge(0, 5)], imm_data=0xCAFE))

    (received,) = b.cq.wait(timeout=1)
    received.raise_for_status()
    print("received", received.byte_len, "bytes:", bytes(b.mr.buf[: received.byte_len]))
    print("wr_id", received.wr_id, "immediate", hex(received.imm_data))
    (sent,) = a.cq.wait(timeout=1)
    print("sent:", sent.status.name)

    # Gathered from pieces on one side, scattered into pieces on the other.
    words = a.pd.reg_mr(bytearray(b"-world-wide-"), Access.LOCAL_WRITE)
    b.qp.post_recv(RecvRequest(8, [b.mr.sge(200, 4), b.mr.sge(300, 100)]))
    a.qp.post_send(WorkRequest(2, WROpcode.SEND, [a.mr.sge(0, 5), words.sge(0, 6)], SendFlags.SIGNALED))
    (received,) = b.cq.wait(timeout=1)
    print("scattered:", bytes(b.mr.buf[200:204]), bytes(b.mr.buf[300:307]))
