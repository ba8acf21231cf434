"""The report of an experiment: a Markdown file with its tables, and its figures.

`results/<experiment>/<scale>.md` depends only on the lines of `<scale>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task
from simulation.experiments.experiment import Experiment
from simulation.experiments.matching_results import lines_of, search_of
from simulation.experiments.result_log import Result, read, results_file
from simulation.reporting.differences import differences
from simulation.reporting.gradient_figure import draw_updates, updates_table
from simulation.reporting.grid_figures import draw
from simulation.reporting.grouping import distinct
from simulation.reporting.line_figures import draw_courses
from simulation.reporting.tables import (
    console,
    costs,
    hardware_line,
    learning_rates,
    table,
)


def write_report(experiment: Experiment, output: Path) -> Path:
    """Write the tables and figures of the completed runs, and print the main tables.

    Args:
        experiment: The experiment at one scale.
        output: The directory with the results of all experiments.

    Returns:
        The path of the Markdown file.

    Raises:
        ConfigError: If no run has completed.
    """
    source = results_file(experiment.name, experiment.scale, output)
    command = f"python -m simulation.experiments run {experiment.name} --scale {experiment.scale}"
    lines = read(source)
    search = search_of(experiment, lines)
    results = lines_of(experiment.results(search.rate), lines)
    if not results:
        raise ConfigError(f"{source} has no result yet: run `{command}` first.")
    parts = [
        f"# {experiment.title}",
        f"`{command}`: {len(results)} of {len(experiment.outline())} runs."
        f" {hardware_line([*search.ended, *results])}",
        f"{_conditions(results)} An accuracy is the mean of the tests from 80 % of a run's"
        " rounds on, and only of rounds after T* if the run freezes. Cells are the mean over the"
        " seeds, ± half of its 95 % interval, with their number.",
    ]
    folder = source.parent
    for name, view in experiment.views.items():
        of_grid = [result for result in results if result.grid == name]
        if not of_grid:
            continue
        figure = folder / f"{experiment.scale}-{name}.png"
        draw(of_grid, view, figure)
        text = table(of_grid, view.x)
        console(text)
        parts += [f"## {view.title}", f"{view.y_label}:", text]
        if view.pairs:
            parts += [
                "Differences in percentage points, paired by seed, ± half of the 95 % interval:",
                differences(of_grid, view.x, view.pairs),
            ]
        parts += [f"![{view.title}]({figure.name})"]
        if view.kind == "points" and view.panels is None:
            courses = folder / f"{experiment.scale}-{name}-courses.png"
            draw_courses(of_grid, view.x, courses, view.title, view.y_label)
            parts += [f"![By round: {view.title}]({courses.name})"]
        parts += [costs(of_grid)]
    if experiment.measure:
        parts += _updates(experiment, results, folder)
    parts += [
        "## Learning rates",
        "Accuracy in % on held-out training images, by the learning rate in round 1.",
        learning_rates([*search.ended, *results]),
    ]
    path = source.with_suffix(".md")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"Report: {path}")
    return path


def _conditions(results: Sequence[Result]) -> str:
    """Return a sentence with the data, network, clients, steps and rounds of the runs."""

    def of(values: Iterable[object]) -> str:
        return ", ".join(distinct(map(str, values)))

    configs = [result.run_config for result in results]
    tasks = [get_task(str(config["task"])).name for config in configs]
    return (
        f"{of(tasks)} with {of(config['model'] for config in configs)}; clients:"
        f" {of(result.clients for result in results)}; local steps of"
        f" {of(config['batch-size'] for config in configs)} images a round:"
        f" {of(config['local-steps'] for config in configs)}; rounds:"
        f" {of(config['num-server-rounds'] for config in configs)}."
    )


def _updates(experiment: Experiment, results: Sequence[Result], folder: Path) -> list[str]:
    """Return the part of the report on the measured updates, and draw its figure."""
    rows = list(chain.from_iterable(result.extra.get("gradients", []) for result in results))
    if not rows:
        return []
    title = "Updates by layer and round"
    figure = folder / f"{experiment.scale}-updates.png"
    draw_updates(rows, figure)
    text = updates_table(rows)
    console(text)
    diverged = [row for result in results for row in result.extra.get("not measured", [])]
    return [
        f"## {title}",
        "Cosine over all layers, the mean over the seeds, by share of the rounds.",
        text,
        *(
            f"Not measured: {row['method']}, round {row['round']}, {row['mode']}: {row['why']}"
            for row in diverged
        ),
        f"![{title}]({figure.name})",
    ]
