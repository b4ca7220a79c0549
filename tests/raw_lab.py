"""Two adapters with raw queue pairs, and IPv6 packets for them."""

from __future__ import annotations

from native_lab import NativeLab
from verbena import (
    AddressVector,
    Context,
    Gid,
    QPType,
    RecvRequest,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import Side, make_side
from verbena.wire import (
    LRH,
    UDP,
    IPv6,
    udp_checksum,
    upper_layer_checksum,
)

IP6, ETHER = QPType.RAW_IPV6, QPType.RAW_ETHERTYPE
HERE, THERE, OTHER = (Gid.from_ip(f"2001:db8::{i}") for i in (1, 2, 3))
TCP_PROTOCOL, UDP_PROTOCOL = 6, 17


def udp6(
    payload: bytes, source: Gid = HERE, target: Gid = THERE, before: bytes = b"", first: int = 17
) -> bytes:
    """An IPv6 packet with a UDP datagram; `before`: extension headers, of which `first` is the first."""
    size = len(before) + 8 + len(payload)
    head = IPv6(payload_length=size, next_header=first, src=source.raw, dst=target.raw)
    datagram = UDP(4000, 53, 8 + len(payload), 0).pack() + payload
    checksum = udp_checksum(head, datagram)
    return head.pack() + before + UDP(4000, 53, 8 + len(payload), checksum).pack() + payload


def tcp6(payload: bytes, source: Gid = HERE, target: Gid = THERE) -> bytes:
    """An IPv6 packet with a TCP segment."""
    head = IPv6(payload_length=20 + len(payload), next_header=6, src=source.raw, dst=target.raw)
    segment = bytes.fromhex("0fa00050 00000001 00000002 5018ffff 0000 0000") + payload
    checksum = upper_layer_checksum(head, 6, segment)
    return head.pack() + segment[:16] + checksum.to_bytes(2, "big") + segment[18:]


class Pair:
    """Two adapters; `a` sends raw packets to `b`'s port."""

    def __init__(self, service: QPType = IP6, **options: object) -> None:
        self.lab = NativeLab()
        self.contexts = [self.lab.adapter(**options) for _ in range(2)]
        self.a, self.b = (self.side(ctx, service) for ctx in self.contexts)

    def side(self, ctx: Context, service: QPType) -> Side:
        made = make_side(ctx, service, 1 << 16)
        made.qp.activate()
        return made

    def handle(self) -> object:
        return self.a.pd.create_ah(AddressVector(dlid=self.b.ctx.query_port().lid, sl=5))

    def request(self, data: bytes, wr_id: int = 0, **more: object) -> WorkRequest:
        self.a.mr.buf[: len(data)] = data
        return WorkRequest(wr_id, WROpcode.SEND, [self.a.mr.sge(0, len(data))], ah=self.handle(), **more)

    def send(self, data: bytes) -> None:
        self.a.qp.post_send(self.request(data))
        self.lab.run()

    def inject(self, body: bytes, lnh: int = 1, to: Side | None = None) -> None:
        """A raw packet out of nowhere, for b's port."""
        side = to or self.b
        body = bytes(body) + bytes(-len(body) % 4)
        lid = side.ctx.query_port().lid
        head = LRH(lnh=lnh, dlid=lid, slid=3, packet_length=2 + len(body) // 4).pack()
        side.ctx.adapter.engine.receive_raw(bytearray(head + body), 1, self.lab.clock.now())


def take(side: Side) -> list[bytes]:
    """What arrived, by the entries of the completion queue; then the buffers are posted again."""
    found = []
    for entry in side.cq.poll():
        if entry.opcode >= 128:
            assert entry.ok
            found.append(bytes(side.mr.buf[8192 + 4096 * entry.wr_id :][: entry.byte_len]))
            offer(side, entry.wr_id)
    return found


def offer(side: Side, *slots: int) -> None:
    for slot in slots:
        side.qp.post_recv(RecvRequest(slot, [side.mr.sge(8192 + 4096 * slot, 4096)]))


def drops(ctx: Context) -> dict[str, int]:
    return {n[5:]: c for n, c in ctx.counters().items() if n.startswith("drop.") and c}


def check_laws(ctx: Context) -> None:
    c = ctx.counters()
    assert c["rx.packets"] == c["rx.accepted"] + sum(n for name, n in c.items() if name.startswith("drop."))
