"""Who is drawing: one drawing at a time for each visitor, and Stop, which reaches a visitor's own drawing only."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .limits import Refused


class Stopped(Exception):
    """The visitor pressed Stop."""


class Sessions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, threading.Event] = {}

    @contextmanager
    def drawing(self, session: str) -> Iterator[threading.Event]:
        """The event that `stop` sets, for the time of one drawing.

        Raises:
            Refused: this visitor is drawing already.
        """
        stopped = threading.Event()
        with self._lock:
            if session in self._running:
                raise Refused("you are drawing already; wait for the images, or press Stop.")
            self._running[session] = stopped
        try:
            yield stopped
        finally:
            with self._lock:
                del self._running[session]

    def stop(self, session: str) -> bool:
        with self._lock:
            running = self._running.get(session)
        if running is not None:
            running.set()
        return running is not None
