"""Datagrams (UD): no connection, any number of peers, and a buffer begins with 40 bytes of route header."""

from verbena import AddressVector, QPType, RecvRequest, VirtualNetwork, WorkRequest
from verbena.runtime.pairs import make_side

QKEY = 0x1234
net = VirtualNetwork()
sides = [make_side(net.open_device(f"10.0.0.{at}"), QPType.UD) for at in (1, 2, 3)]
for side in sides:
    side.qp.activate(QKEY)
sender, *receivers = sides

for receiver in receivers:
    receiver.qp.post_recv(RecvRequest(0, [receiver.mr.sge(0, 40 + 100)]))
    handle = sender.pd.create_ah(AddressVector(receiver.qp.endpoint.gid))
    text = f"to {receiver.ctx.query_gid().ip}".encode()
    sender.mr.buf[: len(text)] = text
    request = WorkRequest(0, sg_list=[sender.mr.sge(0, len(text))], ah=handle)
    request.remote_qpn, request.remote_qkey = receiver.qp.qp_num, QKEY
    sender.qp.post_send(request)
    sender.cq.wait(timeout=1)

for receiver in receivers:
    (entry,) = receiver.cq.wait(timeout=1)
    print(bytes(receiver.mr.buf[40 : entry.byte_len]), entry.flags.name, entry.src_qp == sender.qp.qp_num)

# Nobody has posted a buffer for this one: it is dropped, and counted.
sender.qp.post_send(request)
net.run_until_idle()
print("no buffer:", receivers[1].ctx.counters()["drop.no_receive"])
