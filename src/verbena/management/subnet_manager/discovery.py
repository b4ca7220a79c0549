"""Finding everything that is plugged in, by directed routes (IBA vol. 1, 14.4.3; document 000:78).

From the manager's own node outward: each node's NodeInfo, description and PortInfo; through each port with a link,
the NodeInfo of what is behind it.  Every cable between switches is looked at from both ends, so that two nodes with
the same GUID, or a cable that was moved meanwhile, do not go unnoticed: their statements contradict each other.
"""

from __future__ import annotations

from collections.abc import Callable

from verbena.fabric.topology import LARGEST_SWITCH, NodeKind
from verbena.management.port_settings import is_sane
from verbena.management.subnet import Subnet, SubnetNode, SubnetPort
from verbena.management.subnet_manager.smp_client import SmpClient, ask, tell
from verbena.wire.smp import MAX_HOPS, AttributeId
from verbena.wire.smp_attributes import NodeDescription, NodeInfo, PhysicalState, PortInfo, SwitchInfo

_EXTENDED_SPEEDS = 1 << 31
"""PortInfo's attribute modifier: the manager knows extended speeds."""

Place = tuple[int, int]
"""Node GUID and port number."""


def _identity(info: NodeInfo) -> tuple[int, ...]:
    """What all ports of a node say alike."""
    return (
        info.node_type,
        info.num_ports,
        info.system_image_guid,
        info.device_id,
        info.vendor_id,
        info.revision,
    )


class Discovery:
    """One sweep over the subnet.

    found: the subnet, complete once `finish` was called.  silent: what did not answer, in words.  conflicts: GUID ->
    in words, statements about it that contradict each other (a duplicate, or a change during the sweep).  duplicates:
    GUID -> in words, where something else answers with a GUID that is taken.  clear_changes: write
    SwitchInfo:PortStateChange (only a master may).
    """

    def __init__(
        self,
        client: SmpClient,
        manager_port: int,
        gid_prefix: int,
        previous: Subnet | None,
        clear_changes: bool,
        malformed: Callable[[], None],
    ) -> None:
        self.found = Subnet(gid_prefix)
        self.silent: list[str] = []
        self.conflicts: dict[int, str] = {}
        self.duplicates: dict[int, str] = {}
        self.own: SubnetNode | None = None
        self._client = client
        self._manager_port = manager_port
        self._previous = previous
        self._clear_changes = clear_changes
        self._malformed = malformed
        self._claims: dict[Place, Place] = {}
        self._behind: dict[Place, Place] = {}  # an adapter's port -> the port that leads to it

    def start(self) -> None:
        """Ask the manager's own node; everything else follows from the answers."""
        self._client.put(ask(AttributeId.NODE_INFO, 0, b"", lambda s, d: self._node(None, b"", s, d)))

    # --- nodes --------------------------------------------------------------------------------------------------

    def _node(self, parent: SubnetPort | None, path: bytes, status: int | None, data: bytes) -> None:
        if status is None:
            self.silent.append(f"what is plugged into {parent or 'the manager'} does not answer")
            return
        info = NodeInfo.unpack(data)
        local = info.local_port_num
        if (
            status
            or info.node_type not in (1, 2, 3)
            or not 1 <= info.num_ports <= LARGEST_SWITCH
            or not info.node_guid
            or local > info.num_ports
            or (parent is not None and not local)
        ):
            self._malformed()
            self.silent.append(f"what is plugged into {parent or 'the manager'} answers nonsense")
            return
        node = self.found.nodes.get(info.node_guid)
        if node is None:
            node = SubnetNode(info.node_guid, info, path=path)
            self.found.add_node(node)
            self._new_node(node, parent)
        elif _identity(info) != _identity(node.info):
            self._duplicate(node, parent, path)
            return
        if parent is None:
            self.own = node
        if parent is None or self._claim(node, local, parent, path):
            self._end_port(node, info, path, parent is None)

    def _new_node(self, node: SubnetNode, parent: SubnetPort | None) -> None:
        put, path = self._client.put, node.path
        put(ask(AttributeId.NODE_DESCRIPTION, 0, path, lambda s, d: self._description(node, s, d)))
        if node.is_switch:
            put(ask(AttributeId.SWITCH_INFO, 0, path, lambda s, d: self._switch(node, s, d)))

    def _end_port(self, node: SubnetNode, info: NodeInfo, path: bytes, own: bool) -> None:
        if not node.is_switch:
            number, guid = info.local_port_num, info.port_guid
            self._client.put(
                ask(
                    AttributeId.PORT_INFO,
                    number | _EXTENDED_SPEEDS,
                    path,
                    lambda s, d: self._port(node, number, guid, path, s, d),
                )
            )

    def _claim(self, node: SubnetNode, local: int, parent: SubnetPort, path: bytes) -> bool:
        """Note that `parent` leads to port `local` of `node`; whether the node's port should be asked by this path."""
        here, there = (parent.node.guid, parent.number), (node.guid, local)
        self._claims[here] = there
        if node.is_switch:
            return False  # its ports are asked by the node's first path; `finish` compares
        other = self._behind.get(there)
        if other is None or other == here:
            self._behind[there] = here
            return not (
                node is self.own and local == self._manager_port
            )  # that one was asked without a detour
        # Two cables lead to one port of an adapter: whom did it belong to before?
        if self._old_peer(there) == here:
            self._behind[there] = here
            self._contradiction(node, other, here)
            return True
        self._contradiction(node, here, other)
        return False

    def _old_peer(self, place: Place) -> Place | None:
        node = self._previous.nodes.get(place[0]) if self._previous is not None else None
        port = node.ports.get(place[1]) if node is not None else None
        peer = port.peer if port is not None else None
        return None if peer is None else (peer.node.guid, peer.number)

    def _contradiction(self, node: SubnetNode, wrong: Place, right: Place) -> None:
        self._claims.pop(wrong, None)
        self.conflicts[node.guid] = (
            f"GUID {node.guid:#018x} of {node.name or 'a node'} answers at {self._name(wrong)} as well as at "
            f"{self._name(right)}; only the latter is taken"
        )

    def _name(self, place: Place) -> str:
        node = self.found.nodes.get(place[0])
        return f"{node.name if node is not None and node.name else hex(place[0])}[{place[1]}]"

    def _duplicate(self, node: SubnetNode, parent: SubnetPort | None, path: bytes) -> None:
        """A different node with a GUID that is taken: ask for its name, to report it."""

        def named(status: int | None, data: bytes) -> None:
            name = str(NodeDescription.unpack(data)) if status == 0 else "a node without a name"
            self.duplicates[node.guid] = (
                f"{name} at {parent} has GUID {node.guid:#018x}, which is that of {node.name}; it is left out"
            )

        self._client.put(ask(AttributeId.NODE_DESCRIPTION, 0, path, named))

    def _description(self, node: SubnetNode, status: int | None, data: bytes) -> None:
        if status == 0:
            node.name = str(NodeDescription.unpack(data))
        else:
            self._lost(node, status)

    def _lost(self, node: SubnetNode, status: int | None) -> None:
        how = "no longer answers" if status is None else f"answers with status {status:#x}"
        self.silent.append(f"{node} {how}")

    # --- ports --------------------------------------------------------------------------------------------------

    def _switch(self, node: SubnetNode, status: int | None, data: bytes) -> None:
        if status != 0:
            self._lost(node, status)
            return
        node.switch_info = info = SwitchInfo.unpack(data)
        if info.port_state_change and self._clear_changes:
            # Before the ports are read: what changes from now on sets it again.
            self._client.put(
                tell(AttributeId.SWITCH_INFO, 0, node.path, data[:20], lambda s, d: self._cleared(node, s, d))
            )
        else:
            self._ask_ports(node)

    def _cleared(self, node: SubnetNode, status: int | None, data: bytes) -> None:
        if status == 0:
            node.switch_info = SwitchInfo.unpack(data)
        else:
            self._lost(node, status)
        self._ask_ports(node)

    def _ask_ports(self, node: SubnetNode) -> None:
        for number in range(node.info.num_ports + 1):
            self._client.put(
                ask(
                    AttributeId.PORT_INFO,
                    number | _EXTENDED_SPEEDS,
                    node.path,
                    lambda s, d, n=number: self._port(node, n, node.guid, node.path, s, d),  # type: ignore[misc]
                )
            )

    def _port(
        self, node: SubnetNode, number: int, guid: int, path: bytes, status: int | None, data: bytes
    ) -> None:
        if status != 0:
            self._lost(node, status)
            return
        info = PortInfo.unpack(data)
        if not is_sane(info):
            self._malformed()
            self.silent.append(f"{node}[{number}] answers nonsense")
            return
        if node.is_switch and number == 0:
            guid = node.guid
        taken = self.found.ports_by_guid.get(guid)
        if taken is not None and taken.node is not node and not (node.is_switch and number):
            self.duplicates[guid] = (
                f"{node}[{number}] has the port GUID {guid:#018x} of {taken}; it is left out"
            )
            return
        port = SubnetPort(node, number, guid, info, path)
        self.found.add_port(port)
        if number and info.port_physical_state == PhysicalState.LINK_UP and self._goes_on(node, number):
            onward = path + bytes((number,))
            if len(onward) <= MAX_HOPS:
                self._client.put(
                    ask(AttributeId.NODE_INFO, 0, onward, lambda s, d: self._node(port, onward, s, d))
                )

    def _goes_on(self, node: SubnetNode, number: int) -> bool:
        """Directed routes cross switches, and leave the manager's own node; an adapter is the end of one."""
        return node.is_switch or (node is self.own and number == self._manager_port)

    # --- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> Subnet:
        """Plug the cables in on which both ends agree, leave out what did not answer, and return the subnet."""
        for here, there in self._claims.items():
            a, b = self._port_at(here), self._port_at(there)
            if a is None or b is None:
                continue
            if b.node.is_switch and not self._agrees(here, there, b):
                self.conflicts.setdefault(
                    b.node.guid,
                    f"{a} leads to {b}, but that says otherwise: a second node with GUID {b.node.guid:#018x}, "
                    "or a cable that was moved",
                )
                continue
            a.peer, b.peer = b, a
        for node in [node for node in self.found.nodes.values() if not self._complete(node)]:
            self.found.remove_node(node)
        self._leave_out_islands()
        self.found.index()
        return self.found

    def _agrees(self, here: Place, there: Place, b: SubnetPort) -> bool:
        reverse = self._claims.get(there)
        if reverse is None:  # its answer got lost, if it has a link at all
            return b.info.port_physical_state == PhysicalState.LINK_UP
        return reverse == here

    def _port_at(self, place: Place) -> SubnetPort | None:
        node = self.found.nodes.get(place[0])
        return None if node is None else node.ports.get(place[1])

    @staticmethod
    def _complete(node: SubnetNode) -> bool:
        """Whether it answered enough to be managed."""
        if node.kind is NodeKind.SWITCH:
            return node.switch_info is not None and 0 in node.ports
        return bool(node.ports)

    def _leave_out_islands(self) -> None:
        """Only what a chain of cables joins to the manager's node is part of the subnet."""
        if self.own is None:
            return
        reached = {self.own.guid}
        edge = [self.own]
        while edge:
            node = edge.pop()
            for port in node.ports.values():
                if (
                    port.peer is not None
                    and self._goes_on(node, port.number)
                    and port.peer.node.guid not in reached
                ):
                    reached.add(port.peer.node.guid)
                    edge.append(port.peer.node)
        for node in [node for node in self.found.nodes.values() if node.guid not in reached]:
            self.found.remove_node(node)
