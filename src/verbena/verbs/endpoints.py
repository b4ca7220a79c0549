"""Both ends of a connection by hand: what an end tells of itself, and the way to what the other one told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verbena.adapter.attributes import AddressVector, Endpoint
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.errors import InvalidAttributeError

if TYPE_CHECKING:
    from verbena.verbs.context import Context


def endpoint_at(
    context: Context, number: int, psn: int, port_num: int, path_bits: int, gid_index: int
) -> Endpoint:
    """What the peer needs to know of a queue pair, or an end-to-end context, of that number.

    path_bits chooses one of the port's LIDs, gid_index one of its GIDs.  Raises `InvalidAttributeError` for one that
    the port has not.
    """
    port = context.query_port(port_num)
    if not 0 <= path_bits < 1 << port.lmc:
        raise InvalidAttributeError(f"path_bits = {path_bits}: port {port_num} has {1 << port.lmc} LIDs")
    gid = context.query_gid(port_num, gid_index)
    return Endpoint(gid, number, psn, port.lid + path_bits if port.lid else 0)


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
