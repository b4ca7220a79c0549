"""What a router tells the sender of a raw IPv6 packet that it dropped (RFC 4443): not too often.

Packets of the fabric's own transport get no answer: their sender has its own time-outs.
"""

from __future__ import annotations

from verbena.clock import Clock
from verbena.wire.icmp6 import ADDRESS_UNREACHABLE, BEYOND_SCOPE, NO_ROUTE, Icmp6Error, icmp6_error

_REPORTED = {
    "no_route": (Icmp6Error.DESTINATION_UNREACHABLE, NO_ROUTE),
    "link_local": (Icmp6Error.DESTINATION_UNREACHABLE, BEYOND_SCOPE),
    "unreachable": (Icmp6Error.DESTINATION_UNREACHABLE, ADDRESS_UNREACHABLE),
    "pending_timeout": (Icmp6Error.DESTINATION_UNREACHABLE, ADDRESS_UNREACHABLE),
    "mtu": (Icmp6Error.PACKET_TOO_BIG, 0),
    "hop_limit": (Icmp6Error.TIME_EXCEEDED, 0),
}


class ErrorReports:
    """Makes ICMPv6 errors: `burst` at once, and one more after each `interval_ns` (RFC 4443, 2.4 (f))."""

    def __init__(self, clock: Clock, burst: int = 10, interval_ns: int = 10_000_000) -> None:
        self._clock = clock
        self._burst = burst
        self._interval_ns = interval_ns
        self._left = burst
        self._since = clock.now()

    def about(self, reason: str, datagram: bytes, address: bytes, parameter: int = 0) -> bytes | None:
        """The IPv6 packet that reports a drop, sent from `address`; None when none is due."""
        if reason not in _REPORTED:
            return None
        now = self._clock.now()
        gained = (now - self._since) // self._interval_ns
        self._since += gained * self._interval_ns
        self._left = min(self._burst, self._left + gained)
        if not self._left:
            return None
        kind, code = _REPORTED[reason]
        made = icmp6_error(kind, code, parameter, address, datagram)
        if made is not None:
            self._left -= 1
        return made
