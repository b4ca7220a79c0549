"""What agents of simple classes share: 192-byte attributes behind 40 reserved bytes, one answer to each request.

Performance management, device management and the configuration manager: all of IBA vol. 1, 13.4.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from verbena.clock import Clock
from verbena.errors import ManagementError
from verbena.management.datagrams import MadAddress, Pending, Send, then
from verbena.management.transactions import TIMEOUT_NS, TRIES, Answer, Transactions
from verbena.wire import MAD_SIZE, Mad, MadStatus, Method
from verbena.wire.layout import Layout
from verbena.wire.rmpp import RmppMad

if TYPE_CHECKING:
    from random import Random

DATA_OFFSET = 40
"""Where an attribute begins in `Mad.data`."""
BODY = 232 - DATA_OFFSET
DELETE = 0x15
RESPONSES = {
    Method.GET: Method.GET_RESPONSE,
    Method.SET: Method.GET_RESPONSE,
    DELETE: DELETE | 0x80,
}
B = TypeVar("B", bound=Layout)


class Refusal(Exception):
    """The status with which a request is answered instead; never leaves an agent."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


UNSUPPORTED = Refusal(MadStatus.UNSUPPORTED_METHOD_ATTRIBUTE)
INVALID = Refusal(MadStatus.INVALID_VALUE)


class ClassAgent:
    """Answers the requests of one class.  Subclasses say how, in `handle`.

    send: where answers go out.  `counters`: ``received == answered + all dropped.*``.
    """

    management_class: int
    class_version = 1

    def __init__(self, send: Send) -> None:
        self.counters: Counter[str] = Counter()
        self._send = send

    def handle(
        self, source: MadAddress, method: int, attribute_id: int, modifier: int, body: bytes
    ) -> Layout:
        """The attribute to answer with; raises `Refusal`.  body: 192 bytes."""
        raise NotImplementedError

    def receive(self, source: MadAddress, data: bytes) -> None:
        """A datagram of this class, of any content."""
        self.counters["received"] += 1
        if len(data) != MAD_SIZE:
            self.counters["dropped.length"] += 1
            return
        mad = Mad.unpack(data)
        if mad.base_version != 1 or mad.management_class != self.management_class:
            self.counters["dropped.class"] += 1
            return
        if mad.method & 0x80 or mad.method in (Method.TRAP, Method.REPORT, Method.TRAP_REPRESS, Method.SEND):
            self.counters["dropped.method"] += 1
            return
        self.counters["answered"] += 1
        status, body = 0, mad.data[DATA_OFFSET:]
        try:
            if mad.class_version != self.class_version:
                raise Refusal(MadStatus.BAD_VERSION)
            if mad.method not in RESPONSES:
                raise Refusal(MadStatus.UNSUPPORTED_METHOD)
            body = self.handle(source, mad.method, mad.attribute_id, mad.attribute_modifier, body).pack()
        except Refusal as refused:
            status = refused.status
            self.counters["refused"] += 1
        method = RESPONSES.get(mad.method, mad.method | 0x80)
        answer = replace(mad, method=method, status=status, data=bytes(DATA_OFFSET) + body)
        self._send(source, answer.pack())


class ClassClient:
    """Asks the agents of one class."""

    management_class: int
    class_version = 1

    def __init__(
        self, send: Send, clock: Clock, random: Random, *, timeout_ns: int = TIMEOUT_NS, tries: int = TRIES
    ) -> None:
        self._timeout_ns = timeout_ns
        self._tries = tries
        self._requests = Transactions(
            send,
            clock,
            random,
            management_class=self.management_class,
            header_size=DATA_OFFSET - 12,
            rmpp=False,
        )

    @property
    def counters(self) -> Counter[str]:
        return self._requests.counters

    def receive(self, source: MadAddress, data: bytes) -> None:
        """A datagram of this class that came here."""
        self._requests.receive(source, data)

    def ask(
        self,
        to: MadAddress,
        method: int,
        attribute_id: int,
        kind: type[B],
        body: Layout | None = None,
        modifier: int = 0,
    ) -> Pending[B]:
        """An attribute of an agent's.  Fails with `ManagementError` and the status of a refusal."""
        data = bytes(DATA_OFFSET - 12) + (body.pack() if body is not None else b"")
        mad = RmppMad(
            management_class=self.management_class,
            class_version=self.class_version,
            method=method,
            attribute_id=attribute_id,
            attribute_modifier=modifier,
            data=data,
        )
        pending = self._requests.request(to, mad, timeout_ns=self._timeout_ns, tries=self._tries)

        def read(answer: Answer) -> B:
            status = answer.mad.status
            if status:
                raise ManagementError(
                    f"LID {to.lid} refused attribute {attribute_id:#06x}: status {status:#06x}", status
                )
            return kind.unpack(answer.data)

        return then(pending, read)

    def close(self) -> None:
        """Give up all requests."""
        self._requests.close()
