"""The tables of bytes, speed, memory and seconds outside training are committed measurements."""

from __future__ import annotations

import json
import re
import statistics

from simulation.benchmarks.many_nodes import counted
from simulation.benchmarks.message_sizes import Cost, table
from tests.support.pages import README, ROOT, marked, page

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


LOAD = json.loads((RESULTS / "benchmark" / "load.json").read_text(encoding="utf-8"))


def gateway_table() -> str:
    """The table of seconds outside training with and without a gateway, from their data."""
    lines = ["| | median | each round |", "| --- | ---: | --- |"]
    for name, runs in LOAD["runs"].items():
        shown = ", ".join(f"{value:.1f}" for value in runs["outside"])
        lines.append(f"| {name} | {statistics.median(runs['outside']):.1f} | {shown} |")
    return "\n".join(lines)


def load_table() -> str:
    """The table of many nodes, from their data."""
    load = LOAD["load"]
    rounds = load["rounds"]
    seconds = [line["seconds"] for line in rounds]
    messages = counted(rounds)
    memory = load["superlink_megabytes"]
    rows = {
        "SuperNodes": f"{load['nodes']}, of which {load['left']} stop and start again",
        "memory of a SuperNode with its SuperExec": f"{load['node_megabytes']:.0f} MB",
        "start of all": f"{load['start_seconds']:.0f} s",
        "rounds": f"{len(rounds)}, with {load['per_round']} messages each",
        "a round": f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})",
        "messages": f"{messages['sent']}",
        "correct replies": f"{messages['correct']}",
        "wrong replies": f"{messages['wrong']}",
        "errors of nodes that stopped": f"{messages['errors']}",
        "lost": f"{messages['lost']}",
        "SuperLink's memory": f"{memory[0]:.0f} MB before, {memory[-1]:.0f} MB after",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def test_the_tables_of_the_gateway_and_of_many_nodes_are_the_data() -> None:
    assert marked(page("real-machines.md"), "gateway") == gateway_table()
    assert marked(page("real-machines.md"), "load") == load_table()


def test_no_message_of_many_nodes_was_lost() -> None:
    for line in LOAD["load"]["rounds"]:
        assert line["correct"] + line["errors"] == line["sent"]
    connected = [line["connected"] for line in LOAD["load"]["rounds"]]
    assert min(connected) == LOAD["load"]["nodes"] - LOAD["load"]["left"]
    assert connected[-1] == LOAD["load"]["nodes"]


SPEED = json.loads((RESULTS / "benchmark" / "speed.json").read_text(encoding="utf-8"))


def speed_table() -> str:
    """The table of seconds a round, from their data."""
    steps = SPEED["speed"]["steps"]
    head = " | ".join(f"{number} step{'s' * (number != '1')}" for number in steps)
    lines = [f"| | {head} |", "| --- |" + " ---: |" * len(steps)]
    for name in steps["1"]:
        cells = []
        for rows in steps.values():
            row = rows[name]
            spread = f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"
            cells.append(f"{row['median']:.2f} s ({spread}), {row['ratio']:.2f}x")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def start_table() -> str:
    """The table of start-up seconds, from their data."""
    lines = ["| | seconds |", "| --- | ---: |"]
    for name, seconds in SPEED["start"].items():
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        lines.append(f"| {name} | {statistics.median(seconds):.1f} ({spread}) |")
    return "\n".join(lines)


def memory_table() -> str:
    """The table of peak memory, from their data."""
    lines = ["| clients | server | worker | to the end of round 1 | a round |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: |")
    for number, run in SPEED["memory"].items():
        server, worker = (run["peak_megabytes"][role] for role in ("server", "worker"))
        a_round = statistics.median(run["warm_rounds"])
        lines.append(
            f"| {int(number):,} | {server:,.0f} MB | {worker:,.0f} MB | "
            f"{run['first_round']:.1f} s | {a_round:.2f} s |"
        )
    return "\n".join(lines)


def test_the_tables_of_speed_start_and_memory_are_the_data() -> None:
    text = page("speed-and-memory.md")
    assert marked(text, "speed") == speed_table()
    assert marked(text, "start") == start_table()
    assert marked(text, "memory") == memory_table()


def test_ten_thousand_clients_need_little_more_memory_than_ten() -> None:
    few, many = (SPEED["memory"][number]["peak_megabytes"] for number in ("10", "10000"))
    assert sum(many.values()) <= 1.2 * sum(few.values())


def test_the_words_about_speed_are_the_data() -> None:
    one, twenty = (SPEED["speed"]["steps"][n]["this app, engine"]["ratio"] for n in ("1", "20"))
    words = " ".join(README.read_text(encoding="utf-8").split())
    assert f"as a bare PyTorch loop, one of 1 step {one:.1f} times as long" in words
    assert f"{twenty:.1f}" == "1.0"


def test_the_words_about_start_up_are_the_data() -> None:
    seconds = {name: statistics.median(values) for name, values in SPEED["start"].items()}
    imports, engine, ray = seconds.values()
    words = " ".join(README.read_text(encoding="utf-8").split())
    assert f"ends its first round after {engine:.1f} s, under Ray after {ray:.1f} s" in words
    assert engine <= 1.5 * imports
    assert engine <= ray / 4


def versions_table() -> str:
    """The table of tested releases, from the last `make test-versions`."""
    data = json.loads((RESULTS / "versions.json").read_text(encoding="utf-8"))
    lines = ["| flwr | torch | numpy | tests |", "| --- | --- | --- | --- |"]
    for result in data["results"]:
        assert result["passed"], result
        lines.append(
            f"| {result['flwr']} | {result['torch']} | {result['numpy']} | {result['outcome']} |"
        )
    return "\n".join(lines)


def test_the_table_of_releases_is_the_data() -> None:
    assert marked(page("add-to-your-project.md"), "versions") == versions_table()
