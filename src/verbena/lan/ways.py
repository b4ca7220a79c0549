"""Ways to a peer's datagram queue pair: address handles, with what the connection manager needs beside them."""

from __future__ import annotations

from verbena.adapter.attributes import AddressVector
from verbena.adapter.gid import UNSPECIFIED, Gid
from verbena.management.datagrams import MadAddress
from verbena.verbs.memory import AddressHandle, ProtectionDomain
from verbena.wire.sa_records import PathRecord


class Way:
    """One path to one port, or to a group.  Closed by whoever has made it.

    qpn: of the queue pair at the other end, 0 as long as it is not known.
    """

    __slots__ = ("handle", "mtu", "qpn", "vector")

    def __init__(self, domain: ProtectionDomain, vector: AddressVector, mtu: int, qpn: int = 0) -> None:
        self.vector = vector
        self.mtu = mtu
        self.qpn = qpn
        self.handle: AddressHandle = domain.create_ah(vector)

    @classmethod
    def along(cls, domain: ProtectionDomain, path: PathRecord, base_lid: int, port: int, qpn: int) -> Way:
        """The way of a path record, from a port with this base LID."""
        vector = AddressVector(
            gid=Gid(path.dgid), dlid=path.dlid, sl=path.sl, src_path_bits=path.slid - base_lid, port_num=port
        )
        return cls(domain, vector, path.mtu_bytes or 256, qpn)

    @classmethod
    def back(cls, domain: ProtectionDomain, lid: int, sl: int, port: int, mtu: int, qpn: int) -> Way:
        """The reverse of the way that a datagram came, within the subnet (IBA vol. 1, 13.5.4)."""
        return cls(domain, AddressVector(gid=UNSPECIFIED, dlid=lid, sl=sl, port_num=port), mtu, qpn)

    @property
    def mad_address(self) -> MadAddress:
        """Queue pair 1 at the end of this way."""
        vector = self.vector
        return MadAddress(vector.dlid, sl=vector.sl, path_bits=vector.src_path_bits, port=vector.port_num)

    def close(self) -> None:
        self.handle.close()
