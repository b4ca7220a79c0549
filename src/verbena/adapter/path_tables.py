"""The paths that queue pairs and end-to-end contexts of an adapter use: checked, made, and given to them."""

from __future__ import annotations

from typing import Any

from verbena.adapter.attributes import AddressVector
from verbena.adapter.gid import UNSPECIFIED, Gid
from verbena.adapter.port_tables import PortTables
from verbena.errors import InvalidAttributeError

MAX_STRIPES = 4  # as in transport/tables.pxd
REORDER_NS = 100_000  # how long a gap between packets of a striped connection may stay open, unless told
VECTOR_RANGES = (
    ("sgid_index", 0, 255),
    ("hop_limit", 1, 255),
    ("traffic_class", 0, 255),
    ("flow_label", 0, 0xFFFFF),
    ("sl", 0, 15),
    ("port_num", 1, 255),
)


class PathTables(PortTables):
    """The part of a `ChannelAdapter` that turns address vectors into paths."""

    engine: Any
    _vectors: dict[int, AddressVector]
    _pkey_index: dict[int, int]
    _stripes: dict[int, tuple[AddressVector, ...]]

    def check_against_port(self, index: int, given: dict[str, Any]) -> None:
        """Raise a `VerbError` unless the ports can be used so, by a queue pair or an end-to-end context."""
        for name in ("ah_attr", "alt_ah_attr"):
            if name in given:
                self.check_vector(given[name])
        stripes = given.get("stripe_ah_attrs", ())
        if not isinstance(stripes, list | tuple) or len(stripes) >= MAX_STRIPES:
            raise InvalidAttributeError(
                f"stripe_ah_attrs: a list of at most {MAX_STRIPES - 1} AddressVectors, for paths beside ah_attr's"
            )
        for vector in stripes:
            self.check_vector(vector)
        if self.native is not None:
            striped = stripes if "stripe_ah_attrs" in given else self._stripes.get(index, ())
            self.native.check(index, given, self._pkey_index.get(index, 0), striped)
        else:
            self._check_ethernet(given)

    def _check_ethernet(self, given: dict[str, Any]) -> None:
        if given.get("port_num", 1) != 1:
            raise InvalidAttributeError(f"port_num = {given['port_num']}: this adapter has port 1 only")
        if given.get("pkey_index", 0) >= len(self.pkeys):
            raise InvalidAttributeError(
                f"pkey_index = {given['pkey_index']}: the P_Key table has {len(self.pkeys)} entries"
            )
        if given.get("path_mtu", 0) > self.active_mtu:
            raise InvalidAttributeError(
                f"path_mtu = {given['path_mtu']}: the port's active MTU is {self.active_mtu}"
            )

    def check_vector(self, vector: Any) -> None:
        """Raise `InvalidAttributeError` unless this is an address vector that the port can use."""
        if not isinstance(vector, AddressVector):
            raise InvalidAttributeError(f"an AddressVector is needed, not {type(vector).__name__}")
        if not isinstance(vector.gid, Gid):
            raise InvalidAttributeError(
                f"gid must be a Gid, not a {type(vector.gid).__name__}: see Gid.from_ip"
            )
        for name, low, high in VECTOR_RANGES:
            value = getattr(vector, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} = {value!r}: an integer from {low} to {high}")
        if self.native is not None:
            self.native.check_vector(vector)
            return
        if vector.dlid or vector.src_path_bits or vector.is_global is False or vector.gid == UNSPECIFIED:
            raise InvalidAttributeError("on Ethernet a destination is its GID: no dlid, no src_path_bits")
        if vector.sgid_index >= len(self.gids):
            raise InvalidAttributeError(
                f"sgid_index = {vector.sgid_index}: the GID table has {len(self.gids)} entries"
            )
        if vector.gid.is_ip4 != self.gid.is_ip4:
            raise InvalidAttributeError(
                f"the adapter's address is {self.gid.ip}, the destination's {vector.gid.ip}: "
                "both must be IPv4, or both IPv6"
            )
        if vector.port_num != 1:
            raise InvalidAttributeError(f"port_num = {vector.port_num}: this adapter has port 1 only")

    def make_path(self, vector: AddressVector) -> int:
        """A path for an address vector; give it back with `engine.free_path`."""
        with self.engine:
            if self.native is not None:
                return self.native.make_path(vector)
            return int(
                self.engine.make_path(
                    vector.gid.raw,
                    vector.hop_limit,
                    vector.traffic_class,
                    vector.flow_label,
                    self.gids[vector.sgid_index].raw,
                )
            )

    def make_paths(self, given: dict[str, Any]) -> dict[str, list[int]]:
        """The paths for all address vectors that are given, by the attributes' names: all of them, or it raises."""
        vectors: dict[str, list[AddressVector]] = {
            name: [given[name]] for name in ("ah_attr", "alt_ah_attr") if name in given
        }
        if "stripe_ah_attrs" in given:
            vectors["stripe_ah_attrs"] = list(given["stripe_ah_attrs"])
        made: dict[str, list[int]] = {name: [] for name in vectors}
        try:
            for name, wanted in vectors.items():
                for vector in wanted:
                    made[name].append(self.make_path(vector))
        except Exception:
            for path in (path for paths in made.values() for path in paths):
                self.engine.free_path(path)
            raise
        return made

    def apply_paths(self, index: int, given: dict[str, Any], made: dict[str, list[int]]) -> None:
        """Give a queue pair or an end-to-end context the paths that `make_paths` made; it holds them from now on."""
        put = self.engine.set_attribute
        if "ah_attr" in given:
            put(index, "path", made["ah_attr"][0])
            self._vectors[index] = given["ah_attr"]
        if "reorder_ns" in given:
            put(index, "reorder_ns", given["reorder_ns"])
        if "stripe_ah_attrs" in given:
            if not self.engine.attributes(index)["reorder_ns"]:
                put(index, "reorder_ns", REORDER_NS)
            self.engine.set_stripes(index, made["stripe_ah_attrs"])
            self._stripes[index] = tuple(given["stripe_ah_attrs"])
        if self.native is not None and "alt_ah_attr" in given:
            self.native.load_alternate(index, given, made["alt_ah_attr"][0])
