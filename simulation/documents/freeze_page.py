"""The blocks of docs/when-to-freeze.md."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence

from simulation.documents.blocks import Blocks
from simulation.documents.tables_page import of_grid
from simulation.experiments.result_log import RESULTS, Result
from simulation.reporting.grouping import cell_of
from simulation.reporting.tables import markdown

# The methods of the experiment, and their columns.
COLUMNS = {
    "never": "never", "T* 25 %": "25 %", "T* 50 %": "50 %", "T* 75 %": "75 %", "auto": "auto",
}  # fmt: skip
AIM = 1.0  # percentage points behind the best, or behind plain BN


def by_setting(grid: str) -> dict[str, dict[str, list[Result]]]:
    """Return the results by setting and method, of seeds with a result of every method."""
    found: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in of_grid("freeze-rule", grid):
        (setting,) = result.setting.values()
        found[setting][result.method].append(result)
    for of_method in found.values():
        seeds = set.intersection(*({r.seed for r in of_method[name]} for name in COLUMNS))
        for name in COLUMNS:
            of_method[name] = [result for result in of_method[name] if result.seed in seeds]
    return {setting: of_method for setting, of_method in found.items() if of_method["auto"]}


def mean(results: Sequence[Result]) -> float:
    """Return the mean accuracy in %.

    Raises:
        ValueError: If a run diverged. None has; its table would have to say so.
    """
    cell = cell_of(results)
    if cell.diverged:
        raise ValueError(f"{cell.diverged} runs of {results[0].method} diverged")
    return cell.mean


def rule_table(grid: str) -> Callable[[], str]:
    """Return the block with a grid's accuracies, number of seeds and T* of the rule."""

    def text() -> str:
        rows = [
            [
                setting,
                str(len(of_method["auto"])),
                *(f"{mean(of_method[name]):.1f}" for name in COLUMNS),
                _decision(of_method["auto"]),
            ]
            for setting, of_method in by_setting(grid).items()
        ]
        return markdown(["setting", "seeds", *COLUMNS.values(), "the rule's T\\*"], rows, 7)

    return text


def behind() -> str:
    """Return the settings in which the rule is more than a point behind the best, or plain BN."""
    found = []
    for grid in ("tuned", "validated"):
        for setting, of_method in by_setting(grid).items():
            rule = mean(of_method["auto"])
            if max(mean(of_method[name]) for name in COLUMNS) - rule > AIM:
                found.append(setting)
    return "; ".join(found) or "none"


def digits_table() -> str:
    """Return the accuracies of the runs on digits, by seed."""
    runs = json.loads((RESULTS / "freeze-rule" / "digits.json").read_text())["runs"]
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for run in runs:
        factor = "-" if run["what"] == "plain BN" else f"{run['factor']:g}"
        found[run["what"], factor].append((run["seed"], 100 * run["final_accuracy"]))
    lines = ["| run | factor | seeds 0, 1, ... |", "| --- | ---: | --- |"]
    for (what, factor), by_seed in sorted(found.items()):
        shown = ", ".join(f"{accuracy:.1f}" for _, accuracy in sorted(by_seed))
        lines.append(f"| {what} | {factor} | {shown} |")
    return "\n".join(lines)


def _decision(results: Sequence[Result]) -> str:
    """Return T* as a share of the rounds, for each different decision."""
    said = []
    for result in results:
        rounds = int(result.run_config["num-server-rounds"])
        assert result.freeze_round is not None  # results of this experiment have it
        share = 100 * result.freeze_round / rounds
        said.append("never" if result.freeze_round >= rounds else f"{share:.0f} %")
    return ", ".join(dict.fromkeys(said))


BLOCKS: Blocks = {
    "tuned": rule_table("tuned"),
    "validated": rule_table("validated"),
    "digits": digits_table,
    "behind": behind,
}
