"""Multicast groups: who is in them, and what their packets are like (IBA vol. 1, 15.2.5.17).

The first full member makes a group, the last one to leave ends it; other members do not hold it.  Whatever changes who
receives is told to the subnet manager, which builds the trees: this is no more than the register.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from verbena.management.sa_paths import MTUS, RATES, limited
from verbena.management.sa_request import Denied, SaRequest, Store
from verbena.management.subnet import SubnetPort
from verbena.management.subnet_view import SubnetIndex, end_gbps, end_mtu, in_partition, pkeys_of
from verbena.wire.errors import DecodeError
from verbena.wire.sa import SaStatus, matches
from verbena.wire.sa_records import RATE_CODE, RATE_GBPS, JoinState, MCMemberRecord, Selector

KIND = "multicast"
FIRST_MLID, LAST_MLID = 0xC000, 0xFFFE
SIGNATURE = 0xA01B
"""In the GIDs of groups that subnet administration names."""
MOST_MEMBERS = 65_536
RECEIVES = JoinState.FULL | JoinState.NON_MEMBER
NEEDED_TO_CREATE = {"pkey", "qkey", "sl", "flow_label", "tclass"}
SAME_IN_A_GROUP = ("qkey", "pkey", "tclass", "sl", "flow_label", "hop_limit", "scope", "mlid")


class Tree(NamedTuple):
    """What the subnet manager has to build: port GUIDs that receive a group's packets, and those that send them."""

    mlid: int
    receivers: frozenset[int]
    senders: frozenset[int]


@dataclass(slots=True)
class Group:
    """A group.  record: its properties, of no member.  members: join state and record by port GID."""

    record: MCMemberRecord
    members: dict[bytes, MCMemberRecord] = field(default_factory=dict)

    @property
    def has_full_members(self) -> bool:
        return any(member.join_state & JoinState.FULL for member in self.members.values())


class Multicast:
    """The groups of one subnet.

    mlids: how many multicast LIDs the switches' tables have room for.  on_tree: called with each group that has other
    members; with no members when it has ended.  on_group: called with a group's GID, and whether it begins or ends.
    """

    def __init__(
        self,
        index: SubnetIndex,
        store: Store,
        *,
        mlids: int = 1024,
        on_tree: Callable[[Tree], None] = lambda tree: None,
        on_group: Callable[[bytes, bool], None] = lambda mgid, begins: None,
    ) -> None:
        self._index = index
        self._store = store
        self._last = min(FIRST_MLID + mlids - 1, LAST_MLID)
        self._on_tree = on_tree
        self._on_group = on_group
        self._groups: dict[bytes, Group] = {}
        self._mlids: set[int] = set()
        self._made = 0
        self.lost = 0
        """Memberships in the store that could not be read."""
        for _, raw in store.load(KIND):
            self._restore(raw)

    def _restore(self, raw: bytes) -> None:
        try:
            record = MCMemberRecord.unpack(raw)
        except DecodeError:
            self.lost += 1
            return
        group = self._groups.get(record.mgid)
        if group is None:
            if record.mlid in self._mlids or not FIRST_MLID <= record.mlid <= self._last:
                self.lost += 1
                return
            group = self._groups[record.mgid] = Group(_without_member(record))
            self._mlids.add(record.mlid)
        group.members[record.port_gid] = record

    @property
    def groups(self) -> dict[bytes, Group]:
        """By multicast GID."""
        return self._groups

    # --- reading ------------------------------------------------------------------------------------------------

    def find(self, request: SaRequest) -> Iterator[MCMemberRecord]:
        """The memberships that match; an untrusted request sees its own, else each group without its members."""
        own = self._index.gid(request.end)
        for group in list(self._groups.values()):
            if not request.trusted and not in_partition(request.pkeys, group.record.pkey):
                continue
            if request.trusted:
                records = list(group.members.values())
            elif own in group.members and "port_gid" in request.names:
                records = [group.members[own]]
            else:
                records = [group.record]
            limits = self._limits_match(request, group.record)
            names = tuple(name for name in request.names if name not in LIMITS)
            yield from (record for record in records if limits and matches(record, request.template, names))

    @staticmethod
    def _limits_match(request: SaRequest, record: MCMemberRecord) -> bool:
        for name in ("mtu", "rate", "packet_life"):
            if name in request.names:
                have, wanted = getattr(record, name), getattr(request.template, name)
                if name == "rate":
                    have, wanted = RATE_GBPS.get(have, 0), RATE_GBPS.get(wanted, 0)
                selector = Selector.EXACTLY
                if f"{name}_selector" in request.names:
                    selector = Selector(getattr(request.template, f"{name}_selector"))
                if not _fits(selector, have, wanted):
                    return False
        return True

    # --- joining ------------------------------------------------------------------------------------------------

    def join(self, request: SaRequest) -> MCMemberRecord:
        """Join a group, which is made if it is not there; raises `Denied`."""
        wanted = request.template
        assert isinstance(wanted, MCMemberRecord)
        names = set(request.names)
        if not {"port_gid", "join_state"} <= names:
            raise Denied(SaStatus.INSUFFICIENT_COMPONENTS)
        end = self._member(request, wanted)
        if not wanted.join_state or wanted.join_state > 7:
            raise Denied(SaStatus.REQUEST_INVALID)
        group = self._groups.get(wanted.mgid) if "mgid" in names else None
        created = group is None
        if group is None:
            group = self._create(wanted, names, end)
        else:
            self._check_same(group.record, wanted, names)
            self._check_end(group.record, end)
        before = group.members.get(wanted.port_gid)
        if before is None and sum(len(g.members) for g in self._groups.values()) >= MOST_MEMBERS:
            raise Denied(SaStatus.NO_RESOURCES)
        state = wanted.join_state | (before.join_state if before is not None else 0)
        member = replace(
            group.record, port_gid=wanted.port_gid, join_state=state, proxy_join=self._is_proxy(request, end)
        )
        if created:
            self._groups[group.record.mgid] = group
            self._mlids.add(group.record.mlid)
        group.members[member.port_gid] = member
        self._store.save(KIND, member.mgid + member.port_gid, member.pack())
        if before is None or before.join_state != state:
            self._tell_tree(group)
        if created:
            self._on_group(member.mgid, True)
        return member

    def _member(self, request: SaRequest, wanted: MCMemberRecord) -> SubnetPort:
        """The port that joins or leaves: the asker's, or one that shares a partition with it (proxy)."""
        end = self._index.by_gid(wanted.port_gid)
        if end is None:
            raise Denied(SaStatus.INVALID_GID)
        if not request.trusted and end.guid != request.end.guid:
            raise Denied(SaStatus.DENIED)
        return end

    @staticmethod
    def _is_proxy(request: SaRequest, end: SubnetPort) -> bool:
        return end.guid != request.end.guid

    def _create(self, wanted: MCMemberRecord, names: set[str], end: SubnetPort) -> Group:
        if not names >= NEEDED_TO_CREATE:
            raise Denied(SaStatus.INSUFFICIENT_COMPONENTS)
        if not wanted.join_state & JoinState.FULL:
            raise Denied(SaStatus.REQUEST_INVALID)
        mgid = wanted.mgid if "mgid" in names else bytes(16)
        if mgid == bytes(16):
            mgid = self._new_mgid(wanted.scope if "scope" in names else 2)
        elif mgid[0] != 0xFF or int.from_bytes(mgid[2:4], "big") == SIGNATURE:
            raise Denied(SaStatus.REQUEST_INVALID)
        mtu = self._offered("mtu", wanted, names, end_mtu(end), MTUS)
        rate = self._offered("rate", wanted, names, end_gbps(end), RATES)
        mlid = next((m for m in range(FIRST_MLID, self._last + 1) if m not in self._mlids), None)
        if mlid is None:
            raise Denied(SaStatus.NO_RESOURCES)
        record = MCMemberRecord(
            mgid=mgid,
            qkey=wanted.qkey,
            mlid=mlid,
            mtu_selector=Selector.EXACTLY,
            mtu=int(mtu),
            tclass=wanted.tclass,
            pkey=wanted.pkey,
            rate_selector=Selector.EXACTLY,
            rate=RATE_CODE[rate],
            packet_life_selector=Selector.EXACTLY,
            packet_life=wanted.packet_life if "packet_life" in names else 18,
            sl=wanted.sl,
            flow_label=wanted.flow_label,
            hop_limit=wanted.hop_limit if "hop_limit" in names else 0,
            scope=mgid[1] & 15,
        )
        self._check_end(record, end)
        return Group(record)

    def _new_mgid(self, scope: int) -> bytes:
        """A name for a group: the standard's transient flag, our signature, the subnet, a running number."""
        while True:
            self._made += 1
            made = bytes((0xFF, 0x10 | scope)) + SIGNATURE.to_bytes(2, "big")
            made += self._index.subnet.gid_prefix.to_bytes(8, "big") + (self._made & 0xFFFFFFFF).to_bytes(
                4, "big"
            )
            if made not in self._groups:
                return made

    @staticmethod
    def _offered(
        name: str, wanted: MCMemberRecord, names: set[str], have: float, steps: list[float]
    ) -> float:
        """The MTU or rate of a new group whose first member can do `have`."""
        value: float = getattr(wanted, name)
        if name == "rate":
            value = RATE_GBPS.get(int(value), 0)
        if name not in names:
            return max((step for step in steps if step <= have), default=steps[0])
        selector = getattr(wanted, f"{name}_selector") if f"{name}_selector" in names else Selector.EXACTLY
        found = limited(have, (Selector(selector), value), steps)
        if found is None or found not in steps:
            raise Denied(SaStatus.REQUEST_INVALID)
        return found

    @staticmethod
    def _check_same(record: MCMemberRecord, wanted: MCMemberRecord, names: set[str]) -> None:
        """What a member says of a group that exists must be so."""
        for name in SAME_IN_A_GROUP:
            if name in names and getattr(record, name) != getattr(wanted, name):
                raise Denied(SaStatus.REQUEST_INVALID)
        for name in ("mtu", "rate"):
            if name in names:
                have, value = getattr(record, name), getattr(wanted, name)
                if name == "rate":
                    have, value = RATE_GBPS[have], RATE_GBPS.get(value, 0)
                given = f"{name}_selector" in names
                selector = Selector(getattr(wanted, f"{name}_selector")) if given else Selector.EXACTLY
                if not _fits(selector, have, value):
                    raise Denied(SaStatus.REQUEST_INVALID)

    @staticmethod
    def _check_end(record: MCMemberRecord, end: SubnetPort) -> None:
        """A member must be in the group's partition, and able to receive what its packets are like."""
        if not in_partition(pkeys_of(end), record.pkey):
            raise Denied(SaStatus.REQUEST_INVALID)
        if end_mtu(end) < record.mtu or end_gbps(end) < RATE_GBPS[record.rate]:
            raise Denied(SaStatus.REQUEST_INVALID)

    # --- leaving ------------------------------------------------------------------------------------------------

    def leave(self, request: SaRequest) -> MCMemberRecord:
        """Give up some or all kinds of membership; raises `Denied`."""
        wanted = request.template
        assert isinstance(wanted, MCMemberRecord)
        if not {"mgid", "port_gid", "join_state"} <= set(request.names):
            raise Denied(SaStatus.INSUFFICIENT_COMPONENTS)
        self._member(request, wanted)
        group = self._groups.get(wanted.mgid)
        member = group.members.get(wanted.port_gid) if group is not None else None
        if group is None or member is None or wanted.join_state & ~member.join_state or not wanted.join_state:
            raise Denied(SaStatus.REQUEST_INVALID)
        left = replace(member, join_state=member.join_state & ~wanted.join_state)
        self._change(group, left)
        return left

    def _change(self, group: Group, member: MCMemberRecord) -> None:
        if member.join_state:
            group.members[member.port_gid] = member
            self._store.save(KIND, member.mgid + member.port_gid, member.pack())
        else:
            del group.members[member.port_gid]
            self._store.remove(KIND, member.mgid + member.port_gid)
        if group.has_full_members:
            self._tell_tree(group)
        else:
            self._end(group)

    def _end(self, group: Group) -> None:
        record = group.record
        for port_gid in group.members:
            self._store.remove(KIND, record.mgid + port_gid)
        group.members.clear()
        del self._groups[record.mgid]
        self._mlids.discard(record.mlid)
        self._tell_tree(group)
        self._on_group(record.mgid, False)

    def drop_port(self, gid: bytes) -> None:
        """A port has left the subnet: it is in no group any more."""
        for group in [group for group in self._groups.values() if gid in group.members]:
            self._change(group, replace(group.members[gid], join_state=0))

    def trees(self) -> list[Tree]:
        """All groups as the subnet manager is to build them."""
        return [self._tree(group) for group in self._groups.values()]

    def _tree(self, group: Group) -> Tree:
        def guids(states: int) -> frozenset[int]:
            members = group.members.values()
            return frozenset(int.from_bytes(m.port_gid[8:], "big") for m in members if m.join_state & states)

        return Tree(group.record.mlid, guids(RECEIVES), guids(RECEIVES | JoinState.SEND_ONLY))

    def _tell_tree(self, group: Group) -> None:
        self._on_tree(self._tree(group))


LIMITS = ("mtu", "mtu_selector", "rate", "rate_selector", "packet_life", "packet_life_selector")


def _without_member(record: MCMemberRecord) -> MCMemberRecord:
    return replace(record, port_gid=bytes(16), join_state=0, proxy_join=False)


def _fits(selector: Selector, have: float, wanted: float) -> bool:
    """Whether a group's property is what is wanted of it."""
    if selector is Selector.GREATER:
        return have > wanted
    if selector is Selector.LESS:
        return have < wanted
    return selector is Selector.LARGEST or have == wanted
