"""How a team is set, and everything about that which can be wrong, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from verbena.errors import InvalidAttributeError
from verbena.team.balance import Mode
from verbena.team.frames import FIRST_VLAN, LAST_VLAN
from verbena.team.lacp import LacpTimes

SMALLEST_MTU, LARGEST_MTU = 68, 65_521
MILLISECOND = 1_000_000


def check_vlan(vlan: int) -> int:
    """The VLAN; raises `InvalidAttributeError` unless it is 1 to 4094, or 0: untagged."""
    if not isinstance(vlan, int) or (vlan and not FIRST_VLAN <= vlan <= LAST_VLAN):
        raise InvalidAttributeError(f"VLAN {vlan!r}: 1 to 4094, or 0 for frames without a tag")
    return vlan


def check_vlans(groups: Iterable[int], rdma: int | None) -> None:
    """Raise `InvalidAttributeError` if two groups, or one and the RDMA miniport's, have the same VLAN."""
    seen: set[int] = set()
    for vlan in groups:
        if check_vlan(vlan) in seen:
            raise InvalidAttributeError(f"VLAN {vlan} is in the team twice: each group has one of its own")
        seen.add(vlan)
    if rdma is not None and check_vlan(rdma) in seen:
        raise InvalidAttributeError(
            f"VLAN {rdma} is dedicated to the RDMA miniport: the team's groups need other ones"
        )


@dataclass(frozen=True, slots=True)
class TeamConfig:
    """A team.

    mode: how load is spread.  aggregated: the members' other ends are one aggregation (a static one, or by `lacp`), so
    that all members use the team's address and any of them may receive; otherwise the switch knows nothing of the
    team: one member receives, the others send from their own addresses.  vlans: the groups under the team miniport, 0
    for untagged frames; rdma_vlan: the one dedicated to the RDMA miniport.  mtu: of all virtual cards, bytes.

    bridged: stations with addresses of their own are behind the virtual cards, as at a virtual switch.  Their frames
    keep their source, and what is not for the team's address goes up.  Without aggregation each station sends and
    receives by one member (`team.stations`), whatever `mode` says.

    preempt: active-backup goes back to the preferred member when that is there again.  arp_targets, nd_targets:
    neighbours whose answers prove a member, in `probe_vlan`; heartbeat_key: shared by all teams of the network (b"": no
    heartbeat); probe_interval_ns, probe_misses: how often, and how many intervals without an answer make a loss.

    upload_over_team: what is managed but not offloaded may use the ordinary cards, too (document 004, paragraphs 21 and
    25).  dedicated_paths: it has paths of its own between stack and driver (210, 220), instead of sharing 190 and 200.
    load_interval_ns: over which loads are measured.
    """

    mode: Mode = Mode.LAYER34
    aggregated: bool = False
    lacp: bool = False
    bridged: bool = False
    lacp_times: LacpTimes = field(default_factory=LacpTimes)
    vlans: tuple[int, ...] = (0,)
    rdma_vlan: int | None = None
    mtu: int = 1500
    mac: bytes | None = None
    preempt: bool = False
    arp_targets: tuple[str, ...] = ()
    nd_targets: tuple[str, ...] = ()
    probe_vlan: int = 0
    heartbeat_key: bytes = b""
    probe_interval_ns: int = 100 * MILLISECOND
    probe_misses: int = 3
    upload_over_team: bool = False
    dedicated_paths: bool = True
    load_interval_ns: int = 10 * MILLISECOND
    announcements: int = 3
    announce_interval_ns: int = 100 * MILLISECOND

    def __post_init__(self) -> None:
        if not isinstance(self.mode, Mode):
            raise InvalidAttributeError(f"mode = {self.mode!r}: one of {', '.join(m.value for m in Mode)}")
        if not self.vlans:
            raise InvalidAttributeError("a team has at least one VLAN group: vlans=(0,) is untagged traffic")
        check_vlans(self.vlans, self.rdma_vlan)
        check_vlan(self.probe_vlan)
        if not SMALLEST_MTU <= self.mtu <= LARGEST_MTU:
            raise InvalidAttributeError(f"mtu = {self.mtu}: {SMALLEST_MTU} to {LARGEST_MTU} bytes")
        if self.mac is not None and (len(self.mac) != 6 or self.mac[0] & 1 or not any(self.mac)):
            raise InvalidAttributeError("mac: six octets of an individual address")
        if self.lacp and self.mode is Mode.ACTIVE_BACKUP:
            raise InvalidAttributeError("active-backup is for members that are not aggregated: no lacp")
        if self.probe_interval_ns < 1 or self.probe_misses < 1 or self.load_interval_ns < 1:
            raise InvalidAttributeError("probe_interval_ns, probe_misses and load_interval_ns are 1 or more")
        if self.announcements < 0 or self.announce_interval_ns < 1:
            raise InvalidAttributeError("announcements are 0 or more, with 1 ns or more between them")

    @property
    def one_link(self) -> bool:
        """Does the other side take all members for one link?"""
        return self.aggregated or self.lacp

    @property
    def probes(self) -> bool:
        """Do members have to prove themselves?"""
        return bool(self.arp_targets or self.nd_targets or self.heartbeat_key)
