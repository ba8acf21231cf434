from __future__ import annotations

import subprocess
import sys

import fixbn_flwr

HEAVY = ("ray", "torchvision", "sklearn", "datasets", "flwr_datasets", "matplotlib", "torchmetrics")


def test_all_is_exactly_this() -> None:
    assert fixbn_flwr.__all__ == [
        "FixBN",
        "FixBNClient",
        "Phase",
        "freeze_statistics",
        "local_training",
    ]
    assert all(hasattr(fixbn_flwr, name) for name in fixbn_flwr.__all__)


def test_importing_it_is_light() -> None:
    code = f"import sys, fixbn_flwr; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
