"""Run the library's tests in throw-away environments with other versions of Flower and PyTorch.

    python -m tests.versions                       # all of VERSIONS: `make test-versions`
    python -m tests.versions 1.24.0 2.6.0          # one pair
    python -m tests.versions newest newest         # what came out since

It prints a line for each pair, and exits with 1 if one fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
NEWEST = "newest"

# flwr and torch: the oldest supported, two in between, a project of today's baselines, the newest.
VERSIONS = [
    ("1.17.0", "2.4.1"),
    ("1.17.0", "2.8.0"),
    ("1.24.0", "2.6.0"),
    ("1.34.0", "2.8.0"),
    (NEWEST, NEWEST),
]

# What an old release has: first of all the older generation, then the Message API.
OLDER = ["tests/versions", "tests/method"]
MESSAGE_API = [*OLDER, "tests/client", "tests/server", "tests/legacy", "tests/persistence"]


def main(arguments: Sequence[str]) -> int:
    """Test the pairs; return the exit status."""
    pairs = [(arguments[0], arguments[1])] if arguments else VERSIONS
    failed = [pair for pair in pairs if not passes(*pair)]
    return 1 if failed else 0


def passes(flwr: str, torch: str) -> bool:
    """Run the tests with these versions; return whether they pass."""
    with tempfile.TemporaryDirectory(prefix="fixbn-versions-") as folder:
        python = make_environment(Path(folder), flwr, torch)
        tests = OLDER if flwr.startswith("1.17.") else MESSAGE_API
        command = [python, "-m", "pytest", "-q", "-p", "no:randomly", "-o", "addopts=", "-m"]
        result = subprocess.run(
            [*command, "not slow and not gpu", *tests],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        installed = subprocess.run(
            [python, "-c", _VERSIONS], capture_output=True, text=True, check=True
        ).stdout.strip()
    if result.returncode:
        print(result.stdout)
    print(f"{installed}: {result.stdout.splitlines()[-1]}", flush=True)
    return result.returncode == 0


_VERSIONS = """
from importlib.metadata import version
print(", ".join(f"{name} {version(name)}" for name in ("flwr", "torch", "numpy")))
"""


def make_environment(folder: Path, flwr: str, torch: str) -> Path:
    """Install these versions and what the tests need; return the environment's Python."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    pins = [
        name if version == NEWEST else f"{name}=={version}"
        for name, version in (("flwr", flwr), ("torch", torch))
    ]
    python = folder / "bin" / "python"
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--system-certs", "--python", python, *pins,
         "numpy", "safetensors", "pytest", "hypothesis"],
        check=True,
    )  # fmt: skip
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
