"""Fixtures and settings of all tests, doctests included."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # flwr imports typer, and typer names of click that click calls deprecated: not ours to mend.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app  # noqa: F401

logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower logs a table for every round


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets beside the repository; tests that need it skip without it."""
    folder = Path(__file__).parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on busy cores take ten times as long for 8x8 pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
