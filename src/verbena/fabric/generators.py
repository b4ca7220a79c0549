"""Topologies by name: `generate("fat-tree", k=4)`, or, as on a command line, `generate_from("fat-tree k=4")`.

The shapes themselves stand in `shapes`, the documents' figures in `figures`.  Every parameter is checked here or there;
what is wrong is told with the parameter's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verbena.errors import InvalidAttributeError
from verbena.fabric import figures, shapes
from verbena.fabric.rates import LinkRate
from verbena.fabric.shapes import Cable
from verbena.fabric.topology import Topology, TopologyError


def mesh(cable: Cable, dimensions: Sequence[int], hosts: int = 1) -> Topology:
    """Switches in a grid of any number of dimensions, `hosts` hosts at each."""
    return shapes.grid(cable, dimensions, False, hosts)


def torus(cable: Cable, dimensions: Sequence[int], hosts: int = 1) -> Topology:
    """A mesh whose lines are closed to circles."""
    return shapes.grid(cable, dimensions, True, hosts)


GENERATORS: dict[str, Callable[..., Topology]] = {
    "back-to-back": shapes.back_to_back,
    "star": shapes.star,
    "line": shapes.line,
    "ring": shapes.ring,
    "mesh": mesh,
    "torus": torus,
    "fat-tree": shapes.fat_tree,
    "k-ary-n-tree": shapes.k_ary_n_tree,
    "xgft": shapes.xgft,
    "dragonfly": shapes.dragonfly,
    "san": figures.san,
    "two-subnets": figures.two_subnets,
    "transaction": figures.transaction,
    "cascade": figures.cascade,
}
"""Every kind of topology that can be generated."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A generator's parameter.  kind: "int", "Sequence[int]" or "str"; default: None if it must be given."""

    name: str
    kind: str
    default: object


COMMON = (Parameter("rate", "LinkRate", LinkRate()), Parameter("delay_ns", "int", 100))
"""Parameters that every generator takes: rate of all links, and their delay, one way."""


def parameters(kind: str) -> list[Parameter]:
    """A generator's parameters, without those in `COMMON`; raises `TopologyError` for a kind that is not known."""
    found = []
    for name, parameter in list(inspect.signature(_generator(kind)).parameters.items())[1:]:
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        found.append(Parameter(name, str(parameter.annotation), default))
    return found


def _generator(kind: str) -> Callable[..., Topology]:
    if kind not in GENERATORS:
        raise TopologyError(f"{kind!r} is no kind of topology: write one of {', '.join(GENERATORS)}")
    return GENERATORS[kind]


def generate(kind: str, **given: object) -> Topology:
    """A topology of the named kind.  Raises `TopologyError` that names the parameter which is wrong.

    Values may be text, as on a command line: ``generate("torus", dimensions="4x4x2", rate="4xHDR")``.
    """
    known = {parameter.name: parameter for parameter in (*parameters(kind), *COMMON)}
    for name in given:
        if name not in known:
            raise TopologyError(f"{kind} has no parameter {name!r}: it takes {', '.join(known)}")
    for parameter in known.values():
        if parameter.default is None and parameter.name not in given:
            raise TopologyError(f"{kind} needs the parameter {parameter.name}")
    values = {name: _value(known[name], value) for name, value in given.items()}
    rate, delay_ns = values.pop("rate", LinkRate()), values.pop("delay_ns", 100)
    if not isinstance(delay_ns, int) or not isinstance(rate, LinkRate):
        raise TopologyError("rate is a LinkRate, and delay_ns a number")
    shapes.at_least("delay_ns", delay_ns, 0, 10_000_000_000)
    try:
        return _generator(kind)(Cable(rate, delay_ns), **values)
    except TopologyError as error:
        raise TopologyError(f"{kind}: {error}") from None


def generate_from(text: str) -> Topology:
    """A topology from a line such as ``dragonfly p=2 a=4 h=2``; raises `TopologyError`."""
    words = text.split()
    if not words:
        raise TopologyError(f"name a kind of topology: one of {', '.join(GENERATORS)}")
    given: dict[str, object] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or not name or not value or name in given:
            raise TopologyError(f"{word!r} is no parameter: write each once, as name=value")
        given[name] = value
    return generate(words[0], **given)


def _value(parameter: Parameter, value: object) -> object:
    """The value as the generator wants it; raises `TopologyError` naming the parameter."""
    try:
        match parameter.kind:
            case "int" if isinstance(value, (int, str)) and not isinstance(value, bool):
                return _integer(value)
            case "Sequence[int]" if isinstance(value, str):
                return [_integer(part) for part in value.replace("x", ",").split(",")]
            case "Sequence[int]" if isinstance(value, Sequence):
                return [_integer(part) for part in value]
            case "LinkRate" if isinstance(value, (str, LinkRate)):
                return LinkRate.parse(value) if isinstance(value, str) else value
            case "str" if isinstance(value, str):
                return value
    except InvalidAttributeError as error:
        raise TopologyError(f"{parameter.name}: {error}") from None
    except ValueError:
        pass
    right = {
        "int": "a whole number",
        "Sequence[int]": "whole numbers, such as 4x4",
        "LinkRate": "such as 4xEDR",
    }
    raise TopologyError(f"{parameter.name} is {value!r}; it must be {right.get(parameter.kind, 'a word')}")


def _integer(value: object) -> int:
    """Raises ValueError for what is no whole number, or a longer one than any parameter may be."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if not isinstance(value, str) or not text.isascii() or len(text) > 20:
        raise ValueError
    return int(text)
