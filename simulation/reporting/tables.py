"""The tables of an experiment's results, in Markdown and on the console."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

import pandas as pd

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


def table(results: Sequence[Result], columns: str) -> str:
    """Return the accuracies of a grid in Markdown.

    A row is a method, and a column is a value of the axis `columns`. Each other axis has its own
    column before the methods. A cell such as "57.2 ± 1.3 (3)" is the mean and half of its 95 %
    interval in % over the seeds, with their number. "57.2 (1), 2 of 3 diverged" means that one of
    three runs completed.

    Raises:
        ConfigError: If there is no result, or the results are of several grids.
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
    return markdown([*others, "method", *headings_of(columns, labels)], rows, len(labels))


def learning_rates(results: Sequence[Result]) -> str:
    """Return the searches in Markdown: held-out accuracy in % by method, setting and rate.

    Bold is the rate of the results of that method and setting or, without a result, the rate with
    the highest accuracy. A sentence below counts the rows in which it is the smallest or the
    largest rate of the search.
    """
    searches = [line for line in results if line.kind == "search"]
    if not searches:
        return "There was no search for learning rates."
    axes_of = axes(searches)
    keys = [*axes_of, "method"]
    found = _frame(searches, axes_of)
    used = _frame([line for line in results if line.kind == "result"], axes_of)
    used_rates = {key: set(group["rate"]) for key, group in used.groupby(keys)} if len(used) else {}
    rates = ordered(found["rate"])
    rows = []
    at_the_edge = 0
    for key, group in found.groupby(keys, sort=False):
        cells = {rate: cell_of(runs) for rate, runs in group.groupby("rate")["run"]}
        bold = used_rates.get(key, set())
        if not bold:
            known = [rate for rate in rates if rate in cells and cells[rate].accuracies]
            bold = set(sorted(known, key=lambda rate: cells[rate].mean)[-1:])
        tried = [rate for rate in rates if rate in cells]
        at_the_edge += not bold.isdisjoint((tried[0], tried[-1]))
        texts = {rate: _held_out(cells[rate]) for rate in tried}
        marked = [f"**{texts[r]}**" if r in bold and texts[r] else texts.get(r, "") for r in rates]
        rows.append([*key, *marked])
    text = markdown([*keys, *headings_of("rate", rates)], rows, len(rates))
    if at_the_edge:
        text += (
            f"\n\nIn {at_the_edge} of {len(rows)} rows the bold rate is the smallest or the largest"
            " of the search: a better rate may lie outside it."
        )
    return text


def costs(results: Sequence[Result]) -> str:
    """Return the costs of the methods in Markdown, in megabytes of 10^6 bytes.

    A row is a method; an axis is a column only if the bytes differ along it. Seconds are the mean
    over the completed runs, with the minimum and the maximum.
    """
    lines = [line for line in results if line.kind == "result"]
    names = ["grid", *axes(lines)]
    runs = _frame(lines, names)
    for name in list(names):
        fewer = [other for other in names if other != name]
        if (runs.groupby([*fewer, "method"])["bytes"].nunique() == 1).all():
            names = fewer
    rows = [
        [*key, *group["bytes"].iloc[0], _seconds(group["run"])]
        for key, group in runs.groupby([*names, "method"], sort=False)
    ]
    headings = [
        "sent to a client in a round (MB)",
        "received from it (MB)",
        "kept by a client (MB)",
        "seconds a run",
    ]
    return markdown([*names, "method", *headings], rows, len(headings))


def hardware_line(results: Sequence[Result]) -> str:
    """Return a line with the machines, versions, dates, number and seconds of the runs."""
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


def console(markdown_table: str) -> None:
    """Print a Markdown table of this module, with its bold cells in bold."""
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
    # A file or a pipe has no width.
    Console(width=None if sys.stdout.isatty() else 1000).print(grid)


def _plain(cell: str) -> str:
    return cell.removeprefix("**").removesuffix("**") if cell.startswith("**") else cell


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """Return a table; the last `numbers` columns are aligned to the right."""
    rules = ["---"] * (len(headings) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows))


def headings_of(axis: str, labels: Sequence[str]) -> list[str]:
    """Return the headings of an axis's values; a number alone would not name its axis."""
    return [f"{axis} {label}" if label[:1].isdigit() else label for label in labels]


def _frame(lines: Iterable[Result], names: Sequence[str]) -> pd.DataFrame:
    """Return a row per run: its values on the axes ("-" for none), its numbers, and itself."""
    return pd.DataFrame(
        [
            {name: line.setting.get(name, "-") for name in names}
            | ({"grid": line.grid} if "grid" in names else {})
            | {"method": line.method, "rate": f"{line.learning_rate:g}"}
            | {"bytes": _bytes(line), "run": line}
            for line in lines
        ]
    )


def _held_out(cell: Cell) -> str:
    if cell.accuracies:
        return f"{cell.mean:.1f}"
    return "diverged" if cell.diverged else ""


def _bytes(line: Result) -> tuple[str, ...]:
    sizes = (line.bytes_sent, line.bytes_received, line.client_state_bytes)
    return tuple(f"{size / 1e6:.3f}" if size else "0" for size in sizes)


def _seconds(lines: Iterable[Result]) -> str:
    ended = sorted(line.seconds for line in lines if line.failure is None)
    if not ended:
        return "-"
    mean = f"{sum(ended) / len(ended):,.0f}"
    return mean if len(ended) == 1 else f"{mean} ({ended[0]:,.0f} to {ended[-1]:,.0f})"
