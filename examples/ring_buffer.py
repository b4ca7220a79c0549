"""A ring buffer in one host's memory, which two other hosts fill by remote keys while its pages come and go."""

import asyncio

from verbena import (
    Access,
    HostMemory,
    QPType,
    RecvRequest,
    VirtualNetwork,
    WorkRequest,
    WROpcode,
    memory_view,
)

SLOTS, SIZE, MESSAGES = 4, 3000, 12  # 3000: slots lie across the borders of pages
net = VirtualNetwork(seed=1)


class Node:
    """A host: its memory, an adapter, a process with queue pairs."""

    def __init__(self, name: str, address: str, frames: int) -> None:
        self.memory = HostMemory(frames, page_in_ns=10_000)
        self.adapter = net.open_device(address)
        self.adapter.attach_memory(self.memory)
        self.process = self.memory.create_process(name)
        self.pd = self.adapter.alloc_pd(self.process)  # its work requests name the process's addresses

    def queue_pair(self):
        return self.pd.create_qp(QPType.RC, self.adapter.create_cq(64))


async def consumer(node, qp, name):
    """Lends a ring, and takes out what comes."""
    process = node.process
    ring, taken = process.allocate(SLOTS * SIZE), process.allocate(8)
    for _ in range(SLOTS):
        qp.post_recv(RecvRequest(1))
    ring_key, taken_key = node.pd.allocate_rkey(2)
    qp.bind_rkey(ring_key, ring, SLOTS * SIZE, Access.REMOTE_WRITE)  # a work request: no call of the kernel
    qp.bind_rkey(taken_key, taken, 8, Access.REMOTE_READ)
    letter = process.allocate(32)
    words = (ring, ring_key.rkey, taken, taken_key.rkey)
    process.write(letter, b"".join(word.to_bytes(8, "big") for word in words))
    qp.post_send(WorkRequest(2, WROpcode.SEND, [node.pd.sge(letter, 32)]))
    for count in range(MESSAGES):
        while (await qp.send_cq.completions(1))[0].opcode.name != "RECV_RDMA_WITH_IMM":
            pass
        text = process.read(ring + count % SLOTS * SIZE, SIZE).rstrip(b"\0").decode()
        assert text == f"message {count} of {name}"
        node.memory.page_out(process, ring, SLOTS * SIZE)  # as if memory were short
        process.write(taken, (count + 1).to_bytes(8, "big"))
        qp.post_recv(RecvRequest(1))
    print(f"{count + 1} messages of {name} were taken out of the ring at {ring:#x}")


async def producer(node, qp, name):
    """Writes into the ring, as far as there is room."""
    process, cq, waited = node.process, qp.send_cq, 0
    letter, there, own = process.allocate(32), process.allocate(8), process.allocate(SIZE)
    qp.post_recv(RecvRequest(1, [node.pd.sge(letter, 32)]))
    await cq.completions(1)
    words = [int.from_bytes(process.read(letter + 8 * i, 8), "big") for i in range(4)]
    ring, ring_key, taken, taken_key = words
    known = 0
    for count in range(MESSAGES):
        while count - known == SLOTS:
            look = [node.pd.sge(there, 8)]
            qp.post_send(WorkRequest(3, WROpcode.RDMA_READ, look, remote_addr=taken, rkey=taken_key))
            await cq.completions(1)
            known = int.from_bytes(process.read(there, 8), "big")
            waited += count - known == SLOTS
        process.write(own, f"message {count} of {name}".encode())
        slot = ring + count % SLOTS * SIZE
        message = [node.pd.sge(own, SIZE)]
        qp.post_send(
            WorkRequest(
                4, WROpcode.RDMA_WRITE_WITH_IMM, message, remote_addr=slot, rkey=ring_key, imm_data=count
            )
        )
        (done,) = await cq.completions(1)
        done.raise_for_status()
    # One byte behind the ring is somebody else's.
    beyond = [node.pd.sge(own, 1)]
    end = ring + SLOTS * SIZE
    qp.post_send(WorkRequest(5, WROpcode.RDMA_WRITE, beyond, remote_addr=end, rkey=ring_key))
    (done,) = await cq.completions(1)
    print(f"{name}: {MESSAGES} messages written; behind the ring: {done.status.name}")


async def main():
    here = Node("consumer", "10.0.0.1", frames=4)  # less than the rings take
    tasks = []
    for number, name in enumerate(("anna", "bert")):
        there = Node(name, f"10.0.0.{number + 2}", frames=16)
        near, far = here.queue_pair(), there.queue_pair()
        near.connect(far.endpoint)
        far.connect(near.endpoint)
        tasks += [consumer(here, near, name), producer(there, far, name)]
    await asyncio.gather(*tasks)
    state = here.memory.snapshot()
    calls = {verb: state.verbs[verb] for verb in ("SegmentTableUpdate", "MapLocalPage", "PageOut")}
    print(calls, f"{state.adapters[0].swap_ins} pages were brought in for peers")
    (adapter,) = memory_view("consumer", {"consumer0": here.adapter}, here.memory)["adapters"]
    for use in adapter["uses"][-2:]:
        what = f"{use['access'][0]}, {use['length']} bytes at {use['address']:#x}"
        print(f"{use['when']} ns: key {use['key']:#x} by {use['peer']}: {what}")


net.run(main())
