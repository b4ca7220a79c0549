"""Registrations of raw queue pairs for protocols (document 003:555)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verbena.adapter.gid import Gid
from verbena.errors import InvalidAttributeError
from verbena.transport.kinds import QPType

if TYPE_CHECKING:
    from verbena.verbs.queue_pair import QueuePair


class ProtocolRegistration:
    """A raw queue pair gets the packets of a protocol.  Made by `Context.register_protocol`; a context manager.

    Ends with `close`, and with the queue pair.  protocol: next header or EtherType, None = any.  address: the IPv6
    destination, None = any.
    """

    def __init__(self, qp: QueuePair, protocol: int | None, address: Gid | None) -> None:
        self.qp = qp
        self.protocol = protocol
        self.address = address
        self._engine = qp.context.adapter.engine
        with self._engine:
            self._engine.register_client(qp.checked(), protocol, None if address is None else address.raw)
            self._open = True

    def close(self) -> None:
        """No longer."""
        with self._engine:
            if self._open and self.qp.is_open:
                address = None if self.address is None else self.address.raw
                self._engine.unregister_client(self.qp.checked(), self.protocol, address)
            self._open = False

    def __enter__(self) -> ProtocolRegistration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ProtocolRegistration {self.protocol} at {self.address} for queue pair {self.qp.qp_num:#x}>"


def protocol_of(
    qp_type: QPType, next_header: int | None, address: Gid | str | None, ethertype: int | None
) -> tuple[int | None, Gid | None]:
    """What `Context.register_protocol` was given, for a queue pair of that type.  Raises `InvalidAttributeError`."""
    if isinstance(address, str):
        address = Gid.from_ip(address)
    if address is not None and (not isinstance(address, Gid) or address.is_ip4):
        raise InvalidAttributeError(f"address = {address!s}: an IPv6 address is needed, or None for any")
    if qp_type is QPType.RAW_IPV6:
        if ethertype is not None:
            raise InvalidAttributeError(
                "ethertype is for RAW_ETHERTYPE queue pairs: give next_header, address"
            )
        return next_header, address
    if qp_type is QPType.RAW_ETHERTYPE:
        if next_header is not None or address is not None:
            raise InvalidAttributeError("next_header, address are for RAW_IPV6 queue pairs: give ethertype")
        return ethertype, None
    raise InvalidAttributeError(
        f"a {qp_type.name} queue pair takes packets by its number: only raw ones (RAW_IPV6, RAW_ETHERTYPE) register"
    )
