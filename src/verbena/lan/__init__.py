"""LAN emulation: an IEEE 802.3 Ethernet over the fabric (document 000).

Each active port of an adapter is a virtual network card (`port.LanPort`).  A `driver.Driver` stands behind it, loaded
by the bus driver; it finds the other nodes through subnet administration, and carries frames to them by the transport
services library (`transport_services`): connections for unicast, datagrams for broadcast and multicast.  On top of a
card stands whatever speaks Ethernet: a TAP device (`runtime`), the built-in host (`host`), a bridge (`bridge`), the
intermediate driver (`intermediate`).

To attach an end to a LAN, on any open adapter with InfiniBand ports, in simulated or in real time::

    node = LanNode(context, config=LanConfig(mtu=1500))   # the card comes up by itself, and with its port
    node.card.attach(receive, changed)     # receive(frames: list[bytes]); changed(event: PortEvent, detail: bytes)
    node.card.transmit(frame)              # bytes from the destination address on; False: again after PortEvent.ROOM
    node.card.send_frames(frames)          # a burst; returns how many were taken
    node.card.mac, node.card.mtu, node.card.link, node.card.counters
    node.close()

`receive` is called with no lock held, by whoever drives the adapter (its service thread in real time); `changed` may be
called under the adapter's lock, and should only note what it is told.
"""

from verbena.lan.addresses import LanAddress
from verbena.lan.config import LanConfig
from verbena.lan.node import LanNode
from verbena.lan.port import EthernetPort, LanPort, OffloadFrame, PortEvent

__all__ = ["EthernetPort", "LanAddress", "LanConfig", "LanNode", "LanPort", "OffloadFrame", "PortEvent"]
