"""Builds the compiled modules; everything else about the package stands in pyproject.toml.

Environment: ``VERBENA_NO_EXT=1`` builds none of them; ``VERBENA_REQUIRE_EXT=1`` fails when one cannot be built.
By default the package installs uncompiled when a module cannot be compiled, and the plain Python sources run.
"""

from __future__ import annotations

import os
import runpy
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAMES = runpy.run_path("src/verbena/_pure.py")
OPTIONAL = os.environ.get("VERBENA_REQUIRE_EXT", "") in ("", "0")
PLAIN = os.environ.get("VERBENA_NO_EXT", "") not in ("", "0")
JOBS = os.cpu_count() or 1
DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}


def path_of(module: str, suffix: str) -> str:
    """The file of a module in the source tree."""
    return "src/" + module.replace(".", "/") + suffix


def remove_binary(module: str) -> None:
    """A binary left by an earlier build would be preferred to the source that is to run now."""
    Path(path_of(module, sysconfig.get_config_var("EXT_SUFFIX"))).unlink(missing_ok=True)


def extensions() -> list[Extension]:
    """One for each hot module and each ``.pyx``."""
    sources = [(module, ".py") for module in NAMES["hot_modules"]()]
    sources += [(module, ".pyx") for module in NAMES["compiled_only"]()]
    return [
        Extension(module, [path_of(module, suffix)], extra_compile_args=["-O3"], optional=OPTIONAL)
        for module, suffix in sources
    ]


class BuildExtensions(build_ext):
    """Translates with Cython, compiles in parallel, keeps no stale binary beside a newer source."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or JOBS
        if self.inplace:  # also an editable installation: kept, so that only what changed is compiled again
            platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            self.build_lib = f"build/inplace.{platform}/lib"
            self.build_temp = f"build/inplace.{platform}/objects"

    def build_extensions(self) -> None:
        from Cython.Build import cythonize

        translated = cythonize(
            self.extensions,
            compiler_directives=DIRECTIVES,
            build_dir="build/cython",
            include_path=["src"],
            nthreads=JOBS,
        )
        for extension, made in zip(self.extensions, translated, strict=True):
            extension.sources = made.sources
            extension.depends = [*made.depends, "setup.py"]
        self.failed: list[str] = []
        try:
            super().build_extensions()
        finally:
            if self.failed:  # all or none: compiled modules call each other in C
                for extension in self.extensions:
                    Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
                    remove_binary(extension.name)

    def build_extension(self, extension: Any) -> None:
        try:
            super().build_extension(extension)
        except Exception:
            self.failed.append(extension.name)
            raise


if PLAIN:
    for extension in extensions():
        remove_binary(extension.name)

setup(ext_modules=[] if PLAIN else extensions(), cmdclass={"build_ext": BuildExtensions})
