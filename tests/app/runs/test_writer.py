"""The run folder: its files, refused names and places, and no partial files after a failure."""

import dataclasses
import errno
import json
import math
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.creation import create_run_folder
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.app.runs.summary import (
    RoundMetrics,
    Summary,
    round_line,
    summarize,
    summary_table,
)
from fixbn_flwr.errors import CheckpointError, ConfigError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tasks.signature import Signature

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
SIGNATURE = Signature(("no", "yes"), (1, 8, 8), mean=(4.5,), std=(6.25,), white=16)

create = partial(create_run_folder, signature=SIGNATURE)


def settings(folder: Path, **run_config: Any) -> Settings:
    given = {key.replace("_", "-"): value for key, value in run_config.items()}
    fixed: dict[str, Any] = {"num-server-rounds": 4, "freeze-after": 2, "output-dir": str(folder)}
    return Settings.from_run_config(fixed | given)


def metrics(server_round: int, accuracy: float | None, **changes: Any) -> RoundMetrics:
    phase = Phase.EXPLORATION if server_round <= 2 else Phase.CALIBRATION
    test_loss = None if accuracy is None else 0.5
    line = RoundMetrics(
        server_round, phase, 0.02, 1.5, test_loss, accuracy, 2_000_000, 500_000, 0.25, 10, 0
    )
    return dataclasses.replace(line, **changes)


def test_config_json_has_settings_versions_and_hardware(tmp_path: Path) -> None:
    given = settings(tmp_path, run_name="one")
    folder = create(given, method="FixBN", clients=10, when=WHEN)
    assert folder.path == tmp_path / "one"
    config = json.loads((folder.path / "config.json").read_text())
    assert Settings.from_run_config(config["run_config"]) == given
    assert (config["method"], config["freeze_round"], config["clients"]) == ("FixBN", 2, 10)
    assert config["started"] == "2024-05-06T07:08:09+00:00"
    assert Signature.from_json(config["signature"]) == SIGNATURE
    assert list(config["versions"]) == ["fixbn_flwr", "flwr", "torch", "python"]
    assert all(config["versions"].values())
    assert list(config["hardware"]) == ["cpu", "cores", "gpu"]
    assert config["hardware"]["cores"] >= 1
    assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_a_generated_name_has_time_task_and_method_and_is_unique(tmp_path: Path) -> None:
    norm = settings(tmp_path, norm="none", freeze_after=1.0)
    names = [create(norm, method=norm.method, clients=2, when=WHEN).path.name for _ in range(3)]
    first = "20240506-070809-digits-no-norm"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_an_empty_output_dir_means_fixbn_runs_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = settings(tmp_path, output_dir="", run_name="x")
    assert create(given, method="FixBN", clients=2).path == tmp_path / "fixbn-runs" / "x"
    given = settings(tmp_path, output_dir="~/mine", run_name="x")
    assert create(given, method="FixBN", clients=2).path == tmp_path / "mine" / "x"


def test_an_existing_run_is_refused_and_unchanged(tmp_path: Path) -> None:
    given = settings(tmp_path, run_name="one")
    config = create(given, method="FixBN", clients=10, when=WHEN).path / "config.json"
    before = config.read_bytes()
    with pytest.raises(ConfigError, match=r'run-name = "one": .*/one exists'):
        create(given, method="FixBN", clients=99)
    assert config.read_bytes() == before


@pytest.mark.parametrize("output_dir", ["file", "file/below"])
def test_an_output_dir_that_is_a_file_is_refused(tmp_path: Path, output_dir: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"output-dir = .*cannot create a run folder in .*; name a"
    ):
        create(settings(tmp_path, output_dir=f"{tmp_path}/{output_dir}"), method="FixBN", clients=2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_no_files_are_left_if_config_json_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, "no room")

    monkeypatch.setattr(os, "fsync", fail)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="no room"):
        create(settings(tmp_path, output_dir=f"{tmp_path}/there/a/b"), method="FixBN", clients=2)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["there"]


def test_an_output_dir_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not with chmod: the tests may run as root, who may write anywhere.
    def fail(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(
        ConfigError, match=r"output-dir = .*Permission denied.*name a writable directory"
    ):
        create(settings(tmp_path), method="FixBN", clients=2)


def test_each_round_is_appended_as_one_line(tmp_path: Path) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    first, second = metrics(1, 0.5), metrics(2, None, train_loss=None, dropped=3)
    folder.append(first)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "round": 1, "phase": "exploration", "learning_rate": 0.02, "train_loss": 1.5,
            "test_loss": 0.5, "test_accuracy": 0.5, "bytes_sent": 2_000_000,
            "bytes_received": 500_000, "seconds": 0.25, "clients": 10, "dropped": 0,
            "train_seconds": None, "retries": 0, "signals": {}, "disagreement_by_layer": {},
            "validation_loss": None, "validation_accuracy": None, "validation_worst": None,
            "validation_spread": None, "validation_by_client": {},
        }
    ]  # fmt: skip
    folder.append(second)
    assert read_metrics(folder.path) == [first, second]
    assert read_metrics(folder.path)[1].phase is Phase.EXPLORATION


def test_metrics_of_a_diverged_run_are_valid_json_and_can_be_read(tmp_path: Path) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    folder.append(metrics(1, 0.1, train_loss=math.nan, test_loss=math.inf))
    line = (folder.path / "metrics.jsonl").read_text()
    assert '"train_loss": "nan", "test_loss": "inf"' in line
    (read,) = read_metrics(folder.path)
    assert read.train_loss is not None
    assert math.isnan(read.train_loss)
    assert read.test_loss == math.inf


def test_signals_that_are_not_finite_are_valid_json_and_can_be_read(tmp_path: Path) -> None:
    folder = create(settings(tmp_path, run_name="one"), method="FixBN", clients=10)
    signals = {"drift": math.inf, "norm": 1.0}
    folder.append(metrics(1, 0.5, signals=signals, disagreement_by_layer={"bn": math.nan}))
    (line,) = read_metrics(folder.path)
    assert line.signals == signals
    assert math.isnan(line.disagreement_by_layer["bn"])
    written = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(written)["signals"] == {"drift": "inf", "norm": 1.0}


def test_append_returns_whether_the_validation_is_the_best_so_far(tmp_path: Path) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    accuracies = [None, 0.0, 0.5, 0.5, None, 0.4, 0.6]
    best = [
        # The test accuracy falls, which chooses nothing.
        folder.append(metrics(t, 0.9 - 0.1 * t, validation_accuracy=accuracy))
        for t, accuracy in enumerate(accuracies, start=1)
    ]
    assert best == [False, True, True, False, False, False, True]


def test_the_error_names_missing_or_damaged_metrics(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is not the folder of a run: cannot read metrics\.jsonl"
    ):
        read_metrics(tmp_path)
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    folder.append(metrics(1, 0.5))
    for damaged in ('{"round": 2, "pha', '{"round": 2}', "[]", '{"phase": "exploration"}'):
        valid = (folder.path / "metrics.jsonl").read_text()
        (folder.path / "metrics.jsonl").write_text(valid + damaged + "\n")
        with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 2: not a round's .*; restore"):
            read_metrics(folder.path)
        (folder.path / "metrics.jsonl").write_text(valid)


def test_a_model_keeps_dtypes_shapes_and_values(tmp_path: Path) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    arrays: dict[str, npt.NDArray[Any]] = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous in memory
        "every_other": np.arange(6, dtype=np.float64)[::2],
        "num_batches_tracked": np.asarray(2**53 + 1, dtype=np.int64),
    }
    path = folder.save_model("final", arrays)
    assert path == folder.path / "final.safetensors"
    loaded = safetensors.numpy.load_file(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded[name], array)


def test_the_same_arrays_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    arrays = {name: np.full((3, 5), i, np.float32) for i, name in enumerate("dacb")}
    final = folder.save_model("final", arrays).read_bytes()
    best = folder.save_model("best", dict(sorted(arrays.items()))).read_bytes()
    assert final == best


def test_a_model_that_cannot_be_written_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    path = folder.save_model("best", {"a": np.zeros(3)})
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"No space left.*Make room on its disk"):
        folder.save_model("best", {"a": np.ones(3)})
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.path.iterdir()) == ["best.safetensors", "config.json"]


def test_finish_writes_the_summary_and_the_figure(tmp_path: Path) -> None:
    folder = create(settings(tmp_path), method="FixBN", clients=10)
    for server_round, accuracy in enumerate([0.3, 0.7, 0.6, 0.65], start=1):
        folder.append(metrics(server_round, accuracy, validation_accuracy=0.2 * server_round % 0.7))
    summary = folder.finish()
    assert summary == Summary(
        accuracy_at_freeze=0.7, final_accuracy=0.65, best_accuracy=0.6,
        best_validation=pytest.approx(0.6), best_round=3,
        seconds=1.0, megabytes_sent=8.0, megabytes_received=2.0,
    )  # fmt: skip
    assert json.loads((folder.path / "summary.json").read_text()) == dataclasses.asdict(summary)
    assert (folder.path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_summary_omits_values_without_freeze_or_evaluation(tmp_path: Path) -> None:
    accuracies = [0.5, 0.7, 0.7, 0.6]
    summary = summarize([metrics(t, a) for t, a in enumerate(accuracies, start=1)], None)
    assert (summary.accuracy_at_freeze, summary.final_accuracy) == (None, 0.6)
    assert (summary.best_accuracy, summary.best_validation, summary.best_round) == (None,) * 3
    assert summarize([], None) == Summary(None, None, None, None, None, 0, 0.0, 0.0)


def test_the_best_of_equal_validations_is_the_first_and_may_not_be_tested() -> None:
    validations = [0.5, 0.7, 0.7, None]
    rounds = [
        metrics(t, None if t == 2 else 0.9, validation_accuracy=v)
        for t, v in enumerate(validations, start=1)
    ]
    summary = summarize(rounds, None)
    assert (summary.best_accuracy, summary.best_validation, summary.best_round) == (None, 0.7, 2)


def test_the_summary_table_lists_two_runs() -> None:
    text = summary_table(
        {
            "FixBN": Summary(0.901, 0.9694, 0.98, 0.971, 7, 31.26, 160.0, 80.04),
            "BN s1": Summary(None, 0.5, None, 0.612, 40, 30.0, 1234.5, 0.0),
        }
    )
    assert text.splitlines() == [
        "+----------------------------------------------------------------------------+",
        "|       | at T* | final | best | valid. |  best | rounds |   sent | received |",
        "| run   |     % |     % |    % |      % | round |      s |     MB |       MB |",
        "|-------+-------+-------+------+--------+-------+--------+--------+----------|",
        "| FixBN |  90.1 |  96.9 | 98.0 |   97.1 |     7 |   31.3 |  160.0 |     80.0 |",
        "| BN s1 |     - |  50.0 |    - |   61.2 |    40 |   30.0 | 1234.5 |      0.0 |",
        "+----------------------------------------------------------------------------+",
    ]


def test_a_summary_table_without_validation_has_no_best_model() -> None:
    text = summary_table({"BN": Summary(None, 0.5, None, None, None, 30.0, 1234.5, 0.0)})
    assert text.splitlines()[1:3] == [
        "|     | at T* | final | rounds |   sent | received |",
        "| run |     % |     % |      s |     MB |       MB |",
    ]


def test_the_table_stays_plain_and_80_columns_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    text = summary_table({"a-long-label-" * 9: Summary(0.5, 0.5, 0.5, 0.5, 1, 1.0, 1.0, 1.0)})
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(line.split("|")[1].strip() for line in text.splitlines()[4:-1]) == (
        "a-long-label-" * 9
    )


def line_of_round(line: RoundMetrics, **config: Any) -> str:
    return round_line(line, Settings.from_run_config({"num-server-rounds": 999, **config}))


def test_a_round_is_a_line_of_at_most_80_columns() -> None:
    line = RoundMetrics(900, Phase.CALIBRATION, 0.005, 1.5, 2.25, 0.928, 1, 1, 2.0, 10, 0)
    text = line_of_round(line)
    assert len(text) <= 80
    assert text == (
        "round 900/999 calibration lr 0.005   train 1.500 test 2.250 accuracy 92.8% 2.0 s"
    )


def test_a_round_that_clients_validated_has_a_second_line_of_at_most_80_columns() -> None:
    line = RoundMetrics(
        900, Phase.CALIBRATION, 0.005, 1.5, None, None, 1, 1, 2.0, 10, 0,
        validation_accuracy=0.912, validation_spread=0.0623, validation_worst=0.803,
        validation_by_client={"0": 0.93, "hospital-of-the-city": 0.803},
    )  # fmt: skip
    first, second = line_of_round(line).splitlines()
    assert first == "round 900/999 calibration lr 0.005   train 1.500 2.0 s"
    assert second == (
        "  clients: mean accuracy 91.2%, worst 80.3% (client hospital-...), spread 6.2"
    )
    widest = dataclasses.replace(
        line, validation_accuracy=1.0, validation_spread=0.5,
        validation_by_client={"a" * 30: 1.0},
    )  # fmt: skip
    assert max(map(len, line_of_round(widest).splitlines())) == 80
    segmented = line_of_round(line, task="camvid", partition="iid")
    assert "\n  clients: mean IoU 91.2%, worst 80.3%" in segmented


def test_a_round_of_plain_bn_has_no_phase_and_segmentation_has_its_metric() -> None:
    line = RoundMetrics(2, Phase.EXPLORATION, 0.05, None, 2.25, 0.5, 1, 1, 1.0, 0, 2)
    assert line_of_round(line, **{"freeze-after": 1.0}) == (
        "round   2/999 lr 0.05    no client   test 2.250 accuracy 50.0% 1.0 s"
    )
    assert "mean IoU 50.0%" in line_of_round(line, task="camvid", partition="iid")
