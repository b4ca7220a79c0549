"""The states of a queue pair, as one table: who may go where, with which attributes.

The table is IBA vol. 1, table 91 (as in Linux' `ib_modify_qp_is_ok`), for the services that there are.  Any state may
go to RESET and to ERR without attributes.  SQE is entered by the adapter only (IBA 10.3.1.7).  Code outside asks
`check`; nobody else decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from verbena.errors import InvalidAttributeError, InvalidStateError
from verbena.transport.kinds import QPState, QPType

RESET, INIT, RTR, RTS, SQD, SQE, ERR = QPState
RC, UC, UD = QPType.RC, QPType.UC, QPType.UD
RAW = (QPType.RAW_IPV6, QPType.RAW_ETHERTYPE)


@dataclass(frozen=True, slots=True)
class Transition:
    """The attributes that a transition needs, and those that it also allows."""

    needs: frozenset[str]
    allows: frozenset[str]


def _row(needs: str = "", allows: str = "") -> Transition:
    return Transition(frozenset(needs.split()), frozenset(allows.split()))


_CONNECT = "ah_attr path_mtu dest_qp_num rq_psn"
TRANSITIONS: dict[tuple[QPState, QPState, QPType], Transition] = {
    (RESET, INIT, RC): _row("pkey_index port_num access_flags"),
    (RESET, INIT, UC): _row("pkey_index port_num access_flags"),
    (RESET, INIT, UD): _row("pkey_index port_num qkey"),
    (INIT, INIT, RC): _row("", "pkey_index port_num access_flags"),
    (INIT, INIT, UC): _row("", "pkey_index port_num access_flags"),
    (INIT, INIT, UD): _row("", "pkey_index port_num qkey"),
    (INIT, RTR, RC): _row(_CONNECT + " max_dest_rd_atomic min_rnr_timer", "access_flags pkey_index"),
    (INIT, RTR, UC): _row(_CONNECT, "access_flags pkey_index"),
    (INIT, RTR, UD): _row("", "pkey_index qkey"),
    (RTR, RTS, RC): _row("timeout retry_cnt rnr_retry sq_psn max_rd_atomic", "access_flags min_rnr_timer"),
    (RTR, RTS, UC): _row("sq_psn", "access_flags"),
    (RTR, RTS, UD): _row("sq_psn", "qkey"),
    (RTS, RTS, RC): _row("", "access_flags min_rnr_timer"),
    (RTS, RTS, UC): _row("", "access_flags"),
    (RTS, RTS, UD): _row("", "qkey"),
    (RTS, SQD, RC): _row(),
    (RTS, SQD, UC): _row(),
    (RTS, SQD, UD): _row(),
    (SQD, SQD, RC): _row(
        "",
        "ah_attr timeout retry_cnt rnr_retry max_rd_atomic max_dest_rd_atomic access_flags pkey_index "
        "min_rnr_timer port_num",
    ),
    (SQD, SQD, UC): _row("", "ah_attr access_flags pkey_index port_num"),
    (SQD, SQD, UD): _row("", "pkey_index qkey"),
    (SQD, RTS, RC): _row("", "access_flags min_rnr_timer"),
    (SQD, RTS, UC): _row("", "access_flags"),
    (SQD, RTS, UD): _row("", "qkey"),
    (SQE, RTS, UC): _row("", "access_flags"),
    (SQE, RTS, UD): _row("", "qkey"),
    **{(RESET, INIT, k): _row("port_num") for k in RAW},
    **{(INIT, INIT, k): _row("", "port_num") for k in RAW},
    **{
        (s, t, k): _row()
        for s, t in ((INIT, RTR), (RTR, RTS), (RTS, RTS), (RTS, SQD), (SQD, SQD), (SQD, RTS), (SQE, RTS))
        for k in RAW
    },
    **{(s, t, k): _row() for s in QPState for t in (RESET, ERR) for k in QPType},
}

# Where connections of InfiniBand ports also take an alternate path, and its state (IBA vol. 1, table 91).
_ALT = frozenset({"alt_ah_attr", "alt_pkey_index", "alt_port_num", "alt_timeout"})
_MIG = _ALT | {"path_mig_state"}
ALTERNATE_PATH: dict[tuple[QPState, QPState], frozenset[str]] = {
    (INIT, RTR): _ALT,
    (RTR, RTS): _MIG,
    (RTS, RTS): _MIG,
    (SQD, SQD): _MIG,
    (SQD, RTS): _MIG,
}

# Attribute -> smallest and largest value (IBA vol. 1, 11.2.4.2, and the fields' widths).
RANGES: dict[str, tuple[int, int]] = {
    "pkey_index": (0, 0xFFFF),
    "port_num": (1, 255),
    "qkey": (0, 0xFFFFFFFF),
    "dest_qp_num": (0, 0xFFFFFF),
    "rq_psn": (0, 0xFFFFFF),
    "sq_psn": (0, 0xFFFFFF),
    "max_rd_atomic": (0, 255),
    "max_dest_rd_atomic": (0, 255),
    "min_rnr_timer": (0, 31),
    "timeout": (0, 31),
    "retry_cnt": (0, 7),
    "rnr_retry": (0, 7),
    "access_flags": (0, 31),
}
ALTERNATE_RANGES: dict[str, tuple[int, int]] = {
    "alt_pkey_index": (0, 0xFFFF),
    "alt_port_num": (1, 255),
    "alt_timeout": (0, 31),
    "path_mig_state": (0, 2),
}
MTUS = (256, 512, 1024, 2048, 4096)


def check(
    service: QPType, current: QPState, target: QPState, given: Iterable[str], alternate: bool = False
) -> None:
    """Raise unless a queue pair of that service may go from `current` to `target` with these attributes.

    `InvalidStateError`: there is no such transition.  `InvalidAttributeError`: an attribute is missing, or is not
    allowed there.  alternate: may it have an alternate path?
    """
    row = TRANSITIONS.get((current, target, service))
    if row is None:
        ways = sorted({t.name for (s, t, k) in TRANSITIONS if s is current and k is service})
        raise InvalidStateError(
            f"{service.name} queue pair: no way from {current.name} to {target.name}; "
            f"from {current.name} it may go to {', '.join(ways)}"
        )
    names = set(given)
    if missing := row.needs - names:
        raise InvalidAttributeError(
            f"{service.name} {current.name} -> {target.name} also needs {', '.join(sorted(missing))}"
        )
    allows = row.allows
    if alternate and service in (RC, UC):
        allows |= ALTERNATE_PATH.get((current, target), frozenset())
    if extra := names - row.needs - allows:
        allowed = ", ".join(sorted(row.needs | allows)) or "none"
        raise InvalidAttributeError(
            f"{service.name} {current.name} -> {target.name} does not take {', '.join(sorted(extra))}; "
            f"attributes there: {allowed}"
        )


def known_state(value: Any) -> QPState:
    """The state itself; raises `InvalidAttributeError` for what is none."""
    try:
        return QPState(value)
    except ValueError:
        names = ", ".join(state.name for state in QPState)
        raise InvalidAttributeError(f"state = {value!r}: one of QPState's {names}") from None


def check_value(name: str, value: object) -> None:
    """Raise `InvalidAttributeError` unless a value is in its attribute's range."""
    if name == "path_mtu":
        if not isinstance(value, int) or value not in MTUS:
            raise InvalidAttributeError(f"path_mtu = {value!r}: one of {', '.join(map(str, MTUS))}")
    elif name in RANGES or name in ALTERNATE_RANGES:
        low, high = RANGES.get(name) or ALTERNATE_RANGES[name]
        if not isinstance(value, int) or not low <= value <= high:
            raise InvalidAttributeError(f"{name} = {value!r}: an integer from {low} to {high}")
