"""A clock that leaps: an event loop on which minutes pass in no time, for tests of what waits."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


class LeapingLoop(asyncio.SelectorEventLoop):
    """Its time stands still while there is something to do, here or on an executor's thread, and then leaps to the
    next timer. Only while it `flows`: else it waits, so that other threads can bring several things at one moment.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.elsewhere = 0
        self._flows = threading.Event()
        super().__init__(_Leaping(self))

    def time(self) -> float:
        return self.seconds

    def flow(self, on: bool) -> None:
        """From any thread."""
        (self._flows.set if on else self._flows.clear)()
        if not self.is_closed():
            self.call_soon_threadsafe(lambda: None)

    @property
    def leaps(self) -> bool:
        return self._flows.is_set() and not self.elsewhere

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.elsewhere += 1
        future.add_done_callback(self._back)
        return future

    def _back(self, _: object) -> None:
        self.elsewhere -= 1


class _Leaping(selectors.DefaultSelector):
    def __init__(self, loop: LeapingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if events := super().select(0):
            return events
        if timeout is not None and (timeout <= 0 or self._loop.leaps):
            self._loop.seconds += max(0.0, timeout)
            return []
        return super().select(None)  # something happens on another thread, or somebody lets the time flow
