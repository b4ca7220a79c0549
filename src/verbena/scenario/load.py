"""Reads fabric files.  Whatever is wrong with one is a `FabricFileError` that names the file, the line, and what would
be right; several mistakes are told at once.

YAML without aliases: a fabric file has no use for them, and a small file with aliases can stand for an enormous one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path as FilePath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from verbena.errors import FabricFileError
from verbena.fabric.check import check
from verbena.scenario.fabric_problems import fabric_problems
from verbena.scenario.fabric_topology import PlaceError, build_topology, with_hosts
from verbena.scenario.schema import KINDS, MODELS, FabricFile, problems
from verbena.scenario.schema_types import Path

LARGEST = 1 << 20
MOST_SHOWN = 20
NO_ALIASES = "aliases (*name) have no place in a fabric file: write the value out"


Warn = Callable[[str], None]
Model = TypeVar("Model", bound=BaseModel)


def load_fabric(path: str, warn: Warn | None = None) -> FabricFile:
    """Read a fabric file.  warn: is called with what a real fabric would run with.  Raises `FabricFileError`."""
    return parse_fabric(read_text(path), path, warn)


def read_text(path: str) -> str:
    """A fabric file's text.  Raises `FabricFileError`."""
    try:
        with FilePath(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise FabricFileError(f"{path}: {error.strerror or error}") from None
    if len(raw) > LARGEST:
        raise FabricFileError(f"{path}: larger than {LARGEST >> 20} MiB: this is no fabric file")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _error(path, [(line, "this is no text in UTF-8")]) from None


def parse_data(text: str, path: str = "fabric file") -> dict[str, Any]:
    """A fabric file's text as plain data, with nothing checked but that it is a mapping.  Raises `FabricFileError`."""
    data: dict[str, Any] = _Document(text, path).data
    return data


def parse_fabric(text: str, path: str = "fabric file", warn: Warn | None = None) -> FabricFile:
    """The same for a text; `path` is what errors call it."""
    document = _Document(text, path)
    try:
        fabric = FabricFile.model_validate(document.data)
    except ValidationError as error:
        # A list whose items are all wrong is also "too short" for pydantic.
        wrong_items = (
            e for e in error.errors(include_url=False) if e["type"] != "too_short" or not e["input"]
        )
        found = [document.explain(each) for each in wrong_items]
        raise _error(path, found) from None
    wrong = [(document.line(where), message) for where, message in problems(fabric)]
    if not wrong and fabric.fabric is not None:
        fabric, wrong = _with_topology(fabric, document, FilePath(path).parent, warn)
    if wrong:
        raise _error(path, wrong)
    return fabric


def parse_model(
    text: str,
    path: str,
    model: type[Model],
    wrong: Callable[[Model], Iterable[tuple[Path, str]]] = lambda _: (),
) -> Model:
    """A file of another kind: its text as `model`.  Raises `FabricFileError` that names the lines.

    wrong: what does not fit together in it: where, and a sentence.
    """
    document = _Document(text, path)
    try:
        found = model.model_validate(document.data)
    except ValidationError as error:
        raise _error(
            path, [document.explain(each, model) for each in error.errors(include_url=False)]
        ) from None
    if mistakes := [(document.line(where), message) for where, message in wrong(found)]:
        raise _error(path, mistakes)
    return found


def _with_topology(
    fabric: FabricFile, document: _Document, folder: FilePath, warn: Warn | None
) -> tuple[FabricFile, list[tuple[int, str]]]:
    """A file on a fabric, with the hosts that its topology has; and what is wrong."""
    try:
        topology = build_topology(fabric, folder, warn)
    except PlaceError as error:
        return fabric, [(document.line(error.where), str(error))]
    assert fabric.fabric is not None
    if warn is not None and fabric.fabric.dump is None:
        for problem in check(topology):
            warn(str(problem))
    fabric = with_hosts(fabric, topology)
    found = [*fabric_problems(fabric, topology), *problems(fabric)]
    return fabric, [(document.line(where), message) for where, message in found]


def _error(path: str, found: list[tuple[int, str]]) -> FabricFileError:
    found = sorted(dict.fromkeys(found))
    lines = [f"{path}:{line}: {message}" for line, message in found[:MOST_SHOWN]]
    if len(found) > MOST_SHOWN:
        lines.append(f"… and {len(found) - MOST_SHOWN} more")
    error = FabricFileError("\n".join(lines))
    error.line = found[0][0]
    return error


# --- YAML -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without aliases and dates, and with numbers such as 100e9."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=NO_ALIASES, problem_mark=mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Document:
    """A file's data, and the line of each key and value."""

    def __init__(self, text: str, path: str) -> None:
        self._values: dict[Path, int] = {}
        self._keys: dict[Path, int] = {}
        self._wrong: list[tuple[int, str]] = []
        try:
            self._loader = _Loader(text)
            node = self._loader.get_single_node()
            self.data: Any = None if node is None else self._take(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            message = ", ".join(part for part in (error.context, error.problem) if part)
            raise _error(
                path, [(line, message if message == NO_ALIASES else f"this is no YAML: {message}")]
            ) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise _error(path, [(line, "this is no YAML: a character that is not allowed")]) from None
        except RecursionError:
            raise _error(path, [(1, "lists and mappings are nested too deeply")]) from None
        if not self._wrong and not isinstance(self.data, dict):
            self._wrong.append((1, "a fabric file is a mapping, with the keys name, hosts and workloads"))
        if self._wrong:
            raise _error(path, self._wrong)

    def _take(self, node: yaml.Node, path: Path) -> Any:
        self._values[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._take_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._take(item, (*path, at)) for at, item in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except ValueError:
            self._wrong.append((node.start_mark.line + 1, f"{_short(node.value)} is no value"))
            return None

    def _take_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key, str) or not isinstance(key_node, yaml.ScalarNode):
                self._wrong.append((line, "a key is a word: no list, no mapping"))
                continue
            if key in taken:
                first = self._keys[(*path, key)]
                self._wrong.append((line, f"{_short(key)} stands here twice: the first is in line {first}"))
                continue
            self._keys[(*path, key)] = line
            taken[key] = self._take(value_node, (*path, key))
        return taken

    # --- where and what -----------------------------------------------------------------------------------

    def line(self, where: Path, of_key: bool = False) -> int:
        """The line of a value (of its key); of the nearest thing around it that is there."""
        own = self._own(where)
        return self._keys.get(own, self._values[own]) if of_key else self._values[own]

    def _own(self, where: Path) -> Path:
        """A place as pydantic names it, in the file's own terms: without the kinds of workloads."""
        place: Path = ()
        for part in where:
            if (*place, part) in self._values:
                place = (*place, part)
            elif part not in KINDS:
                break
        return place

    def explain(self, error: ErrorDetails, model: type[BaseModel] = FabricFile) -> tuple[int, str]:
        """A mistake that pydantic found in a file of that model: its line, and a sentence."""
        where: Path = error["loc"]
        kind = error["type"]
        own = self._own(where)
        name = next(
            (str(part) for part in reversed(where) if isinstance(part, str) and part not in KINDS), ""
        )
        if kind == "extra_forbidden":
            return self.line(where, of_key=True), f"unknown key {_short(name)}{_known(where, name, model)}"
        if kind == "missing":
            return self.line(where[:-1]), f"the key {name} is missing here"
        if kind in ("union_tag_not_found", "union_tag_invalid"):
            place = (*own, "kind") if (*own, "kind") in self._values else own
            given = self._at(place)
            said = (
                f"there is no kind {_short(given)} of workload" if place != own else "a workload needs a kind"
            )
            return self.line(place), f"{said}: kind is one of {', '.join(KINDS)}"
        return self.line(where), f"{name}: {_sentence(error)}"

    def _at(self, place: Path) -> Any:
        value = self.data
        for part in place:
            value = value[part]
        return value


def _known(where: Path, name: str, whole: type[BaseModel]) -> str:
    words = tuple(part for part in where[:-1] if isinstance(part, str))
    model = MODELS.get(words) if words else whole
    if model is None:
        return ""
    keys = [field.alias or key for key, field in model.model_fields.items()]
    close = difflib.get_close_matches(name, keys, n=1)
    return f": did you mean {close[0]}?" if close else f": known here are {', '.join(keys)}"


EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list (lines that begin with a dash)",
    "list_type": "a list (lines that begin with a dash)",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "finite_number": "a finite number",
}


def _sentence(error: ErrorDetails) -> str:
    kind, context, given = error["type"], error.get("ctx", {}), _short(error["input"])
    if kind in EXPECTED:
        return f"{given} is not {EXPECTED[kind]}"
    match kind:
        case "greater_than_equal":
            return f"{given} is too small: at least {context['ge']}"
        case "less_than_equal":
            return f"{given} is too large: at most {context['le']}"
        case "less_than":
            return f"{given} is too large: below {context['lt']}"
        case "literal_error":
            return f"{given} is not one of {context['expected']}"
        case "string_pattern_mismatch" | "string_too_short" | "string_too_long":
            return f"{given} is no name: up to 60 letters, digits, dots, dashes and underscores"
        case "too_short":
            return "at least one is needed"
        case "too_long":
            return f"at most {context.get('max_length')} are possible"
        case "value_error":
            return str(context["error"])
    return f"{given}: {error['msg']}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value) if not isinstance(value, dict | list) else "this"
    return text if len(text) <= 60 else text[:57] + "…"
