"""Both ends of a connection by hand: what an end tells of itself, and the way to what the other one told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from verbena.adapter.attributes import AddressVector, Endpoint
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.errors import InvalidAttributeError

if TYPE_CHECKING:
    from verbena.verbs.context import Context


class Connectable:
    """A queue pair or an end-to-end context: what can be connected to another one by hand."""

    context: Context
    _engine: Any
    _psn: int

    @property
    def _number(self) -> int:
        """The number by which the peer names it, 24 bits."""
        raise NotImplementedError

    def _checked(self) -> int:
        """Its place in the adapter's tables; raises `ClosedError` when it is closed."""
        raise NotImplementedError

    @property
    def endpoint(self) -> Endpoint:
        """What the peer needs to know to connect by hand: send it there by any means.

        `qp_num` is the number of the queue pair, or of the end-to-end context.
        """
        return self.endpoint_at(self._port())

    def endpoint_at(self, port_num: int = 1, *, path_bits: int = 0, gid_index: int = 0) -> Endpoint:
        """`endpoint`, for one of several ports, LIDs and GIDs; what is chosen here is to be used in `connect`, too.

        path_bits chooses one of the port's LIDs, gid_index one of its GIDs.  Raises `InvalidAttributeError` for one
        that the port has not.
        """
        self._checked()
        port = self.context.query_port(port_num)
        if not 0 <= path_bits < 1 << port.lmc:
            raise InvalidAttributeError(f"path_bits = {path_bits}: port {port_num} has {1 << port.lmc} LIDs")
        gid = self.context.query_gid(port_num, gid_index)
        return Endpoint(gid, self._number, self._psn, port.lid + path_bits if port.lid else 0)

    def _port(self) -> int:
        """The number of the port that it was given, or 1."""
        return int(self._engine.attributes(self._checked())["port"]) or 1


def vector_to(
    adapter: ChannelAdapter,
    remote: Endpoint,
    *,
    port_num: int,
    sl: int,
    src_path_bits: int,
    sgid_index: int,
    dlid: int | None,
    is_global: bool | None,
    traffic_class: int,
    hop_limit: int,
) -> AddressVector:
    """The way to an endpoint; dlid: by default the endpoint's.

    Raises `PortStateError` when an InfiniBand port is not ACTIVE or has no LID, `InvalidAttributeError` for what is no
    endpoint.
    """
    if not isinstance(remote, Endpoint):
        raise InvalidAttributeError(
            f"remote: the peer's Endpoint is needed (its endpoint), not {type(remote).__name__}"
        )
    if adapter.native is not None:
        adapter.native.require_active(port_num)
    return AddressVector(
        gid=remote.gid,
        traffic_class=traffic_class,
        hop_limit=hop_limit,
        port_num=port_num,
        sl=sl,
        src_path_bits=src_path_bits,
        sgid_index=sgid_index,
        dlid=remote.lid if dlid is None else dlid,
        is_global=is_global,
    )
