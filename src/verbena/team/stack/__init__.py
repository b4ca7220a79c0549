"""A small protocol stack for hosts in virtual time: ARP, IPv4, ICMP echo, UDP, TCP.

In real time the operating system's stack has this place.
"""
