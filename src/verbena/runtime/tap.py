"""TAP devices: an Ethernet interface of the operating system whose cable is this process.

What the system sends by the interface is read here, what is written here the system receives (Linux,
Documentation/networking/tuntap.rst).  With offloads the system leaves checksums and the cutting of large messages to
us (``IFF_VNET_HDR``, `wire.offload`), so that 64 KiB of TCP are one frame.

The device is not persistent: it goes when its descriptor is closed, also when the process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from verbena.errors import InvalidAttributeError, SystemLimitError
from verbena.runtime.namespaces import inside
from verbena.wire.offload import PLAIN

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
TUNSETVNETLE, TUNSETCARRIER = 0x400454DC, 0x400454E2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
F_CSUM, F_TSO4, F_TSO6, F_TSO_ECN, F_USO4, F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
OFFLOADS = (F_CSUM | F_TSO4 | F_TSO6 | F_TSO_ECN | F_USO4 | F_USO6, F_CSUM | F_TSO4 | F_TSO6 | F_TSO_ECN)
"""What is asked for, and what kernels before 6.2 have."""
IFA_F_NODAD = 0x02
NUD_PERMANENT = 0x80
LONGEST_NAME = 15
SMALLEST_MTU, LARGEST_MTU = 68, 65_521
"""Of a TAP device in Linux: its frames have 65,535 bytes at most."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 64 << 20
BUFFER = 70_000
"""More than the largest frame with its header: 65,535 bytes of IP, or 65,536 and Ethernet."""

Made = dict[str, Any]


def missing_permission() -> str | None:
    """The first right that making TAP devices and namespaces needs and this process has not; None: it has them all."""
    if not os.path.exists(DEVICE):
        return f"there is no {DEVICE}: load the kernel's module tun, or let the container have the device"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{DEVICE} cannot be opened ({error.strerror}): needs read and write permission for it"
    for number, name, what in ((12, "CAP_NET_ADMIN", "TAP devices"), (21, "CAP_SYS_ADMIN", "namespaces")):
        if not _capabilities() >> number & 1:
            return f"the capability {name} is missing, which making {what} needs: run it as root"
    return None


def keep_memory() -> None:
    """Have the C library keep what large frames were in, instead of giving it back and fetching it page by page."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES >> 3)


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def netlink() -> Any:
    """A netlink socket of the calling thread's namespace; raises `SystemLimitError` without the package pyroute2."""
    try:
        from pyroute2 import IPRoute  # type: ignore[import-untyped]
    except ImportError:
        raise SystemLimitError(
            "interfaces are configured through the package pyroute2: pip install 'verbena[lan]'"
        ) from None
    return IPRoute()


def interface_index(ip: Any, name: str) -> int:
    """The number of an interface; raises `SystemLimitError` where there is none."""
    found = ip.link_lookup(ifname=name)
    if not found:
        raise SystemLimitError(f"there is no interface {name}")
    return int(found[0])


class Tap:
    """A TAP device, up, with its addresses.

    name: of the interface, at most 15 characters.  namespace: the one it is in, which must exist; None: where the
    process is.  mac: 6 octets, None: the kernel chooses.  mtu: 68 to 65,521.  addresses: such as ``10.0.0.1/24`` and
    ``fd00::1/64``.  offload: leave checksums and segmentation to whoever reads.

    Raises `InvalidAttributeError`, and `SystemLimitError` where the system refuses.  `counters`: frames and bytes that
    were read (tx) and written (rx), and what was dropped, as the system sees it.
    """

    def __init__(
        self,
        name: str,
        *,
        namespace: str | None = None,
        mac: bytes | None = None,
        mtu: int = 1500,
        addresses: Sequence[str] = (),
        offload: bool = True,
    ) -> None:
        if not 0 < len(name.encode()) <= LONGEST_NAME or "/" in name or name.strip() != name:
            raise InvalidAttributeError(f"{name!r} is no interface's name: at most {LONGEST_NAME} characters")
        if not SMALLEST_MTU <= mtu <= LARGEST_MTU:
            raise InvalidAttributeError(f"mtu = {mtu}: a TAP device has {SMALLEST_MTU} to {LARGEST_MTU}")
        self.name = name
        self.namespace = namespace
        self.mtu = mtu
        self.offload = offload
        self.counters: Counter[str] = Counter()
        self.fd = -1
        self._head = bytearray(len(PLAIN))
        self._body = bytearray(BUFFER)
        self._view = memoryview(self._body)
        self._parts = [self._head, self._body] if offload else [self._body]
        plain = [_network(address) for address in addresses]
        inside(namespace, lambda: self._open(mac, plain))

    # --- the interface ----------------------------------------------------------------------------------------

    def _open(self, mac: bytes | None, addresses: Sequence[tuple[str, int]]) -> None:
        self.fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._claim()
            with netlink() as ip:
                self._set_up(ip, mac, addresses)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        """Make the device, and say what we do for it."""
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if self.offload else 0)
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", self.name.encode(), flags))
            if not self.offload:
                return
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", len(PLAIN)))
            fcntl.ioctl(self.fd, TUNSETVNETLE, struct.pack("i", 1))
        except OSError as error:
            where = f" in namespace {self.namespace}" if self.namespace else ""
            why = "there is one already" if error.errno in (errno.EBUSY, errno.EEXIST) else error.strerror
            missing = " (needs CAP_NET_ADMIN: run it as root)" if error.errno == errno.EPERM else ""
            raise SystemLimitError(f"TAP device {self.name}{where} cannot be made: {why}{missing}") from None
        for features in OFFLOADS:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.fd, TUNSETOFFLOAD, features)
                return

    def _set_up(self, ip: Any, mac: bytes | None, addresses: Sequence[tuple[str, int]]) -> None:
        index = interface_index(ip, self.name)
        wanted: Made = {"mtu": self.mtu}
        if mac is not None:
            wanted["address"] = mac.hex(":")
        ip.link("set", index=index, **wanted)
        self._announce()
        if self.namespace is not None:
            ip.link("set", index=interface_index(ip, "lo"), state="up")
        ip.link("set", index=index, state="up")
        for address, length in addresses:
            more: Made = {"flags": IFA_F_NODAD} if ":" in address else {}
            ip.addr("add", index=index, address=address, prefixlen=length, **more)

    def _announce(self) -> None:
        """When its address changes, the system shall tell the neighbours (ip-sysctl.rst)."""
        for what in ("ipv4/conf/{}/arp_notify", "ipv6/conf/{}/ndisc_notify"):
            with contextlib.suppress(OSError):
                Path("/proc/sys/net", what.format(self.name)).write_text("1")

    def _configure(self, change: Callable[[Any, int], None]) -> None:
        """Change something of the interface; what it no longer has does not matter."""

        def run() -> None:
            with netlink() as ip:
                change(ip, interface_index(ip, self.name))

        inside(self.namespace, run)

    def set_mac(self, mac: bytes) -> None:
        """Give it another address; the system announces it (gratuitous ARP, unsolicited advertisement)."""
        self._configure(lambda ip, index: ip.link("set", index=index, address=mac.hex(":")))

    def set_carrier(self, on: bool) -> None:
        """Plug its cable in, or pull it."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.fd, TUNSETCARRIER, struct.pack("i", on))

    def forget_neighbour(self, mac: bytes) -> None:
        """Drop what the system has resolved to an address; what was entered by hand stays."""

        def change(ip: Any, index: int) -> None:
            for entry in self._neighbours(ip, index):
                if entry.get("NDA_LLADDR") == mac.hex(":") and not entry["state"] & NUD_PERMANENT:
                    with contextlib.suppress(Exception):
                        ip.neigh("del", index=index, dst=entry["NDA_DST"], family=entry["family"])

        self._configure(change)

    @staticmethod
    def _neighbours(ip: Any, index: int) -> list[dict[str, Any]]:
        found = []
        for message in ip.get_neighbours(ifindex=index):
            found.append({**dict(message["attrs"]), "state": message["state"], "family": message["family"]})
        return found

    def neighbours(self) -> dict[str, str]:
        """The system's ARP and neighbour table of this interface: network address -> Ethernet address."""
        table: dict[str, str] = {}

        def run() -> None:
            with netlink() as ip:
                for entry in self._neighbours(ip, interface_index(ip, self.name)):
                    if "NDA_LLADDR" in entry and not ipaddress.ip_address(entry["NDA_DST"]).is_multicast:
                        table[entry["NDA_DST"]] = entry["NDA_LLADDR"]

        inside(self.namespace, run)
        return table

    # --- frames -----------------------------------------------------------------------------------------------

    def read(self) -> tuple[memoryview, bytes] | None:
        """A frame that the system sends, until the next call, and its virtio_net_hdr; None when there is none."""
        try:
            size = os.readv(self.fd, self._parts)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EBADFD:  # it is being removed
                self.counters["drop.tx.system"] += 1
            return None
        if not self.offload:
            return self._view[:size], PLAIN
        return self._view[: size - len(PLAIN)], bytes(self._head)

    def write(self, frame: bytes | memoryview, header: bytes = PLAIN) -> bool:
        """Hand the system a frame; False, and counted, if it does not take it."""
        try:
            os.writev(self.fd, (header, frame) if self.offload else (frame,))
        except OSError as error:
            why = {errno.EAGAIN: "full", errno.EINVAL: "refused", errno.EIO: "down"}
            self.counters[f"drop.rx.{why.get(error.errno or 0, 'system')}"] += 1
            return False
        return True

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Remove the device."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _network(address: str) -> tuple[str, int]:
    try:
        parsed = ipaddress.ip_interface(address)
    except ValueError:
        raise InvalidAttributeError(
            f"{address!r} is no address of an interface: write for example 10.0.0.1/24"
        ) from None
    return str(parsed.ip), parsed.network.prefixlen
