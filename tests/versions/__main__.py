"""Run the library's tests in throw-away environments with other versions of Flower and PyTorch.

    python -m tests.versions                       # all of VERSIONS: `make test-versions`
    python -m tests.versions 1.24.0 2.6.0          # one pair
    python -m tests.versions newest newest         # what came out since

It prints a line for each, and exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
NEWEST = "newest"

# flwr, torch and numpy: the oldest supported, a project of today's baselines, two in between, the
# newest.
VERSIONS = [
    ("1.17.0", "2.4.1", "1.26.4"),
    ("1.17.0", "2.8.0", NEWEST),
    ("1.24.0", "2.6.0", "1.26.4"),
    ("1.34.0", "2.8.0", NEWEST),
    (NEWEST, NEWEST, NEWEST),
]

# With 1.17: the older generation, and the method.
OLDER = [
    "tests/versions/test_numpy_clients.py",
    *(
        f"tests/method/test_{name}.py"
        for name in (
            "averaging", "batch_norm", "batch_norm_layers", "guard", "learning_rate",
            "narrow_types", "optimizer_buffers", "reported_metrics", "schedule", "server_rules",
        )
    ),
]  # fmt: skip
# With the Message API: also strategies, clients, mods and checkpoints of both generations.
MESSAGE_API = [
    *OLDER,
    "tests/method/test_optimizers.py",
    "tests/client",
    "tests/server",
    "tests/legacy",
    "tests/persistence",
]


# Tests of what Flower's own mods and strategies do with a whole model. Before 1.30 they raise
# errors for 0-d arrays, which every batch normalization layer has: its counter.
_OF_FLOWER_WITH_COUNTERS = [
    f"--deselect=tests/{test}"
    for test in (
        "client/test_parameters_only.py::"
        "test_clipping_without_parameters_only_is_refused_with_the_remedy",
        "client/test_parameters_only.py::"
        "test_clipping_without_parameters_only_would_change_the_statistics",
        "client/test_parameters_only.py::"
        "test_local_noise_without_parameters_only_fails_with_the_remedy",
        "server/test_failed_rounds.py::"
        "test_the_error_says_that_most_clients_diverged_in_calibration",
        "server/test_user_strategies.py::"
        "test_a_run_that_never_freezes_has_flowers_messages_and_metrics[Scaffold]",
        "server/test_wrapped_strategy.py::"
        "test_variance_stays_positive_where_fedadam_alone_makes_it_negative",
    )
]

_PYTEST = ["-m", "pytest", "-q", "-n", "2", "-o", "addopts=", "-o", "filterwarnings="]


def main() -> int:
    """Test the pairs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flwr", nargs="?")
    parser.add_argument("torch", nargs="?", default=NEWEST)
    parser.add_argument("numpy", nargs="?", default=NEWEST)
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    given = (options.flwr, options.torch, options.numpy)
    results = [tested(*versions) for versions in ([given] if options.flwr else VERSIONS)]
    if options.output:
        about = {"command": " ".join(sys.orig_argv), "date": f"{datetime.now().date()}"}
        options.output.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    return 0 if all(result["passed"] for result in results) else 1


def tested(flwr: str, torch: str, numpy: str) -> dict[str, Any]:
    """Run the tests with these versions; return the versions and the outcome."""
    with tempfile.TemporaryDirectory(prefix="fixbn-versions-") as folder:
        python = make_environment(Path(folder), flwr=flwr, torch=torch, numpy=numpy)
        tests = OLDER if flwr.startswith("1.17.") else MESSAGE_API
        tests = [*tests, *(_OF_FLOWER_WITH_COUNTERS if flwr.startswith("1.24.") else ())]
        run = subprocess.run(
            [python, *_PYTEST, "-m", "not slow and not gpu", *tests],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        versions = json.loads(subprocess.check_output([python, "-c", _VERSIONS]))
    if run.returncode:
        print(run.stdout)
    outcome = re.sub(r"(, \d+ warnings?)? in .*", "", run.stdout.splitlines()[-1])
    print(f"{versions}: {outcome}", flush=True)
    return {**versions, "passed": run.returncode == 0, "outcome": outcome}


_VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("flwr", "torch", "numpy")}))
"""


def make_environment(folder: Path, **versions: str) -> Path:
    """Install these versions and what the tests need; return the environment's Python."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    pins = [
        name if version == NEWEST else f"{name}=={version}" for name, version in versions.items()
    ]
    python = folder / "bin" / "python"
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--system-certs", "--python", python, *pins,
         "safetensors", "pytest", "pytest-xdist", "hypothesis"],
        check=True,
    )  # fmt: skip
    return python


if __name__ == "__main__":
    sys.exit(main())
