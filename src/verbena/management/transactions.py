"""Requests to management agents, and what comes back: tries, time-outs, multi-packet answers (IBA vol. 1, 13.4.6.2)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from verbena.clock import Clock, Timer
from verbena.errors import ManagementError, ManagementTimeout
from verbena.management.datagrams import MadAddress, Pending, Send
from verbena.management.rmpp import RESPONSE_BIT, RmppReceiver
from verbena.wire import MAD_SIZE, Method
from verbena.wire.rmpp import RmppMad, RmppStatus, RmppType

if TYPE_CHECKING:
    from random import Random

TIMEOUT_NS = 250_000_000
TRIES = 5
MOST_OUTSTANDING = 4096
MOST_REMEMBERED = 64
"""Transfers that ended, whose repeated segments are still acknowledged."""


class Answer(NamedTuple):
    """The answer to a request: its (first) datagram, and all its data behind the class's header."""

    mad: RmppMad
    data: bytes


@dataclass(eq=False, slots=True)
class _Request:
    to: MadAddress
    mad: RmppMad
    pending: Pending[Answer]
    timeout_ns: int
    tries: int
    timer: Timer | None = None
    transfer: RmppReceiver | None = None

    @property
    def response(self) -> int:
        """The method of its answer."""
        return Method.GET_RESPONSE if self.mad.method == Method.SET else self.mad.method | RESPONSE_BIT


class Transactions:
    """The requests of one client to agents of one class.

    send: where datagrams go out.  header_size: bytes of the class's header in the data of `RmppMad`.  rmpp: whether the
    class has multi-packet answers.  `counters`: of datagrams received, ``received == accepted + all dropped.*``.
    """

    def __init__(
        self,
        send: Send,
        clock: Clock,
        random: Random,
        *,
        management_class: int,
        header_size: int,
        rmpp: bool = True,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._send = send
        self._clock = clock
        self._random = random
        self._class = management_class
        self._header_size = header_size
        self._rmpp = rmpp
        self._requests: dict[int, _Request] = {}
        self._ended: OrderedDict[int, tuple[MadAddress, RmppReceiver]] = OrderedDict()

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return len(self._requests)

    def request(
        self, to: MadAddress, mad: RmppMad, *, timeout_ns: int = TIMEOUT_NS, tries: int = TRIES
    ) -> Pending[Answer]:
        """Send a request, again and again until it is answered; a Set with the method GetResp (13.4.5).

        The answer may carry an error's status.  Fails with `ManagementTimeout`, or `ManagementError` for a transfer
        that was broken off, or if too many requests wait.
        """
        pending: Pending[Answer] = Pending()
        if len(self._requests) >= MOST_OUTSTANDING:
            pending.fail(ManagementError(f"{MOST_OUTSTANDING} requests wait for answers: let some come"))
            return pending
        number = self._random.getrandbits(64)
        while not number or number in self._requests or number in self._ended:
            number = self._random.getrandbits(64)
        request = _Request(to, replace(mad, transaction_id=number), pending, timeout_ns, tries)
        self._requests[number] = request
        self._try(request)
        return pending

    def _try(self, request: _Request) -> None:
        request.tries -= 1
        request.timer = self._clock.call_at(
            self._clock.now() + request.timeout_ns, lambda: self._rang(request)
        )
        self.counters["sent"] += 1
        self._send(request.to, request.mad.pack())

    def _rang(self, request: _Request) -> None:
        request.timer = None
        if request.pending.done or request.transfer is not None:
            return
        if request.tries > 0:
            self.counters["retries"] += 1
            self._try(request)
            return
        self.counters["timeouts"] += 1
        self._requests.pop(request.mad.transaction_id, None)
        request.pending.fail(
            ManagementTimeout(
                f"LID {request.to.lid} did not answer attribute {request.mad.attribute_id:#06x}"
            )
        )

    def receive(self, source: MadAddress, data: bytes) -> bool:
        """A datagram of this class; False (and counted) if it belongs to no request."""
        self.counters["received"] += 1
        reason = self._take(source, data)
        self.counters[f"dropped.{reason}" if reason else "accepted"] += 1
        return not reason

    def _take(self, source: MadAddress, data: bytes) -> str:
        """Take a datagram; returns why not, if not."""
        if len(data) != MAD_SIZE:
            return "length"
        mad = RmppMad.unpack(data)
        if mad.base_version != 1 or mad.management_class != self._class:
            return "class"
        number = mad.transaction_id
        if number in self._ended:
            to, transfer = self._ended[number]
            if source.lid == to.lid:
                transfer.receive(mad)
                return ""
        request = self._requests.get(number)
        if request is None:
            return "transaction"
        if source.lid != request.to.lid:
            return "source"
        if mad.method != request.response or mad.attribute_id != request.mad.attribute_id:
            return "method"
        if self._rmpp and mad.is_rmpp:
            if request.transfer is None:
                if mad.rmpp_type != RmppType.DATA:
                    return "rmpp"
                request.transfer = self._transfer(request, mad)
            request.transfer.receive(mad)
            return ""
        if request.transfer is not None:
            return "rmpp"
        self._end(request)
        request.pending.resolve(Answer(mad, mad.data[self._header_size :]))
        return ""

    def _transfer(self, request: _Request, first: RmppMad) -> RmppReceiver:
        """A multi-packet answer begins: its own time-outs hold from here on."""
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        number = request.mad.transaction_id

        def done(payload: bytes, status: RmppStatus) -> None:
            self._end(request)
            if request.transfer is not None:
                self._ended[number] = (request.to, request.transfer)
                while len(self._ended) > MOST_REMEMBERED:
                    self._ended.popitem(last=False)
            if status is RmppStatus.NORMAL:
                request.pending.resolve(Answer(first, payload))
            else:
                request.pending.fail(
                    ManagementError(
                        f"the transfer of attribute {first.attribute_id:#06x} was broken off: {status.name}"
                    )
                )

        return RmppReceiver(
            header_size=self._header_size,
            clock=self._clock,
            emit=lambda mad: self._send(request.to, mad.pack()),
            done=done,
        )

    def _end(self, request: _Request) -> None:
        self._requests.pop(request.mad.transaction_id, None)
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None

    def close(self) -> None:
        """Give up all requests."""
        for request in list(self._requests.values()):
            self._end(request)
            if request.transfer is not None:
                request.transfer.close()
            request.pending.fail(ManagementError("the client was closed"))
        self._ended.clear()
