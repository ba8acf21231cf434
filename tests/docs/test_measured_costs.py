"""The tables of bytes and of seconds outside training are the committed measurements."""

from __future__ import annotations

import json
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
        "before": "Flower alone",
        "after": "packed arrays, fast polling, a persistent worker, momentum in files",
        "bare": "an exchange of the same bytes, packed, with clients that only add a number",
    }
    lines = ["| | median | each round |", "| --- | ---: | --- |"]
    data = json.loads((RESULTS / "benchmark" / "deployment.json").read_text(encoding="utf-8"))
    for name, run in data["runs"].items():
        outside = run["outside"]
        shown = ", ".join(f"{seconds:.1f}" for seconds in outside)
        lines.append(f"| {rows[name]} | {statistics.median(outside):.1f} | {shown} |")
    return "\n".join(lines)


def test_the_table_of_seconds_outside_training_is_the_data() -> None:
    assert marked(page("real-machines.md"), "deployment") == deployment_table()
