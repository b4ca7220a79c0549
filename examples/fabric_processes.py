"""A fabric of real processes: one has the switch and the subnet manager, two are hosts that join it."""

import hashlib
import multiprocessing
import random

from verbena import (
    Access,
    FabricServer,
    QPType,
    RecvRequest,
    Topology,
    WorkRequest,
    WROpcode,
    open_fabric_device,
)

SIZE = 1 << 20


def program(name: str, at: str, pipe) -> None:
    """What runs in a host's process; its pipe leads to the other one's."""
    with open_fabric_device(name, at) as ctx:
        pd, cq = ctx.alloc_pd(), ctx.create_cq(16)
        qp, mr = pd.create_qp(QPType.RC, cq), pd.alloc_mr(SIZE, Access.LOCAL_WRITE | Access.REMOTE_WRITE)
        pipe.send((qp.endpoint, mr.addr, mr.rkey))
        endpoint, addr, rkey = pipe.recv()
        qp.connect(endpoint, timeout=18)  # 1 s: a process may have to wait for a processor
        if name == "h1":
            mr.buf[:] = random.Random(1).randbytes(SIZE)
            pipe.recv()  # the other one is ready
            write = WorkRequest(1, WROpcode.RDMA_WRITE_WITH_IMM, [mr.sge(0, SIZE)], imm_data=7)
            write.remote_addr, write.rkey = addr, rkey
            qp.post_send(write)
        else:
            qp.post_recv(RecvRequest(1))
            pipe.send("ready")
        (done,) = cq.wait(timeout=30)
        if name == "h1":
            pipe.recv()  # the other one has printed its line
        print(
            f"{name}: {done.opcode.name} {done.status.name}, {hashlib.sha256(mr.buf).hexdigest()[:16]}",
            flush=True,
        )
        pipe.send("done")  # it may leave now
        if name == "h2":
            pipe.recv()


if __name__ == "__main__":
    topology = Topology()
    topology.add_switch("s1", ports=4)
    for host in ("h1", "h2"):
        topology.add_host(host)
        topology.connect(host, "s1")
    processes = multiprocessing.get_context("spawn")
    with FabricServer(topology) as fabric:  # at a free port of 127.0.0.1
        fabric.start()
        at = f"{fabric.address[0]}:{fabric.address[1]}"
        pipes = processes.Pipe()
        hosts = [
            processes.Process(target=program, args=(name, at, pipe))
            for name, pipe in zip(("h1", "h2"), pipes, strict=True)
        ]
        for each in hosts:
            each.start()
        for pipe in pipes:
            pipe.close()  # they have it: if one of them ends early, the other one hears of that
        for each in hosts:
            each.join()
