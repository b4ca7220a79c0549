"""`verbena dump`: its lines, its table, its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from verbena import wire
from verbena.cli.dump import dump
from wire.samples import CAPTURES, LRH, gsi, in_every_wrapping, link_type, of_opcode, request

Lines = pytest.CaptureFixture[str]


def _write(path: Path, packets: list[tuple[bytes, int]]) -> Path:
    with path.open("wb") as file:
        writer = wire.PcapngWriter(file)
        for data, kind in packets:
            writer.write(data, 0, writer.add_interface("", kind))
    return path


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_golden_captures_are_right(path: Path, capsys: Lines) -> None:
    assert dump(str(path)) == 0
    output = capsys.readouterr().out
    assert output.count("ICRC ok") == sum(
        isinstance(wire.decode(c.data, 1), wire.RocePacket) for c in wire.read_capture(path.read_bytes())
    )
    assert "BAD" not in output


def test_everything_that_can_be_written_can_be_shown(tmp_path: Path, capsys: Lines) -> None:
    packets = [p for code in wire.Opcode for p in in_every_wrapping(of_opcode(code, psn=7))]
    packets += in_every_wrapping(gsi(request()))
    packets += in_every_wrapping(gsi(wire.REJ(1, 2, reason=28)))
    packets += in_every_wrapping(gsi(wire.REJ(1, 2, reason=999)))
    raw = [(packet.encode(), int(link_type(packet))) for packet in packets]
    raw += [
        (wire.RawPacket(LRH, rwh, b"data").sealed().encode(), 247)
        for rwh in (None, wire.RWH(ethertype=0x88B5))
    ]
    path = _write(tmp_path / "all.pcapng", raw)
    assert dump(str(path), verbose=True) == 0
    output = capsys.readouterr().out
    for text in (
        "CM REQ",
        "port 7174",
        "reason CONSUMER_REJECT",
        "reason 999",
        "raw IPv6",
        "VCRC ok",
        "imm 0xcafef00d",
    ):
        assert text in output
    assert dump(str(path), count=3) == 0
    assert capsys.readouterr().out.count("ICRC ok") == 3


@pytest.mark.parametrize("at", [-1, -3, 40], ids=["VCRC", "ICRC", "payload"])
def test_a_wrong_crc_is_shown_and_counted(at: int, tmp_path: Path, capsys: Lines) -> None:
    packet = bytearray(
        wire.NativePacket(LRH, None, of_opcode(wire.Opcode.RC_RDMA_WRITE_ONLY, 1)).sealed().encode()
    )
    packet[at] ^= 1
    assert dump(str(_write(tmp_path / "bad.pcapng", [(bytes(packet), 247)]))) == 1
    output = capsys.readouterr().out
    assert "VCRC BAD" in output
    assert ("ICRC ok" in output) is (at == -1)


def test_malformed_packets_are_shown_and_counted(tmp_path: Path, capsys: Lines) -> None:
    packet = in_every_wrapping(of_opcode(wire.Opcode.RC_SEND_ONLY, 1))[0].encode()
    path = _write(tmp_path / "short.pcapng", [(packet, 1), (packet[:50], 1)])
    assert dump(str(path)) == 1
    assert "malformed" in capsys.readouterr().out


def test_files_that_cannot_be_read(tmp_path: Path, capsys: Lines) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"this is not a capture")
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(CAPTURES[0].read_bytes()[:-5])
    unknown = _write(tmp_path / "unknown.pcapng", [(b"x", 147)])
    for path in (tmp_path / "missing", tmp_path, garbage, cut, unknown):
        assert dump(str(path)) == 2
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 1
        assert str(path) in captured.err
    assert dump(str(cut)) == 2
    assert "TCP" in capsys.readouterr().out


def test_a_capture_without_a_packet_is_said_to_be_empty(tmp_path: Path, capsys: Lines) -> None:
    assert dump(str(_write(tmp_path / "empty.pcapng", []))) == 0
    assert "holds no packets" in capsys.readouterr().out
