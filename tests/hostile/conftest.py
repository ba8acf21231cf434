"""What holds for all hostile input: no code of it is run, and it does not fill the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.support.hostile_records import CANARY


@pytest.fixture(autouse=True, scope="module")
def quiet_and_harmless() -> Iterator[None]:
    """Thousands of dropped replies are thousands of warnings; and no client has run code."""
    CANARY.unlink(missing_ok=True)
    logger = logging.getLogger("flwr")
    before = logger.level
    # By the method: of a level that is set by hand, loggers below would not learn.
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
    assert not CANARY.exists()
