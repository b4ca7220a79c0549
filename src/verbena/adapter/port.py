"""The InfiniBand ports of a channel adapter, as management sees and sets them (IBA vol. 1, 7.2 and 14.2.5.6).

An `AdapterPort` is what the subnet manager writes into: its attributes are those of PortInfo, GUIDInfo and the P_Key
table.  Nothing happens when one is set; `ChannelAdapter.port_changed` makes the adapter follow.  Programs see ports
only as numbers, addresses and `PortAttributes`: the link-level engines behind them have no name (document 003:606).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from verbena.adapter.gid import Gid
from verbena.adapter.states import MTUS
from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError

LINK_LOCAL_PREFIX = 0xFE80 << 48
"""The GID prefix of a subnet that no manager has given another (IBA vol. 1, 4.1.1)."""
FULL_MEMBER = 0xFFFF
MAX_LID = 0xBFFF
MAX_LMC = 7
GID_CAPACITY = 32
PKEY_CAPACITY = 128


class PortState(IntEnum):
    """PortInfo:PortState."""

    DOWN = 1
    INIT = 2
    ARMED = 3
    ACTIVE = 4


# IBA vol. 1, 7.2.7: a link that trains reaches INIT; the manager arms and activates.  A link that trains again before
# anybody has looked is seen to go straight to INIT.
TRANSITIONS: dict[PortState, frozenset[PortState]] = {
    PortState.DOWN: frozenset({PortState.INIT}),
    PortState.INIT: frozenset({PortState.DOWN, PortState.ARMED}),
    PortState.ARMED: frozenset({PortState.DOWN, PortState.INIT, PortState.ACTIVE}),
    PortState.ACTIVE: frozenset({PortState.DOWN, PortState.INIT}),
}


@dataclass(frozen=True, slots=True)
class PortSnapshot:
    """What the adapter follows: everything of a port that changes."""

    state: PortState
    lid: int
    lmc: int
    sm_lid: int
    sm_sl: int
    mtu: int
    gids: tuple[Gid, ...]
    pkeys: tuple[int, ...]


class AdapterPort:
    """One port.  number: 1, 2, …  guid: EUI-64 of the port, the last half of its first GID.  mtu: bytes, 256 to 4096.

    Starts DOWN, without a LID, in the default partition.
    """

    link_layer = "InfiniBand"

    def __init__(
        self,
        number: int,
        guid: int,
        *,
        mtu: int = 4096,
        gid_prefix: int = LINK_LOCAL_PREFIX,
        capability_mask: int = 0,
    ) -> None:
        if not 1 <= number <= 16:
            raise InvalidAttributeError(f"port number {number}: 1 to 16")
        if not 0 < guid < 1 << 64:
            raise InvalidAttributeError(f"guid = {guid:#x}: a number of 64 bits, not 0")
        self.number = number
        self.guid = guid
        self.sm_lid = 0
        self.sm_sl = 0
        self.capability_mask = capability_mask
        self.max_mtu = mtu
        self._state = PortState.DOWN
        self._lid = self._lmc = 0
        self._guids = [guid]
        self._pkeys: tuple[int, ...] = (FULL_MEMBER,)
        self.mtu = mtu
        self.gid_prefix = gid_prefix

    # --- state --------------------------------------------------------------------------------------------

    @property
    def state(self) -> PortState:
        """The state of its link.  Setting it raises `InvalidStateError` where there is no such way."""
        return self._state

    @state.setter
    def state(self, value: PortState) -> None:
        target = PortState(value)
        if target is not self._state and target not in TRANSITIONS[self._state]:
            raise InvalidStateError(
                f"port {self.number} is {self._state.name}: from there it may go to "
                f"{', '.join(sorted(s.name for s in TRANSITIONS[self._state]))}, not to {target.name}"
            )
        self._state = target

    def bring_up(self, lid: int, lmc: int = 0) -> None:
        """From wherever it is to ACTIVE with this LID: what a trained link and a subnet manager do."""
        self.set_lid(lid, lmc)
        for state in (PortState.INIT, PortState.ARMED, PortState.ACTIVE):
            if state > self._state:
                self.state = state

    # --- addresses ----------------------------------------------------------------------------------------

    @property
    def lid(self) -> int:
        """The base LID; 0 = none yet."""
        return self._lid

    @property
    def lmc(self) -> int:
        """How many low bits of the LID choose a path: the port has 2^lmc LIDs (IBA vol. 1, 7.11.1)."""
        return self._lmc

    def set_lid(self, lid: int, lmc: int = 0) -> None:
        """Give the port its LIDs; raises `InvalidAttributeError` for what is no base LID of that LMC."""
        if not isinstance(lid, int) or not 0 <= lid <= MAX_LID:
            raise InvalidAttributeError(f"lid = {lid!r}: 1 to {MAX_LID:#x}, or 0 for none")
        if not isinstance(lmc, int) or not 0 <= lmc <= MAX_LMC:
            raise InvalidAttributeError(f"lmc = {lmc!r}: 0 to {MAX_LMC}")
        if lid & ((1 << lmc) - 1) or (lid and lid + (1 << lmc) - 1 > MAX_LID):
            raise InvalidAttributeError(
                f"lid = {lid:#x} is no base LID for lmc = {lmc}: the low bits must be 0"
            )
        self._lid, self._lmc = lid, lmc

    @property
    def lids(self) -> range:
        """All its LIDs."""
        return range(self._lid, self._lid + (1 << self._lmc) if self._lid else self._lid)

    @property
    def gid_prefix(self) -> int:
        """The high half of all its GIDs, that of its subnet (document 003:575)."""
        return self._gid_prefix

    @gid_prefix.setter
    def gid_prefix(self, value: int) -> None:
        if not isinstance(value, int) or not 0 < value < 1 << 64 or value >> 56 == 0xFF:
            raise InvalidAttributeError(f"gid_prefix = {value!r}: 64 bits, not 0, not of a multicast address")
        self._gid_prefix = value

    @property
    def gids(self) -> tuple[Gid, ...]:
        """The GID table: the subnet's prefix, with the port's GUID and then the others it was given."""
        return tuple(Gid(((self._gid_prefix << 64) | guid).to_bytes(16, "big")) for guid in self._guids)

    def add_gid(self, gid: Gid) -> int:
        """Give the port another address; returns its index.

        Raises `InvalidAttributeError` unless it has the subnet's prefix, `ResourceError` when the table is full.
        """
        prefix, guid = divmod(int.from_bytes(gid.raw, "big"), 1 << 64)
        if prefix != self._gid_prefix:
            raise InvalidAttributeError(
                f"{gid} is no address of this subnet: its prefix must be {self._gid_prefix:#018x}"
            )
        if not guid or guid in self._guids:
            raise InvalidAttributeError(f"{gid}: the port has this address already, or its last half is 0")
        if len(self._guids) >= GID_CAPACITY:
            raise ResourceError(f"the GID table holds its {GID_CAPACITY} entries")
        self._guids.append(guid)
        return len(self._guids) - 1

    def remove_gid(self, gid: Gid) -> None:
        """Take an address away, other than the first; raises `InvalidAttributeError` when it has none such."""
        if gid not in self.gids[1:]:
            raise InvalidAttributeError(f"{gid} is not among the addresses that the port was given")
        self._guids.remove(int.from_bytes(gid.raw[8:], "big"))

    # --- partitions, sizes --------------------------------------------------------------------------------

    @property
    def pkeys(self) -> tuple[int, ...]:
        """The P_Key table; 0 is an empty entry."""
        return self._pkeys

    def set_pkeys(self, keys: Iterable[int]) -> None:
        """Write the P_Key table (IBA vol. 1, 10.9.1): 16 bits each, the top bit for full members."""
        table = tuple(keys)
        if not 1 <= len(table) <= PKEY_CAPACITY:
            raise InvalidAttributeError(f"{len(table)} P_Keys: the table has 1 to {PKEY_CAPACITY} entries")
        for key in table:
            if not isinstance(key, int) or not 0 <= key <= 0xFFFF:
                raise InvalidAttributeError(f"P_Key {key!r}: 16 bits")
        self._pkeys = table

    @property
    def mtu(self) -> int:
        """The largest payload that its link carries, in bytes."""
        return self._mtu

    @mtu.setter
    def mtu(self, value: int) -> None:
        if value not in MTUS or value > self.max_mtu:
            raise InvalidAttributeError(
                f"mtu = {value!r}: one of {', '.join(map(str, MTUS))}, up to {self.max_mtu}"
            )
        self._mtu = value

    def snapshot(self) -> PortSnapshot:
        """Its present values, to be compared with later ones."""
        return PortSnapshot(
            self._state, self._lid, self._lmc, self.sm_lid, self.sm_sl, self._mtu, self.gids, self._pkeys
        )

    def __repr__(self) -> str:
        return f"<AdapterPort {self.number} {self._state.name} lid {self._lid}>"
