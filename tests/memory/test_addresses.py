"""Addresses, segment tables and page tables: figures 13 to 16 of document 003."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verbena.errors import InvalidAttributeError, ProtectionFault, SegmentFault
from verbena.memory.addresses import AddressFormat, EffectiveAddress, PhysicalAddress, VirtualAddress
from verbena.memory.pages import InvertedPageTable, PageTableEntry, PlainPageTable
from verbena.memory.protection import Protection, known_protection
from verbena.memory.segments import SegmentTable, SegmentTableEntry

READ, BOTH = Protection.READ, Protection.READ_WRITE


@st.composite
def formats(draw: st.DrawFn) -> AddressFormat:
    page = draw(st.integers(1, 20))
    offset = draw(st.integers(6, 20))
    segment = draw(st.integers(1, 64 - page - offset))
    return AddressFormat(segment, draw(st.integers(1, 88)), page, offset)


def field(bits: int) -> st.SearchStrategy[int]:
    """A field's values, its limits above all."""
    return st.one_of(st.sampled_from([0, (1 << bits) - 1]), st.integers(0, (1 << bits) - 1))


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("MEM-02", "MEM-04")
@given(st.data())
def test_addresses_survive_encoding_over_the_limits_of_their_fields(data: st.DataObject) -> None:
    form = data.draw(formats())
    page, offset = data.draw(field(form.page_number_bits)), data.draw(field(form.offset_bits))
    effective = EffectiveAddress(data.draw(field(form.segment_bits)), page, offset)
    number = form.encode(effective)
    assert 0 <= number < 1 << form.effective_bits
    assert form.effective(number) == effective
    virtual = VirtualAddress(data.draw(field(form.upper_bits)), page, offset)
    assert form.virtual(form.encode(virtual)) == virtual
    assert form.encode(virtual) < 1 << form.virtual_bits
    physical = PhysicalAddress(data.draw(field(30)), offset)
    assert form.physical(form.encode(physical)) == physical


@pytest.mark.requirement("MEM-02", "MEM-04")
@given(st.data())
def test_a_field_that_is_too_wide_is_refused(data: st.DataObject) -> None:
    form = data.draw(formats())
    over = data.draw(st.integers(0, 5))
    for wrong in (
        EffectiveAddress((1 << form.segment_bits) + over, 0),
        EffectiveAddress(0, (1 << form.page_number_bits) + over),
        EffectiveAddress(0, 0, (1 << form.offset_bits) + over),
        EffectiveAddress(-1 - over, 0),
        EffectiveAddress(0, 0, -1 - over),
        VirtualAddress((1 << form.upper_bits) + over, 0),
        VirtualAddress(0, (1 << form.page_number_bits) + over),
        PhysicalAddress(0, (1 << form.offset_bits) + over),
    ):
        with pytest.raises(InvalidAttributeError, match="does not fit"):
            form.encode(wrong)
    for decode, bits in ((form.effective, form.effective_bits), (form.virtual, form.virtual_bits)):
        with pytest.raises(InvalidAttributeError, match="does not fit"):
            decode((1 << bits) + over)
        with pytest.raises(InvalidAttributeError):
            decode(1.5)  # type: ignore[arg-type]


@pytest.mark.requirement("MEM-02")
def test_formats_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"segment_bits": 0},
        {"upper_bits": 97},
        {"page_number_bits": 33},
        {"offset_bits": 5},
        {"offset_bits": True},
        {"segment_bits": 40},  # 68 bits of effective address
        {"upper_bits": 96, "page_number_bits": 22, "segment_bits": 20},  # 130 bits of virtual address
    ):
        with pytest.raises(InvalidAttributeError):
            AddressFormat(**wrong)  # type: ignore[arg-type]
    usual = AddressFormat()
    assert (usual.page_size, usual.segment_size) == (4096, 256 << 20)
    assert usual.virtual_bits > usual.effective_bits
    assert AddressFormat(16, 36, 16, 20).page_size == 1 << 20


def test_protections_are_known_ones() -> None:
    assert known_protection(3) is BOTH
    for wrong in (2, 4, -1, True, "rw", None):
        with pytest.raises(InvalidAttributeError):
            known_protection(wrong)


# --- segment tables ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("MEM-03", "MEM-04")
def test_a_segment_table_translates_by_segment_id() -> None:
    form = AddressFormat()
    table = SegmentTable()
    table.set(SegmentTableEntry(5, 0x1234, True, 3 * 4096, BOTH))
    table.set(SegmentTableEntry(6, 0x99, True, 4096, READ))
    virtual, used = table.translate(form, EffectiveAddress(5, 2, 17), write=True)
    assert virtual == VirtualAddress(0x1234, 2, 17)  # page number and offset stay
    assert used.segment == 5
    assert table.translate(form, EffectiveAddress(6, 0, 0))[0].upper == 0x99
    with pytest.raises(ProtectionFault):
        table.translate(form, EffectiveAddress(6, 0, 0), write=True)
    with pytest.raises(SegmentFault, match="beyond"):
        table.translate(form, EffectiveAddress(5, 3, 0))
    with pytest.raises(SegmentFault, match="not valid"):
        table.translate(form, EffectiveAddress(7, 0, 0))
    table.set(SegmentTableEntry(5, 0x1234, False, 3 * 4096, BOTH))
    with pytest.raises(SegmentFault, match="not valid"):
        table.translate(form, EffectiveAddress(5, 0, 0))


def test_a_copy_of_a_segment_table_is_its_own() -> None:
    table = SegmentTable((SegmentTableEntry(1, 2, True, 4096, BOTH),))
    copy = table.copy()
    assert copy == table
    table.remove(1)
    table.remove(1)
    assert copy != table
    assert len(copy) == 1
    assert len(table) == 0


# --- page tables ------------------------------------------------------------------------------------------------

FRAMES = 8
steps = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "invalidate", "remove"]),
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(0, FRAMES - 1),
    ),
    max_size=60,
)


@pytest.mark.requirement("MEM-05", "MEM-21")
@given(steps)
def test_both_forms_of_page_table_tell_the_same(todo: list[tuple[str, int, int, int]]) -> None:
    """As the memory manager uses them: a frame is given to another page only after its page was invalidated."""
    plain, inverted = PlainPageTable(), InvertedPageTable(FRAMES)
    model: dict[tuple[int, int], int] = {}
    mapped: set[tuple[int, int]] = set()
    for what, upper, page, frame in todo:
        key = (upper, page)
        if what == "set":
            for other in [k for k, f in model.items() if f == frame or k == key]:
                plain.invalidate(*other)
                inverted.invalidate(*other)
                del model[other]
            for table in (plain, inverted):
                table.set(PageTableEntry(upper, page, frame, True, BOTH))
            model[key] = frame
            mapped.add(key)
        else:
            for table in (plain, inverted):
                getattr(table, what)(*key)
            model.pop(key, None)
            if what == "remove":
                mapped.discard(key)
        for table in (plain, inverted):
            seen = {(e.upper, e.page): e.frame for e in table.entries() if e.valid}
            assert seen == model
            for u in range(4):
                for p in range(6):
                    found = table.find(u, p)
                    assert (found.frame if found is not None and found.valid else None) == model.get((u, p))
        assert inverted.size == FRAMES
        assert plain.size == len(mapped)


@pytest.mark.requirement("MEM-21")
def test_an_inverted_table_is_as_large_as_the_physical_memory() -> None:
    plain, inverted = PlainPageTable(), InvertedPageTable(4)
    for page in range(1000):
        for table in (plain, inverted):
            if page >= 4:
                table.invalidate(1, page - 4)
            table.set(PageTableEntry(1, page, page % 4, True, BOTH))
    assert plain.size == 1000
    assert inverted.size == 4
    assert [e.page for e in inverted.entries()] == [996, 997, 998, 999]
    with pytest.raises(InvalidAttributeError, match="frame 4"):
        inverted.set(PageTableEntry(1, 1, 4, True, BOTH))


def test_an_inverted_table_gives_a_frame_to_its_last_page() -> None:
    table = InvertedPageTable(2)
    first = PageTableEntry(1, 1, 0, True, BOTH)
    table.set(first)
    table.set(PageTableEntry(2, 2, 0, True, BOTH))
    assert table.find(1, 1) is None
    assert not first.valid
    assert table.find(2, 2) is not None
