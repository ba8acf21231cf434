"""Checks that hostile input runs no code, and keeps its warnings out of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.support.hostile_records import CANARY


@pytest.fixture(autouse=True, scope="module")
def quiet_and_harmless() -> Iterator[None]:
    """Silence the warnings of dropped replies, and check that no client has run code."""
    CANARY.unlink(missing_ok=True)
    logger = logging.getLogger("flwr")
    before = logger.level
    # setLevel also clears the cached levels of child loggers.
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
    assert not CANARY.exists()
