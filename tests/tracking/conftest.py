"""The trackers' libraries keep to local files, and may warn about their own code."""

from __future__ import annotations

from pathlib import Path

import pytest

OWN_WARNINGS = pytest.mark.filterwarnings("ignore::Warning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(OWN_WARNINGS)


@pytest.fixture(autouse=True, scope="session")
def local_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep MLflow and Weights & Biases away from servers and from the home directory."""
    home = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_MODE", "offline")
        yield
