"""A host in a process of its own: joins a fabric that listens, and opens its adapter.

`open_fabric_device` is all that programs need.  A thread keeps the connection to the fabric's process: when that one
ends, the links go down at once; when it listens again, the host joins again, and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from verbena.adapter.attributes import DeviceAttributes
from verbena.errors import SystemLimitError, VerbenaError
from verbena.fabric.topology import PortId
from verbena.runtime.hello import Welcome, ask
from verbena.runtime.link_end import LinkTimes
from verbena.runtime.real_fabric import START_S, RealFabric, parse_address
from verbena.runtime.udp_socket import bound
from verbena.transport.kinds import AckPolicy
from verbena.verbs.context import Context

log = logging.getLogger("verbena")
AGAIN_S = 0.5


class HostFabric:
    """The part of a fabric that is in a host's process: its adapter, and the ends of its cables.

    name: of the host's node.  at: where the fabric listens.  times: of the links; by default those that the fabric
    says.  seed: of the adapter's random choices; by default they cannot be guessed.
    """

    def __init__(
        self,
        name: str,
        at: tuple[str, int],
        *,
        timeout: float = START_S,
        times: LinkTimes | None = None,
        seed: int | None = None,
    ) -> None:
        self.name = name
        self.at = at
        self._sock = bound(_own_address(at))
        try:
            self._connection, told = ask(at, name, self._sock.getsockname()[1], timeout)
        except BaseException:
            self._sock.close()
            raise
        self._node = told.topology.nodes[name]
        self.fabric = RealFabric(
            told.topology,
            local=[name],
            sock=self._sock,
            times=times or told.times,
            seed=seed,
            options=told.options,
            managers=None,
        )
        self._ended = threading.Event()
        self.fabric.start()
        self._attach(told)
        self._thread = threading.Thread(target=self._keep, name=f"verbena join {name}", daemon=True)
        self._thread.start()

    def _attach(self, told: Welcome) -> None:
        where = (self._connection.getpeername()[0], told.port)
        with self.fabric.loop.held():
            for number, token in told.tokens.items():
                self.fabric.cables.attach(PortId(self.name, number), token, where)

    def _keep(self) -> None:
        """The body of the thread that keeps the connection."""
        while not self._ended.is_set():
            self._until_it_ends()
            with self.fabric.loop.held():
                self.fabric.cables.detach(list(self.fabric.cables.cables))
            while not self._ended.wait(AGAIN_S):
                if self._again():
                    break

    def _until_it_ends(self) -> None:
        with contextlib.suppress(OSError):
            while self._connection.recv(4096):
                pass
        self._connection.close()

    def _again(self) -> bool:
        """Join again; False if that is not possible (yet)."""
        try:
            connection, told = ask(self.at, self.name, self._sock.getsockname()[1], 5.0)
        except (VerbenaError, OSError) as error:
            log.debug("%s cannot join again: %s", self.name, error)
            return False
        node = told.topology.nodes[self.name]
        if (node.guid, node.ports) != (self._node.guid, self._node.ports):
            log.warning("the fabric at %s:%d has another host %s now", *self.at, self.name)
            connection.close()
            return False
        self._connection = connection
        self._attach(told)
        return True

    def close(self) -> None:
        """Leave."""
        self._ended.set()
        self.fabric.close()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5.0)
        self._connection.close()

    def abandon(self) -> None:
        """In the child of a fork: only the parent's end shall be the connection's end."""
        self._ended.set()
        self._connection.close()


def _own_address(at: tuple[str, int]) -> tuple[str, int]:
    """The local address that leads there, with a free port."""
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(at)
        except OSError as error:
            raise SystemLimitError(f"no way leads to {at[0]}: {error.strerror or error}") from None
        return probe.getsockname()[0], 0


_opened: WeakKeyDictionary[Context, HostFabric] = WeakKeyDictionary()


def _after_fork() -> None:
    """As for adapters on UDP: in the child of a fork they are closed."""
    for context, joined in list(_opened.items()):
        context.abandon()
        joined.abandon()
    _opened.clear()


os.register_at_fork(after_in_child=_after_fork)


def open_fabric_device(
    name: str,
    at: str = "127.0.0.1:18600",
    *,
    timeout: float = START_S,
    limits: DeviceAttributes | None = None,
    window_bytes: int = 1 << 20,
    ack_policy: AckPolicy = AckPolicy.COALESCED,
    times: LinkTimes | None = None,
    seed: int | None = None,
    tap: Callable[[PortId, bytes], None] | None = None,
) -> Context:
    """Open a host's channel adapter on a fabric that another process runs (``verbena fabric FILE --listen``).

    name: of the host's node.  at: where the fabric listens, such as ``127.0.0.1:18600``.  timeout: seconds until a
    subnet manager has configured a port.  limits, window_bytes, ack_policy: of the adapter.  times: of the links over
    datagrams; by default those that the fabric says.  seed: of packet numbers, keys and other random choices; by
    default they cannot be guessed.  tap: is shown every packet that the host sends, LRH to ICRC, with the port it
    leaves by; called from several threads, one at a time.

    When the fabric's process ends, the ports go down (PORT_ERR); when it listens again, they come back.

    Raises `SystemLimitError` when nobody listens there, when the fabric refuses the name or speaks another version, and
    when the time is over; `InvalidAttributeError`.
    """
    start = time.monotonic()
    joined = HostFabric(name, parse_address(at), timeout=timeout, times=times, seed=seed)
    joined.fabric.tap = tap
    try:
        context = joined.fabric.open_device(
            name,
            limits=limits,
            window_bytes=window_bytes,
            ack_policy=ack_policy,
            timeout=max(0.0, timeout - (time.monotonic() - start)),
        )
    except BaseException:
        joined.close()
        raise
    joined.fabric.drivers[name].at_end(joined.close)
    _opened[context] = joined
    return context
