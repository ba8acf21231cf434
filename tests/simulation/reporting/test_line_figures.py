"""Line figures: the numbers that are drawn, by round and by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.errors import ConfigError
from simulation.reporting.line_figures import (
    draw_courses,
    figure_of_courses,
)
from tests.support.handmade import result

TWO = {"partition": "two classes"}


def test_a_course_is_the_mean_by_share_of_the_rounds_within_a_band() -> None:
    results = [
        result("BN", {}, 0.4, seed=0),
        result("BN", {}, 0.6, seed=1),
        # Half as many rounds: round 1 is 50 %.
        result(
            "FixBN",
            {},
            0.8,
            accuracies={1: 0.7, 2: 0.8},
            losses={1: 1.0, 2: 1.0},
            run_config={"num-server-rounds": 2, "freeze-after": 0.5},
        ),
    ]
    figure = figure_of_courses(results, None, "Courses", "mean IoU (%)")
    (ax,) = figure.axes
    drawn = [line for line in ax.lines if len(line.get_xydata()) > 1]
    lines, (freeze,) = drawn[:-1], drawn[-1:]
    assert list(freeze.get_xdata()) == [50, 50]
    assert "T*" in figure.legends[0].get_title().get_text()
    assert [list(line.get_xdata()) for line in lines] == [[25, 50, 75, 100], [50, 100]]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([25, 50, 50, 50]),
        pytest.approx([70, 80]),
    ]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    (band,) = ax.collections
    assert band.get_paths()[0].get_extents().ymax == pytest.approx(60)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("share of the rounds (%)", "mean IoU (%)")
    assert (figure.get_suptitle(), ax.get_title()) == ("Courses", "")


def test_a_run_is_included_until_it_diverges_and_a_marker_shows_the_round() -> None:
    results = [
        result("FixBN", TWO, 0.6, seed=0),
        result("FixBN", TWO, 0.2, seed=1, diverged=True),
        result("FixBN", {"partition": "IID"}, 0.7),
    ]
    first, second = figure_of_courses(results, "partition", "").axes
    assert [first.get_title(), second.get_title()] == ["partition: two classes", "partition: IID"]
    line = first.lines[0]
    assert list(line.get_ydata()) == pytest.approx([25, 50, 60, 60])
    marked: list[Any] = [line for line in first.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in marked] == [[50]]
    assert marked[0].get_ydata()[0] < 25
    assert [label.get_text() for label in first.get_yticklabels()][-1] == "diverged"


def test_a_course_never_mixes_settings() -> None:
    with pytest.raises(ConfigError, match=r"axes \(none\) cannot show .* partition"):
        figure_of_courses([result("BN", TWO, 0.5)], None, "")


def test_the_figure_is_saved_as_png(tmp_path: Path) -> None:
    draw_courses([result("BN", TWO, 0.5)], "partition", tmp_path / "courses.png", "")
    assert (tmp_path / "courses.png").read_bytes().startswith(b"\x89PNG")
