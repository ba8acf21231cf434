"""A tracker in a thread of its own: its failure or its wait for a server never stops the run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from fixbn_flwr.log import logger
from fixbn_flwr.tracking.tracker import Tracker

Job = Callable[[Tracker], None]


class BackgroundTracker:
    """Does jobs with a tracker, one after the other, until one fails.

    Args:
        name: The tracker's name, for the log.
        opened: Returns the tracker.
    """

    def __init__(self, name: str, opened: Callable[[], Tracker]) -> None:
        self._name = name
        self._opened = opened
        self._jobs = queue.SimpleQueue[Job | None]()
        self._failed = False
        # A daemon: the process can end while it waits for a server.
        self._thread = threading.Thread(target=self._work, name=f"fixbn-{name}", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Do a job after the others; nothing happens if one has failed."""
        if not self._failed:
            self._jobs.put(job)

    def close(self, timeout: float) -> None:
        """Wait until the jobs are done, at most this number of seconds."""
        self._jobs.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning(
                "%s has not taken everything in time: what it has not taken by the end of the "
                "process is lost to it. The run folder has all of it.",
                self._name,
            )

    def _work(self) -> None:
        try:
            tracker = self._opened()
            while (job := self._jobs.get()) is not None:
                job(tracker)
        except BaseException as error:  # also SystemExit, which some libraries raise
            self._failed = True
            logger.warning(
                "%s failed, and the run goes on without it: %s: %s",
                self._name, type(error).__name__, error,
            )  # fmt: skip
