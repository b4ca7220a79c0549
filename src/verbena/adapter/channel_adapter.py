"""The channel adapter: its ports, its tables, its queue pairs and completion queues, its events.

It owns the transport engine and knows nothing of sockets or of what moves time on: whoever runs it (a driver in
`runtime`) sets `on_work`, feeds bursts to the engine, sends the bursts that it makes, and calls `dispatch` when the
engine has reports.  All calls may come from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from verbena.adapter import states
from verbena.adapter.address_spaces import AddressSpaces, PageError
from verbena.adapter.attributes import AddressVector, DeviceAttributes, QPCapabilities
from verbena.adapter.gid import Gid
from verbena.adapter.handlers import HandlerTable
from verbena.adapter.native import KeyViolation, NativePorts
from verbena.adapter.path_tables import PathTables
from verbena.adapter.port import AdapterPort
from verbena.clock import Clock
from verbena.errors import InvalidAttributeError, InvalidStateError, ResourceError
from verbena.memory.access import Access
from verbena.memory.windows import WindowTable
from verbena.transport.engine import Engine
from verbena.transport.kinds import AckPolicy, AsyncEventType, PathMigrationState, QPState, QPType
from verbena.transport.raw import RawEngine

if TYPE_CHECKING:
    from random import Random

REPORT_CQ = 0
REPORT_VIOLATION = 2
REPORT_FAULT = 3
MAX_SGE = 16  # as in transport/tables.pxd
TIMEOUT_UNIT_NS = 4096  # IBA vol. 1, 9.7.6.1.3: 4.096 us * 2^n
INCOMING = Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """An asynchronous event (IBA vol. 1, 11.6.3): its type, and the number of the object it is about.

    `qp_num` for events of queue pairs, `cq` for completion queues, `srq` for shared receive queues, `port` for ports,
    `handler` for completion handlers; `source` is the object itself where the program still holds it.  PAGE_FAULT names
    the key and the address, too.
    """

    type: AsyncEventType
    qp_num: int | None = None
    cq: int | None = None
    srq: int | None = None
    source: Any = None
    port: int | None = None
    handler: int | None = None
    key: int | None = None
    address: int | None = None


class ChannelAdapter(PathTables):
    """A channel adapter: with one port on Ethernet, or with InfiniBand ports.

    own_gid: the Ethernet port's GID, also where the adapter is reached; further_gids: others, each with a link of its
    own; a path begins at the one that its address vector's sgid_index names.  ports: the InfiniBand ports, numbered
    from 1; then own_gid and active_mtu do not count, and whoever sets something of a port calls `port_changed`.
    clock, random: the only time and chance that it uses.  udp_port: RoCEv2's destination port.  active_mtu: the
    largest path MTU, 256 to 4096 bytes.  window_bytes: how much one queue pair may have in flight.  lock: an RLock
    where several threads work, None otherwise.
    """

    def __init__(
        self,
        own_gid: Gid | None,
        limits: DeviceAttributes,
        *,
        further_gids: tuple[Gid, ...] = (),
        clock: Clock,
        random: Random,
        udp_port: int = 4791,
        active_mtu: int = 4096,
        window_bytes: int = 1 << 20,
        ack_policy: AckPolicy = AckPolicy.COALESCED,
        lock: Any = None,
        ports: Sequence[AdapterPort] | None = None,
    ) -> None:
        if limits.max_sge > MAX_SGE:
            raise InvalidAttributeError(f"max_sge = {limits.max_sge}: an adapter has {MAX_SGE} at most")
        if ports and len(ports) > limits.phys_port_cnt:
            raise InvalidAttributeError(
                f"{len(ports)} ports: this kind of adapter has {limits.phys_port_cnt}"
            )
        if ports:
            own_gid = ports[0].gids[0]
            limits = replace(
                limits, node_guid=limits.node_guid or ports[0].guid - 1, phys_port_cnt=len(ports)
            )
        if own_gid is None:
            raise InvalidAttributeError("an adapter needs a GID, or InfiniBand ports")
        self._gids = (own_gid, *further_gids)
        self.clock = clock
        self.random = random
        self.udp_port = udp_port
        self._active_mtu = active_mtu
        self.ack_policy = ack_policy
        guid = 0x02_00_00 << 40 | 0xFFFE << 24 | int.from_bytes(own_gid.raw[-3:], "big")
        self.limits = replace(limits, node_guid=limits.node_guid or guid)
        self.regions = WindowTable(limits.max_mr, random, limits.max_mw)
        kind: Any = RawEngine if ports else Engine
        self.engine: Any = kind(
            self.regions,
            own_gid.raw,
            udp_port,
            limits.max_qp + 16,
            limits.max_cq,
            limits.max_qp + limits.max_srq,
            limits.max_ah + (limits.max_qp + limits.max_ee) * (2 if ports else 1),
            window_bytes,
            limits.max_ee,
            lock=lock,
        )
        self.memory = AddressSpaces(self.engine, self.regions, lambda: self.on_work())
        self.native: NativePorts | None = NativePorts(self.engine, ports) if ports else None
        self.on_violation: Callable[[KeyViolation], None] = lambda violation: None
        self.on_work: Callable[[], None] = lambda: None
        self.cq_sinks: dict[int, Callable[[bool], None]] = {}
        self.handlers = HandlerTable(self.engine, clock, limits.completion_handlers, limits.handler_memory)
        self.engine.solicited_armed = limits.solicited_needs_arming
        self.engine.entry_first = limits.entry_before_event
        self.message_sink: Callable[[int, int, int], None] = lambda address, data, descriptor: None
        self.event_sink: Callable[[AsyncEvent], None] = lambda event: None
        self._domains = 0
        self._next_domain = 0
        self._vectors: dict[int, AddressVector] = {}
        self._pkey_index: dict[int, int] = {}
        self._stripes: dict[int, tuple[AddressVector, ...]] = {}

    # --- reports ------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Hand the engine's reports to those who wait for them, and interrupts to processors."""
        self.send_messages()
        for kind, a, b in self.engine.reports():
            if kind == REPORT_CQ:
                if sink := self.cq_sinks.get(a):
                    sink(bool(b))
                continue
            if kind == REPORT_VIOLATION:
                for violation in self.engine.violations():
                    self.on_violation(KeyViolation.of(violation))
                continue
            if kind == REPORT_FAULT:
                for error in self.memory.dispatch():
                    self._page_error(error)
                continue
            event = self._event(AsyncEventType(a), b)
            self.event_sink(event)

    def send_messages(self) -> None:
        """Make the writes of the vectors whose time has come."""
        if self.engine.has_messages():
            with self.engine:
                messages = self.engine.messages()
            for _, address, data, descriptor in messages:
                self.message_sink(address, data, descriptor)

    def _page_error(self, error: PageError) -> None:
        """An access met a page that was not mapped: the default error handler learns of it (document 003:882)."""
        index = error.qp_num & 0xFFFF
        self.event_sink(
            AsyncEvent(AsyncEventType.PAGE_FAULT, qp_num=index, key=error.key, address=error.address)
        )

    def _event(self, kind: AsyncEventType, index: int) -> AsyncEvent:
        if kind is AsyncEventType.CQ_ERR:
            return AsyncEvent(kind, cq=index)
        if kind is AsyncEventType.SRQ_LIMIT_REACHED:
            return AsyncEvent(kind, srq=index)
        return AsyncEvent(kind, qp_num=index)

    # --- protection domains -------------------------------------------------------------------------------

    def alloc_pd(self) -> int:
        """A new protection domain's number."""
        if self._domains >= self.limits.max_pd:
            raise ResourceError(f"all {self.limits.max_pd} protection domains are in use: close one")
        self._domains += 1
        self._next_domain += 1
        return self._next_domain

    def free_pd(self, domain: int) -> None:
        self._domains -= 1

    def has_space(self, domain: int) -> bool:
        """Is a protection domain tied to an address space?"""
        return self.regions.tied(domain)[0] is not None

    # --- queue pairs --------------------------------------------------------------------------------------

    def check_capabilities(self, caps: QPCapabilities) -> None:
        """Raise `InvalidAttributeError` unless the adapter can make queues of these sizes."""
        limits = self.limits
        for name, value, low, high in (
            ("max_send_wr", caps.max_send_wr, 1, limits.max_qp_wr),
            ("max_recv_wr", caps.max_recv_wr, 0, limits.max_qp_wr),
            ("max_send_sge", caps.max_send_sge, 0, limits.max_sge),
            ("max_recv_sge", caps.max_recv_sge, 0, limits.max_sge),
            ("max_inline", caps.max_inline, 0, limits.max_inline),
        ):
            if not isinstance(value, int) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} = {value!r}: this adapter takes {low} to {high}")

    def create_qp(
        self,
        service: QPType,
        domain: int,
        send_cq: int,
        recv_cq: int,
        caps: QPCapabilities,
        *,
        shared_queue: int | None = None,
        all_signaled: bool = False,
        fixed_number: int = 0,
        rdd: int = 0,
    ) -> tuple[int, int]:
        """Create a queue pair in RESET; returns its index and its 24-bit number (IBA vol. 1, 11.2.4.1)."""
        self.check_capabilities(caps)
        if service in states.RAW and self.native is None:
            raise InvalidAttributeError(
                f"{service.name}: RoCE carries no raw datagrams; they need InfiniBand ports"
            )
        engine = self.engine
        with engine:
            queue = shared_queue
            if queue is None:
                queue = engine.make_recv_queue(max(1, caps.max_recv_wr), caps.max_recv_sge, domain, False)
            try:
                index, number = engine.make_qp(
                    int(service),
                    domain,
                    send_cq,
                    recv_cq,
                    queue,
                    caps.max_send_wr,
                    caps.max_send_sge,
                    caps.max_inline,
                    fixed_number,
                )
            except Exception:
                if shared_queue is None:
                    engine.free_recv_queue(queue)
                raise
            engine.set_attribute(index, "all_signaled", all_signaled)
            engine.set_attribute(index, "ack_each", self.ack_policy is AckPolicy.PER_PACKET)
            if service is QPType.RD:
                engine.lend(index, rdd)
        return int(index), int(number)

    def destroy_qp(self, index: int, own_queue: int | None) -> None:
        """Free a queue pair, and its receive queue unless that is shared."""
        with self.engine:
            self.engine.free_qp(index)
            if own_queue is not None:
                self.engine.free_recv_queue(own_queue)
            self.forget(index)

    def forget(self, index: int) -> None:
        """A queue pair, or an end-to-end context, is gone, or back in RESET."""
        self._vectors.pop(index, None)
        self._pkey_index.pop(index, None)
        self._stripes.pop(index, None)
        if self.native is not None:
            self.native.forget(index)

    def state(self, index: int) -> QPState:
        return QPState(self.engine.get_state(index))

    def modify_qp(self, index: int, service: QPType, target: QPState | None, given: dict[str, Any]) -> None:
        """Move a queue pair to another state, or change attributes within its own (IBA vol. 1, 11.2.4.2).

        All is checked before anything changes.  Raises `InvalidStateError`, `InvalidAttributeError`.
        """
        engine = self.engine
        self.on_work()  # acknowledgements that are due leave before the state forgets them
        with engine:
            current = self.state(index)
            target = current if target is None else states.known_state(target)
            states.check(service, current, target, given, self.native is not None)
            for name, value in given.items():
                states.check_value(name, value)
            self._after_migration(index)
            self.check_against_port(index, given)
            self._check_limits(given)
            self.apply(index, given)
            if current is QPState.SQD and "max_dest_rd_atomic" in given:
                engine.set_responder(index, given["max_dest_rd_atomic"])
            if target is QPState.ERR:
                engine.fail_qp(index)
            elif target is QPState.RESET:
                engine.clear(index)
                self.forget(index)
            elif target is not current:
                self._enter(index, service, current, target)
        self.on_work()

    def _check_limits(self, given: dict[str, Any]) -> None:
        for name, limit in (
            ("max_rd_atomic", self.limits.max_qp_init_rd_atom),
            ("max_dest_rd_atomic", self.limits.max_qp_rd_atom),
        ):
            if given.get(name, 0) > limit:
                raise InvalidAttributeError(f"{name} = {given[name]}: this adapter has at most {limit}")

    def apply(self, index: int, given: dict[str, Any]) -> None:
        """Set attributes, that were checked, of a queue pair or an end-to-end context."""
        made = self.make_paths(given)
        put = self.engine.set_attribute
        plain = {
            "qkey": "qkey",
            "access_flags": "access",
            "path_mtu": "mtu",
            "dest_qp_num": "destination",
            "dest_ee_num": "remote_ee",
            "rq_psn": "expected_psn",
            "sq_psn": "send_psn",
            "max_rd_atomic": "max_rd_atomic",
            "max_dest_rd_atomic": "max_dest_rd_atomic",
            "min_rnr_timer": "min_rnr_code",
            "retry_cnt": "retry_count",
            "rnr_retry": "rnr_retry",
        }
        for name, value in given.items():
            if name == "access_flags" and not self.limits.incoming_rdma:
                put(index, "access", int(value) & ~int(INCOMING))
            elif name in plain:
                put(index, plain[name], int(value))
            elif name == "timeout":
                put(index, "timeout_ns", TIMEOUT_UNIT_NS << value if value else 0)
            elif name == "pkey_index":
                self._pkey_index[index] = value
            elif name == "port_num":
                put(index, "port", value)
        if "pkey_index" in given or "port_num" in given:
            port = int(self.engine.attributes(index)["port"])
            put(index, "pkey", self.pkey_table(port)[self._pkey_index.get(index, 0)])
        self.apply_paths(index, given, made)
        if self.native is not None and "path_mig_state" in given:
            self.native.set_migration(index, given["path_mig_state"])

    def _enter(self, index: int, service: QPType, current: QPState, target: QPState) -> None:
        engine = self.engine
        if target is QPState.RTR:
            if service is QPType.UD or service is QPType.RD or service in states.RAW:
                engine.set_attribute(index, "mtu", self.mtu_of(engine.attributes(index)["port"] or 1))
            engine.set_responder(index, engine.attributes(index)["max_dest_rd_atomic"])
        engine.set_state(index, int(target))
        if target is QPState.SQD:
            engine.drain(index)
        elif target is QPState.RTS:
            engine.resume(index)

    def query_qp(self, index: int) -> dict[str, Any]:
        """The attributes that a queue pair was given."""
        with self.engine:
            self._after_migration(index)
            found = self.engine.attributes(index)
            alternate = None if self.native is None else self.native.alternate(index)
        timeout = int(found["timeout_ns"]) // TIMEOUT_UNIT_NS
        more: dict[str, Any] = {}
        if alternate is not None:
            more = {
                "alt_ah_attr": alternate.vector,
                "alt_pkey_index": alternate.pkey_index,
                "alt_port_num": alternate.vector.port_num,
                "alt_timeout": alternate.timeout or 0,
            }
        return {
            **more,
            "path_mig_state": PathMigrationState(found["mig_state"]),
            "access_flags": found["access"],
            "port_num": found["port"] or 1,
            "pkey_index": self._pkey_index.get(index, 0),
            "qkey": found["qkey"],
            "path_mtu": found["mtu"],
            "dest_qp_num": found["destination"],
            "rq_psn": found["expected_psn"],
            "sq_psn": found["send_psn"],
            "max_rd_atomic": found["max_rd_atomic"],
            "max_dest_rd_atomic": found["max_dest_rd_atomic"],
            "min_rnr_timer": found["min_rnr_code"],
            "timeout": timeout.bit_length() - 1 if timeout else 0,
            "retry_cnt": found["retry_count"],
            "rnr_retry": found["rnr_retry"],
            "ah_attr": self._vectors.get(index),
            "stripe_ah_attrs": self._stripes.get(index, ()),
            "reorder_ns": found["reorder_ns"],
        }

    # --- ports --------------------------------------------------------------------------------------------

    def port_changed(self, number: int) -> None:
        """Management has set something of an InfiniBand port: follow, and raise the asynchronous events of it."""
        if self.native is None:
            raise InvalidAttributeError("this adapter's port is on Ethernet: nobody manages it")
        with self.engine:
            events = self.native.changed(number)
            if AsyncEventType.PKEY_CHANGE in events:
                self._renew_pkeys(number)
        for kind in events:
            self.event_sink(AsyncEvent(kind, port=number))
        self.on_work()

    def _renew_pkeys(self, number: int) -> None:
        """Queue pairs name an entry of the table, and use the key that it holds now (IBA vol. 1, 10.9.1)."""
        table = self.pkey_table(number)
        for index in list(self._pkey_index):
            self._after_migration(index)
            entry = self._pkey_index[index]
            if self.engine.attributes(index)["port"] == number:
                self.engine.set_attribute(index, "pkey", table[entry] if entry < len(table) else 0)
            alternate = None if self.native is None else self.native.alternate(index)
            if alternate is not None and alternate.vector.port_num == number:
                entry = alternate.pkey_index
                self.engine.set_attribute(index, "alt_pkey", table[entry] if entry < len(table) else 0)

    def _after_migration(self, index: int) -> None:
        """Note that a queue pair's alternate path has become its path."""
        if self.native is not None and (taken := self.native.migrated(index)):
            self._vectors[index] = taken.vector
            self._pkey_index[index] = taken.pkey_index

    def require_idle_cq(self, index: int) -> None:
        """Raise `InvalidStateError` while queue pairs complete to a completion queue."""
        users = self.engine.cq_users(index)
        if users:
            raise InvalidStateError(
                f"{users} work queues still complete to this completion queue: close their queue pairs first"
            )
