"""The two packet checksums of InfiniBand: the invariant and the variant CRC.

ICRC (IBA vol. 1, 7.8.1; RoCEv2 annex A17.3.3): the CRC-32 of Ethernet over everything that no switch or
router may change; what they may change counts as ones.  VCRC (7.8.2): a CRC-16 over all of a native packet.
Both are given as the number that the standard prints, first wire byte highest (sample packet: 0x9625B75A).
"""

from __future__ import annotations

from verbena.wire.errors import EncodeError
from verbena.wire.layout import Buffer

try:
    from isal.isal_zlib import crc32
except ImportError:  # the library is fast, not necessary
    from zlib import crc32

ICRC_SIZE = 4
VCRC_SIZE = 2
_IPV4_UDP, _IPV6_UDP = 28, 48
_LRH, _GRH = 8, 40
_BTH = 12
_NO_LRH = b"\xff" * 8
"""RoCE packets have no LRH; eight bytes of ones stand for it (annex A17.3.3)."""


def icrc_start(ip_udp: Buffer) -> int:
    """The running CRC-32 after what precedes the BTH in RoCEv2: IPv4 and UDP (28 bytes) or IPv6 and UDP (48).

    Continue it with `icrc_finish`, or with `crc32(data, start)` over the bytes from a BTH on, whose byte 4 is
    0xFF: `.to_bytes(4, "little")` of the result is what travels.
    """
    head = bytearray(ip_udp)
    if len(head) == _IPV4_UDP:
        head[1] = head[8] = head[10] = head[11] = 0xFF  # type of service, time to live, header checksum
    elif len(head) == _IPV6_UDP:
        head[0] |= 0x0F  # traffic class and flow label
        head[1] = head[2] = head[3] = head[7] = 0xFF  # ... and hop limit
    else:
        raise EncodeError(f"IP and UDP headers have {len(head)} bytes; it is 28 for IPv4, 48 for IPv6")
    head[-2] = head[-1] = 0xFF  # UDP checksum
    return crc32(head, crc32(_NO_LRH))


def icrc_finish(start: int, body: Buffer) -> int:
    """The ICRC from a running CRC-32 and `body`: BTH, extended headers, payload, pad."""
    view = memoryview(body)
    bth = bytearray(view[:_BTH])
    bth[4:5] = b"\xff"  # FECN, BECN and the reserved bits
    return int.from_bytes(crc32(view[_BTH:], crc32(bth, start)).to_bytes(4, "little"), "big")


def roce_icrc(ip_udp: Buffer, body: Buffer) -> int:
    """ICRC of a RoCEv2 packet: its IP and UDP headers as they travel, and BTH ... pad (annex A17.3.3)."""
    return icrc_finish(icrc_start(ip_udp), body)


def native_icrc(route: Buffer, body: Buffer) -> int:
    """ICRC of a native packet: LRH or LRH and GRH as they travel, and BTH ... pad (IBA vol. 1, 7.8.1)."""
    head = bytearray(route)
    if len(head) not in (_LRH, _LRH + _GRH):
        raise EncodeError(f"route headers have {len(head)} bytes; it is 8 for LRH, 48 for LRH and GRH")
    if len(head) == _LRH:
        head[0] |= 0xF0  # virtual lane
    else:
        head[:_LRH] = _NO_LRH  # a router makes a new LRH
        head[8] |= 0x0F  # GRH: traffic class and flow label
        head[9] = head[10] = head[11] = head[15] = 0xFF  # ... and hop limit
    return icrc_finish(crc32(head), body)


def _vcrc_table() -> tuple[int, ...]:
    reflected = int(f"{0x100B:016b}"[::-1], 2)
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (reflected if value & 1 else 0)
        table.append(value)
    return tuple(table)


_VCRC_TABLE = _vcrc_table()


def vcrc(packet: Buffer) -> int:
    """VCRC over LRH ... ICRC: CRC-16 with polynomial 0x100B, bits of a byte from the lowest, complemented."""
    crc = 0xFFFF
    table = _VCRC_TABLE
    for byte in bytes(packet):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return int.from_bytes((crc ^ 0xFFFF).to_bytes(2, "little"), "big")
