"""What a channel adapter does for its InfiniBand ports: addresses, partitions, alternate paths, events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verbena.adapter.attributes import AddressVector, PortAttributes
from verbena.adapter.gid import UNSPECIFIED, Gid
from verbena.adapter.neighbours import Neighbours
from verbena.adapter.port import LINK_LOCAL_PREFIX, AdapterPort, PortSnapshot, PortState
from verbena.errors import InvalidAttributeError, PortStateError
from verbena.transport.kinds import AsyncEventType, PathMigrationState

FIRST_MULTICAST_LID, PERMISSIVE_LID = 0xC000, 0xFFFF
TIMEOUT_UNIT_NS = 4096  # IBA vol. 1, 9.7.6.1.3: 4.096 us * 2^n
VECTOR_RANGES = (("dlid", 1, 0xFFFF), ("src_path_bits", 0, 127))
KEEP_TIMEOUT = 1  # as in transport/native.pxd
ALTERNATE = ("alt_ah_attr", "alt_pkey_index", "alt_port_num", "alt_timeout")


@dataclass(frozen=True, slots=True)
class KeyViolation:
    """A packet that showed a wrong key, as its trap tells it (IBA vol. 1, 14.2.5.1: 257 P_Key, 258 Q_Key).

    port: where it arrived.  key: what it showed.  gids: source and destination, unspecified without a global header.
    """

    trap: int
    port: int
    key: int
    sl: int
    slid: int
    dlid: int
    src_qp: int
    dest_qp: int
    sgid: Gid = UNSPECIFIED
    dgid: Gid = UNSPECIFIED

    @classmethod
    def of(cls, told: tuple[Any, ...]) -> KeyViolation:
        """From what the engine tells: see `NativeEngine.violations`."""
        trap, port, key, sl, slid, dlid, src_qp, dest_qp, sgid, dgid = told
        return cls(trap, port, key, sl, slid, dlid, src_qp, dest_qp, Gid(sgid), Gid(dgid))


@dataclass(frozen=True, slots=True)
class Alternate:
    """A queue pair's alternate path as the program gave it; timeout: None = that of the primary path."""

    vector: AddressVector
    pkey_index: int
    timeout: int | None


class NativePorts:
    """The InfiniBand ports of one adapter, and what its queue pairs use of them."""

    def __init__(self, engine: Any, ports: Sequence[AdapterPort]) -> None:
        self._engine = engine
        self.ports = tuple(ports)
        for place, port in enumerate(self.ports, 1):
            if port.number != place:
                raise InvalidAttributeError(
                    f"ports are numbered 1, 2, …: port {port.number} is in place {place}"
                )
        self._seen: dict[int, PortSnapshot] = {}
        self._alternates: dict[int, Alternate] = {}
        self.neighbours = Neighbours()
        for port in self.ports:
            self._apply(port)

    # --- ports --------------------------------------------------------------------------------------------

    def port(self, number: int) -> AdapterPort:
        """Raises `InvalidAttributeError` for a port that the adapter has not."""
        if not isinstance(number, int) or not 1 <= number <= len(self.ports):
            raise InvalidAttributeError(f"port {number!r}: this adapter has ports 1 to {len(self.ports)}")
        return self.ports[number - 1]

    def require_active(self, number: int) -> AdapterPort:
        """The port; raises `PortStateError` unless it is ACTIVE and has a LID."""
        port = self.port(number)
        if port.state is not PortState.ACTIVE or not port.lid:
            raise PortStateError(
                f"port {number} is {port.state.name} with LID {port.lid}: it must be ACTIVE, with a LID"
            )
        return port

    def attributes(self, number: int) -> PortAttributes:
        """What Query HCA tells of a port (IBA vol. 1, 11.2.1.3)."""
        port = self.port(number)
        pkey_violations, qkey_violations = self._engine.port_counters(number)
        return PortAttributes(
            state=port.state.name,
            max_mtu=port.max_mtu,
            active_mtu=port.mtu,
            gid_tbl_len=len(port.gids),
            pkey_tbl_len=len(port.pkeys),
            lid=port.lid,
            sm_lid=port.sm_lid,
            lmc=port.lmc,
            link_layer=port.link_layer,
            sm_sl=port.sm_sl,
            port_cap_flags=port.capability_mask,
            bad_pkey_cntr=pkey_violations,
            qkey_viol_cntr=qkey_violations,
        )

    def _apply(self, port: AdapterPort) -> None:
        now = self._seen[port.number] = port.snapshot()
        self._engine.set_port(
            port.number, int(now.state), now.lid, now.lmc, now.mtu, [g.raw for g in now.gids], now.pkeys
        )

    def changed(self, number: int) -> list[AsyncEventType]:
        """Make the engine follow a port that was changed; returns the events of it (IBA vol. 1, 11.6.3.3)."""
        port = self.port(number)
        before = self._seen[number]
        self._apply(port)
        now = self._seen[number]
        events = []
        active = PortState.ACTIVE
        if before.state is active and now.state is not active:
            events.append(AsyncEventType.PORT_ERR)
        if (before.lid, before.lmc) != (now.lid, now.lmc):
            events.append(AsyncEventType.LID_CHANGE)
        if before.pkeys != now.pkeys:
            events.append(AsyncEventType.PKEY_CHANGE)
        if before.gids != now.gids:
            events.append(AsyncEventType.GID_CHANGE)
        if (before.sm_lid, before.sm_sl) != (now.sm_lid, now.sm_sl):
            events.append(AsyncEventType.SM_CHANGE)
        if now.state is active and before.state is not active:
            events.append(AsyncEventType.PORT_ACTIVE)
        return events

    # --- addresses ----------------------------------------------------------------------------------------

    def check_vector(self, vector: AddressVector) -> None:
        """Raise `InvalidAttributeError` unless a port can send there; all ranges but InfiniBand's own are checked."""
        port = self.port(vector.port_num)
        for name, low, high in VECTOR_RANGES:
            value = getattr(vector, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} = {value!r}: an integer from {low} to {high}")
        if vector.src_path_bits >> port.lmc:
            raise InvalidAttributeError(
                f"src_path_bits = {vector.src_path_bits}: port {port.number} has {1 << port.lmc} LIDs"
            )
        if vector.sgid_index >= len(port.gids):
            raise InvalidAttributeError(
                f"sgid_index = {vector.sgid_index}: the GID table has {len(port.gids)} entries"
            )
        self.is_global(vector)

    def is_global(self, vector: AddressVector) -> bool:
        """With a global header?  Raises `InvalidAttributeError` where the vector asks for the wrong one (LNK-04)."""
        prefix = int.from_bytes(vector.gid.raw[:8], "big")
        port = self.port(vector.port_num)
        known = vector.gid != UNSPECIFIED
        abroad = known and prefix not in (port.gid_prefix, LINK_LOCAL_PREFIX)
        if FIRST_MULTICAST_LID <= vector.dlid < PERMISSIVE_LID:
            if vector.gid.raw[0] != 0xFF:
                raise InvalidAttributeError(
                    f"dlid = {vector.dlid:#x} is a multicast LID: gid must be the group's, ff…, not {vector.gid}"
                )
            abroad = True
        if vector.is_global is None:
            return abroad
        if vector.is_global and not known:
            raise InvalidAttributeError("is_global: the destination's gid is needed")
        if abroad and not vector.is_global:
            raise InvalidAttributeError(f"{vector.gid} is not in the port's subnet: it takes a global header")
        return vector.is_global

    def make_path(self, vector: AddressVector) -> int:
        """A path for an address vector that was checked."""
        return int(
            self._engine.make_native_path(
                vector.port_num,
                vector.dlid,
                vector.sl,
                vector.src_path_bits,
                vector.gid.raw,
                vector.sgid_index,
                self.is_global(vector),
                vector.hop_limit,
                vector.traffic_class,
                vector.flow_label,
            )
        )

    # --- attributes of queue pairs ------------------------------------------------------------------------

    def check(
        self, index: int, given: dict[str, Any], pkey_index: int, stripes: Sequence[AddressVector] = ()
    ) -> None:
        """Raise a `VerbError` unless the ports can do what is asked for, for a queue pair or end-to-end context.

        pkey_index: the present one.  stripes: the further paths that it is to have, or has.
        """
        number = given.get("port_num") or self._engine.attributes(index)["port"] or 1
        port = self.port(number)
        if "pkey_index" in given or "port_num" in given:
            self.pkey(number, given.get("pkey_index", pkey_index))
        if given.get("path_mtu", 0) > port.mtu:
            raise InvalidAttributeError(
                f"path_mtu = {given['path_mtu']}: the port's active MTU is {port.mtu}"
            )
        if "ah_attr" in given:
            if given["ah_attr"].port_num != number:
                raise InvalidAttributeError(
                    f"ah_attr.port_num = {given['ah_attr'].port_num}, and the queue pair uses port {number}"
                )
            self.require_active(number)
        if stripes:
            self._check_stripes(index, number, given, given.get("pkey_index", pkey_index), stripes)
        vector = given.get("alt_ah_attr")
        if vector is None and (extra := [name for name in ALTERNATE if name in given]):
            raise InvalidAttributeError(f"{', '.join(extra)}: only together with alt_ah_attr")
        if vector is not None:
            if given.get("alt_port_num", vector.port_num) != vector.port_num:
                raise InvalidAttributeError(
                    f"alt_port_num = {given['alt_port_num']}, and alt_ah_attr.port_num = {vector.port_num}"
                )
            self.pkey(vector.port_num, given.get("alt_pkey_index", 0), "alt_pkey_index")
        if "path_mig_state" in given:
            known = self._alternates.get(index)
            if vector is None and known is not None:
                vector = known.vector
            self._check_migration(index, given["path_mig_state"], vector)

    def _check_stripes(
        self,
        index: int,
        number: int,
        given: dict[str, Any],
        pkey_index: int,
        stripes: Sequence[AddressVector],
    ) -> None:
        """All paths of a striped connection carry its packets as they are: of its MTU, and in its partition."""
        if "alt_ah_attr" in given or index in self._alternates:
            raise InvalidAttributeError(
                "a striped connection has its further paths, and no alternate one: give either stripe_ah_attrs "
                "or alt_ah_attr"
            )
        mtu = given.get("path_mtu") or self._engine.attributes(index)["mtu"]
        pkey = self.pkey(number, pkey_index)
        for vector in stripes:
            port = self.port(vector.port_num)
            if mtu > port.mtu:
                raise InvalidAttributeError(
                    f"path_mtu = {mtu}: the active MTU of port {port.number}, of stripe_ah_attrs, is {port.mtu}"
                )
            if pkey not in port.pkeys:
                raise InvalidAttributeError(
                    f"P_Key {pkey:#06x} is not in the table of port {port.number}, of stripe_ah_attrs"
                )

    def _check_migration(self, index: int, value: int, vector: AddressVector | None) -> None:
        if value == PathMigrationState.ARMED:
            raise InvalidAttributeError(
                "path_mig_state = ARMED: set REARM; the adapter arms the connection when the peer has done so, too"
            )
        if value == PathMigrationState.REARM and vector is None:
            raise InvalidAttributeError("path_mig_state = REARM: give an alternate path first, alt_ah_attr")
        armed = self._engine.attributes(index)["mig_state"] == PathMigrationState.ARMED
        if value == PathMigrationState.MIGRATED and armed and vector is not None:
            self.require_active(vector.port_num)

    def pkey(self, number: int, index: int, name: str = "pkey_index") -> int:
        """An entry of a port's P_Key table; raises `InvalidAttributeError` where there is none."""
        table = self.port(number).pkeys
        if index >= len(table):
            raise InvalidAttributeError(
                f"{name} = {index}: the P_Key table of port {number} has {len(table)} entries"
            )
        if not table[index] & 0x7FFF:
            raise InvalidAttributeError(
                f"{name} = {index}: this entry of port {number}'s P_Key table is empty"
            )
        return table[index]

    def load_alternate(self, index: int, given: dict[str, Any], path: int) -> None:
        """Give a queue pair its alternate path, that was made for it."""
        vector = given["alt_ah_attr"]
        put = self._engine.set_attribute
        timeout = given.get("alt_timeout")
        pkey_index = given.get("alt_pkey_index", 0)
        put(index, "alt_path", path)
        put(index, "alt_pkey", self.pkey(vector.port_num, pkey_index))
        if timeout is None:
            put(index, "alt_timeout_ns", KEEP_TIMEOUT)
        else:
            put(index, "alt_timeout_ns", TIMEOUT_UNIT_NS << timeout if timeout else 0)
        self._alternates[index] = Alternate(vector, pkey_index, timeout)

    def set_migration(self, index: int, value: int) -> None:
        """Rearm a connection, disarm it, or make one that is armed migrate (IBA vol. 1, 17.2.8.1)."""
        found = self._engine.attributes(index)
        if value == PathMigrationState.MIGRATED and found["mig_state"] == PathMigrationState.ARMED:
            self._engine.migrate_qp(index)
        else:
            self._engine.set_attribute(index, "mig_state", int(value))

    def alternate(self, index: int) -> Alternate | None:
        """A queue pair's alternate path."""
        return self._alternates.get(index)

    def migrated(self, index: int) -> Alternate | None:
        """What was the alternate path, if the queue pair has migrated to it since this was last asked."""
        if index in self._alternates and self._engine.attributes(index)["alt_path"] < 0:
            return self._alternates.pop(index)
        return None

    def forget(self, index: int) -> None:
        """The queue pair is gone, or back in RESET."""
        self._alternates.pop(index, None)
