"""Invalid run configs, command lines, node configs and output folders are refused.

No case ends in a traceback, hangs or leaves files: a command prints one message and exits
with code 1 (2 if the command line itself is not valid).
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fixbn_flwr.app import client_app
from fixbn_flwr.app.client.node_config import Node
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.testing import SerializingGrid
from tests.support.command_line import everything_in, failing_command
from tests.support.whole_app import SMALL, serve

pytestmark = pytest.mark.usefixtures("elsewhere")

# Run configs of `fixbn run`, which are refused before anything starts

CONFIG = [
    # Types
    ("seed=1.5", "seed = 1.5: must be a whole number; round it"),
    ("seed=abc", 'seed = "abc": must be a whole number; write it in digits, without quotes'),
    ("seed=true", "seed = true: must be a whole number"),
    ("batch-size=16.0", r"batch-size = 16.0: must be a whole number; write 16"),
    ("learning-rate=fast", 'learning-rate = "fast": must be a number; write it in digits'),
    ("learning-rate=nan", "learning-rate = NaN: must be finite"),
    ("round-timeout=inf", "round-timeout = Infinity: must be finite"),
    ("seed=" + "1" * 5000, "seed = Infinity: must be finite; use a whole number of ordinary size"),
    ("seed=" + "[" * 3000, "seed = .*: must be a whole number"),
    ("seed=[1, 2]", r"seed = \[1, 2\]: must be a whole number"),
    ("seed=2026-01-01", r"seed = .*2026, 1, 1.*: must be a whole number"),
    # Words
    ("task=mnist", 'task = "mnist": unknown word; (did you mean|use one of)'),
    ("norm=batch", 'norm = "batch": unknown word; use one of bn, gn'),
    ("norm=gn0", 'norm = "gn0": unknown word'),
    ("momentum=locl", r'momentum = "locl": unknown word; did you mean local\?'),
    ("partition=Dirichlet", r"unknown word; did you mean dirichlet\?"),
    ("model=resnet50", 'model = "resnet50": no model of task digits'),
    ("device=tpu", 'device = "tpu": unknown device; use auto, cpu'),
    ("device=cuda:" + "9" * 30, 'device = "cuda:9+": unknown device'),
    ("lerning-rate=0.1", r"lerning-rate = 0.1: unknown key; did you mean learning-rate\?"),
    ("epochs=3", r"epochs = 3: unknown key; did you mean local-epochs\?"),
    (
        "xyz=3",
        r"(?s)xyz = 3: unknown key; use one of .* below\n  The keys are task, .*may-ch",
    ),
    # Bounds
    ("num-server-rounds=0", "num-server-rounds = 0: out of bounds; use a number at least 1"),
    ("batch-size=-4", "batch-size = -4: out of bounds"),
    ("fraction-train=1.5", "fraction-train = 1.5: out of bounds; use a number above 0 and at most"),
    ("momentum-coefficient=1", "momentum-coefficient = 1: out of bounds; .* below 1"),
    ("seed=4294967296", "seed = 4294967296: out of bounds"),
    ("freeze-after=0", "freeze-after = 0: out of bounds; use a number above 0"),
    # Combinations
    ("freeze-after=41", r"freeze-after = 41: T\* is beyond the last of 40 rounds; use at most 40"),
    ("norm=gn", "freeze-after = 0.5: norm gn has no running statistics to freeze; write freeze-"),
    ("local-epochs=2", "local-steps = 5: local-epochs = 2 is set as well; set one of the two to 0"),
    ("local-steps=0", "local-steps = 0: local-epochs is 0 as well, so nothing trains"),
    ("momentum-coefficient=0", "momentum = .local.: momentum-coefficient = 0 leaves no buffers"),
    ("partition-classes=11", "partition-classes = 11: task digits has 10 classes; use at most 10"),
    # Names and folders
    ("run-name=../outside", r'run-name = "../outside": is not a folder name; use letters'),
    ("run-name=two words", 'run-name = "two words": is not a folder name; use letters'),
    ("run-name=.hidden", "run-name = .*: is not a folder name"),
    ("run-name=" + "x" * 300, "run-name = .*: has 300 characters, too many for a folder"),
    ("data-dir=nowhere", 'data-dir = ".*/nowhere": there is no directory .*/nowhere; create it'),
    ("data-dir=a\0b", "data-dir = .*: a path cannot contain the character of code 0"),
    ("output-dir=~nosuchuser/x", "output-dir = '~nosuchuser/x': .* Write an absolute path"),
    ("state-dir=a-file", "state-dir = .*: .*/a-file is a file; name a directory"),
    # Users' own tasks
    ("task=no.such.module:TASK", r"no.such.module:TASK cannot be imported \(ModuleNotFoundError"),
    ("task=json:loads", "json:loads is a function: name a fixbn_flwr.tasks.Task"),
    ("task=:", r":: cannot be imported|: cannot be imported"),
    # The command line
    ("task", "'task' is not a setting: write KEY=VALUE, such as task=cifar10"),
    ("=3", " = 3: unknown key"),
]


def fail_if_called(*_: object) -> None:
    pytest.fail("a federation was started")


@pytest.mark.parametrize(("setting", "message"), CONFIG, ids=lambda text: text[:40])
def test_an_invalid_run_config_is_refused(
    setting: str,
    message: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (elsewhere / "a-file").touch()
    monkeypatch.setattr("fixbn_flwr.app.local_run.run_locally", fail_if_called)
    code, stderr = failing_command(capsys, "run", setting)
    assert code == 1
    assert stderr.startswith("Error: ")
    assert re.search(message, stderr), stderr
    assert len(stderr) < 2000
    assert everything_in(elsewhere) == ["a-file"]


def test_several_mistakes_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    _, stderr = failing_command(capsys, "run", "seed=-1", "norm=batch", "epoch=3")
    assert [stderr.count(word) for word in ("seed = -1", "norm =", "epoch = 3")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run", "--clients=0"], "0 is not in the range"),
        (["run", "--clients=ten"], "'ten' is not a valid int"),
        (["run", "--worker=2"], "No such option.*--worker"),
    ],
)
def test_an_invalid_command_line_is_refused(
    words: list[str], message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stderr = failing_command(capsys, *words)
    assert code == 2
    assert re.search(message, stderr), stderr
    assert everything_in(elsewhere) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "neither data-dir nor partition-id"),
        ({"partition-id": 0}, "only partition-id"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id=2 is not between 0 and 1"),
        ({"partition-id": -1, "num-partitions": 2}, "partition-id=-1 is not between 0 and 1"),
        ({"partition-id": "x", "num-partitions": 2}, "partition-id='x' .* whole number"),
    ],
)
def test_an_invalid_node_config_is_refused(config: dict[str, Any], message: str) -> None:
    context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match=message):
        Node.of(context)


# Output folders


def in_a_file(folder: Path) -> str:
    (folder / "a-file").touch()
    return "a-file/runs"


def a_file(folder: Path) -> str:
    (folder / "a-file").touch()
    return "a-file"


def a_link_that_leads_nowhere(folder: Path) -> str:
    (folder / "link").symlink_to(folder / "gone" / "away")
    return "link/runs"


def a_folder_of_the_kernel(_: Path) -> str:
    return "/proc/runs"


@pytest.mark.parametrize(
    "place", [in_a_file, a_file, a_link_that_leads_nowhere, a_folder_of_the_kernel]
)
def test_an_output_folder_that_cannot_be_created_is_refused(
    place: Callable[[Path], str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even root cannot write to these places; file modes do not stop root."""
    output_dir = place(elsewhere)
    before = everything_in(elsewhere)
    code, stderr = failing_command(capsys, "centralised", f"output-dir={output_dir}", "device=cpu")
    assert code == 1
    assert re.search(
        r"output-dir = .*: cannot create a run folder in .*; name a writable directory", stderr
    )
    assert everything_in(elsewhere) == before


def test_a_run_is_never_overwritten(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "runs" / "mine").mkdir(parents=True)
    (elsewhere / "runs" / "mine" / "something").touch()
    code, stderr = failing_command(capsys, "centralised", "run-name=mine", "device=cpu")
    assert code == 1
    assert "exists, and a run is never overwritten; choose another" in stderr
    assert everything_in(elsewhere) == ["runs", "runs/mine", "runs/mine/something"]


def test_a_path_of_an_unknown_user_is_not_deleted(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stderr = failing_command(capsys, "delete", "~nosuchuser/x", "--yes")
    assert code == 1
    assert re.search(r"folder = '~nosuchuser/x': .* Write an absolute path", stderr)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make larger writes fail, as on a full disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_full_disk_at_the_start_leaves_no_files(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(100):
        code, stderr = failing_command(capsys, "centralised", "device=cpu")
    assert code == 1
    assert re.search(
        r"output-dir = .*: cannot create a run folder .* on a disk with free space", stderr
    )
    assert everything_in(elsewhere) == []


def test_a_disk_that_fills_up_during_a_run_keeps_the_earlier_files(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(5000):
        code, stderr = failing_command(
            capsys, "centralised", "device=cpu", "run-name=mine", "local-steps=1",
            "num-server-rounds=2",
        )  # fmt: skip
    assert code == 1
    assert re.search(r"/mine cannot be written .* Make room on its disk", stderr)
    assert everything_in(elsewhere / "runs" / "mine") == ["config.json", "metrics.jsonl"]
    lines = (elsewhere / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2  # the model is larger than the room that is left


def test_a_batch_larger_than_the_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, stderr = failing_command(capsys, "centralised", "batch-size=1000000000", "device=cpu")
    assert code == 1
    assert "batch-size = 1000000000: 10 clients per round use 10000000000 images per step" in stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch-size": 5000}, "batch-size = 5000: client .* holds .* fewer than one batch"),
        ({"partition": "natural"}, "natural"),
        ({"norm": "gn7", "freeze-after": 1.0}, "'gn7', but a layer of this network has"),
        ({"device": "cuda:99"}, "device='cuda:99': this machine has"),
        ({"state-dir": "{here}/a-file"}, "state-dir = .*a-file is a file"),
        (
            {"state-dir": "relative"},
            'state-dir = "relative": clients run in .*write an absolute path',
        ),
        (
            {"state-dir": "/proc/nothing"},
            "state-dir = .*cannot be written .*name a writable directory",
        ),
        ({"state-dir": "~nobody-here/x"}, "state-dir = .*there is no such user here"),
        ({"resume": "~nobody-here/x"}, "resume = .*there is no such user here"),
    ],
)
def test_an_invalid_federation_is_refused_before_it_starts(
    config: dict[str, Any], message: str, elsewhere: Path
) -> None:
    (elsewhere / "a-file").touch()
    config = {k: v.format(here=elsewhere) if isinstance(v, str) else v for k, v in config.items()}
    run_config = {**SMALL, "output-dir": str(elsewhere / "runs"), **config}
    grid = SerializingGrid(client_app.app, 4, run_config=run_config)
    with pytest.raises(ConfigError, match=message):
        serve(grid, run_config)
    assert everything_in(elsewhere) == ["a-file"]


def test_the_table_has_enough_rows() -> None:
    assert len(CONFIG) >= 40
    assert Settings().output_dir == ""  # the rows above rely on it
