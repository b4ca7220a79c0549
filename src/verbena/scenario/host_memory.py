"""The modelled memory of a fabric file's hosts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from verbena.adapter.protection_options import ProtectionOptions
from verbena.errors import SystemLimitError
from verbena.memory.process import Process
from verbena.runtime.host_memory import HostMemory
from verbena.runtime.memory_view import memory_view
from verbena.scenario.memory_schema import MemoryModel
from verbena.verbs.context import Context


class ScenarioMemory:
    """A host's memory during a run.  A context manager: closing it deletes the file that pages went to."""

    def __init__(self, host: str, model: MemoryModel) -> None:
        self.host = host
        self._adapters: dict[str, Context] = {}
        self._folder: Path | None = None
        if model.store == "file":
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="verbena-"))
            except OSError as error:
                raise SystemLimitError(f"host {host}: no folder for its pages: {error.strerror}") from None
        self.memory = HostMemory(
            model.frames,
            page_size=model.page_bytes,
            backing_file=None if self._folder is None else self._folder / "pages",
            swap_pages=model.swap_pages,
            inverted=model.page_table == "inverted",
            replacement=model.replacement,
            page_in_ns=model.page_in_ns,
        )
        self._options = ProtectionOptions(
            segment_tables=model.segment_tables,
            page_tables=model.page_tables,
            page_faults=model.page_faults,
            inverted=model.page_table == "inverted" and model.page_tables == "private",
        )
        self._processes = {
            process.name: self.memory.create_process(process.name, kernel=process.kernel)
            for process in model.processes
        }

    def attach(self, name: str, ctx: Context) -> None:
        """An adapter is this host's."""
        ctx.attach_memory(self.memory, self._options, name=name)
        self._adapters[name] = ctx

    def process(self, name: str) -> Process:
        """The process with a name; made, as a user process, if the file names none such."""
        if name not in self._processes:
            self._processes[name] = self.memory.create_process(name)
        return self._processes[name]

    def view(self) -> dict[str, Any]:
        """What its tables, and those of its adapters, say now."""
        return memory_view(self.host, self._adapters, self.memory)

    def close(self) -> None:
        self.memory.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> ScenarioMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
