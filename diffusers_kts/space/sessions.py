"""Who is drawing, so that Stop reaches a visitor's own drawings only."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The visitor pressed Stop, or has left the drawing."""


class Sessions:
    """The drawings of each visitor; a page has one at a time, a caller of the API may have several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, list[threading.Event]] = {}

    @contextmanager
    def drawing(self, session: str, stopped: threading.Event | None = None) -> Iterator[threading.Event]:
        """The event that `stop` sets, for the time of one drawing.

        Args:
            session: of the visitor.
            stopped: that event, where something else sets it too.
        """
        stopped = stopped or threading.Event()
        with self._lock:
            self._running.setdefault(session, []).append(stopped)
        try:
            yield stopped
        finally:
            with self._lock:
                self._running[session].remove(stopped)
                if not self._running[session]:
                    del self._running[session]

    def stop(self, session: str) -> bool:
        """End the drawings of a visitor; False where there are none."""
        with self._lock:
            running = list(self._running.get(session, ()))
        for stopped in running:
            stopped.set()
        return bool(running)
