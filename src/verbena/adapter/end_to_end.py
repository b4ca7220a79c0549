"""End-to-end contexts and reliable datagram domains, as the adapter keeps them (IBA vol. 1, 10.2.6, 10.2.7, 11.2.7).

A context joins this adapter to one other, for all the reliable-datagram queue pairs of its domain (document 003:542).
What is allowed when stands in `states`; the transport's part is in `transport.lending` and `transport.datagrams`.
"""

from __future__ import annotations

from typing import Any

from verbena.adapter import states
from verbena.adapter.attributes import ContextCounts
from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.errors import InvalidAttributeError, ResourceError
from verbena.transport.kinds import AckPolicy, QPState, QPType

# Of `ChannelAdapter.query_qp`, what a context has, too.
_SHARED = (
    "port_num",
    "pkey_index",
    "path_mtu",
    "rq_psn",
    "sq_psn",
    "max_rd_atomic",
    "max_dest_rd_atomic",
    "timeout",
    "retry_cnt",
    "ah_attr",
    "stripe_ah_attrs",
    "reorder_ns",
)


class EndToEndTable:
    """The contexts and domains of one adapter."""

    def __init__(self, adapter: ChannelAdapter) -> None:
        self._adapter = adapter
        self._engine = adapter.engine
        self._domains = 0
        self._next_domain = 0

    def alloc_rdd(self) -> int:
        """A new reliable datagram domain's number, from 1 on."""
        limit = self._adapter.limits.max_rdd
        if self._domains >= limit:
            raise ResourceError(f"all {limit} reliable datagram domains are in use: close one")
        self._domains += 1
        self._next_domain += 1
        return self._next_domain

    def free_rdd(self, domain: int) -> None:
        self._domains -= 1

    def create(self, rdd: int) -> tuple[int, int]:
        """A context in RESET; returns its index and its 24-bit number.  Raises `ResourceError`."""
        with self._engine:
            index, number = self._engine.make_ee(rdd, self._adapter.limits.max_inline)
            per_packet = self._adapter.ack_policy is AckPolicy.PER_PACKET
            self._engine.set_attribute(index, "ack_each", per_packet)
        return int(index), int(number)

    def destroy(self, index: int) -> None:
        """Free a context; what waits for it ends with INV_EEC_STATE_ERR."""
        with self._engine:
            self._engine.free_ee(index)
            self._adapter.forget(index)

    def modify(self, index: int, target: QPState | None, given: dict[str, Any]) -> None:
        """Move a context to another state, or change attributes within its own (IBA vol. 1, 11.2.7.2).

        All is checked before anything changes.  Raises `InvalidStateError`, `InvalidAttributeError`.
        """
        engine, adapter = self._engine, self._adapter
        adapter.on_work()
        with engine:
            current = adapter.state(index)
            target = current if target is None else states.known_state(target)
            states.check_ee(current, target, given)
            for name, value in given.items():
                states.check_value(name, value)
            adapter.check_against_port(index, given)
            self._check_limits(given)
            adapter.apply(index, given)
            if current is QPState.SQD and "max_dest_rd_atomic" in given:
                engine.set_responder(index, given["max_dest_rd_atomic"])
            if target is QPState.ERR:
                engine.fail_qp(index)
            elif target is QPState.RESET:
                engine.clear_ee(index)
                adapter.forget(index)
            elif target is not current:
                if target is QPState.RTR:
                    engine.set_responder(index, engine.attributes(index)["max_dest_rd_atomic"])
                engine.set_state(index, int(target))
                if target is QPState.SQD:
                    engine.drain(index)
                elif target is QPState.RTS:
                    engine.resume(index)
        adapter.on_work()

    def _check_limits(self, given: dict[str, Any]) -> None:
        limits = self._adapter.limits
        for name, limit in (
            ("max_rd_atomic", limits.max_ee_init_rd_atom),
            ("max_dest_rd_atomic", limits.max_ee_rd_atom),
        ):
            if given.get(name, 0) > limit:
                raise InvalidAttributeError(f"{name} = {given[name]}: this adapter has at most {limit}")

    def query(self, index: int) -> dict[str, Any]:
        """The attributes that a context was given, and where it stands."""
        with self._engine:
            found = self._adapter.query_qp(index)
            remote = self._engine.attributes(index)["remote_ee"]
        return {**{name: found[name] for name in _SHARED}, "dest_ee_num": remote}

    def count(self) -> ContextCounts:
        """What the adapter's tables hold now."""
        with self._engine:
            services, contexts = self._engine.count_contexts()
        return ContextCounts({service: services.get(int(service), 0) for service in QPType}, int(contexts))
