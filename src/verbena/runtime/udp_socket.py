"""UDP sockets that links, overlays and adapters are made of: bound, never blocking, with large buffers."""

from __future__ import annotations

import socket

from verbena.errors import SystemLimitError

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SOCKET_BUFFER = 16 << 20


def enlarge(sock: socket.socket, size: int = SOCKET_BUFFER) -> None:
    """Large buffers: beyond the system's limit if this process may, else up to it."""
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, size)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, size)


def udp_text(address: tuple[str, int]) -> str:
    """An address and a port as people write them: ``192.0.2.1:4789``, ``[2001:db8::1]:4789``."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound(address: tuple[str, int]) -> socket.socket:
    """A socket at an address; raises `SystemLimitError`."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise SystemLimitError(f"UDP {udp_text(address)} cannot be had: {error.strerror}") from None
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise SystemLimitError(f"UDP {udp_text(address)} cannot be had: {error.strerror}") from None
    enlarge(sock)
    return sock
