"""What the kernel tells of an interface, and a shaper on it, by a netlink socket (Linux, rtnetlink(7), tc-tbf(8)).

Messages are packed here: a shaper's rate is changed many times a second, and its socket belongs to the namespace in
which it was made, whichever thread uses it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from verbena.errors import SystemLimitError
from verbena.runtime.namespaces import inside

RTM_NEWLINK, RTM_GETLINK, RTM_NEWQDISC, RTM_GETQDISC = 16, 18, 36, 38
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, REPLACE, CREATE, DUMP = 0x1, 0x4, 0x100, 0x400, 0x300
IFLA_TXQLEN, IFLA_STATS64 = 13, 23
TCA_KIND, TCA_OPTIONS, TCA_STATS2 = 1, 2, 7
TCA_STATS_QUEUE = 3
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TC_H_ROOT = 0xFFFFFFFF
OUR_HANDLE = 1 << 16
LINKLAYER_ETHERNET = 1
_HEADER = struct.Struct("=IHHII")
_TC = struct.Struct("=BBHiIII")
_LINK = struct.Struct("=BBHiII")
_STATS = struct.Struct("=8Q")
_QUEUE = struct.Struct("=5I")
"""gnet_stats_queue: qlen, backlog, drops, requeues, overlimits."""
LARGEST_ANSWER = 1 << 17
MOST_RATE32 = (1 << 32) - 1


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += size + 3 & ~3


class LinkControl:
    """An interface's queue length, shaper and counters.

    Raises `SystemLimitError` where there is no such interface, or the kernel refuses.
    """

    def __init__(self, name: str, namespace: str | None = None) -> None:
        self.name = name
        self._sequence = 0
        self._sock, self._index = inside(namespace, self._open)

    def _open(self) -> tuple[socket.socket, int]:
        try:
            index = socket.if_nametoindex(self.name)
        except OSError:
            raise SystemLimitError(f"there is no interface {self.name}") from None
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        sock.bind((0, 0))
        sock.settimeout(5)
        return sock, index

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> list[tuple[int, bytes]]:
        """Send a request; (kind, body) of what comes before the acknowledgement."""
        self._sequence += 1
        size = _HEADER.size + len(body)
        self._sock.send(_HEADER.pack(size, kind, REQUEST | flags, self._sequence, 0) + body)
        found: list[tuple[int, bytes]] = []
        while True:
            answer = self._sock.recv(LARGEST_ANSWER)
            at = 0
            while at + _HEADER.size <= len(answer):
                size, kind, _, sequence, _ = _HEADER.unpack_from(answer, at)
                data = answer[at + _HEADER.size : at + size]
                at += max(size, _HEADER.size) + 3 & ~3
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", data)[0]
                    if number:
                        why = os.strerror(number) + (" (needs CAP_NET_ADMIN)" if number == 1 else "")
                        raise SystemLimitError(f"interface {self.name}: {what}: {why}")
                    return found
                found.append((kind, data))

    def set_queue_length(self, frames: int) -> None:
        """How many frames the device itself keeps (for a TAP device: until somebody reads them)."""
        body = _LINK.pack(0, 0, 0, self._index, 0, 0) + _attribute(IFLA_TXQLEN, struct.pack("=I", frames))
        self._ask(RTM_NEWLINK, ACK, body, f"its queue cannot have {frames} frames")

    def shape(self, rate: int, burst: int, limit: int, overhead: int = 0) -> None:
        """Let no more than `rate` bytes/s through, in bursts of `burst` bytes; up to `limit` bytes wait.

        overhead: bytes that each frame counts more than it has.

        The first call puts a token bucket filter at the interface's root; further ones change it: what waits stays.
        """
        first = min(rate, MOST_RATE32)
        spec = struct.pack("=BBHhHI", 0, LINKLAYER_ETHERNET, overhead, -1, 0, first)
        options = _attribute(TCA_TBF_PARMS, spec + bytes(12) + struct.pack("=III", limit, 0, 0))
        options += _attribute(TCA_TBF_BURST, struct.pack("=I", burst))
        options += _attribute(TCA_TBF_RATE64, struct.pack("=Q", rate))
        body = _TC.pack(0, 0, 0, self._index, OUR_HANDLE, TC_H_ROOT, 0)
        body += _attribute(TCA_KIND, b"tbf\0") + _attribute(TCA_OPTIONS, options)
        self._ask(RTM_NEWQDISC, ACK | CREATE | REPLACE, body, "the shaper (tbf) cannot be set")

    def counters(self) -> dict[str, int]:
        """What the kernel dropped: frames on the way to us, on the way from us, and in its queueing discipline."""
        found = {"dropped_to_switch": 0, "dropped_from_switch": 0, "dropped_in_qdisc": 0}
        body = _LINK.pack(0, 0, 0, self._index, 0, 0)
        for _, data in self._ask(RTM_GETLINK, ACK, body, "it cannot be asked"):
            for kind, value in _attributes(data[_LINK.size :]):
                if kind == IFLA_STATS64 and len(value) >= _STATS.size:
                    stats = _STATS.unpack_from(value)
                    found["dropped_from_switch"], found["dropped_to_switch"] = stats[6], stats[7]
        for _, data in self._ask(RTM_GETQDISC, DUMP, _TC.pack(0, 0, 0, self._index, 0, 0, 0), "its qdisc"):
            if _TC.unpack_from(data)[3] == self._index:
                found["dropped_in_qdisc"] += _qdisc_drops(data[_TC.size :])
        return found

    def close(self) -> None:
        self._sock.close()


def _qdisc_drops(data: bytes) -> int:
    for kind, value in _attributes(data):
        if kind == TCA_STATS2:
            for inner, stats in _attributes(value):
                if inner == TCA_STATS_QUEUE and len(stats) >= _QUEUE.size:
                    return int(_QUEUE.unpack_from(stats)[2])
    return 0
