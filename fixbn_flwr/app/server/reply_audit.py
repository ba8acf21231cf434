"""Write each dropped reply to the audit of a federation on real machines.

`deploy/start-superlink` names its audit in the environment variable `FIXBN_AUDIT`. Without it
nothing is written.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fixbn_flwr.log import logger
from fixbn_flwr.persistence.appended_lines import append_lines
from fixbn_flwr.server.dropped_replies import DroppedReply

AUDIT = "FIXBN_AUDIT"


@contextmanager
def audited(run: int) -> Iterator[None]:
    """Append the replies that are dropped in this block to the audit, if there is one.

    Args:
        run: Flower's id of the run.
    """
    if not (path := os.environ.get(AUDIT)):
        yield
        return
    handler = _AuditHandler(path, run)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _AuditHandler(logging.Handler):
    def __init__(self, path: str, run: int) -> None:
        super().__init__()
        self._path, self._run = Path(path), run

    def emit(self, record: logging.LogRecord) -> None:
        dropped: tuple[int, DroppedReply] | None = getattr(record, "dropped_reply", None)
        if dropped is None:
            return
        reply_round, reply = dropped
        line = {
            "time": datetime.now(UTC).isoformat(),
            "event": "reply-refused",
            "run": self._run,
            "round": reply_round,
            "node": reply.client,
            "reason": reply.reason,
        }
        try:
            append_lines(self._path, json.dumps(line).encode() + b"\n")
        except OSError:
            self.handleError(record)
