"""Raw datagrams: bytes out are bytes in; what is refused; what becomes of faults (document 003:552-555)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from native_lab import UD, NativeLab
from raw_lab import (
    ETHER,
    IP6,
    UDP_PROTOCOL,
    Pair,
    check_laws,
    drops,
    offer,
    take,
    tcp6,
    udp6,
)
from verbena import (
    AddressVector,
    InvalidAttributeError,
    InvalidStateError,
    QPState,
    QPType,
    RecvRequest,
    VirtualNetwork,
    WorkRequest,
    WROpcode,
)
from verbena.runtime.pairs import make_side
from verbena.wire import (
    LRH,
    LinkType,
    PcapWriter,
    RawPacket,
    vcrc,
    wrap_erf,
)
from verbena.wire.headers import RWH

# --- bytes out, bytes in ------------------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-17")
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 100, 1000, 4096 - 48])
def test_bytes_out_are_bytes_in(size: int) -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp, UDP_PROTOCOL)
    offer(pair.b, 0)
    data = udp6(Random(size).randbytes(size))
    pair.send(data)
    assert [e.ok for e in pair.a.cq.poll()] == [True]
    assert take(pair.b) == [data]
    (sent,) = pair.lab.log
    assert isinstance(sent.packet, RawPacket), "no transport header"
    assert sent.data[8:] == data + bytes(-len(data) % 4), "nothing but the LRH before, and filling behind"
    assert (sent.packet.lrh.sl, sent.packet.lrh.dlid) == (5, pair.b.ctx.query_port().lid)
    assert sent.packet.lrh.slid == pair.a.ctx.query_port().lid
    check_laws(pair.contexts[1])


@pytest.mark.requirement("TRN-17")
def test_a_packet_of_an_ethertype() -> None:
    pair = Pair(ETHER)
    pair.contexts[1].register_protocol(pair.b.qp, ethertype=0x88B6)
    offer(pair.b, 0)
    data = RWH(ethertype=0x88B6).pack() + b"wholly under software control..."
    pair.send(data)
    assert take(pair.b) == [data]
    assert pair.lab.log[0].packet.rwh.ethertype == 0x88B6
    pair.inject(RWH(ethertype=0x88B7).pack(), lnh=0)
    assert drops(pair.contexts[1]) == {"no_protocol": 1}
    check_laws(pair.contexts[1])


@pytest.mark.requirement("TRN-17")
def test_nothing_is_acknowledged_and_a_lost_packet_is_lost() -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp)
    offer(pair.b, 0, 1, 2)
    seen = iter(range(3))
    pair.lab.gate = lambda sent: [] if next(seen) == 1 else [sent.data]
    packets = [udp6(bytes([i]) * 20) for i in range(3)]
    for i, data in enumerate(packets):
        pair.a.qp.post_send(pair.request(data, i))
    pair.lab.run(1_000_000_000)
    assert [(e.wr_id, e.ok) for e in pair.a.cq.poll()] == [(0, True), (1, True), (2, True)]
    assert take(pair.b) == [packets[0], packets[2]]
    assert len(pair.lab.log) == 3, "no answers, no repetition"
    assert all(sent.driver is pair.lab.drivers[0] for sent in pair.lab.log)


@pytest.mark.requirement("TRN-17")
@pytest.mark.parametrize("service", [IP6, ETHER])
@pytest.mark.parametrize("opcode", [o for o in WROpcode if o is not WROpcode.SEND])
def test_everything_but_send_is_refused(service: QPType, opcode: WROpcode) -> None:
    pair = Pair(service)
    request = pair.request(udp6(b""))
    request.opcode = opcode
    with pytest.raises(InvalidAttributeError, match=f"{service.name} does not carry"):
        pair.a.qp.post_send(request)
    assert pair.lab.log == []


def test_sizes() -> None:
    pair = Pair(mtu=1024)
    pair.send(udp6(bytes(1024 - 48)))
    assert len(pair.lab.log) == 1
    with pytest.raises(InvalidAttributeError, match="MTU of 1024 bytes, not 1025"):
        pair.a.qp.post_send(pair.request(udp6(bytes(1025 - 48))))
    with pytest.raises(InvalidAttributeError, match="header of 40"):
        pair.a.qp.post_send(pair.request(bytes(39)))
    ether = Pair(ETHER)
    for data in (b"", b"\0\0\x88\xb6", bytes(8), bytes(13)):
        with pytest.raises(InvalidAttributeError, match="whole 4-byte words"):
            ether.a.qp.post_send(ether.request(data))
    with pytest.raises(InvalidAttributeError, match="needs a destination"):
        ether.a.qp.post_send(WorkRequest(sg_list=[ether.a.mr.sge(0, 12)]))


def test_a_burst_of_packets_and_their_order() -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp, UDP_PROTOCOL)
    offer(pair.b, *range(12))
    packets = [udp6(bytes([i]) * (20 if i < 8 else 20 - i)) for i in range(12)]
    handle = pair.handle()
    requests = []
    for i, data in enumerate(packets):
        pair.a.mr.buf[200 * i : 200 * i + len(data)] = data
        requests.append(
            WorkRequest(
                i,
                sg_list=[pair.a.mr.sge(200 * i, 50), pair.a.mr.sge(200 * i + 50, len(data) - 50)],
                ah=handle,
            )
        )
    pair.a.qp.post_send_many(requests)
    pair.lab.run()
    assert take(pair.b) == packets
    assert [e.wr_id for e in pair.a.cq.poll()] == list(range(12))


def test_to_the_own_port() -> None:
    pair = Pair()
    ctx = pair.contexts[0]
    ctx.register_protocol(pair.a.qp, UDP_PROTOCOL)
    offer(pair.a, 0)
    data = udp6(b"to myself")
    pair.a.mr.buf[: len(data)] = data
    handle = pair.a.pd.create_ah(AddressVector(dlid=ctx.query_port().lid))
    pair.a.qp.post_send(WorkRequest(1, sg_list=[pair.a.mr.sge(0, len(data))], ah=handle))
    pair.lab.run()
    assert take(pair.a) == [data]
    assert pair.lab.log == [], "it never left"


def test_a_lane_without_room_holds_raw_packets_back() -> None:
    pair = Pair()
    engine = pair.contexts[0].adapter.engine
    engine.set_open(1, 0xFFFF & ~(1 << 5))
    pair.send(udp6(b"wait"))
    assert pair.lab.log == []
    engine.set_open(1, 0xFFFF)
    pair.contexts[0].driver.kick()
    assert len(pair.lab.log) == 1


def test_a_raw_queue_pair_sends_by_its_own_port_and_receives_by_all() -> None:
    lab = NativeLab()
    ctx = lab.adapter(ports=2)
    side = make_side(ctx, IP6, 1 << 16)
    side.qp.activate(port_num=2)
    ctx.register_protocol(side.qp)
    for number in (1, 2):
        offer(side, number)
        head = LRH(lnh=1, dlid=ctx.query_port(number).lid, slid=3, packet_length=2 + 12).pack()
        ctx.adapter.engine.receive_raw(bytearray(head + udp6(b"")), number, 0)
        (entry,) = side.cq.poll()
        assert (entry.port, entry.slid, entry.byte_len) == (number, 3, 48)
    request = WorkRequest(1, sg_list=[side.mr.sge(0, 48)])
    request.ah = side.pd.create_ah(AddressVector(dlid=99, port_num=1))
    with pytest.raises(InvalidAttributeError, match="port"):
        side.qp.post_send(request)
    request.ah = side.pd.create_ah(AddressVector(dlid=99, port_num=2))
    side.qp.post_send(request)
    assert [sent.port for sent in lab.log] == [2]


# --- through an independent decoder -------------------------------------------------------------------------------


@pytest.mark.requirement("TRN-18")
@pytest.mark.parametrize("make", [udp6, tcp6])
def test_an_independent_decoder_reads_the_ip_packet(tmp_path: Path, make: Callable[[bytes], bytes]) -> None:
    """tshark dissects the native capture down to UDP and TCP, checksums right; and the other way round."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp)
    offer(pair.b, 0)
    data = make(b"an ordinary datagram")
    pair.send(data)
    (sent,) = pair.lab.log
    native, plain = tmp_path / "native.pcap", tmp_path / "plain.pcap"
    with native.open("wb") as file:
        whole = sent.data + vcrc(sent.data).to_bytes(2, "big")
        PcapWriter(file, LinkType.ERF).write(wrap_erf(whole, 0), 0)
    with plain.open("wb") as file:
        PcapWriter(file, LinkType.RAW).write(take(pair.b)[0], 0)
    fields = [
        "ipv6.src",
        "ipv6.dst",
        "udp.dstport",
        "udp.checksum.status",
        "tcp.dstport",
        "tcp.checksum.status",
    ]
    expected = "2001:db8::1|2001:db8::2|" + ("53|1||" if make is udp6 else "||80|1")
    for path in (native, plain):
        command = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|"]
        command += ["-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
        for field in fields:
            command += ["-e", field]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip("\n") == expected, path


# --- states, limits, hostility ------------------------------------------------------------------------------------


def test_what_a_raw_queue_pair_drops() -> None:
    pair = Pair()
    ctx = pair.contexts[1]
    ctx.register_protocol(pair.b.qp, UDP_PROTOCOL)
    pair.send(udp6(b"x"))
    assert drops(ctx) == {"no_receive": 1}
    pair.b.qp.post_recv(RecvRequest(0, [pair.b.mr.sge(8192, 48)]))
    pair.send(udp6(b"x"))
    assert drops(ctx)["too_long"] == 1
    pair.send(udp6(b""))
    assert take(pair.b) == [udp6(b"")], "the buffer served the next packet"
    pair.b.qp.modify(QPState.ERR)
    pair.send(udp6(b"x"))
    assert drops(ctx)["qp_state"] == 1
    check_laws(ctx)


def test_a_buffer_that_may_not_be_written() -> None:
    pair = Pair()
    pair.contexts[1].register_protocol(pair.b.qp)
    request = RecvRequest(3, [pair.b.mr.sge(0, 100)])
    request.sg_list[0].lkey ^= 1
    pair.b.qp.post_recv(request)
    pair.send(udp6(b"x"))
    assert [(e.wr_id, e.status.name) for e in pair.b.cq.poll()] == [(3, "LOC_PROT_ERR")]
    assert pair.b.qp.state is QPState.ERR


def test_a_send_buffer_that_may_not_be_read() -> None:
    pair = Pair()
    bad = pair.request(udp6(b"x"), 1)
    bad.sg_list[0].lkey ^= 1
    pair.a.qp.post_send_many([bad, pair.request(udp6(b"x"), 2)])
    assert [(e.wr_id, e.status.name) for e in pair.a.cq.poll()] == [(1, "LOC_PROT_ERR"), (2, "WR_FLUSH_ERR")]
    assert pair.a.qp.state is QPState.SQE
    pair.a.qp.modify(QPState.RTS)
    pair.send(udp6(b"x"))
    assert len(pair.lab.log) == 1


def test_states() -> None:
    lab = NativeLab()
    side = make_side(lab.adapter(), IP6)
    with pytest.raises(InvalidStateError, match="needs RTS"):
        side.qp.post_send(WorkRequest(sg_list=[side.mr.sge(0, 40)]))
    with pytest.raises(InvalidAttributeError, match="qkey"):
        side.qp.modify(QPState.INIT, port_num=1, qkey=5)
    side.qp.activate(port_num=1)
    assert side.qp.state is QPState.RTS
    assert side.qp.query().path_mtu == 4096
    with pytest.raises(InvalidAttributeError, match="no peer"):
        side.qp.connect(side.qp.endpoint)
    side.qp.modify(QPState.SQD)
    side.qp.modify(QPState.RTS)


@pytest.mark.parametrize("service", [IP6, ETHER])
def test_roce_carries_no_raw_datagrams(service: QPType) -> None:
    ctx = VirtualNetwork().open_device("10.0.0.1")
    with pytest.raises(InvalidAttributeError, match="InfiniBand ports"):
        ctx.alloc_pd().create_qp(service, ctx.create_cq(4))
    assert len(ctx.queue_pairs) == 0


@pytest.mark.requirement("TRN-01")
def test_a_transport_packet_does_not_come_to_a_raw_queue_pair() -> None:
    pair = Pair()
    ctx = pair.contexts[1]
    ctx.register_protocol(pair.b.qp)
    offer(pair.b, 0)
    sender = make_side(pair.contexts[0], UD)
    sender.qp.activate()
    handle = sender.pd.create_ah(AddressVector(dlid=ctx.query_port().lid))
    sender.qp.post_send(
        WorkRequest(1, sg_list=[sender.mr.sge(0, 60)], ah=handle, remote_qpn=pair.b.qp.qp_num, remote_qkey=1)
    )
    pair.lab.run()
    assert take(pair.b) == []
    assert drops(ctx) == {"service": 1}
