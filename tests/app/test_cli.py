"""The command line: the run config it passes on, its output and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fixbn_flwr.app import cli
from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.overrides import key_and_value, read_settings
from fixbn_flwr.errors import ConfigError, FixBNError
from tests.support.whole_app import run_app

RAY = ("--engine", "ray")


class Link:
    """A stand-in for a SuperLink: records each run, and returns a given log and failure."""

    def __init__(self) -> None:
        self.runs: list[tuple[Path, Mapping[str, Value], Mapping[str, Value]]] = []
        self.log: list[str] = []
        self.failure: str | None = None

    def run(
        self,
        app: Path,
        run_config: Mapping[str, Value],
        federation: Mapping[str, Value],
        show: Callable[[str], None],
    ) -> str | None:
        project = tomllib.loads((app / "pyproject.toml").read_text())
        assert run_config.keys() <= project["tool"]["flwr"]["app"]["config"].keys()
        self.runs.append((app, run_config, federation))
        for line in self.log:
            show(line)
        return self.failure


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Link:
    link = Link()

    @contextmanager
    def local_superlink() -> Iterator[Link]:
        yield link

    monkeypatch.setattr("fixbn_flwr.app.local_superlink.local_superlink", local_superlink)
    monkeypatch.chdir(tmp_path)
    return link


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli.cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def recorded_run(link: Link) -> tuple[dict[str, Value], dict[str, Value]]:
    ((_, run_config, federation),) = link.runs
    return dict(run_config), dict(federation)


def test_run_passes_on_changed_values_and_the_output_folder(
    link: Link, tmp_path: Path, shared_data: Path
) -> None:
    data = f"data-dir={shared_data / 'femnist-small'}"
    words = ("task=femnist", data, "seed=7", "norm=bn", "--clients=3", "--workers=2")
    invoke("run", *RAY, *words)
    run_config, federation = recorded_run(link)
    name = str(run_config.pop("run-name"))
    assert name.endswith("-femnist-FixBN")
    assert run_config == {
        "task": "femnist",
        "data-dir": str(shared_data / "femnist-small"),
        "model": "small-resnet",
        "seed": 7,
        "output-dir": str(tmp_path / "runs"),
    }
    assert federation == {
        "num-supernodes": 3,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": 2,
    }


def test_paths_become_absolute(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    invoke("run", *RAY, "output-dir=out", "data-dir=data", "state-dir=~/state", "run-name=mine")
    run_config, _ = recorded_run(link)
    assert run_config["output-dir"] == str(tmp_path / "out")
    assert run_config["data-dir"] == str(tmp_path / "data")
    assert run_config["state-dir"] == str(tmp_path / "home" / "state")
    assert run_config["run-name"] == "mine"


def test_the_path_of_pretrained_weights_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    assert read_settings(["pretrained=weights.pth"]).pretrained == str(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("words", "task"),
    [
        (["task=hf:./own"], "hf:{here}/own"),
        (["task=hf:./own:small"], "hf:{here}/own:small"),
        (["task=hf:../own"], "hf:{here}/../own"),
        (["task=hf:~/own"], "hf:{here}/home/own"),
        (["task=hf:owner/own"], "hf:owner/own"),
        (["task=hf:./own", "data-dir=."], "hf:./own"),
    ],
)
def test_the_path_of_a_data_set_becomes_absolute(
    words: list[str], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read_settings(words).task == task.format(here=tmp_path)


@pytest.mark.parametrize("words", [[], ["output-dir="]])
def test_the_default_output_dir_is_runs_in_the_working_directory(
    words: list[str], link: Link, tmp_path: Path
) -> None:
    invoke("run", *RAY, *words)
    run_config, _ = recorded_run(link)
    assert run_config["output-dir"] == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("freeze-after=3", "freeze-after", 3),
        ("freeze-after=1.0", "freeze-after", 1.0),
        ("learning-rate=.5", "learning-rate", 0.5),
        ("learning-rate=1e-3", "learning-rate", 1e-3),
        ("momentum=global", "momentum", "global"),
        ('momentum="global"', "momentum", "global"),
        ("run-name=2026", "run-name", "2026"),
        ("run-name=.5", "run-name", ".5"),
        ("run-name=true", "run-name", "true"),
        ("run-name=a=b", "run-name", "a=b"),
        ("data-dir=/a path/with = in it", "data-dir", "/a path/with = in it"),
    ],
)
def test_values_get_the_type_of_their_key(argument: str, key: str, value: object) -> None:
    read = key_and_value(argument, Settings().as_run_config())
    assert read == (key, value)
    assert type(read[1]) is type(value)


@pytest.mark.parametrize("argument", ["task", "", "--clients 3"])
def test_an_argument_without_equals_sign_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match="is not a setting: write KEY=VALUE, such as task=cifar"):
        key_and_value(argument, Settings().as_run_config())


def test_all_mistakes_are_in_one_message_and_nothing_starts(link: Link) -> None:
    with pytest.raises(ConfigError) as caught:
        invoke("run", *RAY, "tsak=digits", "batch-size=x", "norm=GN", "data-dir=/no/such/place")
    problems, _, keys = str(caught.value).partition("\n  The keys are ")
    assert problems == (
        "the run config cannot be used:\n"
        '  tsak = "digits": unknown key; did you mean task?\n'
        '  batch-size = "x": must be a whole number; write it in digits, without quotes\n'
        '  norm = "GN": unknown word; did you mean gn? If not, use one of bn, ln, in, none, gn8 '
        "for 8 groups instead of 2, or another number of them\n"
        '  data-dir = "/no/such/place": there is no directory /no/such/place; create it, or write '
        "the absolute path of an existing one"
    )
    assert " ".join(keys.split()).rstrip(".").split(", ") == list(Settings().as_run_config())
    assert max(map(len, keys.splitlines())) <= 80
    assert link.runs == []


FLOWER = [
    "Successfully started run 1",
    "\x1b[92mINFO \x1b[0m:      Starting Flower Simulation",
    "\x1b[93mWARNING \x1b[0m:   Since flwr 1.32, default simulated SuperNodes changed to 2.",
    "\x1b[93mWARNING \x1b[0m:   fraction_evaluate is set to 0.0. Federated evaluation is skipped.",
    "round 1/2  exploration",
    "\x1b[93mWARNING \x1b[0m:   round 2: reply dropped, client 5: it failed",
    "\x1b[91mERROR \x1b[0m:     An exception was raised when processing a message by RayBackend",
    "Traceback (most recent call last):",
    '  File "x.py", line 1, in f',
    "fixbn_flwr.errors.ConfigError: what is wrong",
    "\x1b[92mINFO \x1b[0m:      aggregate_train: Received 1 results and 1 failures",
    "round 2/2  calibration",
    "\x1b[36m(ClientAppActor pid=1)\x1b[0m \x1b[93mWARNING \x1b[0m:   Manually terminating "
    "ClientAppActor",
    "\x1b[36m(ClientAppActor pid=1)\x1b[0m \x1b[93mWARNING \x1b[0m:   kept momentum dropped",
]


def test_the_output_is_the_apps_lines_and_real_warnings(link: Link) -> None:
    link.log = FLOWER
    assert invoke("run", *RAY).splitlines() == [
        FLOWER[0],
        FLOWER[4],
        FLOWER[5],
        FLOWER[11],
        FLOWER[13],
    ]


def test_a_fixbn_error_is_printed_without_traceback(
    link: Link, capsys: pytest.CaptureFixture[str]
) -> None:
    link.log = [*FLOWER[6:10], "\x1b[91mERROR \x1b[0m:     what is wrong", "  and its second line"]
    link.failure = "what is wrong\n  and its second line"
    with pytest.raises(FixBNError) as caught:
        invoke("run", *RAY)
    assert str(caught.value) == "the run failed: what is wrong\n  and its second line"
    assert capsys.readouterr().out == ""


def test_another_error_is_printed_with_its_traceback(link: Link) -> None:
    link.log = [*FLOWER[6:9], "ZeroDivisionError: division by zero"]
    link.failure = "division by zero"
    result = CliRunner().invoke(cli.cli, ["run", *RAY])
    assert str(result.exception) == "the run failed: division by zero"
    assert result.output.splitlines()[-4:] == link.log


def test_compare_runs_both_methods_and_draws_them_in_one_figure(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(app: Path, run_config: Any, federation: Any, show: Any) -> None:
        """Run the app in this process."""
        link.runs.append((app, run_config, federation))
        folder = tmp_path / "elsewhere" / str(len(link.runs))
        made = run_app(folder, 2, {**run_config, "output-dir": str(folder)})
        made.rename(tmp_path / "runs" / made.name)

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(link, "run", run)
    output = invoke(
        "compare", *RAY, "num-server-rounds=3", "freeze-after=2", "run-name=mine", "--clients=2"
    )
    first, second = (config for _, config, _ in link.runs)
    assert (first["freeze-after"], second["freeze-after"]) == (2, 1.0)
    differing = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert differing == {"freeze-after", "run-name"}
    assert (tmp_path / "runs" / "mine" / "beside-BN.png").is_file()
    table = output.partition("FixBN beside plain BN, the same config and seed:")[2]
    assert [line.split()[1] for line in table.splitlines()[-5:-3]] == ["FixBN", "BN"]
    assert output.splitlines()[-1].startswith("Too short to judge: 1 rounds after T*")


def test_centralised_training_needs_no_superlink(link: Link, tmp_path: Path) -> None:
    output = invoke("centralised", "num-server-rounds=2", "freeze-after=1", "--clients=4")
    assert link.runs == []
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-digits-centralised")
    assert output.splitlines()[0] == f"Run folder: {folder}"


@pytest.mark.parametrize(
    ("arguments", "method"),
    [(["freeze-after=1.0"], "BN"), (["norm=gn", "freeze-after=1.0"], "GN")],
)
def test_compare_refuses_settings_that_are_not_fixbn(
    link: Link, arguments: list[str], method: str
) -> None:
    with pytest.raises(ConfigError, match=f"the method of these settings is {method}, not FixBN"):
        invoke("compare", *RAY, *arguments)
    assert link.runs == []


def test_the_ray_engine_without_ray_says_what_to_install(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixbn_flwr.app.ray_run.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"Ray is not installed.*fixbn-flwr\[app,simulation\]"):
        invoke("run", *RAY)
    assert link.runs == []


@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_help_lists_the_keys_of_the_run_config(command: str) -> None:
    words = invoke(command, "--help").split()
    for key, default in Settings().as_run_config().items():
        assert any(word.startswith(f"{key}={json.dumps(default)[:4]}") for word in words), key


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    names = {read_settings([f"output-dir={tmp_path}"]).run_name for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}-digits-FixBN", name) for name in names)


def test_new_says_where_the_task_is_and_how_to_run_it(tmp_path: Path) -> None:
    folder = tmp_path / "two words" / "my-app"
    lines = invoke("new", str(folder)).splitlines()
    assert lines[0] == f"Your task: {folder / 'my_app' / 'task.py'}"
    assert lines[1] == f"Run it:    fixbn simulate '{folder}'"
    federation = '"num-supernodes=10 client-resources-num-cpus=1"'
    assert lines[-1].endswith(f"flwr run '{folder}' --stream --federation-config {federation}")


def test_python_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "fixbn_flwr", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == invoke(
        "--version"
    )


def test_the_help_explains_the_arguments_of_a_command() -> None:
    assert "FOLDER  The run folder." in invoke("delete", "--help")


def test_help_does_not_rewrap_its_examples() -> None:
    output = invoke("--help")
    assert cli.__doc__
    for line in cli.__doc__.splitlines():
        if line.startswith("fixbn "):
            assert f"  {line}\n" in output


def test_an_error_is_a_message_and_exit_code_1(tmp_path: Path) -> None:
    """Run the installed program in its own process."""
    program = Path(sys.executable).parent / "fixbn"
    result = subprocess.run(
        [str(program), "run", "seed=x"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "Error: the run config cannot be used:\n"
        '  seed = "x": must be a whole number; write it in digits, without quotes\n'
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["clients=5", "workers=2", "engine=ray"])
def test_an_option_written_as_a_key_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"write --{option.replace('=', ' ')}\."):
        invoke("run", option)


def test_the_version_is_printed() -> None:
    assert re.fullmatch(r"fixbn-flwr \d+\.\d+\.\d+\n", invoke("--version"))


def test_delete_checks_the_folder_before_it_asks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        invoke("delete", str(tmp_path / "nothing"))
