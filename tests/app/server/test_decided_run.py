"""Runs of the app that decide T* themselves, or go back to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app import server_app
from fixbn_flwr.app.server.round_recorder import Recorder
from tests.app.server.test_resumed_run import assert_same, config_of, run
from tests.support.whole_app import rounds_of

ROUNDS = 12


def decided(root: Path, **more: Any) -> dict[str, Any]:
    """Return a config of a run that freezes, because each client has another class."""
    config = {
        "freeze_after": "auto", "num_server_rounds": ROUNDS, "learning_rate_factor": "auto",
        "partition_classes": 1, "local_steps": 3, "evaluate_every": 20,
    }  # fmt: skip
    return config_of(root, **{**config, **more})


def stop_after(server_round: int, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the app until the end of a round, and interrupt it."""

    class Stopping(Recorder):
        def __call__(self, ended: int, arrays: Any) -> Any:
            metrics = super().__call__(ended, arrays)
            if ended == server_round:
                raise KeyboardInterrupt
            return metrics

    with monkeypatch.context() as patched:
        patched.setattr(server_app, "app", server_app.server_app_of(Stopping))
        with pytest.raises(KeyboardInterrupt):
            run(config)


def read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_the_decision_is_recorded_and_printed_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(decided(tmp_path))
    config, rounds = read(folder), rounds_of(folder)
    frozen = config["freeze_round"]
    assert f"\nT* = {frozen}: {config['freeze_reason']}\n" in capsys.readouterr().out
    assert ROUNDS / 2 <= frozen < ROUNDS
    assert "clients' statistics differ by" in config["freeze_reason"]
    assert config["run_config"]["freeze-after"] == "auto"
    assert [line["phase"] for line in rounds] == ["exploration"] * frozen + ["calibration"] * (
        ROUNDS - frozen
    )
    # T* and the last round are tested, and T* has a checkpoint.
    assert [line["round"] for line in rounds if line["test_accuracy"] is not None] == [
        frozen, ROUNDS,
    ]  # fmt: skip
    names = [path.name[:12] for path in sorted((folder / "checkpoints").iterdir())]
    assert f"round-{frozen:06d}" in names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy_at_freeze"] == rounds[frozen - 1]["test_accuracy"]


def test_a_run_of_alike_clients_says_that_it_never_froze(tmp_path: Path) -> None:
    folder = run(decided(tmp_path, partition="iid", local_steps=5))
    config = read(folder)
    assert config["freeze_round"] == ROUNDS
    assert config["freeze_reason"].endswith("they learn the same without")
    assert {line["phase"] for line in rounds_of(folder)} == {"exploration"}
    assert json.loads((folder / "summary.json").read_text())["accuracy_at_freeze"] is None


@pytest.mark.parametrize("after", [4, 8, 11])
@pytest.mark.parametrize("momentum", ["local", "global"])
def test_a_run_that_decides_resumes_to_the_same_bits(
    after: int, momentum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(decided(tmp_path / "whole", momentum=momentum))
    config = decided(tmp_path / "stopped", momentum=momentum)
    stop_after(after, config, monkeypatch)
    resumed = run({**config, "resume": str(tmp_path / "stopped" / "run")}, run_id=2)
    assert_same(resumed, whole)
    keys = ("freeze_round", "freeze_reason")
    assert [read(resumed)[key] for key in keys] == [read(whole)[key] for key in keys]
    assert [line["signals"] for line in rounds_of(resumed)] == [
        line["signals"] for line in rounds_of(whole)
    ]


def test_plain_bn_ends_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(decided(tmp_path / "bn", freeze_after=1.0))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Advice: ")]
    assert len(said) == 1
    assert said[0].endswith("freezing the statistics is likely to help here")
    run(config_of(tmp_path / "fixbn"))
    assert "Advice" not in capsys.readouterr().out


def falls_apart(root: Path, **more: Any) -> dict[str, Any]:
    """Return a config with T* = 4 whose rate is far too large for frozen statistics."""
    return config_of(
        root, num_server_rounds=10, freeze_after=4, local_steps=5, learning_rate=0.05,
        learning_rate_factor=20.0, **more,
    )  # fmt: skip


def test_a_run_that_falls_apart_goes_back_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(falls_apart(tmp_path))
    rounds = rounds_of(folder)
    assert rounds[-1]["retries"] > 0
    assert "the run falls apart with frozen statistics" in caplog.text
    first = next(line for line in rounds if line["retries"])
    assert first["test_loss"] == rounds[3]["test_loss"]  # the model of T*
    rates = {line["learning_rate"] for line in rounds[4:]}
    assert 1.0 in rates
    assert min(rates) <= 0.3
    assert max(line["test_loss"] for line in rounds) < 10


@pytest.mark.parametrize("after", [5, 6, 8])
def test_a_run_resumes_between_retries_to_the_same_bits(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(falls_apart(tmp_path / "whole"))
    config = falls_apart(tmp_path / "stopped")
    stop_after(after, config, monkeypatch)
    assert_same(run({**config, "resume": str(tmp_path / "stopped" / "run")}, run_id=2), whole)


def test_gradients_are_compared_in_the_app_without_changing_a_bit(tmp_path: Path) -> None:
    plain = run(config_of(tmp_path / "plain"))
    compared = run(config_of(tmp_path / "compared", compare_gradients_every=2))
    assert_same(plain, compared)
    seen = [
        line["round"] for line in rounds_of(compared) if "fixbn-gradient-cosine" in line["signals"]
    ]
    assert seen == [2, 4]
