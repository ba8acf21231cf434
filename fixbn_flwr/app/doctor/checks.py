"""Checks of the installed versions, of the machine and of its disks."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from fixbn_flwr.app.command_errors import APP_PACKAGES, check_flower
from fixbn_flwr.app.doctor.finding import Finding
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.flower_compat import TESTED

GB = 1e9
ENOUGH_DISK = 1.0  # GB; the largest model of a task here needs less for its checkpoints
ENOUGH_MEMORY = 1.0  # GB that are available; a worker needs about half of it
_OLDEST_TORCH = (2, 4)
_DRIVER = Path("/proc/driver/nvidia/version")


def software() -> Iterator[Finding]:
    """Check the versions of this package and of what it needs."""
    yield Finding(f"fixbn-flwr {version('fixbn-flwr')}, Python {platform.python_version()}")
    yield _flower(version("flwr"))
    yield _torch(torch.__version__)
    if missing := sorted(name for name in APP_PACKAGES if find_spec(name) is None):
        yield Finding(
            f"not installed: {', '.join(missing)}",
            'the app needs them: pip install "fixbn-flwr[app]"',
        )
    yield _ray()


def _flower(installed: str) -> Finding:
    try:
        check_flower(installed)
    except ConfigError as error:
        text, _, remedy = str(error).partition(". ")
        return Finding(text, remedy)
    newest = ".".join(map(str, TESTED))
    if tuple(map(int, installed.split(".")[:2])) > TESTED:
        return Finding(
            f"flwr {installed}, newer than {newest}, the newest that was tested",
            f'if a run fails, try pip install "flwr<{TESTED[0]}.{TESTED[1] + 1}"',
            optional=True,
        )
    return Finding(f"flwr {installed}, supported (1.41 to {newest})")


def _torch(installed: str) -> Finding:
    if tuple(map(int, installed.split(".")[:2])) < _OLDEST_TORCH:
        return Finding(f"torch {installed}, older than 2.4", 'pip install "torch>=2.4"')
    return Finding(f"torch {installed}")


def _ray() -> Finding:
    try:
        return Finding(f"ray {version('ray')}")
    except PackageNotFoundError:
        return Finding(
            "ray is not installed",
            '`fixbn run` works without it; for `flwr run` on one machine: pip install "fixbn-flwr'
            '[app,simulation]"',
            optional=True,
        )


def machine() -> Iterator[Finding]:
    """Check cores, memory and GPUs."""
    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count()
    yield Finding(f"{usable} of {all_cores} CPU cores can be used, one for each worker")
    memory = _memory(Path("/proc/meminfo").read_text(encoding="ascii"))
    total, free = (memory[key] / GB for key in ("MemTotal", "MemAvailable"))
    few = free < ENOUGH_MEMORY
    remedy = "end other programs, or train fewer clients at a time: --workers 1"
    yield Finding(f"{free:.1f} of {total:.1f} GB memory free", remedy if few else "")
    yield from _gpus()


def _memory(meminfo: str) -> dict[str, int]:
    """Return the lines of /proc/meminfo that have a unit, in bytes."""
    fields = [line.split() for line in meminfo.splitlines() if line.endswith(" kB")]
    return {name.rstrip(":"): 1024 * int(value) for name, value, _ in fields}


def _gpus() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield Finding(f"GPU {number}: {gpu.name}, {gpu.total_memory / GB:.0f} GB")
    if torch.cuda.device_count():
        return
    if _DRIVER.exists():
        yield Finding(
            f"this machine has NVIDIA's driver, but torch {torch.__version__} finds no GPU",
            "install a torch with CUDA for this driver (pytorch.org), and check "
            "CUDA_VISIBLE_DEVICES",
            optional=True,
        )
    else:
        yield Finding("no GPU: runs use the CPU")


def disk(folder: Path, what: str, key: str) -> Finding:
    """Check that a folder can be written, and that its disk has room.

    Args:
        folder: The folder, which need not exist.
        what: What is written to it.
        key: The key of the run config that names another folder.
    """
    folder = folder.expanduser().absolute()
    try:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free / GB
    except OSError as error:
        return Finding(f"{folder} cannot be written ({error})", f"set {key} to another folder")
    text = f"{free:.1f} GB free for {what} in {folder}"
    if free < ENOUGH_DISK:
        return Finding(text, f"make room there, or set {key} to a folder on a larger disk")
    return Finding(text)
