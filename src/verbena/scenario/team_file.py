"""The team file: a team in real time, as YAML.  Every mistake is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verbena.errors import FabricFileError, InvalidAttributeError
from verbena.runtime.real_team import ProxyConfig, RealTeamConfig
from verbena.team.balance import Mode
from verbena.team.config import MILLISECOND, TeamConfig


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProbeEntry(_Strict):
    """How members prove themselves."""

    interval_ms: float = Field(default=100.0, gt=0)
    misses: int = Field(default=3, ge=1)
    arp: list[str] = []
    nd: list[str] = []
    heartbeat_key: str = ""
    vlan: int = 0


class RdmaEntry(_Strict):
    """R-virtual, and the members that are RDMA cards: member -> address of its adapter."""

    vlan: int
    address: str
    adapters: dict[str, str]


class ProxyEntry(_Strict):
    """Unmodified TCP programs over connections that can be offloaded."""

    listen: str | None = None
    via: str | None = None
    accept: int | None = Field(default=None, ge=1, le=65535)
    to: str | None = None


class TeamEntry(_Strict):
    """The whole file."""

    name: str = Field(default="team0", max_length=10, pattern=r"^[^\s/:]+$")
    mode: Literal["layer2", "layer3+4", "round-robin", "least-load", "monitored-flow", "active-backup"] = (
        "layer3+4"
    )
    members: list[str] = Field(min_length=1)
    vlans: dict[int, str]
    mtu: int = 1500
    aggregated: bool = False
    lacp: bool = False
    preempt: bool = False
    probe: ProbeEntry | None = None
    rdma: RdmaEntry | None = None
    proxies: list[ProxyEntry] = []


def parse_team(text: str) -> RealTeamConfig:
    """A team file; raises `FabricFileError`."""
    try:
        made = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark: Any = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise FabricFileError(f"this is no YAML: {getattr(error, 'problem', error)}", line) from None
    try:
        entry = TeamEntry.model_validate(made)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FabricFileError(f"{where}: {first['msg']}") from None
    try:
        return _config(entry)
    except InvalidAttributeError as error:
        raise FabricFileError(str(error)) from None


def _config(entry: TeamEntry) -> RealTeamConfig:
    probe = entry.probe or ProbeEntry()
    if entry.rdma is not None:
        strangers = [name for name in entry.rdma.adapters if name not in entry.members]
        if strangers:
            raise InvalidAttributeError(f"rdma.adapters: {strangers[0]} is no member of the team")
    if entry.proxies and entry.rdma is None:
        raise InvalidAttributeError("proxies: need rdma, that there is something to offload to")
    for each in entry.proxies:
        if (each.listen is None) != (each.via is None) or (each.accept is None) != (each.to is None):
            raise InvalidAttributeError("proxies: listen goes with via, and accept with to")
    team = TeamConfig(
        mode=Mode(entry.mode),
        aggregated=entry.aggregated,
        lacp=entry.lacp,
        vlans=tuple(entry.vlans),
        rdma_vlan=None if entry.rdma is None else entry.rdma.vlan,
        mtu=entry.mtu,
        preempt=entry.preempt,
        arp_targets=tuple(probe.arp),
        nd_targets=tuple(probe.nd),
        probe_vlan=probe.vlan,
        heartbeat_key=probe.heartbeat_key.encode(),
        probe_interval_ns=round(probe.interval_ms * MILLISECOND),
        probe_misses=probe.misses,
    )
    return RealTeamConfig(
        name=entry.name,
        team=team,
        members=tuple(entry.members),
        addresses=dict(entry.vlans),
        rdma={} if entry.rdma is None else dict(entry.rdma.adapters),
        upload_address=None if entry.rdma is None else entry.rdma.address,
        proxies=tuple(ProxyConfig(each.listen, each.via, each.accept, each.to) for each in entry.proxies),
    )


def load_team(path: str) -> RealTeamConfig:
    """The same, from a file."""
    return parse_team(Path(path).read_text())
