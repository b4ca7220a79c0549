"""What a link carries: lane speeds and widths (IBA vol. 2, chapter 5; later speeds: IBTA roadmap).

A link's rate is its data rate, line code already taken off: 8b/10b up to QDR, 64b/66b from FDR on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from verbena.errors import InvalidAttributeError


class Speed(IntEnum):
    """A lane's speed; values as in PortInfo:LinkSpeed, extended speeds from 16 on (FDR10 is a vendor's)."""

    SDR = 1
    DDR = 2
    QDR = 4
    FDR10 = 8
    FDR = 16
    EDR = 32
    HDR = 64
    NDR = 128


class Width(IntEnum):
    """How many lanes side by side; values as in PortInfo:LinkWidth."""

    X1 = 1
    X4 = 2
    X8 = 4
    X12 = 8
    X2 = 16

    @property
    def lanes(self) -> int:
        return {1: 1, 2: 4, 4: 8, 8: 12, 16: 2}[self]

    def __str__(self) -> str:
        return f"{self.lanes}x"


LANE_BPS: dict[Speed, int] = {
    Speed.SDR: 2_000_000_000,
    Speed.DDR: 4_000_000_000,
    Speed.QDR: 8_000_000_000,
    Speed.FDR10: 10_000_000_000,
    Speed.FDR: 13_636_363_636,  # 14.0625 GBd * 64 / 66
    Speed.EDR: 25_000_000_000,
    Speed.HDR: 50_000_000_000,
    Speed.NDR: 100_000_000_000,
}
"""Data bits a second of one lane."""

SIGNAL_GBPS: dict[Speed, str] = {
    Speed.SDR: "2.5",
    Speed.DDR: "5.0",
    Speed.QDR: "10.0",
    Speed.FDR10: "10.3125",
    Speed.FDR: "14.0625",
    Speed.EDR: "25.78125",
    Speed.HDR: "53.125",
    Speed.NDR: "106.25",
}
"""A lane's signalling rate in Gb/s, as infiniband-diags print it."""


@dataclass(frozen=True, slots=True)
class LinkRate:
    """Width and speed of a link, such as 4x EDR: 100 Gb/s."""

    width: Width = Width.X4
    speed: Speed = Speed.EDR

    @property
    def bps(self) -> int:
        """Data bits a second in each direction."""
        return self.width.lanes * LANE_BPS[self.speed]

    @classmethod
    def parse(cls, text: str) -> LinkRate:
        """From ``4xEDR`` or ``4x EDR``; raises `InvalidAttributeError`."""
        width, _, speed = text.strip().replace(" ", "").partition("x")
        try:
            return cls(Width[f"X{width}"], Speed[speed.upper()])
        except KeyError:
            raise InvalidAttributeError(
                f"{text!r} is no link rate: write for example 4xEDR; widths "
                f"{', '.join(str(w) for w in Width)}, speeds {', '.join(s.name for s in Speed)}"
            ) from None

    def __str__(self) -> str:
        return f"{self.width}{self.speed.name}"
