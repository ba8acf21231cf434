"""An experiment's results as tables, in Markdown and on the console; the figures are in figures.py.

Every function takes lines as `simulation.experiments.result_log` reads them, and returns text.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any

from simulation.experiments.gradients import ALL_LAYERS
from simulation.experiments.result_log import Result
from simulation.reporting.grouping import (
    Cell,
    axes,
    cell_of,
    distinct,
    methods,
    ordered,
    place,
    results_of,
    values,
)

GRADIENT_MEASURES = ("cosine", "norm_ratio", "distance")


def table(results: Sequence[Result], columns: str) -> str:
    """Accuracies of a grid in Markdown: a row a method, a column a value of the axis `columns`.

    A cell is "57.2 ± 1.3 (3)": mean and sample standard deviation in % over the seeds, and their
    number; "57.2 (1), 2 of 3 diverged" where only one went to its end. Every other axis has a
    column of its own before the methods.

    Raises:
        ConfigError: there is no result, or they are of several grids.
    """
    shown = results_of(results)
    others = [axis for axis in axes(shown) if axis != columns]
    labels = values(shown, columns)
    rows = []
    for place_of_row in itertools.product(*(values(shown, axis) for axis in others)):
        setting = dict(zip(others, place_of_row, strict=True))
        for method in methods(shown):
            cells = [place(shown, {**setting, columns: label}, method) for label in labels]
            if any(cell.runs for cell in cells):
                rows.append([*place_of_row, method, *map(str, cells)])
    return _markdown([*others, "method", *_headings(columns, labels)], rows, len(labels))


def learning_rates(results: Sequence[Result]) -> str:
    """What the searches found, in Markdown: held-out accuracy in % by method, setting and rate.

    In bold the rate that the results of that method and setting were made with; where there is no
    result yet, the one with the highest accuracy. A sentence below counts the rows in which that is
    the smallest or the largest rate tried.
    """
    searches = [line for line in results if line.kind == "search"]
    if not searches:
        return "No learning rate was searched for."
    rates = ordered(f"{line.learning_rate:g}" for line in searches)
    names = axes(searches)
    groups = _by_place(searches, names)
    rows = []
    at_the_edge = 0
    for (method, labels), lines in groups.items():
        found = {rate: [x for x in lines if f"{x.learning_rate:g}" == rate] for rate in rates}
        used = {
            f"{line.learning_rate:g}"
            for line in results
            if line.kind == "result" and _key(line, names) == (method, labels)
        }
        cells = {rate: cell_of(runs) for rate, runs in found.items()}
        if not used:
            known = [rate for rate in rates if cells[rate].accuracies]
            used = set(sorted(known, key=lambda rate: cells[rate].mean)[-1:])
        tried = [rate for rate in rates if found[rate]]
        at_the_edge += not used.isdisjoint((tried[0], tried[-1]))
        texts = [_held_out(cells[rate]) for rate in rates]
        marked = [
            f"**{text}**" if rate in used and text else text
            for rate, text in zip(rates, texts, strict=True)
        ]
        rows.append([*labels, method, *marked])
    text = _markdown([*names, "method", *_headings("rate", rates)], rows, len(rates))
    if at_the_edge:
        text += (
            f"\n\nIn {at_the_edge} of {len(rows)} rows the bold rate is the smallest or the largest"
            " that was tried: a better one may lie beyond it."
        )
    return text


def costs(results: Sequence[Result]) -> str:
    """What the methods cost, in Markdown; megabytes are 10^6 bytes.

    A row a method, and an axis only where bytes differ along it. Seconds are the mean of the runs
    that were not cut short, with the shortest and the longest.
    """
    lines = [line for line in results if line.kind == "result"]
    names = ["grid", *axes(lines)]
    for name in list(names):
        fewer = [other for other in names if other != name]
        groups = _by_place(lines, fewer).values()
        if all(len({_bytes(line) for line in group}) == 1 for group in groups):
            names = fewer
    rows = [
        [*labels, method, *_bytes(group[0]), _seconds(group)]
        for (method, labels), group in _by_place(lines, names).items()
    ]
    headings = [
        "sent to a client in a round (MB)",
        "received from it (MB)",
        "kept by a client (MB)",
        "seconds a run",
    ]
    return _markdown([*names, "method", *headings], rows, len(headings))


def hardware_line(results: Sequence[Result]) -> str:
    """On what machines the runs were made, with what versions, when, and how long it took."""
    machines = distinct(
        f"{of['cpu']}, {of['cores']} cores, {of['gpu'] or 'no GPU'}"
        for of in (line.hardware for line in results)
    )
    found: dict[str, list[str]] = {}
    for line in results:
        for name, version in line.versions.items():
            found.setdefault(name, []).append(version)
    versions = ", ".join(f"{name} {' and '.join(distinct(of))}" for name, of in found.items())
    days = sorted({datetime.fromisoformat(line.started).date() for line in results})
    first_and_last = distinct(f"{day.day} {day:%B %Y}" for day in (days[:1] + days[-1:]))
    searches = sum(line.kind == "search" for line in results)
    seconds = sum(line.seconds for line in results)
    counted = "1 run" if len(results) == 1 else f"{len(results)} runs"
    if searches:
        counted += f" ({searches} to find learning rates)"
    return (
        f"{' and '.join(machines)}; {versions}; {' to '.join(first_and_last)};"
        f" {counted}, {seconds:,.0f} s in all."
    )


def gradients_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far the federated update of the whole network is from the centralised one, in Markdown.

    Args:
        rows: comparisons with "model", "local_steps", "mode", "name", "cosine", "norm_ratio" and
            "distance"; those whose name is "all layers" are shown, of several runs the mean.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["name"] == ALL_LAYERS:
            key = (str(row["model"]), str(row["local_steps"]), str(row["mode"]))
            groups.setdefault(key, []).append(row)
    cells = [
        [*key, *(f"{fmean(row[of] for row in group):.3f}" for of in GRADIENT_MEASURES)]
        for key, group in groups.items()
    ]
    headings = ["model", "local steps", "mode", "cosine", "norm ratio", "distance"]
    return _markdown(headings, cells, len(GRADIENT_MEASURES))


def console(markdown_table: str) -> None:
    """Print a table that a function of this file returned, with its bold cells in bold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not markdown_table.startswith("|"):
        print(markdown_table)
        return
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown_table.splitlines()
    ]
    grid = Table(box=box.SIMPLE_HEAD)
    for heading, rule, *cells in zip(*lines, strict=True):
        grid.add_column(
            Text(heading),
            justify="right" if rule.endswith(":") else "left",
            min_width=max((len(_plain(cell)) for cell in cells), default=0),
        )
    for cells in lines[2:]:
        grid.add_row(
            *(Text(_plain(cell), "bold" if cell.startswith("**") else "") for cell in cells)
        )
    # In a file or a pipe nothing is too wide.
    Console(width=None if sys.stdout.isatty() else 1000).print(grid)


def _plain(cell: str) -> str:
    return cell.removeprefix("**").removesuffix("**") if cell.startswith("**") else cell


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table whose last columns, `numbers` of them, are aligned to the right."""
    rules = ["---"] * (len(headings) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows))


def _headings(axis: str, labels: Sequence[str]) -> list[str]:
    # A bare number does not say what it is of.
    return [f"{axis} {label}" if label[:1].isdigit() else label for label in labels]


def _key(line: Result, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    setting = {"grid": line.grid, **line.setting}
    return line.method, tuple(setting.get(name, "-") for name in names)


def _by_place(
    lines: Iterable[Result], names: Sequence[str]
) -> dict[tuple[str, tuple[str, ...]], list[Result]]:
    """The lines by method and values on the axes."""
    groups: dict[tuple[str, tuple[str, ...]], list[Result]] = {}
    for line in lines:
        groups.setdefault(_key(line, names), []).append(line)
    return groups


def _held_out(cell: Cell) -> str:
    if cell.accuracies:
        return f"{cell.mean:.1f}"
    return "diverged" if cell.diverged else ""


def _bytes(line: Result) -> tuple[str, ...]:
    sizes = (line.bytes_sent, line.bytes_received, line.client_state_bytes)
    return tuple(f"{size / 1e6:.3f}" if size else "0" for size in sizes)


def _seconds(lines: Sequence[Result]) -> str:
    ended = sorted(line.seconds for line in lines if line.failure is None)
    if not ended:
        return "-"
    mean = f"{sum(ended) / len(ended):,.0f}"
    return mean if len(ended) == 1 else f"{mean} ({ended[0]:,.0f} to {ended[-1]:,.0f})"
