"""Flit mode."""

from __future__ import annotations

try:
    import cython
except ImportError:
    from verbena import _cython_stub as cython

from verbena.fabric.trains import Trains

if cython.compiled:
    from cython.cimports.verbena.fabric.tables import *
else:
    from verbena.fabric.tables import *


class Flits(Trains):
    def __init__(self, flits, seed):
        super().__init__(flits)

    def dress(self, p):
        pass

    def link_event(self, e):
        pass

    def retrain(self, o):
        """The link begins anew: both ends lose what is on the cable and come up in INIT."""
        r = o.peer
        o.state = r.state = STATE_DOWN
        self.go_down(o, DROP_LINK)
        self.go_down(r, DROP_LINK)
        self.come_up(o)
        self.come_up(r)
