"""What drivers in real time share: waiting for a service thread's events, and descriptors that become readable."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from verbena.runtime.service import Service


class ServedWaiting:
    """The part of `verbs.driver.Driver` that is about waiting, for an adapter with a `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._descriptors: dict[int, int] = {}

    def wait(self, ready: Callable[[], bool], timeout_ns: int | None) -> bool:
        deadline = None if timeout_ns is None else time.monotonic_ns() + timeout_ns
        changed = self._service.changed
        while not ready():
            left = None if deadline is None else (deadline - time.monotonic_ns()) / 1e9
            if left is not None and left <= 0:
                return False
            with changed:
                # The bound covers a change between the look and the wait.
                if not ready():
                    changed.wait(0.05 if left is None else min(left, 0.05))
        return True

    def event_descriptor(self, index: int) -> int:
        if index not in self._descriptors:
            self._descriptors[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._descriptors[index]

    def signal(self, index: int) -> None:
        if index in self._descriptors:
            os.eventfd_write(self._descriptors[index], 1)

    def clear_descriptor(self, index: int) -> None:
        if index in self._descriptors:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptors[index])

    def release_descriptor(self, index: int) -> None:
        descriptor = self._descriptors.pop(index, None)
        if descriptor is not None:
            os.close(descriptor)

    def call_soon(self, function: Callable[[], Any]) -> None:
        self._service.call_soon(function)

    def _forget_descriptors(self) -> None:
        """Close them all, without a word to anybody."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
