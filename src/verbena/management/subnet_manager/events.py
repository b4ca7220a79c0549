"""What a subnet manager tells, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SubnetEventKind(Enum):
    """Values are what a person reads."""

    IN_SERVICE = "port in service"  # trap 64 of subnet administration
    OUT_OF_SERVICE = "port out of service"  # trap 65
    DUPLICATE_GUID = "duplicate GUID"
    DUPLICATE_NAME = "duplicate name"
    NO_LID = "no LID left"
    NO_ANSWER = "no answer"
    REFUSED = "refused by the node"
    ROUTING = "routing"
    TRAP = "trap"
    STATE = "subnet manager"
    SWEPT = "sweep finished"


@dataclass(frozen=True, slots=True)
class SubnetEvent:
    """guid: of the port in (out of) service, or of the node; 0: none.  lid: of the port, or of who sent the trap."""

    kind: SubnetEventKind
    time_ns: int
    text: str
    guid: int = 0
    lid: int = 0
    trap: int = 0


@dataclass(slots=True)
class Statistics:
    """Counts since the manager was made; times of the last heavy sweep, in ns."""

    smps_sent: int = 0
    answers: int = 0
    repeated: int = 0
    timeouts: int = 0
    refused: int = 0
    unexpected: int = 0
    """Answers that nobody waits for: late, forged, or for another question."""
    malformed: int = 0
    traps: int = 0
    forged_traps: int = 0
    heavy_sweeps: int = 0
    light_sweeps: int = 0
    discovery_ns: int = 0
    lids_ns: int = 0
    sweep_ns: int = 0
    lft_blocks: int = 0
    mft_blocks: int = 0
