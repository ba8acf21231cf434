"""A progress bar on a real terminal, and lines anywhere else."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.round_display import RoundDisplay, log_over_bar
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.log import logger
from fixbn_flwr.method.schedule import Phase
from tests.support.terminal import Terminal, lines_left
from tests.support.whole_app import run_app

SETTINGS = Settings(num_server_rounds=4)
ROUND = RoundMetrics(3, Phase.CALIBRATION, 0.1, 0.25, 0.5, 0.125, 0, 0, 1.0, 2, 0)
LINE = re.compile(r"round [123]/3 (exploration|calibration) +lr .* s$", re.MULTILINE)


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Return a function that gives this process a terminal."""
    (handler,) = logging.getLogger("flwr").handlers
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")

    def opened() -> Terminal:
        shown = Terminal()
        monkeypatch.setattr(sys, "stdout", shown.stream)
        monkeypatch.setattr(sys, "stderr", shown.stream)
        monkeypatch.setattr(handler, "stream", shown.stream)
        return shown

    return opened


def test_a_run_has_one_bar_on_a_terminal(
    open_terminal: Callable[[], Terminal], tmp_path: Path
) -> None:
    terminal = open_terminal()
    folder = run_app(tmp_path, 5, {"fraction-train": 1.0})
    text = terminal.close()
    assert not LINE.search(text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    lines = [line for line in lines_left(text) if not line.startswith("WARNING")]
    assert lines[0] == f"Run folder: {folder}"
    assert re.fullmatch(
        r"round 3/3 ━+ calibration  loss \d\.\d{3}  accuracy \d+\.\d% 0:00:\d\d", lines[1]
    )
    assert lines[2].startswith("+---")  # the summary


def test_a_log_file_has_a_line_for_each_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_app(tmp_path, 5, {})
    text = capsys.readouterr().out
    assert len(LINE.findall(text)) == 3
    assert "\x1b" not in text
    assert "━" not in text


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_the_terminal_of_a_ci_has_lines(
    open_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    terminal = open_terminal()
    monkeypatch.setenv(name, value)
    display = RoundDisplay(SETTINGS)
    display.start()
    display.show(ROUND)
    display.close()
    assert terminal.close() == (
        "round 3/4 calibration lr 0.1     train 0.250 test 0.500 accuracy 12.5% 1.0 s\r\n"
    )


def test_what_is_printed_and_logged_appears_whole_above_the_bar(
    open_terminal: Callable[[], Terminal],
) -> None:
    terminal = open_terminal()
    display = RoundDisplay(SETTINGS, 2)
    display.start()
    print("printed " * 20)
    logger.warning("%s", "logged " * 20)
    display.close()
    logger.warning("afterwards")
    lines = lines_left(terminal.close())
    assert lines[0] == ("printed " * 20).rstrip()
    assert lines[1] == f"WARNING :   {'logged ' * 20}".rstrip()
    assert re.fullmatch(r"round 2/4 [━╺╸]+ +-:--:-- left", lines[2])
    assert lines[3] == "WARNING :   afterwards"


def test_a_round_without_evaluation_keeps_the_accuracy_before(
    open_terminal: Callable[[], Terminal],
) -> None:
    terminal = open_terminal()
    display = RoundDisplay(replace(SETTINGS, freeze_after=1.0))
    display.start()
    display.show(replace(ROUND, round=1, test_accuracy=0.5))
    display.show(replace(ROUND, round=2, test_accuracy=None, train_loss=None))
    display.close()
    (line,) = lines_left(terminal.close())
    assert re.fullmatch(r"round 2/4 [━╺╸]+ no client  accuracy 50\.0% 0:00:0\d left", line)


def test_a_server_without_data_shows_the_clients_accuracy(
    open_terminal: Callable[[], Terminal],
) -> None:
    terminal = open_terminal()
    display = RoundDisplay(replace(SETTINGS, evaluate_every=0))
    display.start()
    display.show(replace(ROUND, test_accuracy=None, validation_accuracy=0.75))
    display.close()
    assert "calibration  loss 0.250  clients' accuracy 75.0%" in lines_left(terminal.close())[-1]


def test_a_narrow_terminal_keeps_round_and_time(
    open_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal()
    monkeypatch.setenv("COLUMNS", "40")
    display = RoundDisplay(SETTINGS)
    display.start()
    display.show(ROUND)
    display.close()
    first, *others = lines_left(terminal.close())[-3:]
    assert re.fullmatch(r"round 3/4 [━╺╸ ]+calibration +-:--:-- left", first)
    assert [line.strip() for line in others] == ["loss 0.250", "accuracy 12.5%"]
    assert len(first) <= 40


def test_a_line_of_a_worker_replaces_the_bars(open_terminal: Callable[[], Terminal]) -> None:
    terminal = open_terminal()
    (handler,) = logging.getLogger("flwr").handlers
    terminal.stream.write("round 1/4 the bar")
    log_over_bar()
    logger.warning("of a worker")
    assert isinstance(handler, logging.StreamHandler)
    assert lines_left(terminal.close()) == ["WARNING :   of a worker"]
