"""Real time: two adapters on UDP sockets at loopback addresses, speaking RoCEv2.

Addresses may be given: ``two_adapters.py 127.0.0.1 127.0.0.2``.
"""

import sys

from verbena import QPType, WorkRequest, WROpcode, open_device
from verbena.runtime.pairs import connect_sides, make_side

first, second = sys.argv[1:] or ("127.0.0.1", "127.0.0.2")
with open_device(first) as here, open_device(second) as there:
    a, b = make_side(here, QPType.RC), make_side(there, QPType.RC)
    connect_sides(a, b)  # in two processes: exchange qp.endpoint by any means, and qp.connect() to it
    a.mr.buf[:4] = b"real"
    a.qp.post_send(WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge()], remote_addr=b.mr.addr, rkey=b.mr.rkey))
    (done,) = a.cq.wait(timeout=10)
    print(done.opcode.name, done.status.name, bytes(b.mr.buf[:4]), f"{a.mr.length} bytes")
    print(
        "MTU",
        here.query_port().active_mtu,
        "dropped:",
        sum(v for k, v in there.counters().items() if "drop" in k),
    )
