"""The software versions and the hardware that a run used."""

import contextlib
import importlib.metadata
import os
import platform
import tomllib
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Return the versions of this package, Flower, torch and Python."""
    return {
        "fixbn_flwr": _own_version(),
        "flwr": importlib.metadata.version("flwr"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _own_version() -> str:
    # `flwr run` runs a copy that is not installed, but has its pyproject.toml.
    project = Path(__file__).parents[3] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return importlib.metadata.version("fixbn-flwr")


def hardware() -> dict[str, str | int | None]:
    """Return this machine's processor, its number of cores, and its GPU or None."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux has it
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu}
