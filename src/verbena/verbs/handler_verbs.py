"""The verbs of a context that are about completion handlers: registration, binding, shutdown, the trace.

Document 001, paragraphs 31 and 36 to 39, figure 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verbena.adapter.channel_adapter import ChannelAdapter
from verbena.adapter.handlers import HandlerResources
from verbena.errors import DeadlockError, InvalidAttributeError
from verbena.transport.kinds import QPState
from verbena.verbs.completion import CompletionQueue
from verbena.verbs.driver import Driver, nanoseconds
from verbena.verbs.handlers import CompletionHandler, Function, check_functions

if TYPE_CHECKING:
    from verbena.verbs.context import Context
    from verbena.verbs.queue_pair import QueuePair


@dataclass(frozen=True, slots=True)
class NotificationStep:
    """A block of document 001's figure 4 that was passed, at when_ns of the adapter's clock.

    cq, qp_num: of the request; -1 and 0 where there is none.  answer: of blocks that ask, whether it was yes; of 404,
    408, 422 and 424 the handler's identifier.
    """

    block: int
    cq: int
    qp_num: int
    answer: int
    when_ns: int


class HandlerVerbs:
    """The part of `Context` that is about completion handlers."""

    adapter: ChannelAdapter
    driver: Driver
    queue_pairs: dict[int, QueuePair]

    def _checked(self) -> ChannelAdapter:
        raise NotImplementedError

    def _context(self) -> Context:
        raise NotImplementedError

    def set_completion_handler(
        self,
        *functions: Function | None,
        id: int | None = None,
        processor: int | None = None,
        priority: int = 0,
        resources: HandlerResources | None = None,
        by_descriptor: bool = False,
    ) -> tuple[int, ...]:
        """Register completion handlers (document 001, blocks 402 to 406); returns their identifiers, in order.

        A handler is called with a completion queue that is bound to it and has an event (`CompletionQueue.event`),
        outside the data path; it has to ask for notification again.  It is not called again before it returns.  If it
        returns True and has left entries in the queue, it is called for them when others have had their turn.

        id: replace the function of this handler (no new one is registered), or, with None as the function, remove it.
        processor: 0 to 254, where it is called; None: a thread for all those without.  priority: its class of service
        on that processor, 0 to 7.  resources: see `HandlerResources`.  by_descriptor: no thread calls it, the program
        does (`CompletionHandler.fileno`, `CompletionHandler.serve`).

        Raises `ResourceError` beyond the number that `query_adapter` tells; those registered before stay, none of these
        is.  `InvalidStateError` when one with queues is to be removed; `SystemLimitError` when the machine does not
        give the processor; `InvalidAttributeError`.
        """
        table = self._checked().handlers
        dispatcher = self.driver.dispatcher
        if id is not None:
            if len(functions) != 1:
                raise InvalidAttributeError("give one callable to replace a handler, or None to remove it")
            (function,) = functions
            if function is None:
                table.remove(id, dispatcher)
                return ()
            check_functions(functions)
            table.find(id).function = function
            return (id,)
        check_functions(functions)
        self.adapter.engine.note(402, -1, 0, len(functions))
        return table.register(
            [function for function in functions if function is not None],
            dispatcher,
            processor=processor,
            priority=priority,
            resources=resources,
            by_descriptor=by_descriptor,
        )

    def completion_handler(self, identifier: int) -> CompletionHandler:
        """A registered handler; raises `InvalidAttributeError` for an unknown identifier."""
        return CompletionHandler(self._context(), self._checked().handlers.find(identifier))

    @property
    def completion_handlers(self) -> tuple[CompletionHandler, ...]:
        """All that are registered."""
        records = tuple(self._checked().handlers.records.values())
        return tuple(CompletionHandler(self._context(), record) for record in records)

    def modify_cq(self, cq: CompletionQueue, **changes: Any) -> None:
        """Change a completion queue, also while entries arrive; all or nothing.

        handler: bind it to another completion handler; None: to none, and what it was armed for is forgotten.  An event
        that its handler has not taken goes to the new one.  depth: another size; the entries stay, in their order.
        processor: the one that its consumer runs on.

        Raises `InvalidAttributeError` for an unknown handler, or a depth below the entries that wait, `ResourceError`
        beyond the handler's resources; then nothing has changed.
        """
        self._checked()
        if not isinstance(cq, CompletionQueue) or cq.context is not self._context():
            raise InvalidAttributeError("cq: a completion queue of this adapter is needed")
        cq.modify(**changes)

    def work(self, duration_ns: int) -> None:
        """In a handler, in virtual time: what it does takes so long, and its processor is busy with it.

        In real time it takes what it takes, and this does nothing.  Raises `InvalidAttributeError` outside of handlers.
        """
        if not isinstance(duration_ns, int) or duration_ns < 0:
            raise InvalidAttributeError(f"duration_ns = {duration_ns!r}: 0 or more nanoseconds")
        self.driver.dispatcher.work(duration_ns)

    def mask_interrupts(self, masked: bool = True) -> None:
        """The mask of all vectors of the adapter, beside each one's own."""
        self._checked().handlers.vectors.mask_all(masked)
        self.adapter.on_work()

    def trace_notification(self, on: bool = True) -> None:
        """Note the blocks of document 001's figure 4 that are passed, for `notification_steps`; or no longer."""
        with self._checked().engine:
            self.adapter.engine.trace(on)

    def notification_steps(self) -> list[NotificationStep]:
        """The blocks passed since the last call, oldest first; the trace keeps the newest 16384."""
        with self._checked().engine:
            steps, _ = self.adapter.engine.take_steps()
        return [NotificationStep(*step) for step in steps]

    def _on_message(self, address: int, data: int, descriptor: int) -> None:
        self.driver.dispatcher.interrupt(self.adapter.handlers, address, data, descriptor)

    # --- shutdown -----------------------------------------------------------------------------------------

    def shutdown(self, timeout: float | None = 1.0) -> bool:
        """Shut the notification down (document 001, blocks 428 and 430); returns whether all requests finished.

        No request is taken any more.  Those posted go on for `timeout` seconds; what has not finished then, and receive
        requests, are flushed: each has its entry.  The handlers are called for all of it, and not after this returns.
        """
        engine = self._checked().engine
        table = self.adapter.handlers
        with engine:
            engine.shutting = True
            pairs = [qp for qp in self.queue_pairs.values() if qp.qp_num > 1 and qp.is_open]
        drained = self._wait(lambda: all(self._is_idle(qp) for qp in pairs), timeout)
        for qp in pairs:
            with engine:
                if qp.is_open and qp.state not in (QPState.RESET, QPState.ERR):
                    engine.fail_qp(qp.checked())
        self.driver.kick()
        self._wait(lambda: self.driver.dispatcher.is_quiet(table), timeout)
        with engine:
            table.ended = engine.ended = True
            engine.note(430, -1, 0, int(drained))
        self.driver.dispatcher.end(table)
        return drained

    def _is_idle(self, qp: QueuePair) -> bool:
        with self.adapter.engine:
            return (
                not qp.is_open
                or qp.state is not QPState.RTS
                or not self.adapter.engine.unfinished(qp.checked())
            )

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        try:
            return self.driver.wait(ready, nanoseconds(timeout))
        except DeadlockError:  # virtual time: nothing is left to happen
            return ready()
