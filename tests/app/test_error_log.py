"""What Flower logs when an error ends the ServerApp."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from fixbn_flwr.app import error_log
from fixbn_flwr.errors import ConfigError

EXIT = "Exit Code: 700\n\nAn unhandled exception occurred.\n\nFor more information, visit: <...>"


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Flower's logger with a filter of its own, as in a new process."""
    logger = logging.getLogger("flwr")
    logger.removeFilter(error_log._FILTER)  # of the runs of other tests
    alone = error_log._MessageAlone()
    monkeypatch.setattr(error_log, "_FILTER", alone)
    error_log.show_errors_alone()
    yield logger
    logger.removeFilter(alone)


def end_with(error: Exception, logger: logging.Logger) -> None:
    """Log as flwr.simulation.app and flwr.superlink.runtime.run_serverapp do."""
    try:
        raise error
    except Exception as ex:
        logger.log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=ex)
    logger.log(logging.ERROR, EXIT)


def test_the_message_of_our_errors_is_last_and_alone(
    flower: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "flwr"):
        end_with(ConfigError("the run config cannot be used:\n  seed = 1.5%: ..."), flower)
    (record,) = caplog.records
    assert record.getMessage() == "the run config cannot be used:\n  seed = 1.5%: ..."
    assert record.exc_info is None


def test_other_errors_keep_their_traceback_and_exit_code(
    flower: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "flwr"):
        end_with(ZeroDivisionError("division by zero"), flower)
    assert [record.getMessage() for record in caplog.records] == [
        "ServerApp raised an exception",
        EXIT,
    ]
    assert caplog.records[0].exc_info
