"""Striping: the packets of one message leave by two links at once; then one of them is cut in the middle."""

from verbena import AddressVector, QPType, VirtualNetwork, WorkRequest, WROpcode
from verbena.runtime.pairs import make_side

MEBIBYTE = 1 << 20
net = VirtualNetwork(rate_bps=10e9)
a = make_side(net.open_device("10.0.0.1", further_addresses=["10.1.0.1"]), QPType.RC)
b = make_side(net.open_device("10.0.0.2", further_addresses=["10.1.0.2"]), QPType.RC)
here, there = a.qp.endpoint, b.qp.endpoint
# The first links' addresses are the endpoints'; the further path goes from second link to second link.
a.qp.connect(there, stripe_ah_attrs=[AddressVector(b.ctx.query_gid(index=1), sgid_index=1)], timeout=8)
b.qp.connect(here, stripe_ah_attrs=[AddressVector(a.ctx.query_gid(index=1), sgid_index=1)], timeout=8)

for number, what in enumerate(("two links", "one is cut")):
    start = net.now
    a.mr.buf[:] = bytes([number + 1]) * MEBIBYTE
    a.qp.post_send(
        WorkRequest(1, WROpcode.RDMA_WRITE, [a.mr.sge(0, MEBIBYTE)], remote_addr=b.mr.addr, rkey=b.mr.rkey)
    )
    if what == "one is cut":
        net.run_for(200_000)
        net.set_link("10.1.0.1", False)
    (done,) = a.cq.wait(timeout=1)
    rate = 8 * MEBIBYTE / (net.now - start)
    print(f"{what}: {done.status.name}, equal: {a.mr.buf == b.mr.buf}, {rate:.1f} Gb/s")
counters = a.ctx.counters()
print("sent again:", counters["tx.retransmitted"], "packets; time-outs:", counters["timeouts"])
