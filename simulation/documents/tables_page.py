"""The blocks of docs/result-tables.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain

from fixbn_flwr.app.runs.reader import read_metrics
from simulation.documents.blocks import Blocks
from simulation.experiments.experiment import Experiment, Scale, names
from simulation.experiments.matching_results import recorded_results
from simulation.experiments.result_log import RESULTS, Result, read, results_file
from simulation.reporting.differences import differences, differences_along
from simulation.reporting.gradient_figure import updates_table
from simulation.reporting.grid_figures import View
from simulation.reporting.grouping import Cell, as_numbers, methods, place, results_of, values
from simulation.reporting.intervals import interval
from simulation.reporting.tables import markdown, table

NOT_YET = "Nothing has run yet."


@cache
def of_grid(name: str, grid: str, scale: Scale = Scale.CPU) -> tuple[Result, ...]:
    """Return the committed results of a grid."""
    found = recorded_results(Experiment(name, scale), read(results_file(name, scale)))
    return tuple(result for result in found if result.grid == grid)


def shown(name: str, grid: str = "main") -> list[Result]:
    """Return the results of a grid with a value on every axis; empty if none has run."""
    results = of_grid(name, grid)
    return results_of(results) if results else []


def accuracies(name: str, grid: str = "main") -> Callable[[], str]:
    """Return the block with the accuracies of a grid."""
    return _of_results(name, grid, lambda results, view: table(results, view.x))


def comparisons(name: str, grid: str = "main") -> Callable[[], str]:
    """Return the block with the differences between the methods of a grid."""
    return _of_results(name, grid, lambda results, view: differences(results, view.x, view.pairs))


def compared_along(
    name: str, grid: str, axis: str, pairs: Sequence[tuple[str, str]]
) -> Callable[[], str]:
    """Return the block with the differences between values of an axis of a grid."""
    return _of_results(name, grid, lambda results, _: differences_along(results, axis, pairs))


def _of_results(
    name: str, grid: str, write: Callable[[Sequence[Result], View], str]
) -> Callable[[], str]:
    """Return the block that `write` makes of a grid's results and its view."""

    def text() -> str:
        results, view = of_grid(name, grid), Experiment(name, Scale.CPU).views[grid]
        return write(results, view) if results else NOT_YET

    return text


def progress() -> str:
    """Return what has run, by experiment and scale."""
    rows = []
    for name in names():
        cells = []
        for scale in (Scale.CPU, Scale.GPU):
            experiment = Experiment(name, scale)
            ended = len(recorded_results(experiment, read(results_file(name, scale))))
            cells.append(f"{ended} of {len(experiment.outline())}")
        rows.append([f"`{name}`", *cells])
    return markdown(["experiment", "`cpu` runs", "`gpu` runs"], rows, 2)


def full_size() -> str:
    """Return the accuracies of CIFAR-10's long runs, by round."""
    rows = {
        "BN, 0.05": "BN",
        "FixBN, 0.05, a tenth of it from T\\* on": "FixBN",
        "FixBN, 0.05": "FixBN-0.05-factor-1",
        "FixBN, 0.01, a tenth of it after 75 %": "FixBN-0.01-factor-1",
    }
    rounds = (150, 450, 750, 900, 1050, 1200, 1350, 1500)
    lines = []
    for label, folder in rows.items():
        tested = {
            m.round: 100 * m.test_accuracy
            for m in read_metrics(RESULTS / "cifar10" / folder)
            if m.test_accuracy is not None
        }
        lines.append([label, *(f"{tested[number]:.1f}" for number in rounds)])
    return markdown(["learning rate", *map(str, rounds)], lines, len(rounds))


def gap() -> str:
    """Return the share of the gap to centralised training that each half of the method closes."""
    momentum = of_grid("momentum", "main")
    central = place(of_grid("normalisers", "main"), {}, "centralised").by_seed
    settings = {
        "neither: BN, momentum reset": ("BN", "reset"),
        "momentum kept: BN, local momentum": ("BN", "local"),
        "statistics frozen: FixBN, momentum reset": ("FixBN", "reset"),
        "both: FixBN, local momentum": ("FixBN", "local"),
    }
    cells = {
        label: place(momentum, {"participation": "full", "momentum": kept}, method).by_seed
        for label, (method, kept) in settings.items()
    }
    nothing = next(iter(cells.values()))
    seeds = [seed for seed in central if all(seed in cell for cell in cells.values())]
    if not seeds:
        return NOT_YET
    rows = []
    for label, cell in cells.items():
        closed = interval(
            [100 * (cell[seed] - nothing[seed]) / (central[seed] - nothing[seed]) for seed in seeds]
        )
        around = f" ± {closed.half:.0f}" if closed.number > 1 and cell is not nothing else ""
        mean = interval([cell[seed] for seed in seeds]).mean
        rows.append([label, f"{mean:.1f}", f"{closed.mean:.0f}{around}"])
    rows.append(["centralised", f"{interval([central[seed] for seed in seeds]).mean:.1f}", "100"])
    return markdown(["", "accuracy (%)", f"gap closed (%), {len(seeds)} seeds"], rows, 2)


def guarded() -> str:
    """Return the runs in which the guard went back to T*."""
    found = [
        f"{name}: {result.method}, {_named(result.setting)}, seed {result.seed}"
        + (f", {result.retries} times" if result.retries > 1 else "")
        for name in names()
        for grid in Experiment(name, Scale.CPU).grids
        for result in of_grid(name, grid)
        if result.retries
    ]
    return "\n".join(f"- {line}" for line in found) or "None."


def _named(setting: Mapping[str, str]) -> str:
    """Return a setting as "two classes, 1 step" or "local steps 1"."""
    return ", ".join(f"{axis} {v}" if as_numbers([v]) else v for axis, v in setting.items())


def updates() -> str:
    """Return the cosine of updates of the whole network, by round."""
    results = of_grid("gradients", "main")
    rows = list(chain.from_iterable(result.extra["gradients"] for result in results))
    return updates_table(rows) if rows else NOT_YET


def personal() -> str:
    """Return the accuracy of the personal methods on the kinds of images that each client has."""
    results = shown("normalisers")
    own = [result for result in results if result.own_accuracy is not None]
    rows = []
    for method in methods(own):
        row = [method]
        for label in values(results, "partition"):
            found = interval(
                [
                    100 * result.own_accuracy
                    for result in own
                    if result.own_accuracy is not None
                    and (result.method, result.setting["partition"]) == (method, label)
                ]
            )
            around = f" ± {found.half:.1f}" if found.number > 1 else ""
            row.append(f"{found.mean:.1f}{around} ({found.number})" if found.number else "-")
        rows.append(row)
    if not rows:
        return NOT_YET
    labels = values(results, "partition")
    return markdown(["method", *labels], rows, len(labels))


def advice() -> str:
    """Return the normalisations that are behind no other, by setting of the map."""
    results = shown("map")
    rows = []
    for steps in values(results, "local steps"):
        row = [steps]
        for alpha in values(results, "alpha"):
            setting = {"local steps": steps, "alpha": alpha}
            cells = {name: place(results, setting, name) for name in methods(results)}
            row.append(", ".join(_not_behind(cells)) or "not decided")
        rows.append(row)
    if not rows:
        return NOT_YET
    alphas = values(results, "alpha")
    return markdown(["local steps", *(f"alpha {alpha}" for alpha in alphas)], rows, len(alphas))


def _not_behind(cells: Mapping[str, Cell]) -> list[str]:
    """Return the methods that are behind no other; none if one has too few seeds to say so."""
    if any(len(cell.accuracies) < 2 for cell in cells.values() if not cell.diverged):
        return []
    stable = {name: cell for name, cell in cells.items() if not cell.diverged}
    return [
        one
        for one, cell in stable.items()
        if all(cell.minus(other).word != "behind" for other in stable.values())
    ]


BLOCKS: Blocks = {
    "full size": full_size,
    "normalisers": accuracies("normalisers"),
    "normalisers compared": comparisons("normalisers"),
    "personal": personal,
    "clients": accuracies("clients"),
    "clients compared": comparisons("clients"),
    "frequency": accuracies("frequency"),
    "frequency compared": comparisons("frequency"),
    "momentum": accuracies("momentum"),
    "momentum compared": comparisons("momentum"),
    "momentum by place": compared_along(
        "momentum",
        "main",
        "momentum",
        [("local", "reset"), ("global", "reset"), ("local", "global")],
    ),
    "stale momentum": accuracies("momentum", "stale"),
    "gap": gap,
    "freeze-after": accuracies("freeze-after", "when"),
    "freeze-after compared": comparisons("freeze-after", "when"),
    "factor": accuracies("freeze-after", "factor"),
    "factor compared": compared_along(
        "freeze-after", "factor", "factor", [("0.03", "1"), ("0.1", "1"), ("0.3", "1")]
    ),
    "map": advice,
    "feature shift": accuracies("feature-shift"),
    "feature shift compared": comparisons("feature-shift"),
    "segmentation": accuracies("segmentation"),
    "segmentation compared": comparisons("segmentation"),
    "tiny-imagenet": accuracies("tiny-imagenet"),
    "tiny-imagenet compared": comparisons("tiny-imagenet"),
    "updates": updates,
    "progress": progress,
    "guard": guarded,
}
