"""What tests of several modules share."""

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # flwr imports typer, and typer names of click that click calls deprecated: not ours to mend.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app  # noqa: F401


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets beside the repository; tests that need it skip without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}")
    return folder
