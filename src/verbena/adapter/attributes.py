"""What an adapter can do, and how it is set: the values that the query verbs return."""

from __future__ import annotations

from dataclasses import dataclass, field

from verbena.adapter.gid import UNSPECIFIED, Gid
from verbena.memory.access import Access
from verbena.transport.kinds import PathMigrationState, QPState, QPType


@dataclass(frozen=True, slots=True)
class DeviceAttributes:
    """An adapter's limits (IBA vol. 1, 11.2.1.2).  `node_guid` is EUI-64; sizes are counts unless named otherwise.

    incoming_rdma: may peers read and write memory here, and work on it with atomics (document 003:712)?  If not, all
    such requests are refused with a NAK, whatever rights regions and queue pairs were given.

    completion_handlers: how many may be registered, 1 to 2048; handler_memory: bytes for their queues and events.
    default_cqs: completion queues, of default_cq_depth entries each, that are made when the adapter is opened.
    solicited_needs_arming: a solicited message raises an event only on a queue that was armed (InfiniBand), not on
    every queue with a handler (document 001, paragraph 38).  entry_before_event: the entry is posted, then its event
    is built (InfiniBand), not the other way round (document 001, blocks 424 and 426); either way nobody hears of the
    event before the entry can be seen.
    """

    name: str = "verbena0"
    node_guid: int = 0
    fw_ver: str = ""
    max_qp: int = 65_000
    max_qp_wr: int = 16_384
    max_sge: int = 16
    max_inline: int = 1_024
    max_cq: int = 65_000
    max_cqe: int = 4_194_304
    max_mr: int = 65_535
    max_mr_size: int = 1 << 40
    max_mw: int = 1_048_576
    max_pd: int = 65_535
    max_ah: int = 60_000
    max_srq: int = 4_096
    max_srq_wr: int = 65_536
    max_qp_rd_atom: int = 128
    max_qp_init_rd_atom: int = 128
    max_ee: int = 500
    max_rdd: int = 65_535
    max_ee_rd_atom: int = 128
    max_ee_init_rd_atom: int = 128
    max_pkeys: int = 1
    phys_port_cnt: int = 1
    incoming_rdma: bool = True
    atomic_cap: str = "ATOMIC_HCA"
    completion_handlers: int = 64
    handler_memory: int = 1 << 30
    default_cqs: int = 0
    default_cq_depth: int = 1_024
    solicited_needs_arming: bool = False
    entry_before_event: bool = False


HOST_ADAPTER = DeviceAttributes(
    name="host", max_qp=4_096, max_cq=4_096, max_ah=8_192, phys_port_cnt=4, max_pkeys=128
)
"""A host processor's adapter: up to four ports, thousands of queue pairs (document 003:712)."""

IO_ADAPTER = DeviceAttributes(
    name="io",
    max_qp=32,
    max_qp_wr=256,
    max_cq=32,
    max_cqe=4_096,
    max_mr=256,
    max_mw=256,
    max_pd=16,
    max_ah=64,
    max_srq=4,
    max_srq_wr=256,
    max_qp_rd_atom=16,
    max_qp_init_rd_atom=16,
    phys_port_cnt=2,
    max_pkeys=16,
    incoming_rdma=False,
    atomic_cap="ATOMIC_NONE",
)
"""An I/O adapter: one or two ports, tens of queue pairs, its memory closed to peers (document 003:713)."""


@dataclass(frozen=True, slots=True)
class AdapterAttributes:
    """What `Query RNIC` (document 001, paragraph 31) tells: how many completion handlers may be registered."""

    completion_handlers: int


@dataclass(frozen=True, slots=True)
class PortAttributes:
    """A port's properties (IBA vol. 1, 11.2.1.3).  MTUs in bytes."""

    state: str
    max_mtu: int
    active_mtu: int
    gid_tbl_len: int
    pkey_tbl_len: int
    lid: int = 0
    sm_lid: int = 0
    lmc: int = 0
    link_layer: str = "Ethernet"
    sm_sl: int = 0
    port_cap_flags: int = 0
    bad_pkey_cntr: int = 0
    qkey_viol_cntr: int = 0


@dataclass(frozen=True, slots=True)
class AddressVector:
    """Where packets go: the peer's GID, and how the network shall treat them (IBA vol. 1, 11.2.2.1).

    hop_limit: 1..255.  traffic_class: 0..255, the IP header's DSCP and ECN.  flow_label (20 bits) and sl (0..15) are
    kept for queries on Ethernet: a UDP socket carries neither.

    On InfiniBand, dlid is the destination's LID, or that of the router on the way, and src_path_bits chooses among
    the port's own LIDs.  is_global: with a global header?  By default, if the GID has another subnet's prefix, or the
    LID is a multicast one; where no global header is needed, the GID may be left out.
    """

    gid: Gid = UNSPECIFIED
    sgid_index: int = 0
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0
    sl: int = 0
    port_num: int = 1
    dlid: int = 0
    src_path_bits: int = 0
    is_global: bool | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What two programs exchange to connect their queue pairs by hand."""

    gid: Gid
    qp_num: int
    psn: int
    lid: int = 0


@dataclass(frozen=True, slots=True)
class QPCapabilities:
    """Sizes of a queue pair, fixed when it is created."""

    max_send_wr: int = 128
    max_recv_wr: int = 128
    max_send_sge: int = 4
    max_recv_sge: int = 4
    max_inline: int = 0


@dataclass(frozen=True, slots=True)
class QPAttributes:
    """What Query QP tells (IBA vol. 1, 11.2.4.3; names as in `struct ibv_qp_attr`)."""

    qp_num: int
    qp_type: QPType
    state: QPState
    capabilities: QPCapabilities
    access_flags: Access = Access.NONE
    port_num: int = 0
    pkey_index: int = 0
    qkey: int = 0
    path_mtu: int = 0
    dest_qp_num: int = 0
    rq_psn: int = 0
    sq_psn: int = 0
    max_rd_atomic: int = 0
    max_dest_rd_atomic: int = 0
    min_rnr_timer: int = 0
    timeout: int = 0
    retry_cnt: int = 0
    rnr_retry: int = 0
    ah_attr: AddressVector | None = None
    alt_ah_attr: AddressVector | None = None
    alt_pkey_index: int = 0
    alt_port_num: int = 0
    alt_timeout: int = 0
    path_mig_state: PathMigrationState = PathMigrationState.MIGRATED
    stripe_ah_attrs: tuple[AddressVector, ...] = ()
    reorder_ns: int = 0
    completion_handlers: tuple[int | None, int | None] = field(default=(None, None))


@dataclass(frozen=True, slots=True)
class EEAttributes:
    """What Query EE Context tells (IBA vol. 1, 11.2.7.3; names as in `struct ibv_qp_attr`)."""

    ee_num: int
    state: QPState
    port_num: int = 0
    pkey_index: int = 0
    path_mtu: int = 0
    dest_ee_num: int = 0
    rq_psn: int = 0
    sq_psn: int = 0
    max_rd_atomic: int = 0
    max_dest_rd_atomic: int = 0
    timeout: int = 0
    retry_cnt: int = 0
    ah_attr: AddressVector | None = None
    stripe_ah_attrs: tuple[AddressVector, ...] = ()
    reorder_ns: int = 0


@dataclass(frozen=True, slots=True)
class ContextCounts:
    """What an adapter holds: queue pairs of each service, and end-to-end contexts."""

    queue_pairs: dict[QPType, int]
    ee_contexts: int
