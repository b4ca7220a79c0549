"""A switch file's ports, brought up for real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from verbena.errors import FabricFileError, SystemLimitError
from verbena.runtime.real_vswitch import RealSwitch, needs
from verbena.scenario.vswitch_schema import SwitchFile

Told = Callable[[str], None]


@contextlib.contextmanager
def bring_up(
    file: SwitchFile,
    *,
    told: Told = lambda sentence: None,
    stop: Callable[[], bool] = lambda: False,
    making: Told = lambda namespace: None,
) -> Iterator[RealSwitch]:
    """A file's switch while the context lasts; afterwards nothing of it is left.

    told: hears each step, and what happens later.  stop: is asked between the steps; true ends it there.  making: is
    called with the name of each namespace before it is made.

    Raises `FabricFileError` for a file without ports, `SystemLimitError` where the system does not let it.
    """
    live = file.vswitch.live
    if live is None:
        raise FabricFileError(f"{file.name}: it declares no ports: the key live is missing in vswitch")
    places = [port.place(file.name) for port in live.ports]
    missing = needs(places)
    if missing is not None:
        raise SystemLimitError(missing)
    switch = RealSwitch(
        file.name,
        live.config(),
        mtu=live.mtu,
        offload=live.offload,
        watchdog_ms=live.watchdog_ms,
        told=told,
        making=making,
    )
    with switch:
        for place in places:
            if stop():
                break
            switch.add(place)
            waits = ", waits for it to connect" if place.listen else ""
            addresses = ", ".join(("", *place.addresses))
            told(f"{place.config.name}: {place.kind} {place.where}{addresses}{waits}")
        switch.start()
        yield switch
