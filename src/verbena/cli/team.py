"""``verbena team``: runs a team, and talks to one that runs, over a control socket (one line of JSON each way)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from verbena.cli.proxy import serve
from verbena.cli.standing import until_interrupted
from verbena.errors import SystemLimitError, VerbenaError
from verbena.runtime.real_team import ProxyConfig, RealTeam
from verbena.runtime.status_socket import StatusSocket, connected, told
from verbena.scenario.team_file import load_team
from verbena.team.driver import TeamEvent
from verbena.team.offload.states import Path as Way

PATIENCE_S = 10.0
LARGEST = 16 << 20


def answer(team: RealTeam, request: dict[str, Any]) -> dict[str, Any]:
    """What the running team says to a request."""
    what, name = request.get("what"), str(request.get("name", ""))
    try:
        if what == "fail":
            team.fail(name)
        elif what == "recover":
            team.recover(name)
        elif what == "add":
            team.add(name)
        elif what == "remove":
            team.remove(name)
        elif what == "release":
            team.pin(name, None)
        elif what in ("offload", "upload"):
            team.pin(name, Way[what.upper()])
        elif what != "status":
            return {"error": f"a team knows no {what!r}"}
    except VerbenaError as error:
        return {"error": str(error)}
    return team.status()


def ask(control: str, what: str, name: str = "") -> int:
    """Ask a running team, and print what it says."""
    try:
        connection = connected(Path(control), PATIENCE_S)
    except OSError as error:
        why = error.strerror or str(error)
        raise SystemLimitError(
            f"no team answers at {control} ({why}): `verbena team up FILE` runs one, -c names its socket"
        ) from None
    with connection:
        try:
            connection.sendall(json.dumps({"what": what, "name": name}).encode() + b"\n")
            reply = told(connection, LARGEST)
        except (OSError, ValueError):
            raise SystemLimitError(f"the team at {control} has not answered: it may just be ending") from None
    if "error" in reply:
        raise SystemLimitError(reply["error"])
    Console().print(tables(reply))
    return 0


def _rate(bps: float) -> str:
    return f"{bps / 1e6:.1f}"


def tables(status: dict[str, Any]) -> Group:
    """Members, VLAN groups, connections, the last events."""
    members = Table("member", "state", "load, Mb/s", "sent", "received", "dropped")
    for m in status["members"]:
        name = m["name"] + (" (RDMA)" if m["rdma"] else "")
        state = m["state"] + (", receives" if m["receives"] else "")
        numbers = (str(m["tx"]), str(m["rx"]), str(m["dropped"]))
        members.add_row(name, state, _rate(m["load_bps"]), *numbers)
    groups = Table("virtual card", "VLAN", "link", "sent", "received")
    for g in status["groups"]:
        groups.add_row(g["name"], str(g["vlan"]), "up" if g["up"] else "down", str(g["tx"]), str(g["rx"]))
    shown: list[Any] = [members, groups]
    if status["connections"]:
        table = Table("connection", "path", "MB sent", "MB received", "Mb/s", "moves", "stall, ms")
        for c in status["connections"]:
            path = c["path"] if c["state"] == "ESTABLISHED" else f"{c['path']}, {c['state']}"
            counts = (f"{c['sent'] / 1e6:.1f}", f"{c['received'] / 1e6:.1f}", _rate(c["load_bps"]))
            table.add_row(c["identity"], path, *counts, str(c["moves"]), f"{c['stall_ms']:.2f}")
        shown.append(table)
    shown += [f"{e['ago_s']:8.3f} s ago  {e['text']}" for e in status["events"]]
    return Group(*shown)


def up(file: str, control: str, quiet: bool) -> int:
    """Run a team until interrupted."""
    config = load_team(file)
    running: Future[RealTeam] = Future()

    def told_of(question: bytes) -> dict[str, Any]:
        request = json.loads(question)
        try:
            team = running.result(PATIENCE_S)
        except (TimeoutError, CancelledError):
            return {"error": "the team has not come up"}
        return answer(team, request if isinstance(request, dict) else {})

    server = _control(control, told_of)
    console = Console()
    try:
        with until_interrupted() as stop, RealTeam(config) as team:
            for one in config.proxies:
                _proxy(team, one)
            running.set_result(team)
            if quiet or not console.is_terminal:
                _print_events(team, stop)
            else:
                with Live(tables(team.status()), console=console, refresh_per_second=4) as live:
                    while not stop.wait(0.5):
                        live.update(tables(team.status()))
    finally:
        running.cancel()
        server.close()
    return 0


def _control(path: str, answer: Callable[[bytes], dict[str, Any]]) -> StatusSocket:
    """The control socket; one that a team which was killed has left goes."""
    place = Path(path)
    try:
        if place.is_socket():
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                connected(place, PATIENCE_S).close()
                raise SystemLimitError(f"a team runs already at {path}: -c gives this one another socket")
            place.unlink(missing_ok=True)
        return StatusSocket(place, answer, questions=True, name="verbena team status")
    except OSError as error:
        raise SystemLimitError(f"control socket {path}: {error.strerror or error}") from None


def _proxy(team: RealTeam, config: ProxyConfig) -> None:
    """Run a proxy of the team's in a thread; raises what keeps it from beginning."""
    assert team.node is not None
    began: Future[None] = Future()
    work = serve(team.node, config.listen, config.via, config.accept, config.to, True, began)

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            if not began.done():
                began.set_exception(error)

    threading.Thread(target=run, name="verbena proxy", daemon=True).start()
    began.result()


def _print_events(team: RealTeam, stop: threading.Event) -> None:
    def tell(event: TeamEvent) -> None:
        print(f"{event.when_ns / 1e9:.6f} {event.text}", flush=True)

    with team.loop.lock:
        for event in team.driver.events:
            tell(event)
        team.driver.on_event = tell
    print("ready", flush=True)
    stop.wait()
