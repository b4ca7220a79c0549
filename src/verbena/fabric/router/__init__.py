"""Routers between subnets, and onto ordinary IPv6 networks."""

from verbena.fabric.router.attachment import RouterAttachment
from verbena.fabric.router.element import Router
from verbena.fabric.router.exchange import RouteExchange
from verbena.fabric.router.ports import PENDING, Hop, LanPort, Pending, Resolver, RouterPort
from verbena.fabric.router.routes import Origin, Route, RouteTable

__all__ = [
    "PENDING",
    "Hop",
    "LanPort",
    "Origin",
    "Pending",
    "Resolver",
    "Route",
    "RouteExchange",
    "RouteTable",
    "Router",
    "RouterAttachment",
    "RouterPort",
]
