"""Compiled or plain: which modules are compiled, and how to run their plain sources instead.

A *hot module* is written in Cython's pure-Python mode: ``engine.py``, with its C types in ``engine.pxd`` beside it.
Having that ``.pxd`` is what makes it one; there is no list to keep.  It is compiled into an extension module that lies
beside the source, and Python's import system prefers the extension.  With ``VERBENA_PURE=1`` in the environment,
`install` puts a finder in front which loads the plain source; without a compiler at installation there is no
extension, and Python finds the source by itself.  Either way the results are the same, and slower.

A ``.pyx`` is compiled only: C calls and nothing else.  Its plain twin is a module of another name.

This file imports nothing of Verbena: ``setup.py`` runs it on its own to learn what to compile.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent


def _base(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")[1:])


def _modules(suffix: str) -> tuple[str, ...]:
    files = (
        path.relative_to(_PACKAGE.parent).with_suffix("") for path in sorted(_PACKAGE.rglob("*" + suffix))
    )
    return tuple(".".join(path.parts) for path in files)


@functools.cache
def hot_modules() -> tuple[str, ...]:
    """The modules with a plain source and C types."""
    return tuple(module for module in _modules(".pxd") if _base(module).with_suffix(".py").exists())


@functools.cache
def compiled_only() -> tuple[str, ...]:
    """The modules that exist compiled, or not at all."""
    return _modules(".pyx")


def pure_wanted() -> bool:
    """Did the user ask for the plain sources?"""
    return os.environ.get("VERBENA_PURE", "") not in ("", "0")


class _PlainSourceFinder(MetaPathFinder):
    """Finds the sources of the hot modules, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in compiled_only():
            raise ModuleNotFoundError(f"{fullname} is not used with VERBENA_PURE=1", name=fullname)
        if fullname not in hot_modules():
            return None
        source = str(_base(fullname).with_suffix(".py"))
        return spec_from_file_location(fullname, source, loader=SourceFileLoader(fullname, source))


def install() -> None:
    """Make the hot modules load from their plain sources; to be called before the first of them is imported."""
    if not any(isinstance(finder, _PlainSourceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PlainSourceFinder())


def _is_compiled(module: str) -> bool:
    loaded = sys.modules.get(module)
    if loaded is None:
        spec = find_spec(module)
        origin = spec.origin if spec else None
    else:
        origin = loaded.__file__
    return origin is not None and origin.endswith(tuple(EXTENSION_SUFFIXES))


def plain_modules() -> tuple[str, ...]:
    """The hot modules that run, or would run, as plain Python in this process."""
    return tuple(module for module in hot_modules() if not _is_compiled(module))


def compiled() -> bool:
    """Do all hot modules run compiled?"""
    return not plain_modules()


_said = False


def say_once() -> None:
    """Tell the user, once a process, if Verbena runs uncompiled; to be called when an adapter is opened.

    The line goes to the logger ``verbena`` as a warning: without any logging set up, Python prints it on stderr.
    """
    global _said
    if _said or compiled():
        return
    _said = True
    why = "VERBENA_PURE is set" if pure_wanted() else "it was installed without a C compiler"
    logging.getLogger("verbena").warning("verbena: running uncompiled (%s): same results, slower", why)
