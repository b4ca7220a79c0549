"""What a subnet manager is told: times, limits, partitions, lanes, routing engine.  Checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verbena.errors import InvalidAttributeError
from verbena.management.profile import DEFAULT_GID_PREFIX

FIRST_LID, LAST_LID = 0x0001, 0xBFFF
MILLISECOND = 1_000_000
FULL_MEMBER = 0x8000

_RANGES: dict[str, tuple[int, int]] = {
    "priority": (0, 15),
    "mkey": (0, 2**64 - 1),
    "mkey_protect_bits": (0, 3),
    "mkey_lease_s": (0, 0xFFFF),
    "sm_key": (0, 2**64 - 1),
    "gid_prefix": (1, 2**64 - 1),
    "lmc": (0, 7),
    "first_lid": (FIRST_LID, LAST_LID),
    "last_lid": (FIRST_LID, LAST_LID),
    "mtu_code": (1, 5),
    "lanes": (1, 15),
    "hoq_life": (0, 31),
    "packet_life": (0, 31),
    "subnet_timeout": (0, 31),
    "sm_sl": (0, 15),
    "high_limit": (0, 255),
    "window": (1, 4096),
    "timeout_ns": (1, 2**62),
    "retries": (0, 100),
    "sweep_interval_ns": (0, 2**62),
    "poll_interval_ns": (1, 2**62),
    "poll_tries": (1, 1000),
    "settle_ns": (0, 2**62),
    "resweeps": (0, 100),
}


@dataclass(frozen=True, slots=True)
class Partition:
    """Who may talk to whom (IBA vol. 1, 10.9).

    pkey: 15 bits.  full, limited: port GUIDs of the members; a limited member talks to full members only.  everybody:
    "full" or "limited" makes members of all ports that are not named; the manager's own port is always a full member of
    the default partition.
    """

    name: str
    pkey: int
    full: frozenset[int] = frozenset()
    limited: frozenset[int] = frozenset()
    everybody: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.pkey <= 0x7FFF:
            raise InvalidAttributeError(f"partition {self.name}: key {self.pkey:#x}; it is 0x1 to 0x7fff")
        if self.everybody not in ("", "full", "limited"):
            raise InvalidAttributeError(
                f'partition {self.name}: everybody is {self.everybody!r}; it is "full", "limited" or ""'
            )
        if both := self.full & self.limited:
            raise InvalidAttributeError(
                f"partition {self.name}: port {min(both):#018x} is a full and a limited member; it can be one"
            )

    def key_of(self, guid: int) -> int:
        """The partition key of a port: bit 15 for a full member; 0 if it is none."""
        if guid in self.full:
            return FULL_MEMBER | self.pkey
        if guid in self.limited:
            return self.pkey
        return {"full": FULL_MEMBER | self.pkey, "limited": self.pkey}.get(self.everybody, 0)


DEFAULT_PARTITION = Partition("Default", 0x7FFF, everybody="full")


@dataclass(frozen=True, slots=True)
class SubnetManagerConfig:
    """All settings of a subnet manager.  Raises `InvalidAttributeError` for a value out of its range.

    priority: 0 to 15; the highest is master, of equal ones the one with the lowest GUID.
    mkey, mkey_protect_bits, mkey_lease_s: written to every port (IBA vol. 1, 14.2.4); 0: the subnet is not protected.
    sm_key: what another subnet manager must show to command this one; 0: nothing.
    gid_prefix: of all GIDs.  lmc: of adapters' and routers' ports.  first_lid ... last_lid: what may be given out.
    lids: base LID and LMC by port GUID, given before all others.
    mtu_code: the largest that links get (5: 4096).  lanes: data lanes, as far as both ends have them.
    hoq_life, packet_life: 4.096 us * 2^code; 20 and more: no limit.  subnet_timeout: interval of traps, likewise.
    arbitration_high, arbitration_low: (lane, weight in 64 bytes); both empty: left as they are.
    window: SMPs on the way at once.  timeout_ns, retries: of each.
    sweep_interval_ns: between light sweeps; 0: only traps start one.
    poll_interval_ns, poll_tries: a standby takes over after so many polls of the master in vain.
    settle_ns: how long after a trap a sweep begins.  resweeps: how often an imperfect sweep is repeated at once.
    engine, engine_options: of routing.
    """

    priority: int = 0
    mkey: int = 0
    mkey_protect_bits: int = 0
    mkey_lease_s: int = 0
    sm_key: int = 0
    gid_prefix: int = DEFAULT_GID_PREFIX
    lmc: int = 0
    first_lid: int = FIRST_LID
    last_lid: int = LAST_LID
    lids: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    mtu_code: int = 5
    lanes: int = 15
    hoq_life: int = 18
    packet_life: int = 18
    subnet_timeout: int = 14
    sm_sl: int = 0
    high_limit: int = 0
    arbitration_high: tuple[tuple[int, int], ...] = ()
    arbitration_low: tuple[tuple[int, int], ...] = ()
    partitions: tuple[Partition, ...] = (DEFAULT_PARTITION,)
    enforce_partitions: bool = False
    window: int = 32
    timeout_ns: int = 200 * MILLISECOND
    retries: int = 3
    sweep_interval_ns: int = 10_000 * MILLISECOND
    poll_interval_ns: int = 1_000 * MILLISECOND
    poll_tries: int = 4
    settle_ns: int = MILLISECOND
    resweeps: int = 3
    engine: str = "minhop"
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} is {value!r}; it must be {low} to {high}")
        if self.first_lid > self.last_lid:
            raise InvalidAttributeError(
                f"first_lid {self.first_lid:#x} is above last_lid {self.last_lid:#x}; it must not be"
            )
        keys = [partition.pkey for partition in self.partitions]
        if len(set(keys)) != len(keys):
            raise InvalidAttributeError("two partitions have the same key; each needs one of its own")
        for lane, weight in (*self.arbitration_high, *self.arbitration_low):
            if not 0 <= lane <= 14 or not 0 <= weight <= 255:
                raise InvalidAttributeError(
                    f"arbitration entry ({lane}, {weight}): lanes are 0 to 14, weights 0 to 255"
                )
        if max(len(self.arbitration_high), len(self.arbitration_low)) > 64:
            raise InvalidAttributeError("a table of lane arbitration has up to 64 entries")

    @property
    def protects(self) -> bool:
        return self.mkey != 0
