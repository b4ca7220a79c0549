"""GIDs: the 128-bit addresses of ports (IBA vol. 1, 4.1.1; for RoCEv2, IP addresses: annex A17.4.4)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from verbena.errors import InvalidAttributeError

MAPPED = b"\0" * 10 + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Gid:
    """A GID of 16 bytes; an IPv4 address is in its IPv4-mapped form, ``::ffff:a.b.c.d``."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 16:
            raise InvalidAttributeError(f"a GID has 16 bytes, not {len(self.raw)}")

    @classmethod
    def from_ip(cls, address: str) -> Gid:
        """The GID of an IPv4 or IPv6 address; raises `InvalidAttributeError` for anything else."""
        if not isinstance(address, str):
            raise InvalidAttributeError(f"an IP address is a string, not a {type(address).__name__}")
        try:
            ip = ipaddress.ip_address(address.split("%")[0])
        except ValueError:
            raise InvalidAttributeError(f"{address!r} is no IP address") from None
        return cls(MAPPED + ip.packed if ip.version == 4 else ip.packed)

    @property
    def is_ip4(self) -> bool:
        return self.raw[:12] == MAPPED

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The IP address that it stands for."""
        return ipaddress.IPv4Address(self.raw[12:]) if self.is_ip4 else ipaddress.IPv6Address(self.raw)

    def __str__(self) -> str:
        return f"::ffff:{self.ip}" if self.is_ip4 else str(self.ip)


UNSPECIFIED = Gid(bytes(16))
"""No address."""
