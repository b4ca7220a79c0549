"""An ordinary interface, with a cable of its own, by a packet socket (Linux, packet(7)): a bridge's Ethernet side.

Everything on its cable is read, whoever it is for, but not what this machine itself sends by it; what is written goes
out on the cable.  With a ``virtio_net_hdr`` (PACKET_VNET_HDR), frames that the interface has not cut yet, or that it
has put together, cross whole.  A VLAN tag that the interface or the kernel has taken off is put back.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import Counter

from verbena.errors import SystemLimitError
from verbena.runtime.namespaces import inside
from verbena.runtime.tap import BUFFER, Made, interface_index, netlink
from verbena.wire.offload import PLAIN, OffloadHeader

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 1, 8, 15, 23
PACKET_MR_PROMISC = 1
PACKET_STATISTICS = 6
STATISTICS = struct.Struct("=II")
"""tpacket_stats: packets, drops; reading sets both to 0."""
REFUSALS = {
    errno.EAGAIN: "full",
    errno.ENOBUFS: "full",
    errno.EMSGSIZE: "too_long",
    errno.ENETDOWN: "down",
}
STATUS_VLAN, STATUS_VLAN_TPID = 1 << 4, 1 << 6
AUXDATA = struct.Struct("=IIIHHHH")
"""tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid."""
ADDRESSES = 12
TAG = 4


class PacketInterface:
    """An interface that exists.  Implements `interfaces.Interface`.

    name, namespace: which.  Raises `SystemLimitError` where it is not there, or the right to open packet sockets is
    missing.
    """

    def __init__(self, name: str, *, namespace: str | None = None, offload: bool = True) -> None:
        self.name = name
        self.namespace = namespace
        self.offload = offload
        self.counters: Counter[str] = Counter()
        self.mtu = 1500
        self._buffer = bytearray(len(PLAIN) + TAG + BUFFER)
        self._view = memoryview(self._buffer)
        self._front = len(PLAIN) if offload else 0
        self._sock = inside(namespace, self._open)

    def _open(self) -> socket.socket:
        with netlink() as ip:
            index = interface_index(ip, self.name)
            wanted: Made = {"index": index, "state": "up"}
            ip.link("set", **wanted)
            self.mtu = dict(ip.get_links(index)[0]["attrs"])["IFLA_MTU"]
        try:
            sock = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
            )
        except PermissionError:
            raise SystemLimitError(
                f"interface {self.name} cannot be read: needs CAP_NET_RAW, run it as root"
            ) from None
        try:
            self._set_up(sock, index)
        except OSError as error:
            sock.close()
            raise SystemLimitError(f"interface {self.name} cannot be used: {error.strerror}") from None
        return sock

    def _set_up(self, sock: socket.socket, index: int) -> None:
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if self.offload:
            sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.bind((self.name, ETH_P_ALL))
        request = struct.pack("iHH8x", index, PACKET_MR_PROMISC, 0)
        sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)

    def read(self) -> tuple[memoryview, bytes] | None:
        """A frame from the cable, until the next call, and its virtio_net_hdr; None when there is none."""
        try:
            size, extra, _, _ = self._sock.recvmsg_into([self._view[TAG:]], socket.CMSG_SPACE(AUXDATA.size))
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                self.counters["drop.tx.system"] += 1
            return None
        start = TAG + self._front
        header = bytes(self._view[TAG:start]) if self.offload else PLAIN
        for level, kind, data in extra:
            if level == SOL_PACKET and kind == PACKET_AUXDATA and len(data) >= AUXDATA.size:
                status, *_, tci, tpid = AUXDATA.unpack_from(data)
                if status & STATUS_VLAN and size >= self._front + ADDRESSES:
                    header = self._put_tag(start, tci, tpid if status & STATUS_VLAN_TPID else 0x8100, header)
                    return self._view[start - TAG : TAG + size], header
        return self._view[start : TAG + size], header

    def _put_tag(self, start: int, tci: int, tpid: int, header: bytes) -> bytes:
        """Put the tag back behind the addresses, which move to the front; the header then counts it, too."""
        buffer = self._buffer
        buffer[start - TAG : start - TAG + ADDRESSES] = buffer[start : start + ADDRESSES]
        struct.pack_into(">HH", buffer, start - TAG + ADDRESSES, tpid, tci)
        if header == PLAIN:
            return header
        parsed = OffloadHeader.unpack(header)
        return OffloadHeader(
            parsed.flags,
            parsed.segmentation,
            parsed.header_size + TAG if parsed.header_size else 0,
            parsed.segment_size,
            parsed.checksum_start + TAG if parsed.flags & 1 else 0,
            parsed.checksum_offset,
        ).pack()

    def write(self, frame: bytes, header: bytes = PLAIN) -> bool:
        """Send a frame on the cable; False, and counted, if it does not go."""
        number = self.send(frame, header)
        if number:
            self.refuse(number)
        return not number

    def send(self, frame: bytes, header: bytes = PLAIN) -> int:
        """Send a frame on the cable; 0, or the number of the error, which nobody has counted yet."""
        try:
            self._sock.sendmsg((header, frame) if self.offload else (frame,))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def refuse(self, number: int) -> None:
        """Count a frame that did not go, by the number of the error."""
        self.counters[f"drop.rx.{REFUSALS.get(number, 'refused')}"] += 1

    def missed(self) -> int:
        """Frames from the cable that the kernel dropped because nobody read them, since the last call."""
        try:
            found = self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size)
        except OSError:
            return 0
        return int(STATISTICS.unpack(found)[1])

    def set_mac(self, mac: bytes) -> None:
        """An interface with a cable keeps its own address."""

    def set_carrier(self, on: bool) -> None:
        """Its cable is not ours."""

    def forget_neighbour(self, mac: bytes) -> None:
        """What the system has resolved is none of a bridge's business."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()
