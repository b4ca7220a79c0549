"""A shared receive queue: many queue pairs take their buffers from one pool, which says when it runs low."""

from verbena import QPType, RecvRequest, VirtualNetwork, WorkRequest
from verbena.runtime.pairs import make_side

net = VirtualNetwork()
server = net.open_device("10.0.0.1")
pd, cq = server.alloc_pd(), server.create_cq(64)
memory = pd.alloc_mr(4096)
pool = pd.create_srq(max_wr=8, limit=3)
for at in range(4):
    pool.post_recv(RecvRequest(at, [memory.sge(at * 100, 100)]))

for at in (2, 3):
    client = make_side(net.open_device(f"10.0.0.{at}"), QPType.RC)
    qp = pd.create_qp(QPType.RC, cq, srq=pool)
    here, there = qp.endpoint, client.qp.endpoint
    qp.connect(there)
    client.qp.connect(here)
    text = f"client {at}".encode()
    client.mr.buf[: len(text)] = text
    client.qp.post_send(WorkRequest(0, sg_list=[client.mr.sge(0, len(text))]))
    (entry,) = cq.wait(timeout=1)
    at = entry.wr_id * 100
    print(f"buffer {entry.wr_id}:", bytes(memory.buf[at : at + entry.byte_len]), f"{len(pool)} left")

event = server.get_async_event(timeout=1)
print(event.type.name)
