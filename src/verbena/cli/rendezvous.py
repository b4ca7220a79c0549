"""How the two ends of a command find each other: a TCP connection beside the fabric, and the adapters' addresses.

Queue pairs are connected by hand-exchanged attributes (IBA vol. 1, 12.1, leaves the means open); the commands use a
TCP connection for that, as the tools of rdma-core and perftest do.  What can go wrong here ends in one sentence.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from verbena.adapter.gid import Gid
from verbena.errors import ConnectError, ConnectionTimeout, SystemLimitError
from verbena.runtime.udp import open_device
from verbena.verbs.context import Context

CONNECT_TIMEOUT = 10.0
CLOSED = "the peer closed the TCP connection before the exchange was complete"


def listen(port: int, address: str | None = None) -> socket.socket:
    """A listening socket on all addresses (IPv6 and IPv4), or on one; raises `SystemLimitError`."""
    try:
        if address is None and socket.has_dualstack_ipv6():
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=8)
        is_ip6 = address is not None and ":" in address
        family = socket.AF_INET6 if is_ip6 else socket.AF_INET
        return socket.create_server((address or "0.0.0.0", port), family=family, backlog=8)
    except OSError as error:
        where = f"TCP port {port}" if address is None else f"TCP {address} port {port}"
        raise SystemLimitError(f"{where} {_why_not(error)}") from None


def _why_not(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "is in use: choose another with -p"
        case errno.EADDRNOTAVAIL:
            return "is not available: the address is not one of this machine's"
        case errno.EACCES:
            return "is not permitted: choose one above 1023 with -p"
    return f"cannot be had: {error.strerror or error}"


def accept(listener: socket.socket, timeout: float) -> socket.socket:
    """The next client; `timeout` is how long each later read or write may take, in seconds."""
    sock, _ = listener.accept()
    sock.settimeout(timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """Connect to a server; raises `ConnectError` that says why it is not there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else "it is no host name"
        raise ConnectError(f"the host {host!r} cannot be resolved: {why}") from None
    # A machine has one IPv6 loopback address but many of IPv4, and each end needs its own.
    found.sort(key=lambda entry: entry[4][0] == "::1")
    failure: OSError | None = None
    for family, kind, protocol, _, name in found:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(min(timeout, CONNECT_TIMEOUT))
        try:
            sock.connect(name)
        except OSError as error:
            sock.close()
            failure = failure or error
            continue
        sock.settimeout(timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    if isinstance(failure, ConnectionRefusedError):
        raise ConnectError(f"nobody listens at {host} port {port}: start the server there first")
    if isinstance(failure, TimeoutError):
        raise ConnectionTimeout(f"{host} port {port} does not answer")
    why = failure.strerror if failure else "it has no address"
    raise ConnectError(f"no connection to {host} port {port}: {why}")


def receive(sock: socket.socket, size: int, closed: str = CLOSED) -> bytes:
    """Exactly `size` bytes; raises `ConnectError` when the peer closes or keeps silent."""
    data = b""
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except TimeoutError:
            raise ConnectionTimeout(f"the peer at {peer_address(sock)} keeps silent") from None
        except OSError:
            part = b""
        if not part:
            raise ConnectError(closed)
        data += part
    return data


def send(sock: socket.socket, data: bytes) -> None:
    """Send all of it; raises `ConnectError`."""
    try:
        sock.sendall(data)
    except OSError:
        raise ConnectError(CLOSED) from None


# --- which address the adapter gets -----------------------------------------------------------------------------


def _plain(name: tuple[object, ...]) -> str:
    """The IP address of a socket name: IPv4 out of its mapped form, link-local IPv6 with its scope."""
    host = str(name[0]).split("%")[0]
    ip = ipaddress.ip_address(host)
    if ip.version == 6 and ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    if ip.is_link_local and len(name) == 4 and name[3]:
        return f"{host}%{socket.if_indextoname(int(str(name[3])))}"
    return host


def own_address(sock: socket.socket) -> str:
    """This end's IP address."""
    return _plain(sock.getsockname())


def peer_address(sock: socket.socket) -> str:
    """The other end's IP address."""
    try:
        return _plain(sock.getpeername())
    except OSError:
        return "unknown address"


def address_towards(gid: Gid) -> str:
    """The local address from which packets to a GID would leave; raises `ConnectError` without a route."""
    family = socket.AF_INET if gid.is_ip4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(gid.ip), 4791))
        except OSError as error:
            raise ConnectError(f"no route to the peer's GID {gid}: {error.strerror}") from None
        return _plain(probe.getsockname())


def open_client(sock: socket.socket, address: str | None) -> Context:
    """The client's adapter: at `address`, or at the one that routes to the server."""
    if address is not None:
        return open_device(address)
    own, peer = own_address(sock), peer_address(sock)
    if own != peer:
        return open_device(own)
    ip = ipaddress.ip_address(peer)
    if ip.version == 6 or not ip.is_loopback:
        raise SystemLimitError(
            f"{peer} is this machine's own address, and each end needs one of its own: give another with -d"
        )
    # A peer on this machine has that address; IPv4 has more of them on loopback.
    candidates = [other for n in range(1, 10) if (other := f"127.0.0.{n}") != peer]
    for candidate in candidates[:-1]:
        try:
            return open_device(candidate)
        except SystemLimitError:
            continue
    return open_device(candidates[-1])


def open_server(sock: socket.socket, client: Gid) -> Context:
    """The server's adapter: where the client's TCP connection arrived, or where its GID is reached from."""
    own = own_address(sock)
    if client == Gid.from_ip(peer_address(sock)):
        return open_device(own)
    towards = address_towards(client)
    # A client on this machine is reached from its own address; it has asked for this end at another.
    is_here = Gid.from_ip(towards) == client or client.ip.is_loopback
    return open_device(own if is_here else towards)
