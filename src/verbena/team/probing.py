"""Does a member's link lead anywhere?  Probes by ARP, by neighbour solicitation, and by the team's own heartbeat.

Each interval a member with a link asks; what comes back to it, and to no other member, proves it.  Without an answer
for `misses` intervals it is lost.  If no member at all gets answers, the reason is more likely the one who should
answer: then nothing is concluded (and counted: ``probe.no_reference``).

ARP: RFC 826 with the sender address 0 of RFC 5227, 2.1.1, which changes nobody's cache.  IPv6: RFC 4861, 7.2.2, from a
link-local address of the member's own.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from verbena.clock import Clock, Timer
from verbena.errors import InvalidAttributeError
from verbena.team.frames import add_tag
from verbena.team.heartbeat import ETHERTYPE as HEARTBEAT_TYPE
from verbena.team.heartbeat import HeartbeatService
from verbena.team.member import Member, MemberState
from verbena.wire.arp import ArpOperation, ArpPacket
from verbena.wire.errors import DecodeError
from verbena.wire.ethernet import BROADCAST
from verbena.wire.icmp6 import PROTOCOL_ICMP6
from verbena.wire.ip import ETHERTYPE_ARP, ETHERTYPE_IPV6, IPv6, upper_layer_checksum

NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136


class Probe(Protocol):
    """A way to ask, and to know the answer."""

    def ask(self, member: Member, now: int) -> list[bytes]:
        """The frames that a member sends."""

    def recognise(self, member: Member, vlan: int, frame: bytes) -> bool | None:
        """Does this untagged frame prove the member?  None: it has nothing to do with this probe."""


class ArpProbe:
    """Asks for IPv4 addresses in a VLAN (0: untagged)."""

    def __init__(self, targets: Sequence[str], vlan: int = 0) -> None:
        self.targets = [_packed(target, 4) for target in targets]
        self.vlan = vlan

    def ask(self, member: Member, now: int) -> list[bytes]:
        mac = member.card.mac
        frames = [ArpPacket(sender_mac=mac, target_ip=ip).frame(BROADCAST, mac) for ip in self.targets]
        return [add_tag(frame, self.vlan) for frame in frames]

    def recognise(self, member: Member, vlan: int, frame: bytes) -> bool | None:
        if vlan != self.vlan or frame[12] << 8 | frame[13] != ETHERTYPE_ARP or frame[:6] != member.card.mac:
            return None
        try:
            arp = ArpPacket.parse(frame[14:])
        except DecodeError:
            return None
        return arp.operation == ArpOperation.REPLY and arp.sender_ip in self.targets


class NeighbourProbe:
    """Asks for IPv6 addresses in a VLAN (0: untagged)."""

    def __init__(self, targets: Sequence[str], vlan: int = 0) -> None:
        self.targets = [_packed(target, 16) for target in targets]
        self.vlan = vlan

    @staticmethod
    def address(mac: bytes) -> bytes:
        """The link-local address that a member asks from (RFC 4291, appendix A)."""
        return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]

    def ask(self, member: Member, now: int) -> list[bytes]:
        return [add_tag(self._solicit(member.card.mac, target), self.vlan) for target in self.targets]

    def _solicit(self, mac: bytes, target: bytes) -> bytes:
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        message = bytes((NEIGHBOUR_SOLICITATION,)) + bytes(7) + target + b"\x01\x01" + mac
        ip = IPv6(
            payload_length=len(message),
            next_header=PROTOCOL_ICMP6,
            hop_limit=255,
            src=self.address(mac),
            dst=group,
        )
        checksum = upper_layer_checksum(ip, PROTOCOL_ICMP6, message).to_bytes(2, "big")
        head = b"\x33\x33\xff" + target[13:] + mac + ETHERTYPE_IPV6.to_bytes(2, "big")
        return head + ip.pack() + message[:2] + checksum + message[4:]

    def recognise(self, member: Member, vlan: int, frame: bytes) -> bool | None:
        is_mine = vlan == self.vlan and frame[12] << 8 | frame[13] == ETHERTYPE_IPV6
        if not is_mine or len(frame) < 78 or frame[38:54] != self.address(member.card.mac):
            return None
        if frame[20] != PROTOCOL_ICMP6 or frame[21] != 255 or frame[54] != NEIGHBOUR_ADVERTISEMENT:
            return None
        ip = IPv6.unpack(frame, 14)
        if upper_layer_checksum(ip, PROTOCOL_ICMP6, frame[54 : 54 + ip.payload_length]):
            return None
        return frame[62:78] in self.targets


class HeartbeatProbe:
    """Asks whoever has the key."""

    def __init__(self, service: HeartbeatService) -> None:
        self.service = service

    def ask(self, member: Member, now: int) -> list[bytes]:
        return [self.service.probe(member.card.mac, now)]

    def recognise(self, member: Member, vlan: int, frame: bytes) -> bool | None:
        if vlan or frame[12] << 8 | frame[13] != HEARTBEAT_TYPE:
            return None
        return self.service.receive(frame, member.card.mac, member.branch.transmit)


def _packed(target: str, size: int) -> bytes:
    try:
        packed = ipaddress.ip_address(target).packed
    except ValueError:
        packed = b""
    if len(packed) != size:
        raise InvalidAttributeError(f"{target!r} is no IPv{4 if size == 4 else 6} address to be probed")
    return packed


class ProbeMonitor:
    """Probes all members with a link, and says which are proved and which are lost.

    interval_ns, misses: so often, and so many intervals without an answer; a loss shows within (misses + 1) intervals.
    """

    def __init__(
        self,
        clock: Clock,
        probes: Sequence[Probe],
        interval_ns: int,
        misses: int,
        members: Callable[[], Iterable[Member]],
        verdict: Callable[[Member, bool], None],
        counters: Counter[str],
    ) -> None:
        self.probes = list(probes)
        self.interval_ns = interval_ns
        self.misses = misses
        self._clock = clock
        self._members = members
        self._verdict = verdict
        self._counters = counters
        self._answered: dict[Member, int] = {}
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin to probe; once."""
        if self._timer is None and self.probes:
            self._tick()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self, member: Member) -> None:
        """A member has a link now: its time runs from here, and it asks at once."""
        self._answered[member] = self._clock.now()
        self._ask(member)

    def forget(self, member: Member) -> None:
        self._answered.pop(member, None)

    def _ask(self, member: Member) -> None:
        now = self._clock.now()
        for probe in self.probes:
            for frame in probe.ask(member, now):
                self._counters["probe.tx"] += 1
                member.branch.transmit(frame)

    def _tick(self) -> None:
        now = self._clock.now()
        self._timer = self._clock.call_at(now + self.interval_ns, self._tick)
        asked = [m for m in self._members() if m.state in (*WATCHED,)]
        late = [m for m in asked if now - self._answered.setdefault(m, now) > self.misses * self.interval_ns]
        if late and len(late) == len(asked) and any(m.is_usable for m in asked):
            self._counters["probe.no_reference"] += 1
            late = [m for m in late if not m.is_usable]
        for member in late:
            self._verdict(member, False)
        for member in asked:
            self._ask(member)

    def saw(self, member: Member, vlan: int, frame: bytes) -> bool:
        """Look at a frame that came in; True: it was for the probing alone."""
        for probe in self.probes:
            proved = probe.recognise(member, vlan, frame)
            if proved is None:
                continue
            if proved and member.state in WATCHED:
                self._answered[member] = self._clock.now()
                self._verdict(member, True)
            return True
        return False


WATCHED = (MemberState.JOINING, MemberState.ACTIVE, MemberState.SUSPECT)
