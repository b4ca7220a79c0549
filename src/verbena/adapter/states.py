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
RC, UC, RD, UD = QPType.RC, QPType.UC, QPType.RD, QPType.UD
RAW = (QPType.RAW_IPV6, QPType.RAW_ETHERTYPE)


@dataclass(frozen=True, slots=True)
class Transition:
    """The attributes that a transition needs, and those that it also allows."""

    needs: frozenset[str]
    allows: frozenset[str]


def _row(needs: str = "", allows: str = "") -> Transition:
    return Transition(frozenset(needs.split()), frozenset(allows.split()))


_CONNECT = "ah_attr path_mtu dest_qp_num rq_psn"
_STRIPES = "stripe_ah_attrs reorder_ns"
TRANSITIONS: dict[tuple[QPState, QPState, QPType], Transition] = {
    (RESET, INIT, RC): _row("pkey_index port_num access_flags"),
    (RESET, INIT, UC): _row("pkey_index port_num access_flags"),
    (RESET, INIT, UD): _row("pkey_index port_num qkey"),
    (RESET, INIT, RD): _row("pkey_index port_num qkey access_flags"),
    (INIT, INIT, RD): _row("", "pkey_index port_num qkey access_flags"),
    (INIT, RTR, RD): _row("min_rnr_timer", "pkey_index qkey access_flags"),
    (RTR, RTS, RD): _row("rnr_retry", "qkey access_flags min_rnr_timer"),
    (RTS, RTS, RD): _row("", "qkey access_flags min_rnr_timer"),
    (RTS, SQD, RD): _row(),
    (SQD, SQD, RD): _row("", "pkey_index qkey access_flags min_rnr_timer rnr_retry"),
    (SQD, RTS, RD): _row("", "qkey access_flags min_rnr_timer"),
    (SQE, RTS, RD): _row("", "qkey access_flags min_rnr_timer"),
    (INIT, INIT, RC): _row("", "pkey_index port_num access_flags"),
    (INIT, INIT, UC): _row("", "pkey_index port_num access_flags"),
    (INIT, INIT, UD): _row("", "pkey_index port_num qkey"),
    (INIT, RTR, RC): _row(
        _CONNECT + " max_dest_rd_atomic min_rnr_timer", "access_flags pkey_index " + _STRIPES
    ),
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
        "min_rnr_timer port_num " + _STRIPES,
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

# The same for end-to-end contexts (IBA vol. 1, 10.2.7, 11.2.7.2).  They have no SQE: what fails is a message.
EE_STATES = (RESET, INIT, RTR, RTS, SQD, ERR)
_EE_LATER = "ah_attr timeout retry_cnt max_rd_atomic max_dest_rd_atomic pkey_index port_num " + _STRIPES
EE_TRANSITIONS: dict[tuple[QPState, QPState], Transition] = {
    (RESET, INIT): _row("pkey_index port_num"),
    (INIT, INIT): _row("", "pkey_index port_num"),
    (INIT, RTR): _row("ah_attr path_mtu dest_ee_num rq_psn max_dest_rd_atomic", "pkey_index " + _STRIPES),
    (RTR, RTS): _row("timeout retry_cnt sq_psn max_rd_atomic"),
    (RTS, SQD): _row(),
    (SQD, SQD): _row("", _EE_LATER),
    (SQD, RTS): _row(),
    **{(s, t): _row() for s in EE_STATES for t in (RESET, ERR)},
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
    "dest_ee_num": (0, 0xFFFFFF),
    "reorder_ns": (1, 1 << 40),
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
    rows = {(s, t): row for (s, t, k), row in TRANSITIONS.items() if k is service}
    row = rows.get((current, target))
    if row is not None and alternate and service in (RC, UC):
        more = ALTERNATE_PATH.get((current, target), frozenset())
        rows[current, target] = Transition(row.needs, row.allows | more)
    _check(rows, f"{service.name} queue pair", service.name, current, target, given)


def check_ee(current: QPState, target: QPState, given: Iterable[str]) -> None:
    """`check` for end-to-end contexts."""
    _check(EE_TRANSITIONS, "end-to-end context", "EE context", current, target, given)


def _check(
    rows: dict[tuple[QPState, QPState], Transition],
    what: str,
    short: str,
    current: QPState,
    target: QPState,
    given: Iterable[str],
) -> None:
    row = rows.get((current, target))
    if row is None:
        ways = sorted({t.name for (s, t) in rows if s is current})
        raise InvalidStateError(
            f"{what}: no way from {current.name} to {target.name}; "
            f"from {current.name} it may go to {', '.join(ways)}"
        )
    names = set(given)
    if missing := row.needs - names:
        raise InvalidAttributeError(
            f"{short} {current.name} -> {target.name} also needs {', '.join(sorted(missing))}"
        )
    if extra := names - row.needs - row.allows:
        allowed = ", ".join(sorted(row.needs | row.allows)) or "none"
        raise InvalidAttributeError(
            f"{short} {current.name} -> {target.name} does not take {', '.join(sorted(extra))}; "
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
