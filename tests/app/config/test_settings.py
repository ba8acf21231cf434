"""The run config: each mistake results in one line with the remedy; derived values are exact."""

import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app.config.key_table import key_table
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError

# The tests below do not depend on the app's defaults.
BASE: dict[str, Any] = {
    "num-server-rounds": 40,
    "freeze-after": 0.5,
    "local-steps": 1,
    "local-epochs": 0,
    "learning-rate-factor": 0.1,
}


def made(run_config: dict[str, Any]) -> Settings:
    return Settings.from_run_config(BASE | run_config)


BAD: list[tuple[dict[str, Any], str]] = [
    # unknown keys and words
    ({"batch_size": 8}, "batch_size = 8: unknown key; did you mean batch-size?"),
    ({"learning-rat": 0.1}, "learning-rat = 0.1: unknown key; did you mean learning-rate?"),
    ({"zzz": 1}, "zzz = 1: unknown key; use one of the keys below"),
    ({"task": "digit"}, 'task = "digit": unknown word; did you mean digits?'),
    ({"task": "mnist"}, 'task = "mnist": unknown word; did you mean femnist?'),
    ({"task": "audio"}, "unknown word; use one of digits, cifar10"),
    ({"task": "audio"}, ", package.module:NAME for your own"),
    ({"task": "no_such:TASK"}, 'task = "no_such:TASK": no_such:TASK cannot be imported (Module'),
    ({"partition": "naturel"}, "did you mean natural?"),
    ({"model": "smal-resnet"}, "no model of task digits; did you mean small-resnet?"),
    ({"task": "cifar10", "model": "small-resnet"}, "no model of task cifar10"),
    ({"model": "timm:resnet10x"}, 'model = "timm:resnet10x": which timm'),
    ({"model": "torchvision:resnet"}, "use a name such as resnet101, resnet152, resnet18"),
    ({"model": "keras:resnet"}, "no library 'keras': use timm:NAME or torchvision:NAME"),
    (
        {"task": "camvid", "model": "timm:resnet18", "partition": "iid"},
        "whole images, but this task has a class for",
    ),
    # tasks for any data
    ({"task": "hf:"}, "write the name of a data set after the colon, such as hf:ylecun/mnist"),
    ({"image-size": 64}, "image-size = 64: task digits has its own; leave it out, or use"),
    ({"augmentation": "none"}, 'augmentation = "none": task digits has its own'),
    ({"task": "folder", "label-column": "y"}, 'label-column = "y": task folder has no columns'),
    ({"group-column": "writer"}, 'group-column = "writer": task digits has no columns'),
    ({"class-weights": "balance"}, "did you mean balanced?"),
    ({"norm": "BN"}, 'norm = "BN": unknown word; did you mean bn?'),
    ({"norm": "batch"}, "use one of bn, gn, ln, in, none, gn8 for 8 groups instead of 2, or"),
    ({"norm": "gn0"}, 'norm = "gn0": unknown word; did you mean gn?'),
    ({"norm": 8}, "norm = 8: must be text; use one of bn, gn"),
    ({"partition": "dirichelet"}, "did you mean dirichlet?"),
    ({"momentum": "lokal"}, "did you mean local?"),
    ({"statistics": "median"}, "unknown word; did you mean mean?"),
    ({"learning-rate-schedule": "cosin"}, "did you mean cosine?"),
    ({"precision": "float16"}, "did you mean bfloat16?"),
    ({"device": "gpu"}, 'device = "gpu": unknown device; use auto, cpu, cuda, or such as cuda:1'),
    ({"device": "cuda:"}, "unknown device"),
    ({"device": "cuda:0\n"}, "unknown device"),
    # types
    ({"batch-size": 10.0}, "batch-size = 10.0: must be a whole number; write 10"),
    ({"batch-size": 10.5}, "must be a whole number; round it"),
    ({"batch-size": "16"}, "must be a whole number; write it in digits, without quotes"),
    ({"batch-size": True}, "batch-size = true: must be a whole number"),
    ({"learning-rate": "0.1"}, "must be a number; write it in digits, without quotes"),
    ({"learning-rate": True}, "learning-rate = true: must be a number"),
    (
        {"freeze-after": True},
        'freeze-after = true: must be a number, or "auto"; write it in digits',
    ),
    ({"freeze-after": "never"}, 'freeze-after = "never": must be a number, or "auto"; write it'),
    ({"learning-rate-factor": "0.1"}, 'must be a number, or "auto"; write it in digits, without'),
    ({"learning-rate": "auto"}, 'learning-rate = "auto": must be a number; write it in digits'),
    ({"freeze-after": "auto", "norm": "gn"}, 'freeze-after = "auto": norm gn has no running'),
    ({"task": 1}, "task = 1: must be text; use one of digits, cifar10"),
    ({"run-name": 1}, "run-name = 1: must be text; write it in quotes"),
    # finite
    ({"learning-rate": math.nan}, "learning-rate = NaN: must be finite"),
    ({"weight-decay": math.inf}, "weight-decay = Infinity: must be finite"),
    ({"freeze-after": math.nan}, "must be finite"),
    ({"learning-rate": 10**400}, "must be finite"),
    # bounds
    ({"batch-size": 0}, "batch-size = 0: out of bounds; use a number at least 1"),
    ({"num-server-rounds": 0}, "use a number at least 1"),
    ({"evaluate-every": -1}, "use a number at least 0"),
    ({"evaluate-clients-every": 0}, "use a number at least 1"),
    ({"validation-share": 1.0}, "use a number at least 0 and below 1"),
    (
        {"patience": 5},
        "patience = 5: ends a run by its validation accuracy, but no client holds "
        "out images to validate on; set validation-share, such as 0.1",
    ),
    (
        {"evaluate-clients-every": 5},
        "evaluate-clients-every = 5: is an interval of validations, but no client holds out images",
    ),
    ({"partition-alpha": 0}, "partition-alpha = 0: out of bounds; use a number above 0"),
    ({"partition-classes": 0}, "use a number at least 1"),
    (
        {"partition-classes": 11},
        "partition-classes = 11: task digits has 10 classes; use at most 10",
    ),
    ({"fraction-train": 0.0}, "use a number above 0 and at most 1"),
    ({"fraction-train": 1.01}, "use a number above 0 and at most 1"),
    ({"learning-rate": 0.0}, "use a number above 0"),
    ({"learning-rate-factor": 0.0}, "use a number above 0"),
    ({"weight-decay": -0.1}, "use a number at least 0"),
    ({"momentum-coefficient": 1.0}, "use a number at least 0 and below 1"),
    ({"momentum-coefficient": -0.1}, "use a number at least 0 and below 1"),
    ({"seed": -1}, "use a number at least 0 and at most 4294967295"),
    ({"seed": 2**32}, "use a number at least 0 and at most 4294967295"),
    ({"local-steps": -1, "local-epochs": 1}, "local-steps = -1: out of bounds"),
    # T*
    ({"freeze-after": 0}, "out of bounds; use a number above 0"),
    ({"freeze-after": 0.0}, "out of bounds; use a number above 0"),
    ({"freeze-after": -1}, "out of bounds; use a number above 0"),
    ({"freeze-after": 41}, "T* is beyond the last of 40 rounds; use at most 40"),
    ({"freeze-after": 2.0}, "a share of the rounds is at most 1.0; for a number of rounds, write"),
    ({"freeze-after": 0.99}, "this share leaves none of 40 rounds for calibration"),
    ({"num-server-rounds": 1}, "this share leaves none of 1 rounds for calibration"),
    ({"norm": "gn"}, "freeze-after = 0.5: norm gn has no running statistics to freeze; write "),
    ({"norm": "gn", "freeze-after": 1}, "freeze-after = 1: norm gn has no running statistics"),
    ({"norm": "gn8"}, "freeze-after = 0.5: norm gn8 has no running statistics to freeze"),
    ({"norm": "none", "freeze-after": 40}, "norm none has no running statistics"),
    # keys that go together
    (
        {"local-epochs": 2},
        "local-steps = 1: local-epochs = 2 is set as well; set one of the two to",
    ),
    ({"local-steps": 0}, "local-steps = 0: local-epochs is 0 as well, so nothing trains"),
    ({"momentum-coefficient": 0}, 'leaves no buffers to keep; write momentum="reset"'),
    ({"momentum": "global", "momentum-coefficient": 0.0}, 'momentum = "global": '),
    # paths
    ({"data-dir": "/no/such/place"}, "there is no directory /no/such/place; create it"),
    ({"data-dir": __file__}, "there is no directory /"),
    ({"run-name": "../up"}, 'run-name = "../up": is not a folder name; use letters, digits'),
    ({"run-name": "a/b"}, "is not a folder name"),
    ({"run-name": ".hidden"}, "is not a folder name"),
    ({"run-name": "a..b"}, "is not a folder name"),
    ({"run-name": "a b"}, "is not a folder name"),
    ({"run-name": "name\n"}, "is not a folder name"),
]


@pytest.mark.parametrize(("run_config", "fragment"), BAD)
def test_a_bad_config_fails_with_one_line_and_the_remedy(
    run_config: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(run_config)
    first, *problems = str(caught.value).splitlines()
    assert first == "the run config cannot be used:"
    assert problems[0].startswith("  ")
    assert not problems[1:] or problems[1].startswith("  The keys are task, data-dir, ")
    assert fragment in problems[0]


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made({"norm": "BN", "freeze-after": 41, "x": 1, "batch-size": 0})
    problems = str(caught.value).partition("  The keys are ")[0].splitlines()[1:]
    keys = [line.split(" = ")[0].strip() for line in problems]
    assert keys == ["norm", "x", "batch-size", "freeze-after"]


def test_a_wrong_value_is_reported_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made({"task": "digit", "model": "anything", "partition-classes": 99})
    assert len(str(caught.value).splitlines()) == 2


def test_missing_keys_get_the_defaults_and_the_tasks_model() -> None:
    settings = Settings.from_run_config({})
    assert settings == Settings(model="small-resnet")
    assert Settings.from_run_config({"task": "cifar10"}).model == "resnet20"


def test_a_users_own_task_has_its_own_models_and_name() -> None:
    own = "fixbn_flwr.tasks.cifar10:TASK"
    settings = made({"task": own})
    assert (settings.task, settings.task_name, settings.model) == (own, "cifar10", "resnet20")
    with pytest.raises(ConfigError, match=f"no model of task {own}; use one of resnet20"):
        made({"task": own, "model": "vgg"})


def test_a_saved_config_gives_the_same_settings(tmp_path: Path) -> None:
    given = {
        "data-dir": str(tmp_path), "freeze-after": 3, "num-server-rounds": 9, "device": "cuda:1",
        "run-name": "Run_1.a-b", "momentum": "reset", "momentum-coefficient": 0, "seed": 2**32 - 1,
    }  # fmt: skip
    settings = made(given)
    saved = settings.as_run_config()
    assert saved["freeze-after"] == 3
    assert {key: saved[key] for key in given} == given
    assert Settings.from_run_config(saved) == settings


def test_an_int_becomes_a_float_except_in_freeze_after() -> None:
    settings = made({"learning-rate": 1, "freeze-after": 1})
    assert (type(settings.learning_rate), settings.learning_rate) == (float, 1.0)
    assert (type(settings.freeze_after), settings.freeze_round) == (int, 1)
    assert made({"freeze-after": 1.0}).freeze_round == 40


@pytest.mark.parametrize(
    ("run_config", "freeze_round", "method"),
    [
        ({}, 20, "FixBN"),
        ({"freeze-after": 1}, 1, "FixBN"),
        ({"freeze-after": 39}, 39, "FixBN"),
        ({"freeze-after": 40}, 40, "BN"),
        ({"freeze-after": 1.0}, 40, "BN"),
        ({"freeze-after": 0.01}, 1, "FixBN"),
        ({"freeze-after": 0.25, "num-server-rounds": 10}, 3, "FixBN"),
        ({"freeze-after": 1.0, "norm": "gn"}, 40, "GN"),
        ({"freeze-after": 1.0, "norm": "gn8"}, 40, "GN8"),
        ({"freeze-after": 1.0, "norm": "ln"}, 40, "LN"),
        ({"freeze-after": 1.0, "norm": "in"}, 40, "IN"),
        ({"freeze-after": 1.0, "norm": "none"}, 40, "no norm"),
    ],
)
def test_the_config_determines_freeze_round_and_method(
    run_config: dict[str, Any], freeze_round: int, method: str
) -> None:
    settings = made(run_config)
    assert (settings.freeze_round, settings.method) == (freeze_round, method)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.8] * 8),
        ("step", [0.8] * 6 + [0.08] * 2),
        # 0.4 (1 + cos(pi k / 8)), k = 0 .. 7
        ("cosine", [0.8, 0.7695518, 0.6828427, 0.5530734, 0.4, 0.2469266, 0.1171573, 0.0304482]),
    ],
)
def test_each_round_has_the_scheduled_learning_rate(schedule: str, rates: list[float]) -> None:
    settings = made(
        {"learning-rate": 0.8, "learning-rate-schedule": schedule, "num-server-rounds": 8}
    )
    rounds = range(1, 9)
    assert [settings.learning_rate_at(t) for t in rounds] == pytest.approx(rates, abs=1e-7)


def test_numbers_may_be_left_to_the_run() -> None:
    settings = made({"freeze-after": "auto", "learning-rate-factor": "auto"})
    assert (settings.freeze_after, settings.learning_rate_factor) == ("auto", "auto")
    assert (settings.freeze_round, settings.method) == (40, "FixBN")  # not decided yet
    assert settings.may_freeze
    assert not made({"freeze-after": 1.0}).may_freeze


@pytest.mark.parametrize(
    ("fraction", "clients", "expected"),
    [(1.0, 10, 10), (0.5, 10, 5), (0.01, 10, 1), (0.25, 3, 1), (0.3, 9, 3), (0.01, 1000, 10)],
)
def test_clients_per_round_are_a_rounded_fraction_of_at_least_one(
    fraction: float, clients: int, expected: int
) -> None:
    settings = made({"fraction-train": fraction})
    assert settings.clients_per_round(clients) == expected


def test_t_star_and_the_last_round_are_always_evaluated() -> None:
    settings = made({"evaluate-every": 4, "num-server-rounds": 10, "freeze-after": 5})
    assert [t for t in range(11) if settings.evaluates(t)] == [0, 4, 5, 8, 10]


def test_a_server_without_data_tests_no_round() -> None:
    settings = made({"evaluate-every": 0, "num-server-rounds": 10})
    assert not any(settings.evaluates(t) for t in range(11))


def test_clients_validate_at_their_interval_and_in_the_last_round() -> None:
    config = {"evaluate-clients-every": 4, "num-server-rounds": 10}
    settings = made({**config, "validation-share": 0.1})
    assert [t for t in range(1, 11) if settings.validates(t)] == [4, 8, 10]
    assert not any(made({}).validates(t) for t in range(41))


@pytest.mark.parametrize(
    ("freeze_after", "best", "ends"),
    [(5, 3, 7), (5, 6, 8), (1.0, 3, 5), (5, 9, None), ("auto", 1, None)],
    ids=["counted from T*", "counted from the best round", "BN", "too late", "T* is open"],
)
def test_patience_counts_rounds_without_a_better_accuracy(
    freeze_after: int | float | str, best: int, ends: int | None
) -> None:
    settings = made(
        {
            "patience": 2, "num-server-rounds": 10, "freeze-after": freeze_after,
            "validation-share": 0.1,
        }
    )  # fmt: skip
    out = [t for t in range(best, 11) if settings.is_out_of_patience(t, best)]
    assert (out[0] if out else None) == ends
    assert not made({}).is_out_of_patience(40, 1)


def test_images_that_are_held_out_do_not_fill_a_batch() -> None:
    settings = made({"batch-size": 8, "validation-share": 0.3})
    with pytest.raises(ConfigError) as caught:
        settings.check_partitions([9, 7])
    assert str(caught.value) == (
        "batch-size = 8: client 1 of 2 holds 7 images besides those that it holds out, fewer than "
        "one batch; use batch-size=7 or less, or fewer clients, or a smaller validation-share"
    )


def test_a_batch_as_large_as_the_smallest_client_is_allowed() -> None:
    made({"batch-size": 8}).check_partitions([9, 8, 10])


@pytest.mark.parametrize(
    ("run_config", "sizes", "message"),
    [
        (
            {"batch-size": 9},
            [9, 8, 10],
            "batch-size = 9: client 1 of 3 holds 8 images, fewer than one batch; "
            "use batch-size=8 or less, or fewer clients",
        ),
        (
            {"batch-size": 9, "partition": "dirichlet"},
            [9, 10, 0],
            "batch-size = 9: client 2 of 3 holds 0 images, fewer than one batch; "
            "use fewer clients, or a larger partition-alpha",
        ),
    ],
)
def test_a_batch_larger_than_the_smallest_client_is_refused(
    run_config: dict[str, Any], sizes: list[int], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(run_config).check_partitions(sizes)
    assert str(caught.value) == message


def test_the_table_has_a_complete_row_for_each_key() -> None:
    rows = key_table().splitlines()
    assert rows[0] == "| key | default | unit | meaning |"
    assert [row.split("`")[1] for row in rows[2:]] == list(Settings().as_run_config())
    assert {row.count("|") for row in rows} == {5}
    assert (
        "| `seed` | `0` |  | seed of all random choices (at least 0 and at most 4294967295) |"
        in rows
    )
    assert rows[2].endswith("`, or `package.module:NAME` for your own) |")
    norm = next(row for row in rows if row.startswith("| `norm` "))
    assert norm.endswith(
        ", `none`, or `gn8` for 8 groups instead of 2, or another number of them) |"
    )
    assert (
        '| `statistics` | `"mean"` |  | how the clients\' variances are averaged '
        "(one of `mean`, `pooled`) |"
    ) in rows


def test_reading_a_config_imports_neither_ray_nor_matplotlib_nor_sklearn() -> None:
    code = (
        "import sys; from fixbn_flwr.app.config.settings import Settings; "
        "Settings.from_run_config({});"
        "print([name for name in ('ray', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_the_defaults_of_flwr_run_are_those_of_the_code_in_value_and_type() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    written: dict[str, Any] = project["tool"]["flwr"]["app"]["config"]
    typed = {key: (type(value), value) for key, value in written.items()}
    assert list(typed.items()) == [
        (key, (type(value), value)) for key, value in Settings().as_run_config().items()
    ]
