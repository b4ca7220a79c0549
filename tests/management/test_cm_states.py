"""The connection manager's table: complete where it must be, and without dead ends."""

from __future__ import annotations

import pytest

from verbena.errors import InvalidStateError
from verbena.management.communication import TRANSITIONS, UNDECIDED, WAITING, Communication, Input, State


def comm(state: State) -> Communication:
    return Communication(bytes(16), 0, 1, 0, True, state=state)


def test_every_state_is_reached_from_idle_and_leads_back() -> None:
    def reach(start: State, edges: set[tuple[State, State]]) -> set[State]:
        found, new = {start}, {start}
        while new := {b for a, b in edges if a in new} - found:
            found |= new
        return found

    edges = {(before, after) for (before, _), after in TRANSITIONS.items()}
    assert reach(State.IDLE, edges) == set(State)
    assert reach(State.IDLE, {(b, a) for a, b in edges}) == set(State)


@pytest.mark.parametrize("state", sorted(WAITING | {State.TIMEWAIT}, key=lambda s: s.name))
def test_a_state_with_a_timer_has_a_way_out_when_it_ends(state: State) -> None:
    assert (state, Input.EXPIRE) in TRANSITIONS


@pytest.mark.parametrize("state", list(State))
def test_what_the_table_has_no_row_for_changes_nothing(state: State) -> None:
    for happens in Input:
        record = comm(state)
        if (state, happens) in TRANSITIONS:
            assert record.step(happens) is state
            assert record.state is TRANSITIONS[state, happens]
        else:
            with pytest.raises(InvalidStateError, match=state.name):
                record.step(happens)
            assert record.state is state


def test_duplicates_have_a_row_wherever_the_first_message_led() -> None:
    for first in (Input.REQ, Input.REP):
        led_to = {after for (_, happens), after in TRANSITIONS.items() if happens is first}
        assert all((state, first) in TRANSITIONS for state in led_to), first
    assert all((state, Input.DREQ) in TRANSITIONS for state in (State.DREQ_RCVD, State.TIMEWAIT))


def test_an_undecided_request_can_be_accepted_rejected_and_withdrawn() -> None:
    for state in UNDECIDED:
        for happens in (Input.ACCEPT, Input.REJECT, Input.REJ):
            assert (state, happens) in TRANSITIONS
