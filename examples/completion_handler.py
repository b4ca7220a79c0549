"""Completion handlers: a function that is called when a completion queue has an event."""

from verbena import QPType, RecvRequest, VirtualNetwork, WorkRequest
from verbena.runtime.pairs import connect_sides, make_side

net = VirtualNetwork()
a = make_side(net.open_device("10.0.0.1"), QPType.RC)
b = make_side(net.open_device("10.0.0.2"), QPType.RC)
print("handlers that the adapter supports:", b.ctx.query_adapter().completion_handlers)


def on_event(cq):
    cq.req_notify()  # ask first, then take what is there: nothing is missed
    for entry in cq.poll():
        print("handler:", entry.opcode.name, bytes(b.mr.buf[: entry.byte_len]))


(identifier,) = b.ctx.set_completion_handler(on_event)
inbox = b.ctx.create_cq(16, handler=identifier)
inbox.req_notify()
b.qp = b.pd.create_qp(QPType.RC, b.cq, inbox)
connect_sides(a, b)

for text in (b"one", b"two"):
    b.qp.post_recv(RecvRequest(0, [b.mr.sge(0, 100)]))
    a.mr.buf[: len(text)] = text
    a.qp.post_send(WorkRequest(0, sg_list=[a.mr.sge(0, len(text))]))
    net.run_until_idle()
