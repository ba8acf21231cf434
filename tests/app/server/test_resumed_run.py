"""A stopped run resumes to the bits of an uninterrupted run, however it stopped."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fixbn_flwr.app.runs.momentum_files import delete_run, report, warn_of_full_disk
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.errors import CheckpointError, ConfigError
from fixbn_flwr.persistence.checkpoints import Checkpoints
from tests.support.resumable_app import (
    CLIENTS,
    FROZEN_AFTER,
    ROUNDS,
    assert_same,
    config_of,
    lost_in,
    run,
    run_until_failure,
)
from tests.support.whole_app import rounds_of

MODES = ("reset", "local", "global")


def run_quietly(config: dict[str, Any], run_id: int) -> None:
    """Run the app in its own process."""
    logging.disable()
    torch.set_num_threads(1)  # as in the process to compare with
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        run(config, run_id)


def kill_at_random(momentum: str, folder: Path, kills: int) -> list[int]:
    """Kill the app at random times and resume it until it completes; repeat, and check each result.

    Call it in a new process, so that each run is a fork that needs no imports.

    Returns:
        The round after which each run resumed.
    """
    torch.set_num_threads(1)
    uninterrupted = run(config_of(folder / "whole", momentum=momentum))
    started = time.monotonic()
    run(config_of(folder / "timed", momentum=momentum))
    seconds = time.monotonic() - started
    processes = multiprocessing.get_context("fork")
    chance = random.Random(momentum)
    resumed_after: list[int] = []
    killed = finished = 0  # a run may finish before its kill
    while killed < kills:
        root = folder / f"killed-{finished}"
        config, run_id = config_of(root, momentum=momentum), 1
        while not (root / "run" / "summary.json").exists():
            checkpoints = list((root / "run" / "checkpoints").glob("round-*"))
            if checkpoints:
                config["resume"] = str(root / "run")
                resumed_after.append(max(int(path.name[6:12]) for path in checkpoints))
            elif (root / "run").exists():  # killed before the end of its first round
                delete_run(root / "run")
            process = processes.Process(target=run_quietly, args=(config, run_id))
            process.start()
            process.join(chance.uniform(0, seconds) if killed < kills else 600)
            assert process.exitcode == 0 or killed < kills
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            killed += process.exitcode != 0
            run_id += 1
        assert_same(root / "run", uninterrupted)
        assert not list((root / "run").rglob("*.partial"))
        finished += 1
    return resumed_after


@pytest.mark.slow
@pytest.mark.parametrize("momentum", MODES)
def test_a_run_survives_twenty_kills_at_random_times(momentum: str, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        resumed_after = fresh.submit(kill_at_random, momentum, tmp_path, 20).result()
    # Runs resumed in both phases.
    assert min(resumed_after) <= FROZEN_AFTER < max(resumed_after), resumed_after
    assert len(resumed_after) >= 5, resumed_after


@pytest.mark.parametrize("momentum", MODES)
@pytest.mark.parametrize("after", [2, 4, 5])
def test_a_failed_run_resumes_to_the_same_bits(after: int, momentum: str, tmp_path: Path) -> None:
    """Failed rounds count as rounds of the run: they are not repeated."""
    uninterrupted = config_of(tmp_path / "whole", momentum=momentum)
    broken = config_of(tmp_path / "broken", momentum=momentum)
    expected = run(uninterrupted, lost=lost_in({after + 1, after + 2}))
    folder = run_until_failure(broken, after)
    assert len(rounds_of(folder)) == after + 2
    assert not (folder / "summary.json").exists()
    run({**broken, "resume": str(folder)}, 2)
    assert_same(folder, expected)
    config = json.loads((folder / "config.json").read_text())
    (resumed,) = config["resumed"]
    assert resumed["after_round"] == after + 2
    assert resumed["changed"] == {"resume": str(folder)}


def test_checkpoints_are_written_at_their_interval_and_when_a_run_fails(tmp_path: Path) -> None:
    uninterrupted = run(config_of(tmp_path / "whole"))
    config = config_of(tmp_path / "run", checkpoint_every=3, keep_checkpoints=5)
    folder = run_until_failure(config, 5)
    names = sorted(path.name[:12] for path in (folder / "checkpoints").iterdir())
    assert names == ["round-000003", "round-000004", "round-000006", "round-000007"]
    for name in ("round-000006", "round-000007"):  # back to T*, before the failed rounds
        next((folder / "checkpoints").glob(f"{name}-*")).unlink()
    run({**config, "resume": str(folder)}, 2)
    assert_same(folder, uninterrupted)


@pytest.mark.parametrize("momentum", MODES)
@pytest.mark.parametrize("fails", [2, 5, 6, 8])
def test_a_run_resumes_after_its_disk_was_full(
    fails: int, momentum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients have trained in the failed round; the previous round has a checkpoint."""
    uninterrupted = run(config_of(tmp_path / "whole", momentum=momentum))
    config = config_of(tmp_path / "full", momentum=momentum, checkpoint_every=3)
    append = RunFolder.append

    def full(folder: RunFolder, metrics: RoundMetrics) -> bool:
        if metrics.round == fails:
            raise CheckpointError("No space left on device")
        return append(folder, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", full)
        with pytest.raises(CheckpointError, match="No space left"):
            run(config)
    folder = tmp_path / "full" / "run"
    newest = max((folder / "checkpoints").iterdir()).name
    assert newest.startswith(f"round-{fails - 1:06d}")
    run({**config, "resume": str(folder)}, 2)
    assert_same(folder, uninterrupted)


@pytest.mark.parametrize("content", [None, b'{"round"', b"\xff\xfe"])
def test_a_run_resumes_without_its_metrics(content: bytes | None, tmp_path: Path) -> None:
    """The checkpoint has them too."""
    uninterrupted = run(config_of(tmp_path / "whole"), lost=lost_in({5, 6}))
    config = config_of(tmp_path / "run")
    folder = run_until_failure(config, 4)
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content)
    run({**config, "resume": str(folder)}, 2)
    assert_same(folder, uninterrupted)


def test_a_run_resumes_several_times_with_the_same_config(tmp_path: Path) -> None:
    config = config_of(tmp_path, freeze_after=0.5)
    folder = run_until_failure(config, 1)
    resumed_config = {**config, "resume": str(folder)}
    run_until_failure(resumed_config, 4, run_id=2)
    run(resumed_config, 3)
    written = json.loads((folder / "config.json").read_text())
    assert written["run_config"]["freeze-after"] == 0.5
    assert written["freeze_round"] == 4
    assert [resumed["after_round"] for resumed in written["resumed"]] == [3, 6]


def test_a_resumed_run_may_have_another_data_dir(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = config_of(tmp_path, data_dir=str(tmp_path / "data"))
    folder = run_until_failure(config, 3)
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = {**config, "resume": str(folder), "data-dir": str(tmp_path / "moved")}
    with pytest.raises(ConfigError, match=r"data-dir was .*data.* and is .*moved"):
        run(moved, 2)
    run({**moved, "may-change": "data-dir"}, 2)
    assert len(rounds_of(folder)) == ROUNDS


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path: Path) -> None:
    config = config_of(tmp_path, checkpoint_every=0)
    folder = run_until_failure(config, 3)
    assert not (folder / "checkpoints").exists()
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        run({**config, "resume": str(folder)}, 2)


def test_more_rounds_keep_the_earlier_results_and_t_star(tmp_path: Path) -> None:
    config = config_of(tmp_path, freeze_after=0.5, learning_rate_schedule="constant")
    folder = run(config)
    longer = {**config, "resume": str(folder), "num-server-rounds": ROUNDS + 2}
    with pytest.raises(ConfigError, match=r"num-server-rounds was 8 and is 10"):
        run(longer, 2)
    before, final = rounds_of(folder), (folder / "final.safetensors").read_bytes()
    run({**longer, "may-change": "num-server-rounds"}, 2)
    assert rounds_of(folder)[:ROUNDS] == before
    assert (folder / "final-round-8.safetensors").read_bytes() == final
    assert [line["phase"] for line in rounds_of(folder)][4:] == [
        "calibration"
    ] * 6  # T* is still half of 8 rounds
    assert_same(folder, run(config_of(tmp_path / "whole", num_server_rounds=10)))


class Killed(BaseException):
    """A stand-in for a kill of the process."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill the process before the given change of a directory, counted from 0."""
    steps = itertools.count()

    def after(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            if next(steps) >= step:
                raise Killed
            return change(*arguments, **options)

        return changed

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "mkdir"):
            patch.setattr(Path, name, after(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", after(shutil.rmtree))
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("step", range(8))
def test_a_kill_while_a_finished_run_is_reopened_loses_nothing(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    folder = run(config)
    final = (folder / "final.safetensors").read_bytes()
    longer = {**config, "resume": str(folder), "num-server-rounds": ROUNDS + 1}
    longer["may-change"] = "num-server-rounds"
    with killed_at(step, monkeypatch):
        run(longer, 2)
    run(longer, 3)
    assert len(rounds_of(folder)) == ROUNDS + 1
    assert (folder / "final-round-8.safetensors").read_bytes() == final


@pytest.mark.parametrize("step", range(3))
def test_a_kill_while_a_run_starts_leaves_no_folder_with_its_name(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "there")
    with killed_at(step, monkeypatch):
        run(config)
    assert not (tmp_path / "there" / "run").exists()
    run(config)


@pytest.mark.parametrize("step", range(4))
def test_a_run_whose_deletion_was_killed_can_still_be_deleted(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_until_failure(config_of(tmp_path), 3)
    with killed_at(step, monkeypatch):
        delete_run(folder)
    delete_run(folder)
    assert not folder.exists()


def test_a_complete_run_is_not_resumed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    folder = run(config)
    with pytest.raises(ConfigError, match=r'all 8 rounds .* are done; .*"num-server-rounds"'):
        run({**config, "resume": str(folder)}, 2)
    (folder / "summary.json").unlink()  # as if killed right before the end
    (folder / "final.safetensors").unlink()
    run({**config, "resume": str(folder)}, 2)
    assert_same(folder, run(config_of(tmp_path / "whole")))


def test_a_resumed_run_of_an_older_version_renames_the_model_that_its_tests_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, validation_share=0.0)
    folder = run_until_failure(config, 3)
    newest = Checkpoints.newest

    def as_before(self: Checkpoints) -> Any:
        server_round, checkpoint = newest(self)
        return server_round, {**checkpoint, "best": True}

    monkeypatch.setattr(Checkpoints, "newest", as_before)
    (folder / "best.safetensors").write_bytes(b"chosen by tests")
    tested = [line for line in rounds_of(folder) if line["test_accuracy"] is not None]
    best = max(tested, key=lambda line: line["test_accuracy"])["round"]
    run({**config, "resume": str(folder)}, 2)
    assert (folder / "final.safetensors").is_file()
    assert not (folder / "best.safetensors").exists()
    kept = folder / f"best-by-tests-round-{best}.safetensors"
    assert kept.read_bytes() == b"chosen by tests"


def test_a_run_that_ended_early_resumes_with_more_patience(tmp_path: Path) -> None:
    config = config_of(tmp_path, learning_rate=1e-9, patience=1)
    folder = run(config)
    done = len(rounds_of(folder))
    assert done < ROUNDS
    with pytest.raises(
        ConfigError, match=rf'after round {done} because of .*may-change="patience"'
    ):
        run({**config, "resume": str(folder)}, 2)
    run({**config, "resume": str(folder), "patience": 0, "may-change": "patience"}, 2)
    assert_same(folder, run(config_of(tmp_path / "whole", learning_rate=1e-9)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_until_failure(config_of(tmp_path), 3)


def test_lost_momentum_is_logged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    run(config_of(tmp_path, resume=str(folder)), 2)
    assert f"{tmp_path}/state has no momentum of this run: it starts from zero" in caplog.text


def test_other_versions_than_at_the_start_are_logged_and_recorded(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (folder / "config.json").write_text(json.dumps(config))
    run(config_of(tmp_path, resume=str(folder)), 2)
    assert "was started with other versions of torch: " in caplog.text
    config = json.loads((folder / "config.json").read_text())
    assert config["versions"]["torch"] == "1.0"
    assert config["resumed"][0]["versions"]["torch"] == torch.__version__


def test_a_damaged_checkpoint_is_detected_and_the_previous_one_gives_the_same_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = max((folder / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    run(config_of(folder.parent, resume=str(folder)), 2)
    assert f"{newest} is damaged" in caplog.text
    # The second of the two failed rounds is repeated.
    assert_same(folder, run(config_of(tmp_path / "whole"), lost=lost_in({4})))


def test_momentum_files_stay_few_and_are_deleted_with_the_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    files = list(state.rglob("*.safetensors"))
    assert {path.parent.parent for path in files} == {state / "1"}
    # the newest, and one for each of the two checkpoints
    assert max(len(list(client.iterdir())) for client in (state / "1").iterdir()) <= 3
    assert f"MB in {state / '1'}" in report(state / "1")
    warn_of_full_disk(state / "1", clients=CLIENTS, files=5)
    assert "the momentum of" not in caplog.text
    warn_of_full_disk(state / "1", clients=10**12, files=5)
    assert "the momentum of 1000000000000 clients needs" in caplog.text
    assert delete_run(folder) == [folder, state / "1"]
    assert list(tmp_path.rglob("*.safetensors")) == []
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        delete_run(folder)


def test_momentum_may_disappear_while_it_is_counted(tmp_path: Path) -> None:
    (tmp_path / "round-1.safetensors").symlink_to(tmp_path / "gone")  # found, but not there
    warn_of_full_disk(tmp_path, 10, 2)
    assert report(tmp_path).startswith("Momentum of 1 clients: 0.0 MB")
