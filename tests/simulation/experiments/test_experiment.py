"""Experiments in TOML: all files are valid, and what runs they have."""

import pytest

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from simulation.experiments.experiment import SEARCH_SEED, Experiment, Scale, names
from simulation.experiments.planned_run import Run

COMMON = """
[base]
batch-size = 4
[methods.BN]
freeze-after = 1.0
[methods.FixBN]
freeze-after = 0.5
[methods.half]
freeze-after = 1.0
length = 0.5
[methods.centralised]
central = true
[axes.steps]
"1" = { local-steps = 1 }
"4" = { local-steps = 4 }
[axes.clients]
all = {}
many = { clients-times = 5, fraction-train = 0.2 }
[scales.smoke]
seeds = [0, 1]
clients = 3
local-steps-in-all = 16
search-share = 0.5
search-axes = []
evaluations = 4
learning-rates = [0.1, 0.2]
config = { weight-decay = 0.0 }
"""
GRID = """
title = "?"
[grids.main]
axes = {axes}
methods = {methods}
[grids.main.view]
kind = "points"
title = "?"
x = "steps"
x_label = ""
"""


def experiment(folder, axes, methods, more="") -> Experiment:
    (folder / "common.toml").write_text(COMMON)
    (folder / "it.toml").write_text(GRID.format(axes=axes, methods=methods) + more)
    return Experiment("it", Scale.SMOKE, folder)


def rate(method, setting):
    return 0.25


def searches_of(made: Experiment) -> list[Run]:
    """The first runs of the search."""
    return [
        made.search(method, setting, tried)
        for method, setting in made.searched_places()
        for tried in made.first_rates
    ]


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("name", names())
def test_every_experiment_has_runs_at_every_scale(name, scale):
    made = Experiment(name, scale)
    searches = searches_of(made)
    results = made.results(rate)

    assert {run.grid for run in results} == set(made.grids)
    # Each combination of method, setting and seed is one run.
    places = [(run.grid, run.method, str(run.setting), run.seed) for run in results]
    assert len(set(places)) == len(places)
    of_grid: dict[str, set[str]] = {}
    for run in results:
        assert run.id not in of_grid.setdefault(run.grid, set())
        of_grid[run.grid].add(run.id)
    assert not {run.id for run in searches} & {run.id for run in results}


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("name", names())
def test_the_learning_rate_depends_on_neither_method_nor_freeze_round(name, scale):
    made = Experiment(name, scale)
    for runs in (searches_of(made), made.outline()):
        courses: dict[tuple[str, ...], list[list[float]]] = {}
        for run in runs:
            settings = Settings.from_run_config(run.run_config)
            if run.grid == "factor" or settings.learning_rate_factor == "auto":
                continue  # the factor is what is compared
            first = settings.learning_rate
            course = [rate_of(settings, r + 1) / first for r in range(run.rounds)]
            where = (str(first), str(run.seed), str(run.rounds), *map(str, run.setting.values()))
            courses.setdefault(where, []).append(course)
        for found in courses.values():
            assert all(course == pytest.approx(found[0]) for course in found)


def rate_of(settings, server_round):
    factor = settings.learning_rate_factor if server_round > settings.freeze_round else 1.0
    return settings.learning_rate_at(server_round) * factor


def test_there_are_twelve_experiments():
    assert names() == [
        "clients", "feature-shift", "freeze-after", "freeze-rule", "frequency", "gradients", "map",
        "momentum", "normalisers", "segmentation", "tiny-imagenet", "when-to-use",
    ]  # fmt: skip


def test_runs_are_all_methods_and_settings_seed_by_seed(tmp_path):
    runs = experiment(tmp_path, ["steps"], ["BN", "FixBN"]).results(rate)

    assert [(run.seed, run.setting["steps"], run.method) for run in runs] == [
        (0, "1", "BN"), (0, "1", "FixBN"), (0, "4", "BN"), (0, "4", "FixBN"),
        (1, "1", "BN"), (1, "1", "FixBN"), (1, "4", "BN"), (1, "4", "FixBN"),
    ]  # fmt: skip


def test_the_total_of_local_steps_is_divided_into_rounds(tmp_path):
    once, four = experiment(tmp_path, ["steps"], ["BN"]).results(rate)[:2]

    assert (once.rounds, once.run_config["evaluate-every"]) == (16, 4)
    assert (four.rounds, four.run_config["evaluate-every"]) == (4, 1)
    assert once.work == four.work == 16 * 3
    assert once.run_config["weight-decay"] == 0.0
    assert once.run_config["batch-size"] == 4
    assert once.run_config["learning-rate"] == 0.25


def test_a_method_can_be_shorter(tmp_path):
    runs = experiment(tmp_path, ["steps"], ["BN", "half"]).results(rate)

    assert [run.rounds for run in runs[:4]] == [16, 8, 4, 2]


def test_an_axis_can_have_more_clients_with_the_same_number_per_round(tmp_path):
    few, many = experiment(tmp_path, ["clients"], ["BN"]).results(rate)[:2]

    assert (few.clients, many.clients) == (3, 15)
    assert few.work == many.work


def test_a_search_is_short_and_held_out_with_one_per_method(tmp_path):
    searches = searches_of(experiment(tmp_path, ["steps"], ["BN", "centralised"]))

    assert [(run.method, run.run_config["learning-rate"]) for run in searches] == [
        ("BN", 0.1), ("BN", 0.2), ("centralised", 0.1), ("centralised", 0.2),
    ]  # fmt: skip
    assert {run.seed for run in searches} == {SEARCH_SEED}
    assert {run.run_config["task"] for run in searches} == {
        "simulation.experiments.held_out_task:digits"
    }
    assert [run.central for run in searches] == [False, False, True, True]
    # 5 local steps are the default, so half of 16 steps are 2 rounds.
    assert {run.rounds for run in searches} == {2}


def test_search_axes_have_a_search_for_each_value(tmp_path):
    more = '[scales.smoke]\nsearch-axes = ["steps"]\n'
    made = experiment(tmp_path, ["clients", "steps"], ["BN"], more)

    searched = [(dict(run.setting), run.run_config["learning-rate"]) for run in searches_of(made)]
    assert searched == [
        ({"steps": "1"}, 0.1), ({"steps": "1"}, 0.2),
        ({"steps": "4"}, 0.1), ({"steps": "4"}, 0.2),
    ]  # fmt: skip
    chosen = []
    made.results(lambda method, setting: chosen.append((method, dict(setting))) or 0.1)
    assert chosen[:2] == [("BN", {"steps": "1"}), ("BN", {"steps": "4"})]


def test_the_id_depends_on_the_run_config_and_clients_only(tmp_path):
    made = experiment(tmp_path, ["steps"], ["BN", "FixBN", "centralised"])
    runs = made.results(rate)
    same = made.results(rate)[0]

    assert len({run.id for run in runs}) == len(runs)
    assert same.id == runs[0].id
    elsewhere = Run("result", "other", "plain", {"x": "y"}, 0, 3, False, runs[0].run_config)
    assert elsewhere.id == runs[0].id
    assert Run("result", "main", "BN", {}, 0, 4, False, runs[0].run_config).id != runs[0].id
    # Without a key at its default, as before the app had it.
    fewer = {key: value for key, value in runs[0].run_config.items() if key != "state-dir"}
    assert Run("result", "main", "BN", {}, 0, 3, False, fewer).id == runs[0].id


def test_an_invalid_run_config_is_an_error_before_any_run(tmp_path):
    with pytest.raises(ConfigError, match="momentun = 1: unknown key"):
        experiment(tmp_path, ["steps"], ["BN"], "[base]\nmomentun = 1\n")


def test_the_error_for_an_unknown_experiment_lists_all():
    with pytest.raises(ConfigError, match="no experiment 'x': choose one of clients, "):
        Experiment("x", Scale.SMOKE)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seed = [1]", "seed"),
        ('[scales.smoke.axes]\nsteps = ["2"]', "steps 2"),
        ('[scales.smoke.axes]\nstep = ["1"]', "step 1"),
    ],
)
def test_an_unknown_key_or_value_in_a_scale_is_an_error(tmp_path, text, named):
    with pytest.raises(ConfigError, match=f"experiment it, scale smoke: there is no {named}; keys"):
        experiment(tmp_path, ["steps"], ["BN"], f"[scales.smoke]\n{text}\n")


def test_centralised_training_runs_once_for_all_partitions(tmp_path):
    more = '[axes.partition]\niid = { partition = "iid" }\ntwo = { partition = "classes" }\n'
    runs = experiment(tmp_path, ["partition"], ["BN", "centralised"], more).results(rate)[:3]

    assert [(run.method, dict(run.setting)) for run in runs] == [
        ("BN", {"partition": "iid"}), ("centralised", {}), ("BN", {"partition": "two"}),
    ]  # fmt: skip


def test_runs_without_a_known_rate_are_left_out(tmp_path):
    made = experiment(tmp_path, ["steps"], ["BN", "FixBN"])
    runs = made.results(lambda method, _: 0.5 if method == "BN" else None)

    assert {run.method for run in runs} == {"BN"}
