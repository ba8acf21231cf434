"""Show an error of this package as the last line of a run's log, without a traceback.

Flower logs an error that ends a ServerApp with its traceback, then an exit code with a link. After
a FixBNError neither helps: its message has the reason and the remedy.
"""

from __future__ import annotations

import logging

from fixbn_flwr.errors import FixBNError


def show_errors_alone() -> None:
    """Let Flower log the message of a FixBNError alone, in this process."""
    logging.getLogger("flwr").addFilter(_FILTER)


class _MessageAlone(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._shown = False

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, FixBNError):
            record.msg, record.args, record.exc_info = str(error), (), None
            self._shown = True
            return True
        return not (self._shown and record.getMessage().startswith("Exit Code: "))


_FILTER = _MessageAlone()
