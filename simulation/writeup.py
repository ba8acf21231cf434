"""The report of an experiment: its tables in a Markdown file, its figures beside it.

`results/<experiment>/<scale>.md` is written from the lines of `<scale>.jsonl` alone, so anyone can
make it again from what is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from fixbn_flwr.errors import ConfigError
from simulation.curves import draw_courses, draw_gradients
from simulation.figures import draw
from simulation.gradients import explained_share
from simulation.plan import Experiment
from simulation.records import Result, read, results_file
from simulation.report import (
    console,
    costs,
    gradients_table,
    hardware_line,
    learning_rates,
    table,
)


def write_report(experiment: Experiment, output: Path) -> Path:
    """Write the tables and figures of the runs that have ended, and show the main tables.

    Returns:
        The Markdown file.

    Raises:
        ConfigError: no run has ended yet.
    """
    source = results_file(experiment.name, experiment.scale, output)
    lines = read(source)
    results = _as_planned(experiment, [line for line in lines if line.kind == "result"])
    if not results:
        raise ConfigError(
            f"{source} has no result yet: `python -m simulation run {experiment.name} --scale"
            f" {experiment.scale}` makes them."
        )
    done = len({(r.id, r.grid, r.method, *r.setting.values()) for r in results})
    planned = len(experiment.results(lambda *_: 0.1))
    parts = [
        f"# {experiment.title}",
        f"`python -m simulation run {experiment.name} --scale {experiment.scale}`: {done} of"
        f" {planned} runs. {hardware_line(lines)}",
        "Test accuracy in %, the mean of the last fifth of the rounds, then mean ± standard"
        " deviation over the seeds (their number).",
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
        parts += [f"## {view.title}", text, f"![{view.title}]({figure.name})"]
        if view.kind == "points" and view.panels is None:
            courses = folder / f"{experiment.scale}-{name}-courses.png"
            draw_courses(of_grid, view.x, courses, view.title, view.y_label)
            parts += [f"![By round: {view.title}]({courses.name})"]
        parts += [costs(of_grid)]
    parts += _layers(experiment, results, folder)
    if any(line.kind == "search" for line in lines):
        parts += [
            "## Learning rates",
            "Held-out accuracy in %, of training images that the run did not train on.",
            learning_rates(lines),
        ]
    path = source.with_suffix(".md")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"Report: {path}")
    return path


def _as_planned(experiment: Experiment, results: Sequence[Result]) -> list[Result]:
    """Results in the order of the plan, whichever of the processes ended first."""
    planned = [(run.grid, run.method, run.setting) for run in experiment.results(lambda *_: 0.1)]
    return sorted(results, key=lambda r: (planned.index((r.grid, r.method, r.setting)), r.seed))


def _layers(experiment: Experiment, results: Sequence[Result], folder: Path) -> list[str]:
    """What `gradients` measured beside the accuracies."""
    rows: list[dict[str, Any]] = list(
        chain.from_iterable(result.extra.get("gradients", []) for result in results)
    )
    if not rows:
        return []
    title = "The federated update beside the centralised one, layer by layer"
    figure = folder / f"{experiment.scale}-layers.png"
    draw_gradients(rows, figure, title)
    text = gradients_table(rows)
    console(text)
    return [f"## {title}", text, f"![{title}]({figure.name})", *_explained(results)]


def _explained(results: Sequence[Result]) -> list[str]:
    """The share of the gap to centralised training that freezing closes, by seed."""
    sentences = []
    for seed in sorted({result.seed for result in results}):
        of = {r.method: r.accuracy for r in results if r.seed == seed}
        accuracies = [of.get(method) for method in ("BN", "FixBN", "centralised")]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        if len(known) == len(accuracies) and known[2] > known[0]:
            share = explained_share(*known)
            batch, frozen, central = (f"{accuracy:.1%}" for accuracy in known)
            sentences.append(
                f"Seed {seed}: BN {batch}, FixBN {frozen}, centralised {central}: the frozen"
                f" statistics close {share:.0%} of the gap."
            )
    return ["\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
