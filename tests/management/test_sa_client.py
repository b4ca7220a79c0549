"""The client of subnet administration against forged, repeated and malformed datagrams."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from management.sa_net import SaNet, chain, redundant
from verbena.errors import ManagementError, ManagementTimeout
from verbena.management.datagrams import MadAddress, Pending
from verbena.management.sa_client import SaClient
from verbena.management.transactions import MOST_OUTSTANDING
from verbena.runtime.virtual import VirtualClock
from verbena.wire.notice import GmpNotice
from verbena.wire.rmpp import RmppMad
from verbena.wire.sa import SaHeader, SaMethod, sa_mad, sa_message, sa_table
from verbena.wire.sa_nodes import NodeRecord
from verbena.wire.sa_records import LinkRecord, PathRecord
from verbena.wire.smp_attributes import Trap

SA = MadAddress(7)


class Lonely:
    """A client, and what it has sent."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.sent: list[RmppMad] = []
        self.client = SaClient(
            lambda to, data: self.sent.append(RmppMad.unpack(data)), self.clock, Random(3), SA
        )

    def balanced(self) -> bool:
        counters = self.client.counters
        drops = sum(
            n for name, n in counters.items() if name.startswith("dropped.") and name != "dropped.report"
        )
        return counters["received"] == counters["accepted"] + drops


def test_forged_answers_are_not_taken() -> None:
    lab = Lonely()
    pending = lab.client.nodes()
    asked = lab.sent[0]
    right = sa_table(replace(asked, method=SaMethod.GET_TABLE_RESPONSE), NodeRecord, [])[0]
    for source, mad, reason in (
        (MadAddress(8), right, "source"),
        (SA, replace(right, transaction_id=asked.transaction_id ^ 1), "transaction"),
        (SA, replace(right, method=SaMethod.GET_RESPONSE), "method"),
        (SA, replace(right, attribute_id=0x12), "method"),
        (SA, replace(right, base_version=2), "class"),
        (SA, replace(right, rmpp_type=2), "rmpp"),
    ):
        lab.client.receive(source, mad.pack())
        assert lab.client.counters[f"dropped.{reason}"] >= 1, reason
        assert not pending.done
    lab.client.receive(SA, b"short")
    assert lab.client.counters["dropped.length"] == 1
    lab.client.receive(SA, right.pack())
    assert pending.result() == []
    assert lab.balanced()


def test_malformed_tables_fail_the_question() -> None:
    lab = Lonely()
    for payload, offset in ((b"x" * 9, 1), (bytes(16), 0)):
        pending = lab.client.links()
        mad = replace(lab.sent[-1], method=SaMethod.GET_TABLE_RESPONSE)
        part = sa_table(mad, LinkRecord, [payload])[0]
        header = replace(SaHeader.unpack(part.data), attribute_offset=offset)
        lab.client.receive(SA, replace(part, data=header.pack() + payload, data2=20 + len(payload)).pack())
        with pytest.raises(ManagementError, match="malformed"):
            pending.result()


def test_statuses_are_told() -> None:
    lab = Lonely()
    for status, text in ((0x0400, "TOO_MANY_RECORDS"), (0x000C, "unsupported")):
        pending = lab.client.get(NodeRecord)
        answer = replace(lab.sent[-1], method=SaMethod.GET_RESPONSE, status=status)
        lab.client.receive(SA, answer.pack())
        with pytest.raises(ManagementError, match=text) as caught:
            pending.result()
        assert caught.value.status == status


def test_silence_is_a_time_out_after_all_tries() -> None:
    lab = Lonely()
    pending = lab.client.nodes()
    while lab.clock.next_time() is not None:
        lab.clock.step()
    with pytest.raises(ManagementTimeout):
        pending.result()
    assert len(lab.sent) == 5
    assert len({mad.transaction_id for mad in lab.sent}) == 1


def test_questions_are_bounded_and_end_with_the_client() -> None:
    lab = Lonely()
    waiting: list[Pending[list[PathRecord]]] = [
        lab.client.paths(slid=1, dlid=n) for n in range(MOST_OUTSTANDING)
    ]
    with pytest.raises(ManagementError, match="wait for answers"):
        lab.client.nodes().result()
    lab.client.close()
    assert all(isinstance(pending.error, ManagementError) for pending in waiting)
    assert lab.clock.next_time() is None


def test_reports_come_from_the_administration_only() -> None:
    lab = Lonely()
    told: list[GmpNotice] = []
    lab.client.subscribe(told.append)
    report = sa_message(
        sa_mad(SaMethod.REPORT, 2, transaction_id=9),
        SaHeader(),
        GmpNotice.about_gid(64, bytes(16), 7, bytes(16)),
    )
    lab.client.receive(MadAddress(8), report.pack())
    lab.client.receive(SA, replace(report, attribute_id=3).pack())
    assert told == []
    assert lab.client.counters["dropped.report"] == 2
    for _ in range(3):
        lab.client.receive(SA, report.pack())
    assert len(told) == 1
    assert [mad.method for mad in lab.sent[-3:]] == [SaMethod.REPORT_RESPONSE] * 3


def test_subscriptions_are_made_again_with_another_master() -> None:
    net = SaNet(redundant())
    client = net.client("h2")
    told: list[int] = []
    subscription = client.subscribe(lambda notice: told.append(notice.trap), Trap.GID_OUT_OF_SERVICE)
    net.wait(subscription.accepted)
    net.sa.close()
    net.sa = net.make_sa()  # with an empty store: another node's
    client.renew_subscriptions()
    net.run(1_000_000)
    net.replace_subnet(absent={"h1"})
    assert len(net.sa.subscriptions) == 1
    net.replace_subnet()
    net.run()
    assert told == [Trap.GID_OUT_OF_SERVICE]
    net.wait(subscription.cancel())
    assert len(net.sa.subscriptions) == 0
    net.wait(subscription.cancel())


MADS = st.tuples(
    st.sampled_from([SA, MadAddress(8)]),
    st.sampled_from([0x81, 0x92, 0x92, 0x06, 0x86, 0x12]),
    st.integers(0, 3),  # which request it answers
    st.integers(0, 7),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 300),
    st.binary(max_size=220),
)


@settings(max_examples=200)
@given(st.lists(MADS, max_size=30), st.lists(st.binary(max_size=260), max_size=5))
def test_any_datagrams_settle_each_question_once(mads: list[tuple[object, ...]], raw: list[bytes]) -> None:
    lab = Lonely()
    questions = [lab.client.nodes(), lab.client.links(), lab.client.get(NodeRecord)]
    numbers = [mad.transaction_id for mad in lab.sent] + [99]
    settled: list[int] = []
    for number, question in enumerate(questions):
        question.when_done(lambda _, number=number: settled.append(number))  # type: ignore[misc]
    for source, method, which, flags, kind, segment, length, data in mads:
        mad = sa_mad(method, [0x11, 0x20, 0x11, 0x02][which], transaction_id=numbers[which])  # type: ignore[arg-type,call-overload]
        mad = replace(
            mad, rmpp_version=1, rmpp_type=kind, rmpp_flags=flags, data1=segment, data2=length, data=data
        )
        lab.client.receive(source, mad.pack())  # type: ignore[arg-type]
    for data in raw:
        lab.client.receive(SA, data)
    while lab.clock.next_time() is not None:
        lab.clock.step()
    assert sorted(settled) == [0, 1, 2]
    assert lab.balanced()


def test_two_clients_at_one_switch() -> None:
    net = SaNet(chain(3))
    one, three = net.client("h1"), net.client("h3")
    first, second = one.nodes(), three.nodes()
    assert len(net.wait(first)) == len(net.wait(second)) == 5
