"""The types that fabric files are made of."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Path = tuple[str | int, ...]
UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
TIMES = ("real", "virtual")
LARGEST_MESSAGE = (1 << 31) - 1  # IBA vol. 1, 9.7.1: a message has at most 2^31 bytes; verbs hold one less
LARGEST_FILE = 1 << 36


def _bytes(value: Any) -> Any:
    """A number of bytes, which may be written as text with a unit."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]{1,20}) ?([KMG]i?B|B|)", value.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{value!r} is no number of bytes: write for example 4096, 64 KiB or 1 MiB")
    return int(found[1]) * UNITS[found[2].upper()]


def _address(value: Any) -> Any:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is no IP address: write for example 127.0.0.1") from None
    return value


def one_or_both(value: Any) -> Any:
    """One address stands for both times."""
    if not isinstance(value, str | dict | BaseModel):
        raise ValueError(f"{value!r} is no IP address: write for example 127.0.0.1")
    return {"real": value, "virtual": value} if isinstance(value, str) else value


def capture_or_flag(value: Any) -> Any:
    """``true`` and ``false`` instead of a mapping."""
    if not isinstance(value, bool | dict | BaseModel):
        raise ValueError(f"{value!r} is neither true nor false, nor a mapping with the key packets")
    return {"enabled": value} if isinstance(value, bool) else value


Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
IPAddress = Annotated[str, BeforeValidator(_address)]
Probability = Annotated[float, Field(ge=0, le=1)]
Size = BeforeValidator(_bytes)


class Strict(BaseModel):
    """No unknown keys, no guessed types, nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True
    )


class Addresses(Strict):
    """An adapter's IP address in real time (one of this machine's) and in virtual time (any)."""

    real: IPAddress
    virtual: IPAddress

    def at(self, time: str) -> str:
        return self.real if time == "real" else self.virtual


class Common(Strict):
    """What every workload has.  capture: do its packets go into the capture file (if there is one)?"""

    name: Name
    capture: bool = True
