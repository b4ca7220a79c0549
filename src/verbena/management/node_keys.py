"""The M_Key of a port: who may read and write the node (IBA vol. 1, 14.2.4).

Protection is off while the M_Key is 0.  Otherwise an SMP with another key is dropped unanswered, if it writes, or if
PortInfo:M_KeyProtectBits is 2 or 3; it is counted, and told by trap 256.  The first such SMP starts the lease period:
if no SMP with the right key comes before it ends, the protect bits become 0, so that a manager that has lost the key
can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verbena.clock import Clock, Timer
from verbena.wire.mad import ManagementClass, Method
from verbena.wire.smp import RETURN_PATH_OFFSET
from verbena.wire.smp_attributes import BadMkeyDetails, Trap

if TYPE_CHECKING:
    from verbena.management.agent import SubnetManagementAgent

_SECOND = 1_000_000_000
_PATH = 30
"""Bytes of a return path that a trap can tell."""


class KeyGuard:
    """The guard of one port, or of a switch."""

    def __init__(self, agent: SubnetManagementAgent, port: int, clock: Clock) -> None:
        self._agent = agent
        self._port = port
        self._clock = clock
        self._lease: Timer | None = None

    def allows(self, mad: bytes, method: int) -> bool:
        """Whether the SMP may be served."""
        info = self._agent.port_info(self._port)
        if not info.mkey or int.from_bytes(mad[24:32], "big") == info.mkey:
            if self._lease is not None:
                self._lease.cancel()
                self._lease = None
            return True
        if method == Method.GET and info.mkey_protect_bits < 2:
            return True
        self._agent.update_keys(self._port, mkey_violations=min(info.mkey_violations + 1, 0xFFFF))
        if self._lease is None and info.mkey_lease_period:
            ends = self._clock.now() + info.mkey_lease_period * _SECOND
            self._lease = self._clock.call_at(ends, self._expire)
        self._agent.notify_security(self._port, Trap.BAD_MKEY, self._details(mad).pack())
        return False

    def hides(self, mad: bytes) -> bool:
        """Whether the answer to a SubnGet(PortInfo) must not show the M_Key."""
        info = self._agent.port_info(self._port)
        return info.mkey_protect_bits == 1 and int.from_bytes(mad[24:32], "big") != info.mkey

    def _expire(self) -> None:
        self._lease = None
        self._agent.update_keys(self._port, mkey_protect_bits=0)

    def _details(self, mad: bytes) -> BadMkeyDetails:
        directed = mad[1] == ManagementClass.SUBN_DIRECTED_ROUTE
        hops = mad[7] if directed else 0
        path = mad[RETURN_PATH_OFFSET + 1 : RETURN_PATH_OFFSET + 1 + min(hops, _PATH)] if directed else b""
        return BadMkeyDetails(
            lid=self._agent.lid(self._port),
            dr_slid=int.from_bytes(mad[32:34], "big") if directed else 0,
            method=mad[3],
            attribute_id=int.from_bytes(mad[16:18], "big"),
            attribute_modifier=int.from_bytes(mad[20:24], "big"),
            mkey=int.from_bytes(mad[24:32], "big"),
            dr_notice=directed,
            dr_path_truncated=hops > _PATH,
            dr_hop_count=min(hops, _PATH),
            dr_return_path=path,
        )
