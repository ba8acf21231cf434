"""The README: short, with commands that exist and numbers that were measured."""

from __future__ import annotations

import re

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.app.runs.summary import summarize, summary_table
from tests.support.pages import README, ROOT

TEXT = README.read_text(encoding="utf-8")
RESULTS = ROOT / "simulation" / "results"


def test_it_has_at_most_200_lines_and_14000_bytes() -> None:
    assert len(TEXT.splitlines()) <= 200
    assert len(TEXT.encode()) <= 14_000


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    two_commands = TEXT.partition("## Two commands")[2].partition("\n```\n")[0]
    assert re.findall(r"^(make \w+)", two_commands, re.MULTILINE) == ["make run", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("run", "test"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_output_of_make_run_is_that_of_the_committed_runs() -> None:
    folder = RESULTS / "digits"
    summaries = {
        name: summarize(read_metrics(folder / name), Settings().freeze_round)
        for name in ("FixBN", "BN")
    }
    assert summary_table(summaries) in TEXT


def test_the_result_beside_the_figure_is_the_data() -> None:
    accuracy = {
        name: [m.test_accuracy for m in read_metrics(RESULTS / "cifar10" / name) if m.test_accuracy]
        for name in ("BN", "FixBN", "FixBN-0.05-factor-1")
    }
    words = TEXT.partition("## Two commands")[0].replace("\n", " ")
    plain, fixbn, same_rate = (f"{100 * values[-1]:.1f} %" for values in accuracy.values())
    best = f"{100 * max(accuracy['BN']):.1f} %"
    assert f"plain BN reaches {plain} test accuracy ({best} at its best) and FixBN {fixbn}" in words
    assert f"At the same constant rate FixBN reaches {same_rate}" in words
