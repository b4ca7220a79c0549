"""An I/O node: it reads a host's buffer by RDMA and stores it in a RAID array (document 003:471).

The host sends a command, the node reads (or writes) the host's memory by itself, and sends a message when it is done.
Alone, in simulated time; ``io_node.py 127.0.0.1 127.0.0.2`` does the same over UDP sockets at these addresses.
"""

import asyncio
import struct
import sys
import tempfile
from pathlib import Path

from verbena import (
    Access,
    Context,
    QPState,
    QPType,
    RecvRequest,
    SendFlags,
    VirtualNetwork,
    WorkRequest,
    WROpcode,
    open_device,
)

BLOCK = 4096
MOST = 64  # blocks of one command
COMMAND = struct.Struct(
    "!IBxHIIQ"
)  # tag, operation, blocks, first block, key and address of the host's buffer
REPLY = struct.Struct("!IB")  # tag, how it ended
WRITE, READ = 1, 2
OUTCOMES = ("good", "no access to the buffer", "bad command", "disk failure")


class Raid5:
    """Blocks on files that stand for disks; in each stripe one file has the parity of the others (RAID level 5)."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.files = [path.open("w+b", buffering=0) for path in paths]

    def _get(self, disk: int, stripe: int) -> bytes:
        """A block of a disk; of a lost one, what the others say it was."""
        file = self.files[disk]
        if file is not None:
            file.seek(stripe * BLOCK)
            return file.read(BLOCK).ljust(BLOCK, b"\0")
        if sum(f is None for f in self.files) > 1:
            raise OSError("two disks are lost, and with them what they held")
        return xor([self._get(other, stripe) for other in range(len(self.files)) if other != disk])

    def _put(self, disk: int, stripe: int, data: bytes) -> None:
        file = self.files[disk]
        if file is not None:
            file.seek(stripe * BLOCK)
            file.write(data)

    def _stripe(self, block: int) -> tuple[int, int, list[int], int]:
        """Stripe and column of a block; the stripe's data disks, and the one with its parity, which moves around."""
        stripe, column = divmod(block, len(self.files) - 1)
        parity = stripe % len(self.files)
        return stripe, column, [disk for disk in range(len(self.files)) if disk != parity], parity

    def write(self, block: int, data: bytes) -> None:
        stripe, column, disks, parity = self._stripe(block)
        contents = [self._get(disk, stripe) for disk in disks]
        contents[column] = data
        self._put(disks[column], stripe, data)
        self._put(parity, stripe, xor(contents))

    def read(self, block: int) -> bytes:
        stripe, column, disks, _ = self._stripe(block)
        return self._get(disks[column], stripe)

    def fail(self, disk: int) -> None:
        """The disk breaks, with all that is on it."""
        if (file := self.files[disk]) is not None:
            file.close()
            self.paths[disk].unlink()
            self.files[disk] = None

    def rebuild(self, disk: int) -> None:
        """A new disk takes the place of a lost one, and gets what was there."""
        stripes = max(path.stat().st_size for path in self.paths if path.exists()) // BLOCK
        contents = [self._get(disk, stripe) for stripe in range(stripes)]
        self.files[disk] = self.paths[disk].open("w+b", buffering=0)
        for stripe, data in enumerate(contents):
            self._put(disk, stripe, data)

    def close(self) -> None:
        for file in self.files:
            if file is not None:
                file.close()


def xor(blocks: list[bytes]) -> bytes:
    total = 0
    for block in blocks:
        total ^= int.from_bytes(block, "big")
    return total.to_bytes(BLOCK, "big")


class End:
    """What both sides have: a queue pair for messages, and one for RDMA, which may fail without the other."""

    def __init__(self, ctx: Context) -> None:
        self.pd = ctx.alloc_pd()
        self.messages, self.transfers = ctx.create_cq(64), ctx.create_cq(64)
        self.control = self.pd.create_qp(QPType.RC, self.messages, max_inline=64)
        self.data = self.pd.create_qp(QPType.RC, self.transfers)
        self.inbox = self.pd.alloc_mr(16 * 64)

    def connect(self, peer: "End") -> None:
        self.control.connect(peer.control.endpoint)
        for slot in range(16):
            self.listen(slot)
        self.peer_data = peer.data.endpoint
        self.data.connect(self.peer_data)

    def reconnect(self) -> None:
        """A refused RDMA operation ends its queue pair on both sides: start it anew."""
        self.data.modify(QPState.RESET)
        self.data.connect(self.peer_data)

    def listen(self, slot: int) -> None:
        self.control.post_recv(RecvRequest(slot, [self.inbox.sge(64 * slot, 64)]))

    def say(self, message: bytes) -> None:
        buffer = self.pd.reg_mr(bytearray(message))
        self.control.post_send(WorkRequest(sg_list=[buffer.sge()], flags=SendFlags.INLINE))  # copied at once
        buffer.close()

    async def hear(self) -> bytes:
        """The next message."""
        async for entry in self.messages:
            slot = entry.raise_for_status().wr_id
            message = bytes(self.inbox.buf[64 * slot :][: entry.byte_len])
            self.listen(slot)
            return message
        raise EOFError  # not reached: the queue is open


class IoNode(End):
    """The I/O adapter with its disks."""

    def __init__(self, ctx: Context, array: Raid5) -> None:
        super().__init__(ctx)
        self.array = array
        self.buffer = self.pd.alloc_mr(MOST * BLOCK)

    async def serve(self) -> None:
        while True:
            message = await self.hear()
            tag = int.from_bytes(message[:4], "big")
            outcome = await self.execute(message)
            self.say(REPLY.pack(tag, outcome))

    async def execute(self, message: bytes) -> int:
        if len(message) != COMMAND.size:
            return 2
        _, operation, count, block, key, address = COMMAND.unpack(message)
        if operation not in (WRITE, READ) or not 1 <= count <= MOST:
            return 2
        size = count * BLOCK
        try:
            if operation == READ:
                self.buffer.buf[:size] = b"".join(self.array.read(block + i) for i in range(count))
            opcode = WROpcode.RDMA_READ if operation == WRITE else WROpcode.RDMA_WRITE
            self.data.post_send(
                WorkRequest(1, opcode, [self.buffer.sge(0, size)], remote_addr=address, rkey=key)
            )
            (done,) = await self.transfers
            print(f"  node: {opcode.name} of {size} bytes ends with {done.status.name}")
            if not done.ok:
                self.reconnect()
                return 1
            if operation == WRITE:
                for i in range(count):
                    self.array.write(block + i, bytes(self.buffer.buf[i * BLOCK : (i + 1) * BLOCK]))
        except OSError as error:
            print("  node:", error)
            return 3
        return 0


class Host(End):
    """The host processor with its commands."""

    tag = 0

    async def command(self, operation: int, block: int, count: int, address: int, key: int) -> str:
        self.tag += 1
        self.say(COMMAND.pack(self.tag, operation, count, block, key, address))
        tag, outcome = REPLY.unpack(await self.hear())
        assert tag == self.tag
        if outcome == 1:
            self.reconnect()
        return OUTCOMES[outcome]


async def main(host_ctx: Context, node_ctx: Context, folder: Path) -> None:
    array = Raid5([folder / f"disk{i}" for i in range(4)])
    host, node = Host(host_ctx), IoNode(node_ctx, array)
    host.connect(node)
    node.connect(host)
    serving = asyncio.create_task(node.serve())

    text = b"".join(b"block %-2d" % i * (BLOCK // 8) for i in range(10))
    data = host.pd.reg_mr(bytearray(text), Access.REMOTE_READ)
    print("write:", await host.command(WRITE, 7, 10, data.addr, data.rkey))
    print("on the disks:", b"".join(array.read(7 + i) for i in range(10)) == text)

    back = host.pd.alloc_mr(10 * BLOCK, Access.LOCAL_WRITE | Access.REMOTE_WRITE)
    for disk in (1, 2):
        array.fail(disk)
        back.buf[:] = bytes(back.length)
        print(f"disk {disk} is lost; read:", await host.command(READ, 7, 10, back.addr, back.rkey))
        print("the same as written:", back.buf == text)
        array.rebuild(disk)

    key = data.rkey
    data.close()
    print("the key is withdrawn; write:", await host.command(WRITE, 7, 10, data.addr, key))
    print("the disks are as before:", b"".join(array.read(7 + i) for i in range(10)) == text)
    again = host.pd.reg_mr(bytearray(10 * BLOCK), Access.REMOTE_READ)
    print("with a new one:", await host.command(WRITE, 7, 10, again.addr, again.rkey))
    print("too many blocks:", await host.command(WRITE, 7, MOST + 1, again.addr, again.rkey))
    for disk in (0, 3):
        array.fail(disk)
    print("two disks are lost; read:", await host.command(READ, 7, 10, back.addr, back.rkey))
    serving.cancel()
    array.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1:]:
            with open_device(sys.argv[1]) as first, open_device(sys.argv[2]) as second:
                asyncio.run(main(first, second, Path(name)))
        else:
            net = VirtualNetwork()
            net.run(main(net.open_device("10.0.0.1"), net.open_device("10.0.0.2"), Path(name)))
