"""`fixbn supervise`: a run on real machines that are killed ends with the bits of one that is not.

All tests use one federation and depend on their order.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.federations import Federation
from tests.support.machines import Service, switch_off
from tests.support.waiting import wait_until
from tests.support.whole_app import SMALL, rounds_of, run_app

pytestmark = pytest.mark.slow

ROUNDS, FREEZE_AFTER = 12, 6
CONFIG: dict[str, Any] = {
    **SMALL, "num-server-rounds": ROUNDS, "freeze-after": FREEZE_AFTER, "fraction-train": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("supervised"), nodes=2)
    try:
        for number, name in enumerate(("hospital-a", "hospital-b")):
            federation.add(name, "0/1").start(f"--partition {number}/2")
        yield federation
    finally:
        switch_off(federation.machines)


def supervise(federation: Federation, name: str, **changes: Any) -> Service:
    config = {**CONFIG, **changes}
    words = " ".join(f"{key}={value}" for key, value in config.items())
    command = f"fixbn supervise {name} --superlink federation {words}"
    return federation.link.start(command, f"{name}.log")


def rounds_in(folder: Path) -> int:
    return len(rounds_of(folder)) if (folder / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_run_that_is_killed_at_random_ends_with_the_bits_of_an_uninterrupted_one(
    federation: Federation, tmp_path: Path, kills: int
) -> None:
    dice = random.Random(0)
    name = f"run{kills}"
    folder = federation.link.home / name
    supervised = supervise(federation, name)
    away = 0
    for kill, rounds in enumerate([0, *sorted(dice.choices(range(ROUNDS), k=kills - 1))]):
        wait_until(
            lambda rounds=rounds: rounds_in(folder) >= rounds and folder.exists(),
            f"round {rounds} ended before kill {kill}",
            process=supervised.process,
            log=federation.link.home / f"{name}.log",
        )
        if dice.random() < 0.5:  # the SuperLink alone, with the run's server or without
            federation.link.kill("flower-superlink")
            if dice.random() < 0.5:
                federation.link.kill("flwr-serverapp")
            federation.link.kill("flower-superexec")
            away += 1
            supervised.wait_for("The SuperLink does not answer; waiting for it", count=away)
            federation.start_superlink()
        else:  # the whole machine
            federation.link.switch_off()
            federation.start_superlink()
            supervised = supervise(federation, name)
    assert supervised.end() == 0, supervised.output
    assert supervised.output.splitlines()[-1] == f"Finished: {folder}"

    uninterrupted = run_app(tmp_path, 2, CONFIG)
    assert (folder / "final.safetensors").read_bytes() == (
        uninterrupted / "final.safetensors"
    ).read_bytes()
    assert [row["clients"] for row in rounds_of(folder)] == [2] * ROUNDS


def test_a_finished_run_is_left_alone(federation: Federation) -> None:
    again = supervise(federation, "run2")
    assert again.end() == 0
    assert again.output.splitlines()[-1] == f"Finished: {federation.link.home / 'run2'}"


def test_a_run_that_somebody_stops_stays_stopped_and_resumes_when_supervised_again(
    federation: Federation,
) -> None:
    folder = federation.link.home / "stopped"
    first = supervise(federation, "stopped", **{"num-server-rounds": 100})
    wait_until(lambda: rounds_in(folder) >= 1, "a round ended", process=first.process)
    number = re.search(r"Successfully started run (\d+)", first.output)
    assert number
    federation.link.run(f"flwr stop {number[1]} federation")
    assert first.end() == 0
    assert first.output.splitlines()[-1].startswith("Stopped with `flwr stop`.")
    other = supervise(federation, "stopped")
    assert other.end() == 78
    assert "num-server-rounds was 100 and is 12" in other.output
    again = supervise(federation, "stopped", **{"num-server-rounds": 100})
    again.wait_for("Resuming after round")
    wait_until(lambda: rounds_in(folder) >= 3, "further rounds ended", process=again.process)
    again.process.send_signal(signal.SIGINT)
    assert again.end() == 130
    assert "goes on without supervision" in again.output


def test_a_run_that_fails_three_times_ends_with_the_reason(federation: Federation) -> None:
    failed = supervise(federation, "failed", task="cifar10")
    assert failed.end() == 78
    assert failed.output.count("The run failed: ") == 3
    last = failed.output[failed.output.rindex("Error: ") :]
    assert last.startswith("Error: the run failed 3 times without a new checkpoint, the last time")
    assert "data-dir" in last
