"""Finding the datagram queue pair of a service at another port (IBA vol. 1, 12.11), without I/O.

`ServiceResolver` asks and answers for one port; messages go in by `receive` and out by the `send` it was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from verbena.clock import Clock, Timer
from verbena.errors import ManagementTimeout, NotFound
from verbena.management.datagrams import MadAddress, Pending, Send
from verbena.wire.cm import cm_mad
from verbena.wire.errors import DecodeError
from verbena.wire.mad import Mad
from verbena.wire.sidr import SidrRep, SidrReq, SidrStatus, sidr_message

if TYPE_CHECKING:
    from random import Random

TIMEOUT_NS = 100_000_000
TRIES = 4
MOST_OUTSTANDING = 4096


@dataclass(frozen=True, slots=True)
class DatagramService:
    """What offers a service: queue pair, Q_Key, and what it says of itself (at most 136 bytes)."""

    qpn: int
    qkey: int
    private_data: bytes = b""


@dataclass(eq=False, slots=True)
class _Question:
    to: MadAddress
    request: SidrReq
    pending: Pending[DatagramService]
    tries: int
    timer: Timer | None = None


class ServiceResolver:
    """Questions and answers of one port.  `counters`: what was asked, answered and dropped.

    answer: called with a service id, where the question came from and its private data; None: not offered here.
    """

    def __init__(
        self,
        send: Send,
        clock: Clock,
        random: Random,
        answer: Callable[[int, MadAddress, bytes], DatagramService | None] = lambda *_: None,
        *,
        timeout_ns: int = TIMEOUT_NS,
        tries: int = TRIES,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._send = send
        self._clock = clock
        self._random = random
        self._answer = answer
        self._timeout_ns = timeout_ns
        self._tries = tries
        self._questions: dict[int, _Question] = {}

    def resolve(self, to: MadAddress, service_id: int, private: bytes = b"") -> Pending[DatagramService]:
        """Ask a port.  Fails with `NotFound` when it does not offer the service, `ManagementTimeout`."""
        pending: Pending[DatagramService] = Pending()
        if len(self._questions) >= MOST_OUTSTANDING:
            pending.fail(ManagementTimeout(f"{MOST_OUTSTANDING} questions wait for answers: let some come"))
            return pending
        number = self._random.getrandbits(32)
        while number in self._questions:
            number = self._random.getrandbits(32)
        request = SidrReq(request_id=number, service_id=service_id, private_data=private)
        question = self._questions[number] = _Question(to, request, pending, self._tries)
        self._ask(question)
        return pending

    def _ask(self, question: _Question) -> None:
        question.tries -= 1
        self.counters["asked"] += 1
        question.timer = self._clock.call_at(
            self._clock.now() + self._timeout_ns, lambda: self._rang(question)
        )
        number = question.request.request_id
        self._send(question.to, cm_mad(question.request, number).pack())

    def _rang(self, question: _Question) -> None:
        question.timer = None
        if question.pending.done:
            return
        if question.tries > 0:
            self._ask(question)
            return
        self._questions.pop(question.request.request_id, None)
        self.counters["timeouts"] += 1
        question.pending.fail(
            ManagementTimeout(
                f"LID {question.to.lid} did not answer for its service {question.request.service_id:#x}"
            )
        )

    def receive(self, source: MadAddress, data: bytes) -> bool:
        """A message of the connection manager's class; False if it is no question, and no answer, of this kind."""
        try:
            message = sidr_message(Mad.unpack(data))
        except DecodeError:
            self.counters["dropped.malformed"] += 1
            return True
        if message is None:
            return False
        if isinstance(message, SidrReq):
            return self._asked(source, message)
        return self._answered(source, message)

    def _asked(self, source: MadAddress, request: SidrReq) -> bool:
        offered = self._answer(request.service_id, source, request.private_data)
        if offered is None:
            return False
        self.counters["answered"] += 1
        reply = SidrRep(
            request_id=request.request_id,
            qpn=offered.qpn,
            service_id=request.service_id,
            qkey=offered.qkey,
            private_data=offered.private_data,
        )
        self._send(source, cm_mad(reply, request.request_id).pack())
        return True

    def _answered(self, source: MadAddress, reply: SidrRep) -> bool:
        question = self._questions.get(reply.request_id)
        if question is None:
            return False
        if source.lid != question.to.lid or reply.service_id != question.request.service_id:
            self.counters["dropped.source"] += 1
            return True
        del self._questions[reply.request_id]
        if question.timer is not None:
            question.timer.cancel()
        if reply.status != SidrStatus.VALID:
            question.pending.fail(
                NotFound(f"LID {source.lid} does not offer the service {reply.service_id:#x}", reply.status)
            )
        else:
            question.pending.resolve(DatagramService(reply.qpn, reply.qkey, reply.private_data))
        return True

    def close(self) -> None:
        """Give up all questions."""
        for question in list(self._questions.values()):
            if question.timer is not None:
                question.timer.cancel()
            question.pending.fail(ManagementTimeout("the port was closed"))
        self._questions.clear()


def refusal(data: bytes) -> bytes | None:
    """The MAD that refuses a question for a service that nobody offers; None of what is no question."""
    if data[16:18] != SidrReq.ATTRIBUTE_ID.to_bytes(2, "big"):
        return None
    try:
        mad = Mad.unpack(data)
        message = sidr_message(mad)
    except DecodeError:
        return None
    if not isinstance(message, SidrReq):
        return None
    reply = SidrRep(
        request_id=message.request_id, status=SidrStatus.NOT_SUPPORTED, service_id=message.service_id
    )
    return cm_mad(reply, mad.transaction_id).pack()
