"""Group commit: what the ledger has written is brought onto the disk every so often, so that a power cut costs at most that much of it.

In a thread of its own: a disk may take longer than any request can wait. Off by default; a killed process loses nothing either way.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from gateway.metering.ledger import SegmentWriter

logger = structlog.get_logger(__name__)


class GroupCommit:
    """Runs from `start` to `stop`."""

    def __init__(self, ledger: SegmentWriter, period_s: float) -> None:
        self._ledger = ledger
        self._period_s = period_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)

    def start(self) -> None:
        self._ledger.keep_for_sync()
        self._thread.start()

    def stop(self) -> None:
        """What was written before is on the disk now, unless that cannot be."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        failing = False
        while True:
            last = self._over.wait(self._period_s)
            try:
                self._ledger.sync()
                failing = False
            except OSError as error:
                if not failing:
                    logger.error("the ledger cannot be brought onto the disk", error=error.strerror)
                failing = True
            if last:
                return
