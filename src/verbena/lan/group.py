"""The LAN's multicast group on the fabric, where the subnet has groups (document 000:74, 100, 128: optional)."""

from __future__ import annotations

from verbena.adapter.attributes import AddressVector
from verbena.adapter.gid import Gid
from verbena.errors import ManagementError
from verbena.lan.config import LanConfig
from verbena.lan.datagrams import QKEY
from verbena.lan.steps import Steps
from verbena.lan.transport_services import TransportServices
from verbena.lan.ways import Way
from verbena.verbs.subnet import SubnetService
from verbena.wire.sa_records import MCMemberRecord

MULTICAST_QPN = 0xFFFFFF
SIGNATURE = 0x4C41
"""In the group's GID, where IPoIB has its own (RFC 4391, 4)."""


def lan_group(number: int) -> bytes:
    """The GID of a LAN's group: link-local scope, not permanent (IBA vol. 1, 4.1.1)."""
    return bytes.fromhex("ff12") + SIGNATURE.to_bytes(2, "big") + number.to_bytes(12, "big")


class FabricGroup:
    """Membership of one card.  `way` is None as long as it is no member, or where there are no groups."""

    def __init__(
        self, subnet: SubnetService, services: TransportServices, config: LanConfig, port: int
    ) -> None:
        self.way: Way | None = None
        self._subnet = subnet
        self._services = services
        self._config = config
        self._port = port
        self._gid = lan_group(config.number)
        self._attached_lid = 0

    def join(self, port_gid: bytes) -> Steps:
        """Join, or say again that one is a member; without groups, everything goes in software."""
        if self._config.fabric_multicast == "off":
            return
        try:
            record = yield self._subnet.client.join(
                self._gid, port_gid, 1, pkey=0xFFFF, qkey=QKEY, sl=0, flow_label=0, tclass=0
            )
        except ManagementError:
            self.leave()
            return
        self._joined(record)

    def _joined(self, record: MCMemberRecord) -> None:
        services = self._services
        if not services.open or record.mlid == self._attached_lid:
            return
        self.leave()
        services.datagram_qp.attach_mcast(Gid(self._gid), record.mlid)
        self._attached_lid = record.mlid
        vector = AddressVector(gid=Gid(self._gid), dlid=record.mlid, sl=record.sl, port_num=self._port)
        self.way = Way(services.pd, vector, 128 << record.mtu if 1 <= record.mtu <= 5 else 256, MULTICAST_QPN)

    def leave(self) -> None:
        """No member any more, as far as this port knows."""
        if self.way is not None:
            if self._services.open and self._services.datagram_qp.is_open:
                self._services.datagram_qp.detach_mcast(Gid(self._gid), self._attached_lid)
            self.way.close()
            self.way = None
            self._attached_lid = 0
