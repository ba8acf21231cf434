"""The report of an experiment: a Markdown file with its tables, and its figures.

`results/<experiment>/<scale>.md` depends only on the lines of `<scale>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task
from simulation.experiments.experiment import Experiment
from simulation.experiments.gradient_runs import INITIAL
from simulation.experiments.gradients import explained_share
from simulation.experiments.matching_results import lines_of, searched_rates
from simulation.experiments.result_log import Result, read, results_file
from simulation.reporting.grid_figures import draw
from simulation.reporting.grouping import distinct
from simulation.reporting.line_figures import draw_courses, draw_gradients
from simulation.reporting.tables import (
    console,
    costs,
    gradients_table,
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
    searches = lines_of(experiment.searches(), lines)
    rate = searched_rates(experiment, lines)
    planned = experiment.results(rate) if rate else []
    results = lines_of(planned, lines)
    if not results:
        raise ConfigError(f"{source} has no result yet: run `{command}` first.")
    parts = [
        f"# {experiment.title}",
        f"`{command}`:"
        f" {len(results)} of {len(planned)} runs. {hardware_line([*searches, *results])}",
        f"{_conditions(results)} An accuracy is the mean over the last fifth of a run's"
        " rounds, and only over rounds after T* if the run freezes. Cells are the mean ± standard"
        " deviation over the seeds, with their number.",
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
        parts += [f"## {view.title}", f"{view.y_label}:", text, f"![{view.title}]({figure.name})"]
        if view.kind == "points" and view.panels is None:
            courses = folder / f"{experiment.scale}-{name}-courses.png"
            draw_courses(of_grid, view.x, courses, view.title, view.y_label)
            parts += [f"![By round: {view.title}]({courses.name})"]
        parts += [costs(of_grid)]
    if experiment.measure:
        parts += _layers(experiment, results, folder)
    parts += [
        "## Learning rates",
        "Accuracy in % on held-out training images, by the learning rate in round 1.",
        learning_rates([*searches, *results]),
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


def _layers(experiment: Experiment, results: Sequence[Result], folder: Path) -> list[str]:
    """Return the part of the report on the measured updates, and draw its figures."""
    rows: list[dict[str, Any]] = list(
        chain.from_iterable(result.extra.get("gradients", []) for result in results)
    )
    if not rows:
        return []
    of = (experiment.measure or {})["of"].values()
    order = [INITIAL, *distinct(method["model"] for method in of)]
    rows.sort(key=lambda row: order.index(row["model"]))
    title = "The federated and the centralized update, layer by layer"
    directions = folder / f"{experiment.scale}-layers.png"
    draw_gradients(rows, "cosine", directions, title)
    lengths = folder / f"{experiment.scale}-layers-length.png"
    draw_gradients(rows, "norm_ratio", lengths, title)
    text = gradients_table(rows)
    console(text)
    diverged = [row for result in results for row in result.extra.get("not measured", [])]
    return [
        f"## {title}",
        text,
        *(f"Not measured: {row['model']}, {row['mode']}: {row['why']}" for row in diverged),
        f"![Direction: {title}]({directions.name})",
        f"![Length: {title}]({lengths.name})",
        *_explained(results),
    ]


def _explained(results: Sequence[Result]) -> list[str]:
    """Return the share of the gap to centralized training that freezing closes, by seed."""
    sentences = []
    for seed in sorted({result.seed for result in results}):
        of = {r.method: r.accuracy for r in results if r.seed == seed}
        accuracies = [of.get(method) for method in ("BN", "FixBN", "centralised")]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        if len(known) == len(accuracies) and known[2] > known[0]:
            share = explained_share(*known)
            batch, frozen, central = (f"{accuracy:.1%}" for accuracy in known)
            sentences.append(
                f"Seed {seed}: BN {batch}, FixBN {frozen}, centralized {central}: frozen"
                f" statistics close {share:.0%} of the gap."
            )
    return ["\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
