"""Completion queues: polled, waited for, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from verbena.adapter.handlers import CompletionEvent
from verbena.adapter.vectors import check_processor
from verbena.errors import ClosedError, InvalidAttributeError, InvalidStateError
from verbena.transport.kinds import Notify
from verbena.transport.work import CompletionQueueEntry
from verbena.verbs.driver import nanoseconds
from verbena.verbs.signal import Signal

if TYPE_CHECKING:
    from verbena.verbs.context import Context


class CompletionQueue:
    """Where work requests of one or many queue pairs report their end (IBA vol. 1, 11.2.8; document 003).

    Made by `Context.create_cq`.  A context manager; closing it needs its queue pairs closed.  `depth` entries fit; one
    more is an asynchronous CQ_ERR, after which the queue takes no entries and its queue pairs are in ERR.

    handler: the identifier of the completion handler that it is bound to, or None.  The handler is called for its
    events; those of a queue without one are for `get_event` and `fileno`.  event: the one that the handler was called
    for last.  processor: the one that the queue's consumer runs on, if that was said (`Context.modify_cq`).
    """

    def __init__(self, context: Context, depth: int, handler: int | None = None) -> None:
        self.context = context
        self._engine = context.adapter.engine
        self._driver = context.driver
        self.depth = self._checked_depth(depth)
        self.processor: int | None = None
        self.event: CompletionEvent | None = None
        handlers = context.adapter.handlers
        with self._engine:
            if handler is not None:
                handlers.admit(handler, None, depth)
            self._index: int = self._engine.make_cq(depth)
            handlers.bind(self._index, depth, handler)
            self._engine.note(408, self._index, 0, handler or 0)
            self._handler = handler
        self._open = True
        self._unseen = 0  # events that came, and that the program has not taken
        self._signal = Signal(self._driver)
        context.adapter.cq_sinks[self._index] = self._on_event
        context.hold(self)

    def _checked_depth(self, depth: object) -> int:
        limit = self.context.adapter.limits.max_cqe
        if not isinstance(depth, int) or not 1 <= depth <= limit:
            raise InvalidAttributeError(f"depth = {depth!r}: this adapter takes 1 to {limit}")
        return depth

    @property
    def handler(self) -> int | None:
        """The identifier of its completion handler; None = none."""
        return self._handler

    def modify(self, *, depth: int | None = None, **changes: Any) -> None:
        """`Context.modify_cq`: handler (an identifier, or None for none), depth, processor."""
        unknown = set(changes) - {"handler", "processor"}
        if unknown:
            raise InvalidAttributeError(
                f"{', '.join(sorted(unknown))}: a queue has handler, depth, processor"
            )
        handlers = self.context.adapter.handlers
        with self._engine:
            index = self._checked()
            handler = changes.get("handler", self._handler)
            size = self.depth if depth is None else self._checked_depth(depth)
            check_processor(changes.get("processor"))
            if handler is not None:
                handlers.admit(handler, index, size)
            if size != self.depth:
                self._engine.resize_cq(index, size)
            handlers.bind(index, size, handler)
            self._handler, self.depth = handler, size
            self.processor = changes.get("processor", self.processor)
        self.context.adapter.on_work()

    @property
    def index(self) -> int:
        """The queue's number within its adapter."""
        return self._index

    def __len__(self) -> int:
        """Entries that wait to be polled."""
        return int(self._engine.pending(self._checked()))

    def __bool__(self) -> bool:
        """True, also when it is empty."""
        return True

    @property
    def overrun(self) -> bool:
        """Did the queue overflow?  It takes no entries any more."""
        return bool(self._engine.cq_overrun(self._checked()))

    def _checked(self) -> int:
        if not self._open:
            raise ClosedError("this completion queue is closed")
        return self._index

    def poll(self, n: int = 16) -> list[CompletionQueueEntry]:
        """At most n entries, oldest first; an empty list when there is none.  Never waits.

        Lets the adapter work, unless the queue has a completion handler: who is called does not look for packets, and
        the thread that does is not sent away.
        """
        if not isinstance(n, int):
            raise InvalidAttributeError(f"n = {n!r}: a number of entries")
        found: list[CompletionQueueEntry] = self._engine.poll(self._checked(), n)
        if not found and self._handler is None:
            self._driver.progress()
            found = self._engine.poll(self._index, n)
        return found

    def wait(self, timeout: float | None = None, n: int = 16) -> list[CompletionQueueEntry]:
        """At most n entries, at least one: waits for it, for `timeout` seconds at most; an empty list after that.

        Spins for a moment, then sleeps.  In virtual time, lets simulated time pass.
        """
        limit = nanoseconds(timeout)
        found = self.poll(n)
        if not found and limit != 0:
            self._driver.wait_cq(self._index, limit)
            found = self._engine.poll(self._checked(), n)
        return found

    def req_notify(self, solicited_only: bool = False, *, kind: Notify | None = None) -> None:
        """Ask for one event with the next entry (the next solicited one or error): IBA vol. 1, 11.4.2.2.

        kind: instead, a `Notify`; of several requests the widest holds.  Poll again after this call: an entry that
        came before it raises no event.
        """
        level = known_notify(kind) if kind is not None else Notify(2 if solicited_only else 3)
        with self._engine:
            self._engine.arm(self._checked(), int(level))

    def fileno(self) -> int:
        """A descriptor that is readable when an event came that `req_notify` had asked for; `clear_event` resets it.

        Raises `InvalidStateError` for a queue with a completion handler, `SystemLimitError` in virtual time.
        """
        self._require_unbound()
        return self._driver.event_descriptor(self._checked())

    def clear_event(self) -> None:
        """Take note of the events so far."""
        self._driver.clear_descriptor(self._checked())
        self._unseen = 0

    def get_event(self, timeout: float | None = None) -> bool:
        """Wait for an event that `req_notify` had asked for, and take it; False after `timeout` seconds.

        An event that came before this call counts, too.  Raises `InvalidStateError` for a queue with a completion
        handler: its events are the handler's.
        """
        self._require_unbound()
        self._driver.wait(lambda: self._unseen > 0 or not self._open, nanoseconds(timeout))
        self._checked()
        if not self._unseen:
            return False
        self._unseen -= 1
        return True

    def _require_unbound(self) -> None:
        self._checked()
        if self._handler is not None:
            raise InvalidStateError(f"the events of this queue go to completion handler {self._handler}")

    def _on_event(self, asked: bool) -> None:
        """The engine's report: an event that was asked for (`req_notify`), or an entry that somebody waits for."""
        if asked:
            self._unseen += 1
            self._driver.signal(self._index)
        self._signal.notify()

    async def completions(self, n: int = 16) -> list[CompletionQueueEntry]:
        """At most n entries, at least one; what ``await cq`` does."""
        while True:
            found = self.poll(n)
            if found:
                return found
            await self._signal.until(self._ready)

    def _ready(self) -> bool:
        """Has it entries, or was it closed?  If not, the next entry is reported."""
        with self._engine:
            if not self._open or len(self):
                return True
            self._engine.await_entry(self._index)
            return False

    def __await__(self) -> Generator[object, None, list[CompletionQueueEntry]]:
        return self.completions().__await__()

    async def __aiter__(self) -> AsyncIterator[CompletionQueueEntry]:
        while True:
            for entry in await self.completions():
                yield entry

    def close(self) -> None:
        """Destroy the queue.  Raises `InvalidStateError` while queue pairs complete to it."""
        with self._engine:
            if not self._open:
                return
            self.context.adapter.require_idle_cq(self._index)
            self._open = False
            self.context.adapter.handlers.bind(self._index, self.depth, None)
            self.context.adapter.cq_sinks.pop(self._index, None)
            self._driver.release_descriptor(self._index)
            self._engine.free_cq(self._index)
        self._signal.notify()
        self.context.let_go(self)

    def abandon(self) -> None:
        """`close` in the child of a fork."""
        self._open = False

    def __enter__(self) -> CompletionQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Has it not been closed?"""
        return self._open

    def __repr__(self) -> str:
        return f"<CompletionQueue {self._index} of {self.depth} entries>"


def known_notify(kind: object) -> Notify:
    """A `Notify`; raises `InvalidAttributeError` for what is none."""
    try:
        return Notify(kind)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidAttributeError(
            f"kind = {kind!r}: one of {', '.join(f'Notify.{n.name}' for n in Notify)}"
        ) from None


def require_cq(value: object, name: str, context: Context) -> CompletionQueue:
    """The completion queue itself; `InvalidAttributeError` unless it is an open one of the same adapter (CQN-10)."""
    if not isinstance(value, CompletionQueue):
        raise InvalidAttributeError(f"{name}: a CompletionQueue is needed, not {type(value).__name__}")
    if value.context is not context:
        raise InvalidAttributeError(f"{name} belongs to another adapter: make one with this context")
    if not value._open:
        raise InvalidStateError(f"{name} is closed: make a new one")
    return value
