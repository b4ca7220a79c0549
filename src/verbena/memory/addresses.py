"""The three kinds of addresses of document 003 (figures 13 and 15), and the format that they share on a host.

An effective address names an entry of the process's segment table; the entry's upper bits take that pointer's place,
and make a virtual address, with page number and offset as they were; a page table entry replaces the upper bits and the
page number by a frame.  How wide each field is, is the host's choice (003 leaves it open; the default is like
PowerPC's, but no address needs more than 64 bits, so that each fits a work request).
"""

from __future__ import annotations

from dataclasses import dataclass

from verbena.errors import InvalidAttributeError

WIDEST = 128  # bits of an address; only those of up to 64 bits fit into a work request


@dataclass(frozen=True, slots=True)
class EffectiveAddress:
    """Figure 13: pointer to a segment table entry (effective segment id 532), page number 534, page offset 536."""

    segment: int
    page: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """Figure 15: upper bits 542, page number 534, page offset 536."""

    upper: int
    page: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class PhysicalAddress:
    """What addresses the physical memory: a frame (the physical page number 534'' of figure 16), and an offset."""

    frame: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class AddressFormat:
    """How wide the fields of addresses are, in bits.

    segment_bits: effective segment ids (1 to 64).  upper_bits: upper bits of virtual addresses (1 to 96).
    page_number_bits: pages of a segment (1 to 32).  offset_bits: bytes of a page (6 to 30).

    Raises `InvalidAttributeError` for widths beyond that, and for addresses of more than 64 (effective) or 128
    (virtual) bits.
    """

    segment_bits: int = 24
    upper_bits: int = 36
    page_number_bits: int = 16
    offset_bits: int = 12

    def __post_init__(self) -> None:
        for name, low, high in (
            ("segment_bits", 1, 64),
            ("upper_bits", 1, 96),
            ("page_number_bits", 1, 32),
            ("offset_bits", 6, 30),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise InvalidAttributeError(f"{name} = {value!r}: a width of {low} to {high} bits is needed")
        if self.effective_bits > 64:
            raise InvalidAttributeError(
                f"effective addresses of {self.effective_bits} bits: a work request holds 64, make a field narrower"
            )
        if self.virtual_bits > WIDEST:
            raise InvalidAttributeError(
                f"virtual addresses of {self.virtual_bits} bits: {WIDEST} is the widest, make a field narrower"
            )

    # --- sizes --------------------------------------------------------------------------------------------

    @property
    def page_size(self) -> int:
        """Bytes of a page, and of a frame."""
        return 1 << self.offset_bits

    @property
    def segment_pages(self) -> int:
        """Pages that a segment has at most."""
        return 1 << self.page_number_bits

    @property
    def segment_size(self) -> int:
        """Bytes that a segment has at most."""
        return 1 << (self.page_number_bits + self.offset_bits)

    @property
    def effective_bits(self) -> int:
        return self.segment_bits + self.page_number_bits + self.offset_bits

    @property
    def virtual_bits(self) -> int:
        return self.upper_bits + self.page_number_bits + self.offset_bits

    def pages_of(self, length: int) -> int:
        """How many pages that many bytes take."""
        return (length + self.page_size - 1) >> self.offset_bits

    # --- numbers ------------------------------------------------------------------------------------------

    def encode(self, address: EffectiveAddress | VirtualAddress | PhysicalAddress) -> int:
        """The address as one number; raises `InvalidAttributeError` for a field that is out of its range."""
        self._check("page offset", address.offset, self.offset_bits)
        if isinstance(address, PhysicalAddress):
            self._check("frame", address.frame, WIDEST - self.offset_bits)
            return address.frame << self.offset_bits | address.offset
        self._check("page number", address.page, self.page_number_bits)
        if isinstance(address, EffectiveAddress):
            self._check("effective segment id", address.segment, self.segment_bits)
            high = address.segment
        else:
            self._check("upper virtual bits", address.upper, self.upper_bits)
            high = address.upper
        return (high << self.page_number_bits | address.page) << self.offset_bits | address.offset

    def effective(self, value: int) -> EffectiveAddress:
        """The fields of an effective address (figure 13); raises `InvalidAttributeError` when it is too wide."""
        self._check("effective address", value, self.effective_bits)
        return EffectiveAddress(
            value >> (self.page_number_bits + self.offset_bits),
            value >> self.offset_bits & (self.segment_pages - 1),
            value & (self.page_size - 1),
        )

    def virtual(self, value: int) -> VirtualAddress:
        """The fields of a virtual address (figure 15); raises `InvalidAttributeError` when it is too wide."""
        self._check("virtual address", value, self.virtual_bits)
        return VirtualAddress(
            value >> (self.page_number_bits + self.offset_bits),
            value >> self.offset_bits & (self.segment_pages - 1),
            value & (self.page_size - 1),
        )

    def physical(self, value: int) -> PhysicalAddress:
        """Frame and offset of a physical address; raises `InvalidAttributeError` when it is none."""
        self._check("physical address", value, WIDEST)
        return PhysicalAddress(value >> self.offset_bits, value & (self.page_size - 1))

    @staticmethod
    def _check(name: str, value: object, bits: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidAttributeError(f"{name} = {value!r}: a whole number is needed")
        if not 0 <= value < 1 << bits:
            raise InvalidAttributeError(f"{name} = {value:#x} does not fit into its {bits} bits")
