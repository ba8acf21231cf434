"""Runs the worked examples, before and after, each through a real `flwr run`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fixbn_flwr.app.local_superlink import SuperLink

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUNDS, FREEZE_AFTER = 4, 2  # half of the rounds, as in the examples


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("example", ["message-api", "numpy-client", "own-start"])
def test_an_example_completes_and_learns(example: str, side: str, link: SuperLink) -> None:
    lines: list[str] = []
    federation = {
        "num-supernodes": 4,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": 2,
    }
    failure = link.run(
        EXAMPLES / example / side, {"num-server-rounds": ROUNDS}, federation, lines.append
    )
    log = "\n".join(lines)
    assert failure is None, log
    accuracies = [float(a) for a in re.findall(r"^Round \d+: test accuracy (\S+)$", log, re.M)]
    assert len(accuracies) == 1 + ROUNDS, log
    # Nothing is seeded, so the bounds are loose: from a tenth of the digits to most of them. If the
    # learning rate were too large for calibration, the accuracy would fall back to chance.
    assert accuracies[0] < 0.3, log
    assert accuracies[-1] > {"before": 0.25, "after": 0.6}[side], log
    phases = re.findall(r"FixBN: round \d+ is (\w+)", log)
    exploration, calibration = FREEZE_AFTER, ROUNDS - FREEZE_AFTER
    assert (
        phases
        == {
            "before": [],
            "after": ["exploration"] * exploration + ["calibration"] * calibration,
        }[side]
    ), log
