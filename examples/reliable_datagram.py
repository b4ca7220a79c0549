"""Reliable datagrams: one queue pair talks to several nodes, by way of an end-to-end context for each."""

from verbena import QPType, RecvRequest, VirtualNetwork, WorkRequest, WROpcode
from verbena.runtime.pairs import make_side

QKEY = 0x1234
net = VirtualNetwork()
adapters = [net.open_device(f"10.0.0.{at}") for at in (1, 2, 3)]
domains = [ctx.alloc_rdd() for ctx in adapters]
sides = [make_side(ctx, QPType.RD, rdd=rdd) for ctx, rdd in zip(adapters, domains, strict=True)]
for side in sides:
    side.qp.activate(QKEY)
sender, *receivers = sides

for receiver in receivers:
    # One end-to-end context at each side, for all queue pairs of the two nodes.
    here, there = domains[0].create_eec(), receiver.qp.rdd.create_eec()
    here.connect(there.endpoint)
    there.connect(here.endpoint)

    text = f"to {receiver.ctx.query_gid().ip}".encode()
    sender.mr.buf[: len(text)] = text
    receiver.qp.post_recv(RecvRequest(7, [receiver.mr.sge(0, 100)]))
    request = WorkRequest(1, WROpcode.SEND, [sender.mr.sge(0, len(text))])
    request.ee, request.remote_qpn, request.remote_qkey = here, receiver.qp.qp_num, QKEY
    sender.qp.post_send(request)
    sender.cq.wait(timeout=1)
    (got,) = receiver.cq.wait(timeout=1)
    print(bytes(receiver.mr.buf[: got.byte_len]), got.src_qp == sender.qp.qp_num, got.ee_num == there.ee_num)

    # RDMA, too, and it is as reliable as on a connection.
    request = WorkRequest(2, WROpcode.RDMA_READ, [sender.mr.sge(500, 5)])
    request.remote_addr, request.rkey = receiver.mr.addr, receiver.mr.rkey
    request.ee, request.remote_qpn, request.remote_qkey = here, receiver.qp.qp_num, QKEY
    sender.qp.post_send(request)
    print(sender.cq.wait(timeout=1)[0].opcode.name, bytes(sender.mr.buf[500:505]))

# Refused messages stop the send queue, no context and no receiver.
request.rkey ^= 1
sender.qp.post_send(request)
(failed,) = sender.cq.wait(timeout=1)
print(failed.status.name, sender.qp.state.name, here.state.name, receivers[1].qp.state.name)
counts = adapters[0].count_contexts()
print("here:", counts.queue_pairs[QPType.RD], "queue pair,", counts.ee_contexts, "end-to-end contexts")
