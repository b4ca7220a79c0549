"""A host's table of neighbours: which hardware address an IP address has (document 000:86, figure 3).

The same table serves ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861): what differs is how a question is asked.
An entry is made when somebody wants the address, and filled by an answer, or by whatever question or announcement its
owner broadcasts meanwhile (RFC 826, "Packet Reception": merge).  Few questions are open at a time; the others wait, and
are not asked at all if what they ask for comes to be known.  Everything is bounded.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from verbena.clock import Clock, Timer

SECOND = 1_000_000_000


class Neighbour:
    """An entry.  mac: 6 octets; none while nobody has answered.  confirmed_ns: when it was heard of last."""

    __slots__ = ("confirmed_ns", "mac", "question")

    def __init__(self) -> None:
        self.mac = b""
        self.confirmed_ns = 0
        self.question: _Question | None = None


class _Question:
    __slots__ = ("timer", "tries", "waiting", "watchers")

    def __init__(self) -> None:
        self.tries = 0
        self.timer: Timer | None = None
        self.waiting: tuple[bytes, ...] = ()
        self.watchers: tuple[Callable[[bytes], None], ...] = ()


class NeighbourTable:
    """The neighbours of one host.

    ask: sends a question for an address.  send: sends a packet that has waited, to a hardware address.  unreachable: is
    told of an address that nobody has, with the packets that have waited.

    most: entries.  most_asking: questions that are open at a time.  age_ns: after which an entry is asked for again.
    tries, retry_ns: of a question.  most_waiting: packets that wait for one address; older ones are dropped.  gap_ns:
    between the first tries of two questions, which are broadcasts: where many hosts ask for each other, most answers
    are heard in that time, in the others' questions (RFC 1122, 2.3.2.1, has hosts not flood their network).
    """

    def __init__(
        self,
        clock: Clock,
        counters: Counter[str],
        *,
        ask: Callable[[bytes], None],
        send: Callable[[bytes, bytes], None],
        unreachable: Callable[[bytes, Sequence[bytes]], None],
        most: int = 4096,
        most_asking: int = 16,
        age_ns: int = 60 * SECOND,
        retry_ns: int = SECOND,
        tries: int = 3,
        most_waiting: int = 3,
        gap_ns: int = 0,
    ) -> None:
        self.counters = counters
        self.unresolved = 0
        """Addresses that somebody wants, and nobody has answered for."""
        self._clock = clock
        self._ask = ask
        self._send = send
        self._unreachable = unreachable
        self._most = most
        self._most_asking = most_asking
        self._age_ns = age_ns
        self._retry_ns = retry_ns
        self._tries = tries
        self._most_waiting = most_waiting
        self._entries: dict[bytes, Neighbour] = {}
        self._wanted: deque[bytes] = deque()
        self._asking = 0
        self._gap_ns = gap_ns
        self._free_ns = 0
        self._pause: Timer | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> dict[bytes, bytes]:
        """What is known now: hardware addresses by IP addresses."""
        return {ip: entry.mac for ip, entry in self._entries.items() if entry.mac}

    def find(self, ip: bytes) -> bytes:
        """The hardware address, if it is known and not too old; else nothing."""
        entry = self._entries.get(ip)
        if entry is None or not entry.mac or self._clock.now() - entry.confirmed_ns > self._age_ns:
            return b""
        return entry.mac

    def want(self, ip: bytes, packet: bytes = b"", watcher: Callable[[bytes], None] | None = None) -> None:
        """Resolve an address; then `packet` is sent, and `watcher` told the hardware address (nothing: nobody's)."""
        entry = self._entries.get(ip)
        if entry is None:
            entry = self._make(ip)
        if entry.question is None:
            entry.mac = b""
            entry.question = _Question()
            self.unresolved += 1
            self._wanted.append(ip)
        question = entry.question
        if packet:
            if len(question.waiting) >= self._most_waiting:
                question.waiting = question.waiting[1:]
                self.counters["drop.unresolved"] += 1
            question.waiting += (packet,)
        if watcher is not None:
            question.watchers += (watcher,)
        self._go_on()

    def _make(self, ip: bytes) -> Neighbour:
        if len(self._entries) >= self._most:
            oldest = next((k for k, e in self._entries.items() if e.question is None), None)
            if oldest is None:
                oldest = next(iter(self._entries))
                self._end(oldest, b"")
            self._entries.pop(oldest, None)
            self.counters["neighbours.evicted"] += 1
        made = self._entries[ip] = Neighbour()
        return made

    # --- questions ------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Ask for what waits, as many at a time as there may be."""
        while self._wanted and self._asking < self._most_asking:
            ip = self._wanted.popleft()
            entry = self._entries.get(ip)
            if entry is None or entry.question is None or entry.question.tries:
                continue  # answered meanwhile
            now = self._clock.now()
            if now < self._free_ns:
                self._wanted.appendleft(ip)
                if self._pause is None:
                    self._pause = self._clock.call_at(self._free_ns, self._resume)
                return
            self._free_ns = now + self._gap_ns
            self._asking += 1
            self._try(ip, entry.question)

    def _resume(self) -> None:
        self._pause = None
        self._go_on()

    def _try(self, ip: bytes, question: _Question) -> None:
        question.tries += 1
        question.timer = self._clock.call_at(self._clock.now() + self._retry_ns, lambda: self._rang(ip))
        self.counters["neighbours.asked"] += 1
        self._ask(ip)

    def _rang(self, ip: bytes) -> None:
        entry = self._entries.get(ip)
        if entry is None or entry.question is None:
            return
        if entry.question.tries < self._tries:
            self._try(ip, entry.question)
            return
        self.counters["neighbours.unreachable"] += 1
        self._end(ip, b"")
        self._entries.pop(ip, None)
        self._go_on()

    def _end(self, ip: bytes, mac: bytes) -> None:
        """A question is answered, or given up."""
        entry = self._entries[ip]
        question, entry.question = entry.question, None
        if question is None:
            return
        self.unresolved -= 1
        if question.timer is not None:
            question.timer.cancel()
        if question.tries:
            self._asking -= 1
        if mac:
            for packet in question.waiting:
                self._send(mac, packet)
        elif question.waiting:
            self._unreachable(ip, question.waiting)
        for watcher in question.watchers:
            watcher(mac)

    # --- what is heard --------------------------------------------------------------------------------------------

    def learn(self, ip: bytes, mac: bytes, create: bool = False) -> None:
        """An address was heard of.  create: also if nobody wants it: its owner has asked for this host."""
        entry = self._entries.get(ip)
        if entry is None:
            if not create:
                return
            entry = self._make(ip)
        if entry.mac and entry.mac != mac:
            self.counters["neighbours.changed"] += 1
        entry.mac = mac
        entry.confirmed_ns = self._clock.now()
        if entry.question is not None:
            self._end(ip, mac)
            self._go_on()

    def forget(self, mac: bytes) -> None:
        """Whoever has this hardware address has gone, or is to be resolved anew."""
        for ip in [ip for ip, entry in self._entries.items() if entry.mac == mac and entry.question is None]:
            del self._entries[ip]
            self.counters["neighbours.forgotten"] += 1

    def close(self) -> None:
        """Ask no more."""
        for entry in self._entries.values():
            if entry.question is not None and entry.question.timer is not None:
                entry.question.timer.cancel()
        if self._pause is not None:
            self._pause.cancel()
        self._entries.clear()
        self._wanted.clear()
