"""The team's own heartbeat: a probe that a member sends to everybody, and the answer of any other team's member.

An Ethernet frame of the local experimental type (IEEE 802, 9.2.4) to a group address.  Its body is sealed with a keyed
hash (BLAKE2b, RFC 7693) under the key that all teams of the network share, and its numbers only grow: what is forged,
altered or sent again is dropped and counted.  A member is proved by an answer to a probe of its own, that is by a whole
round trip.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from verbena.errors import InvalidAttributeError
from verbena.wire.layout import Layout, raw, uint

GROUP = bytes.fromhex("037662000001")
ETHERTYPE = 0x88B5
MAGIC = 0x56424842
TAG_SIZE = 16
WINDOW = 64
"""Answers to the last so many probes of a member count."""
SENDERS = 4096
SHORTEST_KEY = 8


class Kind(IntEnum):
    """What a heartbeat is."""

    PROBE = 1
    ANSWER = 2


@dataclass(frozen=True, slots=True)
class Heartbeat(Layout):
    """The body without its seal.

    team, member: who sends a probe, also in its answer.  answerer: in an answer, the address that answers; zeros in a
    probe.  sequence: of the probe; it grows with each of a member, also over restarts (it is a time in nanoseconds).
    """

    magic: int = uint(32, MAGIC, at=0)
    version: int = uint(8, 1, at=4)
    kind: int = uint(8, at=5)
    team: bytes = raw(6, at=6)
    member: bytes = raw(6, at=12)
    answerer: bytes = raw(6, at=18)
    sequence: int = uint(64, at=24)

    def frame(self, destination: bytes, source: bytes, key: bytes) -> bytes:
        """The sealed frame."""
        body = self.pack()
        return destination + source + ETHERTYPE.to_bytes(2, "big") + body + seal(body, key)


def seal(body: bytes, key: bytes) -> bytes:
    """The keyed hash of a body, 16 bytes."""
    return hashlib.blake2b(body, digest_size=TAG_SIZE, key=key).digest()


class HeartbeatService:
    """Makes probes, answers those of others, checks what comes.

    key: 8 to 64 bytes.  team: the team's address.  counters: ``heartbeat.*`` and drops by reason.
    """

    def __init__(self, key: bytes, team: bytes, counters: Counter[str]) -> None:
        if not SHORTEST_KEY <= len(key) <= 64:
            raise InvalidAttributeError(
                f"a heartbeat key of {len(key)} bytes: {SHORTEST_KEY} to 64 are right, the same in all teams"
            )
        self.key = key
        self.team = team
        self.counters = counters
        self._sent: dict[bytes, list[int]] = {}
        self._heard: dict[tuple[bytes, bytes], int] = {}

    def probe(self, mac: bytes, now: int) -> bytes:
        """A probe of the member with this address."""
        sent = self._sent.setdefault(mac, [])
        sequence = max(now, sent[-1] + 1 if sent else 1)
        sent.append(sequence)
        del sent[:-WINDOW]
        self.counters["heartbeat.tx"] += 1
        made = Heartbeat(kind=Kind.PROBE, team=self.team, member=mac, sequence=sequence)
        return made.frame(GROUP, mac, self.key)

    def receive(self, frame: bytes, mac: bytes, reply: Callable[[bytes], object]) -> bool:
        """A heartbeat came in by the member with this address; True if it proves that member."""
        body, tag = frame[14 : 14 + Heartbeat.SIZE], frame[14 + Heartbeat.SIZE :][:TAG_SIZE]
        if len(tag) < TAG_SIZE:
            return self._drop("short")
        if not hmac.compare_digest(seal(body, self.key), tag):
            return self._drop("forged")
        made = Heartbeat.unpack(body)
        if made.magic != MAGIC or made.version != 1:
            return self._drop("version")
        if made.kind == Kind.PROBE:
            return self._probed(made, mac, reply)
        if made.kind != Kind.ANSWER:
            return self._drop("kind")
        return self._answered(made, mac)

    def _probed(self, made: Heartbeat, mac: bytes, reply: Callable[[bytes], object]) -> bool:
        if made.member == mac:
            return self._drop("own")
        sender = (made.member, mac)
        if made.sequence <= self._heard.get(sender, 0):
            return self._drop("replayed")
        if len(self._heard) >= SENDERS and sender not in self._heard:
            self._heard.pop(next(iter(self._heard)))
        self._heard[sender] = made.sequence
        self.counters["heartbeat.rx"] += 1
        answer = Heartbeat(
            kind=Kind.ANSWER, team=made.team, member=made.member, answerer=mac, sequence=made.sequence
        )
        reply(answer.frame(made.member, mac, self.key))
        return False

    def _answered(self, made: Heartbeat, mac: bytes) -> bool:
        if made.team != self.team or made.member != mac:
            return self._drop("other")
        if made.sequence not in self._sent.get(mac, ()):
            return self._drop("replayed")
        self.counters["heartbeat.answers"] += 1
        return True

    def _drop(self, why: str) -> bool:
        self.counters[f"drop.heartbeat.{why}"] += 1
        return False
