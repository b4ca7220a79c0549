"""What SubnSet(PortInfo) may change, and what it must not (IBA vol. 1, 14.2.5.6, table of components).

`changed` computes a port's next PortInfo from the present one and the one that was sent, or refuses; it does nothing
else.  All or nothing: one invalid component, and none is taken.  Components that are read-only are passed over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from verbena.fabric.rates import LinkRate, Speed, Width
from verbena.management.node_tables import INVALID
from verbena.management.port_states import REQUESTED, next_state
from verbena.wire.smp_attributes import PhysicalState, PortInfo, PortState

LAST_UNICAST_LID = 0xBFFF
_EXTENDED = {Speed.FDR: 1, Speed.EDR: 2, Speed.HDR: 4, Speed.NDR: 8}


def changed(now: PortInfo, sent: PortInfo, *, addressed: bool, external: bool) -> PortInfo:
    """The next PortInfo, except for physical states; raises `Refused`.

    addressed: the port has a LID and keys of its own (all but a switch's ports from 1 on).  external: it has a link
    (all but a switch's port 0).
    """
    fields: dict[str, Any] = {"client_reregister": False}
    if addressed:
        fields |= _addresses(now, sent, external)
    if external:
        fields |= _link(now, sent)
    if not addressed:
        fields |= {
            "partition_enforcement_inbound": sent.partition_enforcement_inbound,
            "partition_enforcement_outbound": sent.partition_enforcement_outbound,
        }
    for name in ("mkey_violations", "pkey_violations", "qkey_violations"):
        if getattr(sent, name) == 0:
            fields[name] = 0  # writing another value has no effect
    return replace(now, **fields)


def _addresses(now: PortInfo, sent: PortInfo, external: bool) -> dict[str, int]:
    for lid in (sent.lid, sent.master_sm_lid):
        if not 1 <= lid <= LAST_UNICAST_LID:
            raise INVALID
    size = 1 << sent.lmc
    if sent.lid % size or sent.lid + size - 1 > LAST_UNICAST_LID or (sent.lmc and not external):
        raise INVALID  # a base LID ends in LMC zeros; a base switch port 0 has one LID
    return {
        "mkey": sent.mkey,
        "gid_prefix": sent.gid_prefix,
        "lid": sent.lid,
        "lmc": sent.lmc,
        "master_sm_lid": sent.master_sm_lid,
        "master_sm_sl": sent.master_sm_sl,
        "mkey_lease_period": sent.mkey_lease_period,
        "mkey_protect_bits": sent.mkey_protect_bits,
        "subnet_timeout": sent.subnet_timeout,
        "multicast_pkey_trap_suppression": sent.multicast_pkey_trap_suppression,
        "init_type_reply": sent.init_type_reply,
    }


def _link(now: PortInfo, sent: PortInfo) -> dict[str, int]:
    if not 1 <= sent.neighbor_mtu <= now.mtu_cap or sent.operational_vls > now.vl_cap:
        raise INVALID
    physical = sent.port_physical_state
    if physical > PhysicalState.DISABLED or (physical and sent.port_state > PortState.DOWN):
        raise INVALID  # physical states are commanded together with Down only
    if sent.link_down_default_state > PhysicalState.POLLING:
        raise INVALID
    return {
        "port_state": _state(now, sent),
        "link_down_default_state": sent.link_down_default_state or now.link_down_default_state,
        "link_width_enabled": _enabled(
            sent.link_width_enabled, now.link_width_enabled, now.link_width_supported, 0xFF
        ),
        "link_speed_enabled": _enabled(
            sent.link_speed_enabled, now.link_speed_enabled, now.link_speed_supported, 0xF
        ),
        "link_speed_ext_enabled": _extended(now, sent),
        "neighbor_mtu": sent.neighbor_mtu,
        "operational_vls": sent.operational_vls or now.operational_vls,
        "vl_high_limit": sent.vl_high_limit,
        "vl_stall_count": sent.vl_stall_count,
        "hoq_life": sent.hoq_life,
        "local_physical_error_threshold": sent.local_physical_error_threshold,
        "overrun_error_threshold": sent.overrun_error_threshold,
    }


def _state(now: PortInfo, sent: PortInfo) -> int:
    if sent.port_state == PortState.NO_CHANGE:
        return now.port_state
    requested = REQUESTED.get(sent.port_state)
    state = None if requested is None else next_state(now.port_state, requested)
    if state is None:
        raise INVALID
    return state


def _enabled(sent: int, now: int, supported: int, everything: int) -> int:
    if sent == 0:
        return now
    if sent == everything:
        return supported
    if sent & ~supported:
        raise INVALID
    return sent


def _extended(now: PortInfo, sent: PortInfo) -> int:
    if sent.link_speed_ext_enabled == 30:  # none
        return 0
    return _enabled(sent.link_speed_ext_enabled, now.link_speed_ext_enabled, now.link_speed_ext_supported, 31)


def with_rate(info: PortInfo, rate: LinkRate) -> PortInfo:
    """The active width and speed: extended speeds show as QDR in LinkSpeedActive (14.2.5.6)."""
    extended = _EXTENDED.get(rate.speed, 0)
    basic = Speed.QDR if extended or rate.speed is Speed.FDR10 else rate.speed
    return replace(
        info, link_width_active=rate.width, link_speed_active=basic, link_speed_ext_active=extended
    )


def active_rate(info: PortInfo) -> LinkRate:
    """The rate that a PortInfo tells; 4x SDR where it tells none that exists."""
    extended = {code: speed for speed, code in _EXTENDED.items()}
    try:
        return LinkRate(
            Width(info.link_width_active),
            extended.get(info.link_speed_ext_active) or Speed(info.link_speed_active),
        )
    except ValueError:
        return LinkRate(Width.X4, Speed.SDR)


def is_sane(info: PortInfo) -> bool:
    """Whether a port's report about itself can be: states, codes and addresses within their ranges."""
    size = 1 << info.lmc
    return (
        PortState.DOWN <= info.port_state <= PortState.ACTIVE
        and 1 <= info.mtu_cap <= 5
        and info.neighbor_mtu <= 5
        and 1 <= info.vl_cap <= 5
        and info.operational_vls <= 5
        and info.lid % size == 0
        and info.lid + size - 1 <= LAST_UNICAST_LID
    )
