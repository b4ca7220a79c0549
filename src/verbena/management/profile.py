"""What a node is and can, as its management agent reports it: the read-only part of its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from verbena.fabric.rates import LANE_BPS, LinkRate, Speed, Width
from verbena.fabric.topology import Node, NodeKind, Topology
from verbena.wire.smp_attributes import NodeInfo, PhysicalState, PortCapability, PortInfo, SwitchInfo

DEFAULT_CAPABILITIES = (
    PortCapability.NOTICE
    | PortCapability.TRAP
    | PortCapability.SYSTEM_IMAGE_GUID
    | PortCapability.EXTENDED_SPEEDS
    | PortCapability.CAPABILITY_MASK_NOTICE
    | PortCapability.CLIENT_REREGISTRATION
    | PortCapability.OTHER_LOCAL_CHANGES_NOTICE
)
FASTEST = LinkRate(Width.X12, Speed.NDR)
EXTENDED_SPEEDS = {Speed.FDR: 1, Speed.EDR: 2, Speed.HDR: 4, Speed.NDR: 8}
"""PortInfo:LinkSpeedExt*."""
DEFAULT_GID_PREFIX = 0xFE80_0000_0000_0000
LANES_OF_CODE = {1: 1, 2: 2, 3: 4, 4: 8, 5: 15}
"""PortInfo:VLCap and OperationalVLs -> number of data lanes."""


def lane_code(lanes: int) -> int:
    """The largest code of PortInfo:OperationalVLs that needs no more than `lanes` lanes (1 to 15)."""
    return max(code for code, most in LANES_OF_CODE.items() if most <= max(lanes, 1))


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """The constants of a node.

    vl_cap: code of `LANES_OF_CODE`.  mtu_cap: code, 5 is 4096 bytes.  arbitration_entries: of each table of lane
    arbitration, 0 to 64.  pkeys: entries of each partition table.  guids: entries of each port's GUID table.
    linear_cap, multicast_cap: entries of a switch's forwarding tables.  fastest: link that its ports can have.
    """

    kind: NodeKind
    guid: int
    ports: int
    description: str = ""
    system_guid: int = 0
    port_guids: Mapping[int, int] = field(default_factory=dict)
    vendor_id: int = 0x76_62_00
    device_id: int = 0
    revision: int = 0
    capabilities: int = DEFAULT_CAPABILITIES
    vl_cap: int = 4
    mtu_cap: int = 5
    arbitration_entries: int = 32
    pkeys: int = 32
    guids: int = 8
    linear_cap: int = 0xC000
    multicast_cap: int = 1024
    fastest: LinkRate = FASTEST

    @property
    def is_switch(self) -> bool:
        return self.kind is NodeKind.SWITCH

    @property
    def port_numbers(self) -> range:
        """The ports that have a PortInfo: a switch's begin with port 0."""
        return range(0 if self.is_switch else 1, self.ports + 1)

    @property
    def _lane_bps(self) -> int:
        return LANE_BPS[self.fastest.speed]

    def port_guid(self, port: int) -> int:
        return self.guid if self.is_switch else self.port_guids.get(port, self.guid + port)

    @classmethod
    def of(cls, node: Node, system_guid: int | None = None) -> Self:
        """From a topology's node; adapters are described as "host name", switches and routers by their description."""
        description = node.description
        if node.kind is NodeKind.CA and node.host != node.name and description == node.name:
            description = f"{node.host} {node.name}"
        elif node.kind is not NodeKind.CA and node.host != node.name and description == node.name:
            description = node.host
        return cls(
            kind=node.kind,
            guid=node.guid,
            ports=node.ports,
            description=description,
            system_guid=node.system_guid if system_guid is None else system_guid,
            port_guids=dict(node.port_guids),
            vendor_id=node.vendor_id,
            device_id=node.device_id,
        )

    def node_info(self, local_port: int) -> NodeInfo:
        return NodeInfo(
            node_type=self.kind,
            num_ports=self.ports,
            system_image_guid=self.system_guid or self.guid,
            node_guid=self.guid,
            port_guid=self.port_guid(local_port),
            partition_cap=self.pkeys,
            device_id=self.device_id,
            revision=self.revision,
            local_port_num=local_port,
            vendor_id=self.vendor_id,
        )

    def switch_info(self) -> SwitchInfo:
        return SwitchInfo(
            linear_fdb_cap=self.linear_cap,
            multicast_fdb_cap=self.multicast_cap,
            default_port=255,
            default_multicast_primary_port=255,
            default_multicast_not_primary_port=255,
            life_time_value=20,
            partition_enforcement_cap=self.pkeys,
            inbound_enforcement_cap=True,
            outbound_enforcement_cap=True,
            filter_raw_inbound_cap=False,
            filter_raw_outbound_cap=False,
        )

    def port_info(self, port: int) -> PortInfo:
        """A port as it is after power-up."""
        own = not self.is_switch or port == 0  # the other ports of a switch have no addresses
        capabilities = self.capabilities if own else 0
        if not self.is_switch:
            capabilities |= PortCapability.SL_MAPPING
        widths = Width.X1 | self.fastest.width
        speeds = sum(s for s in (Speed.SDR, Speed.DDR, Speed.QDR) if LANE_BPS[s] <= self._lane_bps)
        extended = sum(code for s, code in EXTENDED_SPEEDS.items() if LANE_BPS[s] <= self._lane_bps)
        return PortInfo(
            gid_prefix=DEFAULT_GID_PREFIX if own else 0,
            capability_mask=capabilities,
            local_port_num=port,
            link_width_enabled=widths,
            link_width_supported=widths,
            link_width_active=Width.X4,
            link_speed_supported=speeds,
            link_speed_active=Speed.SDR,
            link_speed_enabled=speeds,
            link_speed_ext_supported=extended,
            link_speed_ext_enabled=extended,
            port_state=4 if self.is_switch and port == 0 else 1,
            port_physical_state=PhysicalState.LINK_UP
            if self.is_switch and port == 0
            else PhysicalState.POLLING,
            link_down_default_state=PhysicalState.POLLING,
            neighbor_mtu=self.mtu_cap if self.is_switch and port == 0 else 1,
            vl_cap=self.vl_cap,
            vl_arbitration_high_cap=self.arbitration_entries,
            vl_arbitration_low_cap=self.arbitration_entries,
            mtu_cap=self.mtu_cap,
            vl_stall_count=7,
            hoq_life=20,
            operational_vls=1,
            guid_cap=self.guids if own else 0,
            subnet_timeout=18,
            response_time_value=16,
            local_physical_error_threshold=8,
            overrun_error_threshold=8,
        )


def profiles(topology: Topology) -> dict[str, NodeProfile]:
    """The profiles of a topology's nodes, by name.

    Nodes of one host, and switches of one package, that have no system image GUID of their own get the lowest GUID
    among them: that is how management tells the adapters of one host from a second host of the same name.
    """
    lowest: dict[tuple[NodeKind, str], int] = {}
    for node in topology.nodes.values():
        key = (node.kind, node.host)
        lowest[key] = min(lowest.get(key, node.guid), node.guid)
    return {
        name: replace(
            NodeProfile.of(
                node, lowest[node.kind, node.host] if node.system_guid == node.guid else node.system_guid
            ),
            fastest=max((link.rate for link in topology.links_of(name)), key=_by_speed, default=FASTEST),
        )
        for name, node in topology.nodes.items()
    }


def _by_speed(rate: LinkRate) -> tuple[int, int]:
    return LANE_BPS[rate.speed], rate.width.lanes
