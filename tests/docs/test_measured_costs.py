"""The tables of bytes and of seconds outside training are the committed measurements."""

from __future__ import annotations

import json
import re
import statistics

from simulation.benchmarks.message_sizes import Cost, table
from tests.support.pages import ROOT, marked, page

RESULTS = ROOT / "simulation" / "results"


def test_the_table_of_bytes_is_the_data() -> None:
    data = json.loads((RESULTS / "communication" / "bytes.json").read_text(encoding="utf-8"))
    costs = [Cost(**cost) for cost in data["costs"]]
    assert marked(page("communication-cost.md"), "communication") == table(costs)


def deployment_table() -> str:
    """The table of seconds outside training, from their data."""
    rows = {
        "all parts": "the app",
        "without packed arrays": "without packed arrays",
        "without quick polling": "without fast polling",
        "without worker": "without the persistent worker",
        "without momentum files": "without momentum in files",
        "no part": "Flower alone",
        "bare exchange": "an exchange of the same bytes, with clients that only add a number",
    }
    data = json.loads((RESULTS / "benchmark" / "deployment.json").read_text(encoding="utf-8"))
    assert data["runs"].keys() == rows.keys()
    outside = {name: data["runs"][name]["outside"] for name in rows}
    medians = {name: statistics.median(seconds) for name, seconds in outside.items()}
    lines = ["| | median | the part saves | each round |", "| --- | ---: | ---: | --- |"]
    for name, seconds in outside.items():
        saved = 1 - medians["all parts"] / medians[name]
        shown = ", ".join(f"{value:.1f}" for value in seconds)
        share = f"{saved:.0%}" if name.startswith("without") else ""
        lines.append(f"| {rows[name]} | {medians[name]:.1f} | {share} | {shown} |")
    return "\n".join(lines)


def test_every_part_saves_a_tenth_of_the_seconds_outside_training() -> None:
    shares = [int(share) for share in re.findall(r"\| (\d+)% \|", deployment_table())]
    assert len(shares) == 4
    assert min(shares) >= 10


def test_the_table_of_seconds_outside_training_is_the_data() -> None:
    assert marked(page("real-machines.md"), "deployment") == deployment_table()
