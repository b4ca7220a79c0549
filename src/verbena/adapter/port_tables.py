"""What is asked of an adapter's ports, whether there is one on Ethernet or several on InfiniBand."""

from __future__ import annotations

from dataclasses import replace

from verbena.adapter.attributes import AddressVector, PortAttributes
from verbena.adapter.gid import Gid
from verbena.adapter.native import NativePorts
from verbena.adapter.port import FULL_MEMBER, AdapterPort
from verbena.errors import InvalidAttributeError


class PortTables:
    """The ports' side of a `ChannelAdapter`: `native` has the InfiniBand ports, if there are any."""

    native: NativePorts | None
    _gids: tuple[Gid, ...]  # those of the Ethernet port
    _active_mtu: int

    @property
    def ports(self) -> tuple[AdapterPort, ...]:
        """The InfiniBand ports; none on Ethernet."""
        return () if self.native is None else self.native.ports

    @property
    def gid(self) -> Gid:
        """The first GID of port 1."""
        return self._gids[0] if self.native is None else self.native.ports[0].gids[0]

    @property
    def gids(self) -> tuple[Gid, ...]:
        """The GID table of port 1."""
        return self.gid_table(1)

    @property
    def pkeys(self) -> tuple[int, ...]:
        """The P_Key table of port 1."""
        return self.pkey_table(1)

    @property
    def active_mtu(self) -> int:
        """The MTU of port 1, in bytes."""
        return self.mtu_of(1)

    def link_engines(self) -> range:
        """The link-level engines, for management only: they have no names, and are enumerated (document 003:606)."""
        return range(len(self.ports))

    def gid_table(self, number: int) -> tuple[Gid, ...]:
        """The GIDs of a port."""
        return self._gids if self.native is None else self.native.port(number).gids

    def pkey_table(self, number: int) -> tuple[int, ...]:
        """The P_Keys of a port; 0 is an empty entry."""
        return (FULL_MEMBER,) if self.native is None else self.native.port(number).pkeys

    def mtu_of(self, number: int) -> int:
        """The active MTU of a port, in bytes."""
        return self._active_mtu if self.native is None else self.native.port(number).mtu

    def vector_to(self, gid: Gid, *, hop_limit: int, traffic_class: int, flow_label: int) -> AddressVector:
        """The way to a GID; raises `InvalidAttributeError` where an InfiniBand adapter knows none (yet)."""
        vector = AddressVector(gid) if self.native is None else self.native.neighbours.vector_to(gid)
        return replace(vector, hop_limit=hop_limit, traffic_class=traffic_class, flow_label=flow_label)

    def port_attributes(self, number: int) -> PortAttributes:
        """Raises `InvalidAttributeError` for a port that the adapter has not."""
        if self.native is not None:
            return self.native.attributes(number)
        if number != 1:
            raise InvalidAttributeError(f"port {number}: this adapter has port 1 only")
        return PortAttributes(
            state="ACTIVE",
            max_mtu=4096,
            active_mtu=self.active_mtu,
            gid_tbl_len=len(self.gids),
            pkey_tbl_len=len(self.pkeys),
        )
