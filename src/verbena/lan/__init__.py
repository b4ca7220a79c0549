"""LAN emulation: an IEEE 802.3 Ethernet over the fabric (document 000).

Each active port of an adapter is a virtual network card (`port.LanPort`).  A `driver.Driver` stands behind it, loaded
by the bus driver; it finds the other nodes through subnet administration, and carries frames to them by the transport
services library (`transport_services`): connections for unicast, datagrams for broadcast and multicast.  On top of a
card stands whatever speaks Ethernet: a TAP device (`runtime`), the built-in host (`host`), a bridge (`bridge`), the
intermediate driver (`intermediate`).
"""
