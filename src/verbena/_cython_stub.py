"""Stands in for the module ``cython`` where a hot module runs uncompiled and Cython is not installed.

Hot modules begin with::

    try:
        import cython
    except ImportError:
        from verbena import _cython_stub as cython

Compiled, the names below are Cython's own and this file is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

compiled = False
NULL = None


class _Type:
    """A C type, which means nothing here: ``int``, ``pointer(int)``, ``int[4]``; calling it converts nothing."""

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return arguments[0] if arguments else self

    def __getitem__(self, _: object) -> _Type:
        return self


class _Block:
    """``nogil`` and ``gil``: a context manager or a decorator, without effect."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, argument: Any = None) -> Any:
        return argument if callable(argument) else self


def _same(function: Any) -> Any:
    return function


def _decorator(*_: object, **__: object) -> Callable[[Any], Any]:
    return _same


cfunc = ccall = inline = final = cclass = internal = no_gc = no_gc_clear = _same
locals = returns = exceptval = boundscheck = wraparound = cdivision = initializedcheck = _decorator
nonecheck = freelist = overflowcheck = profile = binding = auto_pickle = _decorator
nogil = with_gil = gil = _Block()


def cast(_: object, value: Any, **__: object) -> Any:
    """The value as it is."""
    return value


def declare(_: object = None, value: Any = None, **__: object) -> Any:
    """The initial value, if there is one."""
    return value


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # such as __path__: this is no package
        raise AttributeError(name)
    return _Type()
