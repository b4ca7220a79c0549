"""Topologies out of files that ``ibnetdiscover`` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from verbena.errors import FabricFileError
from verbena.fabric.check import check
from verbena.fabric.ibnetdiscover import DumpError, read
from verbena.fabric.ibnetdiscover_lines import LONGEST_LINE
from verbena.fabric.topology import Topology


def read_dump(path: Path, warn: Callable[[str], None]) -> Topology:
    """The topology in a dump; its name is the file's.  It is read as it comes, line by line.

    warn: is called with a sentence for each oddity with which a real fabric runs.  Raises `FabricFileError`, which
    names the file and the line.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            # A line that is too long is cut, and refused for that, before it fills the memory.
            lines = iter(lambda: file.readline(LONGEST_LINE + 2), "")
            topology = read(lines, name=path.stem, warn=lambda sentence: warn(f"{path}: {sentence}"))
    except OSError as error:
        raise FabricFileError(f"{path}: {error.strerror or error}") from None
    except DumpError as error:
        sentence = str(error).removeprefix(f"line {error.line}: ")
        where = path if error.line is None else f"{path}:{error.line}"
        raised = FabricFileError(f"{where}: {sentence}")
        raised.line = error.line
        raise raised from None
    for problem in check(topology):
        warn(f"{path}: {problem}")
    return topology
