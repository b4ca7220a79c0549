"""When a connection is offloaded and when uploaded: a plain function, to be replaced by any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from verbena.team.offload.states import MILLISECOND, Path


@dataclass(frozen=True, slots=True)
class ConnectionParameters:
    """The dynamic parameters of a connection (document 004, paragraph 20), and of its card.

    rate_bps: bits a second in both directions, of late.  queue_pairs, most_queue_pairs: of the RDMA card.
    upload_possible, offload_possible: does a path exist, at this end?  pinned: what the administrator said.
    """

    path: Path
    bytes_sent: int
    bytes_received: int
    rate_bps: float
    age_ns: int
    idle_ns: int
    since_move_ns: int
    queue_pairs: int
    most_queue_pairs: int
    upload_possible: bool
    offload_possible: bool
    pinned: Path | None = None


Policy = Callable[[ConnectionParameters], Path]
"""Which path a connection should be on."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of `default_policy`.  Between the two rates a connection stays where it is, so that it does not swing."""

    offload_bps: float = 50e6
    upload_bps: float = 5e6
    least_bytes: int = 256 << 10
    least_age_ns: int = 2 * MILLISECOND
    idle_ns: int = 200 * MILLISECOND
    least_stay_ns: int = 20 * MILLISECOND
    pressure: float = 0.9


def default_policy(of: ConnectionParameters, thresholds: Thresholds | None = None) -> Path:
    """Offload what is busy, upload what is idle or what the card has no room for; the team where there is no card."""
    limits = thresholds or Thresholds()
    if not of.upload_possible:
        return Path.TEAM
    if of.pinned is not None:
        return of.pinned
    pressed = of.queue_pairs >= limits.pressure * of.most_queue_pairs
    if of.path is Path.OFFLOAD:
        slow = of.rate_bps < limits.upload_bps and of.since_move_ns > limits.least_stay_ns
        idle = of.idle_ns > limits.idle_ns
        return Path.UPLOAD if idle or (pressed and slow) or not of.offload_possible else Path.OFFLOAD
    busy = of.rate_bps >= limits.offload_bps and of.bytes_sent + of.bytes_received >= limits.least_bytes
    ripe = of.age_ns >= limits.least_age_ns and of.since_move_ns >= limits.least_stay_ns
    if of.offload_possible and busy and ripe and not pressed:
        return Path.OFFLOAD
    return Path.UPLOAD
