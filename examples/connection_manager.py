"""Connections: listen, connect, accept, reject and disconnect, at an address and a port, as librdmacm has them."""

import asyncio

from verbena import Access, ConnectionRefused, QPType, RecvRequest, VirtualNetwork, WorkRequest

net = VirtualNetwork()
server, client = net.open_device("10.0.0.1"), net.open_device("10.0.0.2")


async def serve() -> None:
    pd, cq = server.alloc_pd(), server.create_cq(16)
    memory = pd.alloc_mr(100, Access.LOCAL_WRITE)
    with server.listen(7471) as listener:
        request = await listener.request()
        print("server: refuses", request.private_data)
        request.reject(private_data=b"not you")

        request = await listener.request()
        print("server: accepts", request.private_data, "from", request.remote_address)
        qp = pd.create_qp(QPType.RC, cq)
        connection = await request.accept_async(qp, private_data=b"welcome")
        qp.post_recv(RecvRequest(0, [memory.sge()]))
        (entry,) = await cq
        print("server: got", bytes(memory.buf[: entry.byte_len]))
        await connection.disconnected()
        print("server: the client is gone, the queue pair is in", qp.state.name)


async def call() -> None:
    pd, cq = client.alloc_pd(), client.create_cq(16)
    qp = pd.create_qp(QPType.RC, cq)
    try:
        await client.connect_async("10.0.0.1", 7471, qp, private_data=b"stranger")
    except ConnectionRefused as refused:
        print("client: refused,", refused.private_data)

    memory = pd.reg_mr(bytearray(b"good day"))
    qp = pd.create_qp(QPType.RC, cq)
    connection = await client.connect_async("10.0.0.1", 7471, qp, private_data=b"friend")
    print("client: connected,", connection.private_data)
    qp.post_send(WorkRequest(0, sg_list=[memory.sge()]))
    await cq
    connection.disconnect()


async def main() -> None:
    await asyncio.gather(serve(), call())


net.run(main())
