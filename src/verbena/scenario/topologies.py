"""Topologies out of files: fabric files, and what ``ibnetdiscover`` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from verbena.errors import FabricFileError
from verbena.fabric.topology import Topology
from verbena.scenario.dumps import read_dump
from verbena.scenario.fabric_topology import build_topology
from verbena.scenario.load import load_fabric

FABRIC_FILES = (".yaml", ".yml")


def open_topology(path: str, warn: Callable[[str], None] | None = None) -> Topology:
    """The topology of a fabric file (by its ending), or of a file that `ibnetdiscover` wrote.

    warn: is called with a sentence for each oddity with which a real fabric runs.  Raises `FabricFileError`, which
    names the file and the line.
    """
    told = warn or (lambda sentence: None)
    if Path(path).suffix.lower() not in FABRIC_FILES:
        return read_dump(Path(path), told)
    fabric = load_fabric(path, told)
    if fabric.fabric is None:
        raise FabricFileError(f"{path}: an ideal wire joins its adapters: there is no topology to show")
    return build_topology(fabric, Path(path).parent)
