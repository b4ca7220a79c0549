"""Bit-exact header layouts, declared as dataclasses.

Every fixed-size format of this package (headers, datagrams, connection-manager messages) is a frozen, slotted
dataclass that lists *all* its bits from the most significant bit of the first byte on, reserved ones too, so
that a round trip preserves every bit::

    @dataclass(frozen=True, slots=True)
    class ImmDt(Layout):
        data: int = uint(32)

This one module packs and unpacks them all.  `at=` states the byte in which a field begins (as the standard's
tables do); a declaration that contradicts the widths before it fails at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field
from typing import Any, ClassVar, NamedTuple, Self

from verbena.wire.errors import DecodeError, EncodeError

Buffer = bytes | bytearray | memoryview
"""What can be decoded."""


class _Bits(NamedTuple):
    """One field: its name, its width and how its value looks in Python ("uint", "flag", "raw" or "data")."""

    name: str
    width: int
    kind: str
    shift: int
    mask: int


def _declare(width: int, kind: str, default: object, at: int | None) -> Any:
    return field(default=default, metadata={"width": width, "kind": kind, "at": at})


def uint(width: int, default: int = 0, *, at: int | None = None) -> Any:
    """An unsigned integer of `width` bits, most significant bit first."""
    return _declare(width, "uint", default, at)


def flag(default: bool = False, *, at: int | None = None) -> Any:
    """One bit, a bool."""
    return _declare(1, "flag", default, at)


def raw(size: int, *, at: int | None = None) -> Any:
    """Exactly `size` bytes (zeros by default)."""
    return _declare(8 * size, "raw", bytes(size), at)


def data(size: int, *, at: int | None = None) -> Any:
    """At most `size` bytes; packing fills up with zeros, unpacking gives all `size` bytes."""
    return _declare(8 * size, "data", bytes(size), at)


class Layout:
    """Base of all fixed-size formats; subclasses are frozen, slotted dataclasses."""

    __slots__ = ()
    SIZE: ClassVar[int]
    _FIELDS: ClassVar[tuple[_Bits, ...]]

    def __init_subclass__(cls) -> None:
        # `dataclass(slots=True)` makes the class a second time, from a dictionary that has the result.
        if "_FIELDS" in cls.__dict__:
            return
        declared = {name: value for name, value in cls.__dict__.items() if isinstance(value, Field)}
        total = sum(entry.metadata["width"] for entry in declared.values())
        if total % 8:
            raise TypeError(f"{cls.__name__} declares {total} bits, which is no whole number of bytes")
        position = 0
        fields = []
        for name, entry in declared.items():
            meta: Mapping[str, Any] = entry.metadata
            if meta["at"] is not None and position // 8 != meta["at"]:
                raise TypeError(f"{cls.__name__}.{name} begins in byte {position // 8}, not {meta['at']}")
            position += meta["width"]
            fields.append(
                _Bits(name, meta["width"], meta["kind"], total - position, (1 << meta["width"]) - 1)
            )
        cls.SIZE = total // 8
        cls._FIELDS = tuple(fields)

    def pack(self) -> bytes:
        """The bytes on the wire; raises `EncodeError` for a value that its field cannot hold."""
        bits = 0
        for name, width, kind, _, mask in self._FIELDS:
            value = getattr(self, name)
            if kind in ("raw", "data"):
                value = self._raw_value(name, width // 8, kind, value)
            elif not isinstance(value, int) or not 0 <= value <= mask:
                raise EncodeError(
                    f"{type(self).__name__}.{name} is {value!r}; it must be an integer from 0 to {mask:#x}"
                )
            bits = bits << width | value
        return bits.to_bytes(self.SIZE, "big")

    def _raw_value(self, name: str, size: int, kind: str, value: Any) -> int:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise EncodeError(f"{type(self).__name__}.{name} is {value!r}; it must be bytes")
        if len(value) != size and (kind == "raw" or len(value) > size):
            most = "exactly" if kind == "raw" else "at most"
            raise EncodeError(f"{type(self).__name__}.{name} has {len(value)} bytes, not {most} {size}")
        return int.from_bytes(bytes(value).ljust(size, b"\0"), "big")

    @classmethod
    def unpack(cls, buf: Buffer, offset: int = 0) -> Self:
        """Read one from `buf` at `offset`; raises `DecodeError` when the buffer ends before it does."""
        size = cls.SIZE
        chunk = buf[offset : offset + size]
        if len(chunk) != size:
            raise DecodeError(
                "short", f"{cls.__name__} needs {size} bytes, {max(len(buf) - offset, 0)} are there"
            )
        bits = int.from_bytes(chunk, "big")
        values: list[Any] = []
        for _, width, kind, shift, mask in cls._FIELDS:
            value = bits >> shift & mask
            if kind == "uint":
                values.append(value)
            elif kind == "flag":
                values.append(bool(value))
            else:
                values.append(value.to_bytes(width // 8, "big"))
        return cls(*values)
