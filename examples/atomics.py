"""Atomics: read and change eight bytes of the peer's memory in one step that nothing interrupts."""

from verbena import QPType, WorkRequest, WROpcode, connected_pair


def number(buffer: memoryview) -> int:
    return int.from_bytes(buffer[:8], "little")


with connected_pair(QPType.RC) as pair:
    a, b = pair.a, pair.b
    b.mr.buf[:8] = (100).to_bytes(8, "little")
    there = {"remote_addr": b.mr.addr, "rkey": b.mr.rkey}

    a.qp.post_send(WorkRequest(1, WROpcode.ATOMIC_FETCH_AND_ADD, [a.mr.sge(0, 8)], compare_add=5, **there))
    (done,) = a.cq.wait(timeout=1)
    print(done.opcode.name, "was", number(a.mr.buf), "is", number(b.mr.buf))

    for expected, new in ((105, 7), (105, 8)):
        request = WorkRequest(
            2, WROpcode.ATOMIC_CMP_AND_SWP, [a.mr.sge(0, 8)], compare_add=expected, swap=new, **there
        )
        a.qp.post_send(request)
        (done,) = a.cq.wait(timeout=1)
        print(done.opcode.name, f"{expected} -> {new}:", "was", number(a.mr.buf), "is", number(b.mr.buf))
