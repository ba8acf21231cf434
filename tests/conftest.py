"""Settings that apply to every test."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def isolate_tests() -> Iterator[None]:
    """Seed every generator of this process, and restore the settings that a test may change."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, logger = torch.get_num_threads(), logging.getLogger("flwr")
    level = logger.level
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    logger.setLevel(level)
