"""C declarations for the uncompiled twins of the hot modules.

A hot module's constants and structs are declared once, in the ``.pxd`` beside it.  Compiled, they are C enums and
structs; uncompiled, the module calls `declarations(__file__)` and gets the same names as integers and as small
classes whose fields start at zero.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^cdef (enum|struct)\s*(\w*):[^\n]*\n((?:[ \t]+.*\n|[ \t]*\n)+)", re.M)
_MEMBER = re.compile(r"^(?P<type>[\w ]+?)\s*(?P<pointer>\**)\s*(?P<name>\w+)(?:\[(?P<size>\w+)\])?$")


def _struct(name: str, body: str, known: dict[str, Any]) -> type:
    scalars: list[str] = []
    arrays: list[tuple[str, int, bool]] = []
    pointers: list[str] = []
    for line in body.splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = _MEMBER.match(text)
        if match is None:
            raise SyntaxError(f"struct {name}: cannot read the member {text!r}")
        member, size = match["name"], match["size"]
        if match["pointer"]:
            pointers.append(member)
        elif size is not None:
            octets = match["type"].strip() == "uint8_t"
            arrays.append((member, int(known[size]) if size in known else int(size), octets))
        else:
            scalars.append(member)
    lines = [f"        self.{m} = 0" for m in scalars] + [f"        self.{m} = None" for m in pointers]
    lines += [f"        self.{m} = {'bytearray' if o else '[0] * '}({n})" for m, n, o in arrays]
    slots = scalars + pointers + [m for m, _, _ in arrays]
    source = (
        f"class {name}:\n    __slots__ = {tuple(slots)!r}\n\n    def __init__(self):\n"
        + "\n".join(lines)
        + "\n"
    )
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # as `dataclasses` does: the text is built from the project's own .pxd
    made: type = namespace[name]
    return made


def declarations(module_file: str) -> dict[str, Any]:
    """The constants and structs of the ``.pxd`` beside a module, by name."""
    text = Path(module_file).with_suffix(".pxd").read_text(encoding="utf-8") + "\n"
    result: dict[str, Any] = {}
    for kind, name, body in _BLOCK.findall(text):
        if kind == "struct":
            result[name] = _struct(name, body, result)
            continue
        value = -1
        for line in body.splitlines():
            member = line.split("#")[0].strip().rstrip(",")
            if not member:
                continue
            label, _, given = member.partition("=")
            value = int(given.strip(), 0) if given else value + 1
            result[label.strip()] = value
    return result
