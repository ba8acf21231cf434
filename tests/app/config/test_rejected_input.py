"""What a user can get wrong, row by row, and what each is told.

No row ends in a traceback, hangs or leaves anything behind: a command prints one message and ends
with exit code 1 (2 where the command line itself cannot be read).
"""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from fixbn_flwr.app import client_app
from fixbn_flwr.app.cli import cli, run_commands
from fixbn_flwr.app.client.node_config import Node
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.testing import InMemoryGrid
from tests.support.whole_app import SMALL, serve


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, beside those of pytest; and no way to any network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run `fixbn` with these words in this process; return its exit code and its message."""
    with pytest.raises(SystemExit) as ended:
        run_commands(cli, list(words))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.err


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The run config, through the command that federates: all of it before anything is started.

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
    ("epochs=3", "epochs = 3: unknown key; (did you mean local-epochs|see the README)"),
    # Bounds
    ("num-server-rounds=0", "num-server-rounds = 0: out of bounds; use a number at least 1"),
    ("batch-size=-4", "batch-size = -4: out of bounds"),
    ("fraction-train=1.5", "fraction-train = 1.5: out of bounds; use a number above 0 and at most"),
    ("momentum-coefficient=1", "momentum-coefficient = 1: out of bounds; .* below 1"),
    ("seed=4294967296", "seed = 4294967296: out of bounds"),
    ("freeze-after=0", r"freeze-after = 0: T\* = 0 would freeze .* untrained"),
    # Together
    ("freeze-after=41", r"freeze-after = 41: T\* is beyond the last of 40 rounds; use at most 40"),
    ("norm=gn", "freeze-after = 0.5: norm gn has no running statistics to freeze; write freeze-"),
    ("local-epochs=2", "local-steps = 5: local-epochs = 2 is set as well; set one of the two to 0"),
    ("local-steps=0", "local-steps = 0: local-epochs is 0 as well, so nothing trains"),
    ("momentum-coefficient=0", "momentum = .local.: momentum-coefficient = 0 leaves no buffers"),
    ("partition-classes=11", "partition-classes = 11: task digits has 10 classes; use at most 10"),
    # Names and folders
    ("run-name=../outside", r'run-name = "../outside": names a folder; use letters'),
    ("run-name=two words", 'run-name = "two words": names a folder; use letters'),
    ("run-name=.hidden", "run-name = .*: names a folder"),
    ("run-name=" + "x" * 300, "run-name = .*: has 300 characters, too many for a folder"),
    ("data-dir=nowhere", 'data-dir = ".*/nowhere": there is no directory .*/nowhere; create it'),
    ("data-dir=a\0b", "data-dir = .*: no path holds a character of code 0"),
    ("output-dir=~nosuchuser/x", "output-dir = '~nosuchuser/x': .* Write the whole path"),
    ("state-dir=a-file", "state-dir = .*: .*/a-file is a file; name a directory"),
    # Tasks of one's own
    ("task=no.such.module:TASK", r"no.such.module:TASK cannot be imported \(ModuleNotFoundError"),
    ("task=json:loads", "json:loads is of type function; name a fixbn_flwr.tasks.Task"),
    ("task=:", r":: cannot be imported|: cannot be imported"),
    # The command line
    ("task", "'task' is not a setting: write KEY=VALUE, such as task=cifar10"),
    ("=3", " = 3: unknown key"),
]


def nothing_may_start() -> None:
    pytest.fail("a federation was started")


@pytest.mark.parametrize(("setting", "message"), CONFIG, ids=lambda text: text[:40])
def test_config(
    setting: str,
    message: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (elsewhere / "a-file").touch()
    monkeypatch.setattr("fixbn_flwr.app.cli.local_superlink", nothing_may_start)
    code, said = command(capsys, "run", setting)
    assert code == 1
    assert said.startswith("Error: ")
    assert re.search(message, said), said
    assert len(said) < 2000
    assert everything_in(elsewhere) == ["a-file"]


def test_several_mistakes_are_all_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, said = command(capsys, "run", "seed=-1", "norm=batch", "epoch=3")
    assert [said.count(word) for word in ("seed = -1", "norm =", "epoch = 3")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run", "--clients=0"], "0 is not in the range"),
        (["run", "--clients=ten"], "'ten' is not a valid int"),
        (["run", "--worker=2"], "No such option.*--worker"),
    ],
)
def test_command_line(
    words: list[str], message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = command(capsys, *words)
    assert code == 2
    assert re.search(message, said), said
    assert everything_in(elsewhere) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "neither data-dir nor partition-id"),
        ({"partition-id": 0}, "partition-id alone"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id=2 is not one of 0 to 1"),
        ({"partition-id": -1, "num-partitions": 2}, "partition-id=-1 is not one of 0 to 1"),
        ({"partition-id": "x", "num-partitions": 2}, "partition-id='x' .* whole number"),
    ],
)
def test_node_config(config: dict[str, Any], message: str) -> None:
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


def a_kernels_folder(_: Path) -> str:
    return "/proc/runs"


@pytest.mark.parametrize("place", [in_a_file, a_file, a_link_that_leads_nowhere, a_kernels_folder])
def test_output_folder_that_cannot_be_made(
    place: Callable[[Path], str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even root may not write there; modes would not stop root, which tests may run as."""
    output_dir = place(elsewhere)
    before = everything_in(elsewhere)
    code, said = command(capsys, "centralised", f"output-dir={output_dir}", "device=cpu")
    assert code == 1
    assert re.search(r"output-dir = .*: cannot make a run folder in .*; name a directory", said)
    assert everything_in(elsewhere) == before


def test_a_run_is_never_overwritten(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "runs" / "mine").mkdir(parents=True)
    (elsewhere / "runs" / "mine" / "something").touch()
    code, said = command(capsys, "centralised", "run-name=mine", "device=cpu")
    assert code == 1
    assert "is there already, and a run is never overwritten; choose another" in said
    assert everything_in(elsewhere) == ["runs", "runs/mine", "runs/mine/something"]


def test_nothing_is_deleted_for_a_user_who_is_not_there(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = command(capsys, "delete", "~nosuchuser/x", "--yes")
    assert code == 1
    assert re.search(r"folder = '~nosuchuser/x': .* Write the whole path", said)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The next larger write fails, as on a full disk: there are no bytes left."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_disk_that_is_full_at_the_start(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(100):
        code, said = command(capsys, "centralised", "device=cpu")
    assert code == 1
    assert re.search(r"output-dir = .*: cannot make a run folder .* with room on its disk", said)
    assert everything_in(elsewhere) == []


def test_a_disk_that_fills_up_in_a_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written before stays, and stays whole: the run's config and its rounds."""
    with files_of_at_most(5000):
        code, said = command(
            capsys, "centralised", "device=cpu", "run-name=mine", "local-steps=1",
            "num-server-rounds=2",
        )  # fmt: skip
    assert code == 1
    assert re.search(r"/mine cannot be written .* Make room on its disk", said)
    assert everything_in(elsewhere / "runs" / "mine") == ["config.json", "metrics.jsonl"]
    lines = (elsewhere / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1


def test_a_batch_larger_than_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = command(capsys, "centralised", "batch-size=1000000000", "device=cpu")
    assert code == 1
    assert "batch-size = 1000000000: 10 clients a round take 10000000000 images a step" in said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch-size": 5000}, "batch-size = 5000: client .* holds .* fewer than one batch"),
        ({"partition": "natural"}, "natural"),
        ({"norm": "gn7", "freeze-after": 1.0}, "'gn7', but a layer of this network has"),
        ({"device": "cuda:99"}, "device='cuda:99': this machine has"),
        ({"state-dir": "{here}/a-file"}, "state-dir = .*a-file is a file"),
        ({"state-dir": "relative"}, 'state-dir = "relative": every client .*write the whole path'),
        ({"state-dir": "/proc/nothing"}, "state-dir = .*cannot be written .*name a directory"),
        ({"state-dir": "~nobody-here/x"}, "state-dir = .*there is no such user here"),
        ({"resume": "~nobody-here/x"}, "resume = .*there is no such user here"),
    ],
)
def test_a_federation_that_cannot_begin(
    config: dict[str, Any], message: str, elsewhere: Path
) -> None:
    (elsewhere / "a-file").touch()
    config = {k: v.format(here=elsewhere) if isinstance(v, str) else v for k, v in config.items()}
    whole = {**SMALL, "output-dir": str(elsewhere / "runs"), **config}
    grid = InMemoryGrid(client_app.app, 4, run_config=whole)
    with pytest.raises(ConfigError, match=message):
        serve(grid, whole)
    assert everything_in(elsewhere) == ["a-file"]


# Data: copies of real files, damaged

PARQUET = {"femnist": "femnist-small", "pacs": "pacs-64", "camvid": "camvid-240x180"}


def png(width: int, height: int, colour: int = 0, mode: str = "L") -> bytes:
    file = BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


def missing(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def damaged_in_the_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1000:3000] = bytes(2000)
    file.write_bytes(content)


def a_folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


def another_kind_of_file(file: Path) -> None:
    file.write_bytes(pickle.dumps({"data": [1, 2, 3]}))


def with_column(name: str, make: Callable[[int], Any]) -> Callable[[Path], None]:
    """Put other values into a column of the first rows; the others are left out."""

    def damage(file: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        table = parquet.read_table(file).slice(0, 4)
        column = pyarrow.array([make(row) for row in range(len(table))])
        place = table.schema.get_field_index(name)
        parquet.write_table(table.set_column(place, name, column), file)

    damage.__name__ = f"{name} of another kind"
    return damage


def without_column(file: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns([table.schema.names[1]]), file)


def without_rows(file: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(parquet.read_table(file).slice(0, 0), file)


def image(content: bytes | None) -> dict[str, Any]:
    return {"bytes": content, "path": "x.png"}


CLAIMS_MUCH = png(28, 28).replace((28).to_bytes(4, "big") * 2, (100_000).to_bytes(4, "big") * 2, 1)
DATA: list[tuple[str, Callable[[Path], None], str]] = [
    ("femnist", missing, "train.parquet"),
    ("femnist", empty, r"train.parquet cannot be read .*; put the whole file there"),
    ("femnist", truncated, "train.parquet cannot be read"),
    ("femnist", damaged_in_the_middle, "train.parquet"),
    ("femnist", a_folder_in_its_place, "train.parquet cannot be read"),
    ("femnist", another_kind_of_file, "train.parquet cannot be read"),
    ("femnist", without_column, "has no column character .* Put the right file there"),
    ("femnist", without_rows, "in 0 rows. Put the right file there"),
    ("femnist", with_column("image", lambda _: "a/path.png"), "row 0: .*image holds no image"),
    ("femnist", with_column("image", lambda _: image(None)), "row 0: .*image holds no image"),
    ("femnist", with_column("image", lambda _: image(b"junk")), "row 0 cannot be read as an image"),
    ("femnist", with_column("image", lambda _: image(png(28, 28)[:45])), "row 0 cannot be read"),
    ("femnist", with_column("image", lambda _: image(png(27, 28))), "row 0 has 28x27 pixels, not"),
    ("femnist", with_column("image", lambda _: image(CLAIMS_MUCH)), "row 0 "),
    ("femnist", with_column("character", lambda _: 62), "character is not whole numbers from 0 to"),
    ("femnist", with_column("character", lambda _: "a"), "character is not whole numbers"),
    ("pacs", truncated, "train.parquet cannot be read"),
    ("pacs", with_column("label", lambda _: 7), "label is not whole numbers from 0 to 6"),
    ("pacs", with_column("domain", lambda row: None if row else "art"), "no column domain with a"),
    ("camvid", truncated, "train.parquet cannot be read"),
    ("camvid", with_column("mask", lambda _: image(png(240, 180, 12))), "mask with the value 12"),
    ("camvid", with_column("mask", lambda _: image(png(180, 240))), "row 0 has 240x180 pixels"),
    ("camvid", with_column("mask", lambda _: 3), "row 0: the column mask holds no image"),
]


@pytest.mark.parametrize(
    ("task", "damage", "message"), DATA, ids=[f"{t}-{d.__name__}" for t, d, _ in DATA]
)
def test_parquet(
    task: str, damage: Callable[[Path], None], message: str, shared_data: Path, elsewhere: Path
) -> None:
    folder = elsewhere / PARQUET[task]
    shutil.copytree(shared_data / folder.name, folder)
    damage(folder / "train.parquet")
    with pytest.raises(ConfigError, match=message):
        load_splits(get_task(task), elsewhere)


def test_a_command_with_damaged_data_leaves_nothing(
    shared_data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shared_data / "pacs-64", elsewhere / "data" / "pacs-64")
    truncated(elsewhere / "data" / "pacs-64" / "train.parquet")
    before = everything_in(elsewhere)
    code, said = command(capsys, "centralised", "task=pacs", "data-dir=data", "device=cpu")
    assert code == 1
    assert "train.parquet cannot be read" in said
    assert everything_in(elsewhere) == before


@pytest.mark.parametrize("damage", [missing, empty, truncated, another_kind_of_file])
def test_cifar10(damage: Callable[[Path], None], shared_data: Path, elsewhere: Path) -> None:
    """A file that is not the official one is not opened; fetching it anew fails without network."""
    name = "cifar-10-batches-py"
    (elsewhere / name).mkdir()
    for file in (shared_data / name).iterdir():
        (elsewhere / name / file.name).symlink_to(file)
    own = elsewhere / name / "data_batch_1"
    own.unlink()
    own.write_bytes(b"x" * 1000)
    damage(own)
    with pytest.raises(ConfigError, match=r"CIFAR-10 is not whole in .* put the folder cifar-10"):
        load_splits(get_task("cifar10"), elsewhere)


def official(folder: Path) -> Path:
    """Tiny-ImageNet's folders, with one image in each class."""
    whole = folder / "tiny-imagenet-200"
    for number in range(200):
        images = whole / "train" / f"n{number:08}" / "images"
        images.mkdir(parents=True)
        (images / "0.JPEG").write_bytes(png(64, 64, mode="RGB"))
    (whole / "val" / "images").mkdir(parents=True)
    (whole / "val" / "images" / "0.JPEG").write_bytes(png(64, 64, mode="RGB"))
    (whole / "val" / "val_annotations.txt").write_text("0.JPEG\tn00000000\t0\t0\t1\t1\n")
    return whole


TINY: list[tuple[str, Callable[[Path], object], str]] = [
    ("a class is missing", lambda f: shutil.rmtree(f / "train" / "n00000007"), "199 folders"),
    ("an image is missing", lambda f: missing(f / "train/n00000007/images/0.JPEG"), "0 images"),
    ("an image is empty", lambda f: empty(f / "train/n00000007/images/0.JPEG"), "as an image"),
    (
        "an image has another size",
        lambda f: (f / "train/n00000007/images/0.JPEG").write_bytes(png(32, 64, mode="RGB")),
        "has 64x32 pixels, not 64x64",
    ),
    ("no annotations", lambda f: missing(f / "val" / "val_annotations.txt"), "is not whole"),
    (
        "annotations in another code",
        lambda f: (f / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\x00"),
        "is not whole",
    ),
    (
        "annotations of another class",
        lambda f: (f / "val" / "val_annotations.txt").write_text("0.JPEG\tdog\n"),
        "line 1, has 'dog' where a class should be",
    ),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in TINY], ids=[r[0] for r in TINY])
def test_tiny_imagenet(damage: Callable[[Path], object], message: str, elsewhere: Path) -> None:
    damage(official(elsewhere))
    with pytest.raises(ConfigError, match=message):
        load_splits(get_task("tiny-imagenet"), elsewhere)


OWN = """
import torch
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.digits import TASK as DIGITS
from dataclasses import replace

def load(data_dir):
    images, targets = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    {body}

TASK = replace(DIGITS, name={name!r}, load=load)
"""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "mine",
            "return open('nowhere.csv')",
            r"mine cannot be loaded \(FileNotFoundError: .*now",
        ),
        ("mine", "return images, targets", "of task mine is a tuple, not a pair of Splits"),
        ("mine", "return None", "of task mine is a NoneType, not a pair of Splits"),
        ("mine", "return (Split(images, targets + 7),) * 2", "has classes 7 to 10, and the task"),
        ("mine", "return (Split(images, targets[:3]),) * 2", "has 4 images and 3 targets"),
        ("mine", "return (Split(images[:0], targets[:0]),) * 2", "has 0 images and 0 targets"),
        ("../mine", "return None", "has the name '../mine', but run folders are called so"),
        ("mine", "return (", r"cannot be imported \(SyntaxError"),
    ],
)
def test_own_task(
    name: str,
    body: str,
    message: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (elsewhere / "a_bad_task.py").write_text(OWN.format(name=name, body=body))
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "a_bad_task", raising=False)
    code, said = command(capsys, "centralised", "task=a_bad_task:TASK", "device=cpu")
    assert code == 1
    assert re.search(message, said), said
    assert everything_in(elsewhere) == ["a_bad_task.py"]


def test_the_table_is_as_long_as_promised() -> None:
    assert len(CONFIG) + len(DATA) + len(TINY) >= 40
    assert Settings().output_dir == ""  # what the rows above rely on
