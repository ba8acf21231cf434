"""Fixtures and settings of all tests, doctests included."""

import gc
import logging
import warnings
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # flwr imports typer, and typer names of click that click calls deprecated: not ours to mend.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.common  # noqa: F401

# They import their frameworks, which not everybody has.
collect_ignore = [f"fixbn_flwr/{name}.py" for name in ("fastai", "huggingface", "lightning")]

# As in Flower's simulation. The last bits of sums depend on the number of threads, and threads that
# wait for each other on busy cores are slow.
torch.set_num_threads(1)
logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower logs a table for every round


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules and tests, which stay to the end.

    Some of Flower's strategies collect after each array, a sixth of a second each with all tests.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the collector take all of it at the end; some libraries report what is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets beside the repository; tests that need it skip without it."""
    folder = Path(__file__).parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}")
    return folder
