"""An asyncio program: `await cq`, `async for`, and time that is simulated, down to the nanosecond."""

import asyncio

from verbena import QPType, RecvRequest, WorkRequest, connected_pair

ROUNDS = 3


async def main() -> None:
    async def answer() -> None:
        """b sends back what it gets."""
        answered = 0
        async for entry in b.cq:
            if entry.wr_id == 7:
                b.qp.post_recv(RecvRequest(7, [b.mr.sge(0, 100)]))
                b.qp.post_send(WorkRequest(1, sg_list=[b.mr.sge(0, entry.byte_len)]))
                answered += 1
            elif answered == ROUNDS:
                return

    answering = asyncio.create_task(answer())
    for number in range(ROUNDS):
        a.qp.post_recv(RecvRequest(7, [a.mr.sge(500, 100)]))
        a.mr.buf[0] = number
        start = pair.net.now
        a.qp.post_send(WorkRequest(1, sg_list=[a.mr.sge(0, 64)]))
        waiting = {1, 7}
        while waiting:
            waiting -= {entry.wr_id for entry in await a.cq}
        print(f"round {number}: {pair.net.now - start} ns, came back: {a.mr.buf[500]}")
        await asyncio.sleep(1)  # simulated, too
    await answering


with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    b.qp.post_recv(RecvRequest(7, [b.mr.sge(0, 100)]))
    pair.net.run(main())
    print(f"{pair.net.now / 1e9:.3f} simulated seconds")
