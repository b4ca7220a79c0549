"""A whole fabric: a fat tree of switches, managed as a real one, whose cables and managers fail under real traffic."""

import asyncio

from verbena import Context, Fabric, QPType, SubnetManagerConfig, WorkRequest, WROpcode
from verbena.runtime.pairs import Side, make_side

MILLISECOND = 1_000_000
SIZE = 8 << 20


async def server(ctx: Context) -> Side:
    side = make_side(ctx, QPType.RC, SIZE)
    request = await ctx.listen(7000).request()
    request.accept(side.qp)
    return side


async def client(ctx: Context, name: str) -> Side:
    side = make_side(ctx, QPType.RC, SIZE)
    await ctx.connect_async(name, 7000, side.qp, timeout=1)
    return side


async def both(a: Context, b: Context) -> tuple[Side, Side]:
    waiting = asyncio.create_task(server(b))
    near = await client(a, "h9")
    return near, await waiting


fabric = Fabric.generate(
    "fat-tree k=4",
    seed=1,
    managers=["h0", "h15"],
    config=SubnetManagerConfig(
        priority=5,
        poll_interval_ns=MILLISECOND,
        poll_tries=2,
        timeout_ns=MILLISECOND,
        sweep_interval_ns=5 * MILLISECOND,
    ),
)
fabric.start()
manager = fabric.managers["h0"].subnet_manager
print(
    len(fabric.topology.switches),
    "switches,",
    len(fabric.topology.hosts),
    "hosts, up after",
    fabric.now,
    "ns",
)
print(manager.statistics.smps_sent, "subnet management packets")

a, b = fabric.open_device("h1"), fabric.open_device("h9")
print("h1 has LID", a.query_port().lid, "and h9 has LID", b.query_port().lid)
near, far = fabric.run(both(a, b))

path = a.subnet.path(sgid=a.gids[0].raw, dgid=b.gids[0].raw).get(1)
print("path from LID", path.slid, "to LID", path.dlid, "on service level", path.sl)

write = WorkRequest(1, WROpcode.RDMA_WRITE, [near.mr.sge()], remote_addr=far.mr.addr, rkey=far.mr.rkey)
for number, trouble in enumerate(("nothing", "a cable", "the master")):
    near.mr.buf[:] = bytes([number + 1]) * SIZE
    begin = fabric.now
    near.qp.post_send(write)
    fabric.run_for(MILLISECOND // 10)
    if trouble == "a cable":
        out = {port: fabric.core.port_counters(n)["xmit_bytes"] for port, n in fabric.assembly.ports.items()}
        uplinks = [port for port in out if port.node == "s1-0" and port.port > 2]
        busiest = max(uplinks, key=out.__getitem__)
        print("pull", busiest)
        fabric.pull(busiest)
    elif trouble == "the master":
        fabric.power_off("h0")
    (done,) = near.cq.wait(timeout=1)
    right = bytes(far.mr.buf) == bytes(near.mr.buf)
    print(
        f"{trouble} fails: {done.status.name}, every byte {right}, {(fabric.now - begin) / MILLISECOND:.2f} ms"
    )

fabric.run_for(20 * MILLISECOND)
print("master now:", fabric.manager_of("h1").node.name, "- h9 still has LID", b.query_port().lid)
total = fabric.core.statistics()
sent, arrived, lost = (total[name] for name in ("injected", "delivered", "dropped"))
print(f"{sent} packets sent = {arrived} delivered + {lost} lost with the cable")
