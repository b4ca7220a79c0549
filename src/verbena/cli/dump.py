"""`verbena dump CAPTURE`: one line for each packet, every CRC checked, a table at the end.

RoCEv2 and native InfiniBand packets are decoded down to their headers and connection-manager messages; what
else travels beside them is named.  All formats come from `verbena.wire`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from verbena import wire

EXIT_OK, EXIT_BAD_PACKETS, EXIT_BAD_FILE = 0, 1, 2


def dump(path: str, *, count: int | None = None, verbose: bool = False) -> int:
    """Print the capture file `path` (its first `count` packets) and return the exit status.

    0: every RoCE and InfiniBand packet decodes and has right CRCs; 1: one does not; 2: the file cannot be
    read.
    """
    try:
        return _dump(path, count, verbose)
    except BrokenPipeError:  # who reads our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _dump(path: str, count: int | None, verbose: bool) -> int:
    tally = _Tally()
    failure = ""
    try:
        with open(path, "rb") as file:
            for captured in wire.read_capture(file):
                if count is not None and tally.packets >= count:
                    break
                if captured.link_type not in wire.LinkType.__members__.values():
                    raise wire.DecodeError("file", f"link type {captured.link_type} is not known")
                for line in tally.add(captured, verbose):
                    print(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        failure = error.strerror or str(error)
    except wire.DecodeError as error:
        failure = str(error)
    if tally.packets or not failure:
        tally.print_summary()
    if failure:
        print(f"verbena dump: {path}: {failure}", file=sys.stderr)
        return EXIT_BAD_FILE
    return EXIT_BAD_PACKETS if tally.bad else EXIT_OK


class _Tally:
    """Counts packets by kind while it turns them into lines."""

    def __init__(self) -> None:
        self.packets = 0
        self.bad = 0
        self._start_ns = 0
        self._kinds: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()

    def add(self, captured: wire.CapturedPacket, verbose: bool) -> Iterator[str]:
        """The lines of one packet."""
        if not self.packets:
            self._start_ns = captured.time_ns
        self.packets += 1
        details: list[str] = []
        try:
            packet = wire.decode(captured.data, captured.link_type)
        except wire.DecodeError as error:
            kind, ends, text, good = "malformed", "", f"{error} [{error.reason}]", False
        else:
            kind, ends, text, good = _describe(packet)
            if verbose:
                details = list(_details(packet))
        self._kinds[kind] += 1
        self._bytes[kind] += len(captured.data)
        if not good:
            self.bad += 1
            self._bad[kind] += 1
        time = (captured.time_ns - self._start_ns) / 1e9
        yield "  ".join(part for part in (f"{self.packets:5} {time:13.9f}", ends, kind, text) if part)
        yield from details

    def print_summary(self) -> None:
        table = Table("packets", "number", "bytes", "bad")
        for column in table.columns[1:]:
            column.justify = "right"
        for kind in sorted(self._kinds):
            table.add_row(kind, str(self._kinds[kind]), str(self._bytes[kind]), str(self._bad[kind]))
        table.add_section()
        table.add_row("all", str(self.packets), str(sum(self._bytes.values())), str(self.bad))
        Console().print(table)
        if not self.packets:
            print("the capture holds no packets")
        elif self.bad:
            print(f"packets that are not right: {self.bad}")
        else:
            print("every packet decodes, every CRC is right")


def _describe(packet: wire.Packet) -> tuple[str, str, str, bool]:
    """Kind, addresses, key fields, and whether the CRCs are right."""
    if isinstance(packet, wire.OtherPacket):
        return packet.kind, f"{packet.source} -> {packet.destination}", packet.summary, True
    if isinstance(packet, wire.RocePacket):
        ends = f"{packet.ip.source} -> {packet.ip.destination}"
        return packet.transport.info.name, ends, *_checked(_fields(packet.transport), ICRC=packet.icrc_ok)
    ends = f"lid {packet.lrh.slid:#06x} -> {packet.lrh.dlid:#06x}"
    if isinstance(packet, wire.RawPacket):
        kind = "raw IPv6" if packet.rwh is None else f"raw EtherType {packet.rwh.ethertype:#06x}"
        return kind, ends, *_checked(f"len {len(packet.payload)}", VCRC=packet.vcrc_ok)
    crcs = {"ICRC": packet.icrc_ok, "VCRC": packet.vcrc_ok}
    return packet.transport.info.name, ends, *_checked(_fields(packet.transport), **crcs)


def _checked(text: str, **crcs: bool) -> tuple[str, bool]:
    results = (f"{name} {'ok' if ok else 'BAD'}" for name, ok in crcs.items())
    return " ".join((text, *results)), all(crcs.values())


def _fields(packet: wire.TransportPacket) -> str:
    bth = packet.bth
    parts = [f"qp {bth.dest_qp:#08x} psn {bth.psn} len {len(packet.payload)}"]
    names = {"solicited": bth.solicited, "ack-req": bth.ack_request, "fecn": bth.fecn, "becn": bth.becn}
    parts += [name for name, is_set in names.items() if is_set]
    if bth.pkey & 0x7FFF != 0x7FFF:
        parts.append(f"pkey {bth.pkey:#06x}")
    parts += [_extended(header) for header in packet.headers]
    if bth.dest_qp == wire.GSI_QP and len(packet.payload) == wire.MAD_SIZE:
        parts.append(_mad(wire.Mad.unpack(packet.payload)))
    return " ".join(parts)


def _extended(header: wire.Layout) -> str:
    """The fields of an extended header that matter to a reader."""
    match header:
        case wire.RETH(address, rkey, length):
            return f"va {address:#x} rkey {rkey:#x} dma {length}"
        case wire.AtomicETH(address, rkey, swap_add, compare):
            return f"va {address:#x} rkey {rkey:#x} swap/add {swap_add:#x} compare {compare:#x}"
        case wire.AETH():
            return f"{_syndrome(header)} msn {header.msn}"
        case wire.AtomicAckETH(original):
            return f"original {original:#x}"
        case wire.DETH():
            return f"qkey {header.qkey:#x} from qp {header.src_qp:#08x}"
        case wire.RDETH():
            return f"ee {header.ee_context:#x}"
        case wire.ImmDt(data):
            return f"imm {data:#x}"
        case wire.IETH(rkey):
            return f"invalidate {rkey:#x}"
    return repr(header)


def _syndrome(aeth: wire.AETH) -> str:
    if aeth.kind is wire.AethKind.ACK:
        return "ACK" if aeth.credits is None else f"ACK credits {aeth.credits}"
    if aeth.kind is wire.AethKind.RNR_NAK:
        return f"RNR-NAK {wire.RNR_TIMER_NS[aeth.value] / 1e6:g} ms"
    if aeth.kind is wire.AethKind.NAK and aeth.value in wire.NakCode.__members__.values():
        return f"NAK {wire.NakCode(aeth.value).name}"
    return f"syndrome {aeth.syndrome:#04x}"


def _mad(mad: wire.Mad) -> str:
    try:
        message = wire.cm_message(mad)
    except wire.DecodeError:
        return f"MAD class {mad.management_class:#x} method {mad.method:#x} attribute {mad.attribute_id:#x}"
    parts = [f"CM {type(message).__name__} id {message.local_comm_id:#x}"]
    if not isinstance(message, wire.REQ):
        parts.append(f"remote id {message.remote_comm_id:#x}")
    if isinstance(message, wire.REQ | wire.REP):
        parts.append(f"qpn {message.local_qpn:#x} start psn {message.starting_psn}")
    if isinstance(message, wire.REQ):
        port = wire.service_port(message.service_id)
        parts.append(f"service {message.service_id:#x}" if port is None else f"port {port}")
    if isinstance(message, wire.REJ):
        known = message.reason in wire.RejectReason.__members__.values()
        parts.append(f"reason {wire.RejectReason(message.reason).name if known else message.reason}")
    return " ".join(parts)


def _details(packet: wire.Packet) -> Iterator[str]:
    """Every header with every field, and the payload in hexadecimal."""
    headers: tuple[object, ...] = ()
    if isinstance(packet, wire.OtherPacket):
        payload = packet.data
    elif isinstance(packet, wire.RawPacket):
        payload, headers = packet.payload, (packet.lrh, packet.rwh)
    else:
        transport = packet.transport
        payload = transport.payload
        if isinstance(packet, wire.RocePacket):
            headers = (packet.link, packet.ip, packet.udp, transport.bth, *transport.headers)
        else:
            headers = (packet.lrh, packet.grh, transport.bth, *transport.headers)
    for header in headers:
        if header is not None:
            yield f"        {header!r}"
    for at in range(0, len(payload), 16):
        row = payload[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"        {at:04x}  {row.hex(' '):47}  {text}"
