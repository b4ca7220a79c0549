"""Captures of a fabric, read by an independent decoder."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lab import pattern
from system.world import UC, UD, PortId, World, exchange, finish, write
from verbena import AddressVector, InvalidAttributeError, InvalidStateError, RecvRequest, WorkRequest
from verbena.wire import LinkType, NativePacket, decode, read_capture
from verbena.wire.crc import vcrc


def datagram(world: World) -> None:
    a, b = world.pair("host-302", "host-304", UD)
    b.qp.post_recv(RecvRequest(1, [b.mr.sge(0, 300)]))
    there = b.qp.endpoint
    a.mr.buf[:100] = pattern(100)
    request = WorkRequest(2, sg_list=[a.mr.sge(0, 100)], ah=a.pd.create_ah(AddressVector(dlid=there.lid)))
    request.remote_qpn, request.remote_qkey = there.qp_num, 0x11111111
    a.qp.post_send(request)
    assert finish(a) == ["SUCCESS"]
    assert finish(b) == ["SUCCESS"]


@pytest.mark.requirement("SYS-06")
@pytest.mark.parametrize("flits", [True, False])
def test_everything_on_a_link_is_in_the_capture(tmp_path: Path, flits: bool) -> None:
    path = tmp_path / "link.pcapng"
    world = World("transaction", flits=flits)
    with world.capture(path, ["switch-310[2]"]) as capture:
        world.start()  # SMPs
        a, b = world.pair("host-302", "host-304", mtu=512)
        write(a, b, 5000)
        assert finish(a) == ["SUCCESS"]
        exchange(*world.pair("host-302", "host-304", UC))
        datagram(world)
        assert len(b.ctx.subnet.nodes().get(1)) == 4  # SA MADs, over RMPP
        world.settle()
        port = world.assembly.ports[PortId("switch-310", 2)]
        counters = world.core.port_counters(port)
    assert capture.packets == counters["xmit_packets"] + counters["rcv_packets"]
    found = list(read_capture(path.read_bytes()))
    assert [p.time_ns for p in found] == sorted(p.time_ns for p in found)
    assert {(p.interface, p.link_type) for p in found} == {("switch-310[2]", LinkType.ERF)}
    for each in found:
        packet = decode(each.data, each.link_type)
        assert isinstance(packet, NativePacket)
        assert packet.icrc_ok
        assert packet.vcrc == vcrc(packet.encode()[:-2])
    world.check_laws()
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed: only our own decoder has read the capture")
    fields = ("infiniband.bth.opcode", "infiniband.mad.mgmtclass", "_ws.malformed", "infiniband.lrh.vl")
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=f"]
    for field in (*fields, "frame.packet_flags_direction"):
        command += ["-e", field]
    rows = [r.split("\t") for r in subprocess.check_output(command, text=True).splitlines()]
    assert len(rows) == capture.packets
    assert not [row for row in rows if row[2]], "tshark calls packets malformed"
    kinds = Counter((int(row[0], 0), int(row[1] or "0", 0)) for row in rows)
    assert kinds[100, 0x81] >= 20  # directed-route SMPs, requests and responses
    assert kinds[100, 0x03] >= 2  # subnet administration
    assert kinds[100, 0] == 1  # our datagram
    writes = {opcode: n for (opcode, _), n in kinds.items() if opcode in (6, 7, 8)}
    assert writes == {6: 1, 7: 8, 8: 1}  # RC WRITE first, middle, last: 5000 bytes
    assert kinds[0x11, 0] >= 1  # acknowledgments
    assert kinds[0x24, 0] == 1  # UC SEND only
    assert {int(r[3], 0) for r in rows if r[1] and int(r[1], 0) == 0x81} == {15}
    directions = Counter(int(row[4], 0) for row in rows)
    assert directions == {1: counters["rcv_packets"], 2: counters["xmit_packets"]}


def test_captures_change_nothing(tmp_path: Path) -> None:
    """With and without taps: the same packets at the same times."""

    def run(captured: bool) -> object:
        world = World("line switches=2", seed=4)
        ports = [str(port) for port in world.assembly.ports]
        a, b = world.pair("h0", "h1")
        world.trace()
        if captured:
            with world.capture(tmp_path / "all.pcapng", ports):
                write(a, b, 9000)
                finish(a)
        else:
            write(a, b, 9000)
            finish(a)
        world.settle()
        return world.hops(data=False), world.now, world.core.statistics()

    assert run(True) == run(False)


def test_captures_that_cannot_be(tmp_path: Path) -> None:
    world = World("back-to-back")
    with pytest.raises(InvalidAttributeError, match="no port"):
        world.capture(tmp_path / "a", ["h0[9]"])
    with pytest.raises(InvalidAttributeError, match="is no port"):
        world.capture(tmp_path / "a", ["h0"])
    with world.capture(tmp_path / "a", ["h0[1]"]) as capture:
        with pytest.raises(InvalidStateError, match="already"):
            world.capture(tmp_path / "b", ["h0[1]"])
        other = world.capture(tmp_path / "c", ["h1[1]"])
        world.start()
    assert capture.packets > 0
    capture.close()  # again: nothing
    again = world.capture(tmp_path / "a", ["h0[1]"])
    again.close()
    other.close()
    assert other.packets == capture.packets
