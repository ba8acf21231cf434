"""Figures of grids: the marks, labels and legends of matplotlib's figure objects."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fixbn_flwr.errors import ConfigError
from simulation.reporting.grid_figures import View, draw, figure_of
from simulation.reporting.panels import DOT
from tests.support.handmade import result

POINTS = View("By partition", "points", "partition", "clients' data")
LINES = View("By steps", "lines", "steps", "local steps in a round", panels="partition")
PAIRS = (("BN", "GN"), ("FixBN", "GN"))
MAP = View("When", "map", "steps", "local steps", rows="alpha", pairs=PAIRS)
PARTITIONS = ("IID", "two classes")


def markers(ax: Axes, *, filled: bool) -> list[Line2D]:
    """Return the large markers; filled ones are means, open ones diverged runs."""
    return [
        line
        for line in ax.lines
        if line.get_linestyle() == "None"
        and len(line.get_xydata()) > 0
        and line.get_markersize() > DOT
        and (line.get_markerfacecolor() != "white") == filled
    ]


def heights(lines: list[Line2D]) -> list[float]:
    return [float(y) for line in lines for y in line.get_ydata()]


def tick_labels(ax: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


def legend_labels(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def by_partition(methods: tuple[str, ...] = ("BN", "GN"), seeds: int = 3) -> list[Any]:
    return [
        result(method, {"partition": partition}, 0.3 + 0.1 * k + 0.05 * seed, seed=seed)
        for k, method in enumerate(methods)
        for partition in PARTITIONS
        for seed in range(seeds)
    ]


def test_points_are_means_side_by_side_with_a_bar_and_a_dot_for_each_seed() -> None:
    figure = figure_of(by_partition(), POINTS)
    (ax,) = figure.axes
    means = markers(ax, filled=True)
    assert heights(means) == pytest.approx([35, 35, 45, 45])
    assert [float(line.get_xdata()[0]) for line in means] == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    dots = [line for line in ax.lines if line.get_markersize() == DOT]
    assert [list(seeds.get_ydata()) for seeds in dots] == [
        pytest.approx([low, low + 5, low + 10]) for low in (30, 30, 40, 40)
    ]
    # Student's t for two degrees of freedom, 4.303, times 5 over the root of 3.
    bars = [line for line in ax.lines if line.get_linestyle() == "-" and line.get_color() != "0.85"]
    assert [list(bar.get_ydata()) for bar in bars] == [
        pytest.approx([mean - 12.42, mean + 12.42], abs=0.01) for mean in (35, 35, 45, 45)
    ]
    assert tick_labels(ax, "x") == ["IID", "two classes"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("clients' data", "test accuracy (%)")
    assert figure.get_suptitle() == "By partition"
    assert legend_labels(figure) == ["BN", "GN"]
    assert figure.legends[0].get_title().get_text() == (
        "mean of 3 seeds, with its 95 % interval and a dot for each"
    )
    assert "diverged" not in tick_labels(ax, "y")


def test_one_seed_has_no_bar_and_the_legend_names_it() -> None:
    figure = figure_of(by_partition(seeds=1), POINTS)
    assert len(markers(figure.axes[0], filled=True)) == 4
    separator = [line for line in figure.axes[0].lines if len(line.get_xydata()) > 1]
    assert [list(line.get_xdata()) for line in separator] == [[0.5, 0.5]]
    assert figure.legends[0].get_title().get_text() == "1 seed"


def test_many_methods_differ_in_color_or_marker() -> None:
    names = tuple(f"method {k}" for k in range(9))
    figure = figure_of(by_partition(names, seeds=1), POINTS)
    drawn = {(line.get_marker(), line.get_color()) for line in markers(figure.axes[0], filled=True)}
    assert len(drawn) == 9
    first = figure.legends[0].legend_handles[:5]
    assert len({handle.get_marker() for handle in first}) == 5  # type: ignore[union-attr]


def test_a_diverged_run_is_an_open_marker_in_a_strip_below_the_panel() -> None:
    results = [
        *by_partition(("BN",)),
        *(result("GN", {"partition": "IID"}, None, seed=k, diverged=True) for k in range(2)),
        result("GN", {"partition": "IID"}, 0.5, seed=2),
    ]
    (ax,) = figure_of(results, POINTS).axes
    (strip,) = [patch for patch in ax.patches if to_hex(patch.get_facecolor()) == "#ebebeb"]
    (bottom, top) = strip.get_extents().transformed(ax.transData.inverted()).intervaly
    assert bottom == pytest.approx(ax.get_ylim()[0])
    assert top < 30  # below every accuracy
    (failed,) = markers(ax, filled=False)
    assert list(failed.get_xdata()) == pytest.approx([0.2, 0.2])
    assert len(set(failed.get_ydata())) == 2
    assert all(bottom < y < top for y in failed.get_ydata())
    assert failed.get_marker() == markers(ax, filled=True)[2].get_marker()
    assert heights(markers(ax, filled=True)) == pytest.approx([35, 35, 50])
    assert tick_labels(ax, "y")[-1] == "diverged"


def test_a_figure_is_drawn_if_all_runs_diverged(tmp_path: Path) -> None:
    results = [result("BN", {"partition": "IID"}, None, diverged=True)]
    draw(results, POINTS, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def by_steps(steps: tuple[str, ...]) -> list[Any]:
    return [
        result(method, {"partition": partition, "steps": count}, 0.2 + 0.1 * k, seed=0)
        for method in ("BN", "FixBN")
        for partition in PARTITIONS
        for k, count in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("steps", "scale", "positions"),
    [
        (("1", "20"), "linear", [1, 20]),
        (("1", "21"), "log", [1, 21]),
        (("0", "100"), "linear", [0, 100]),
        (("none", "few", "many"), "linear", [0, 1, 2]),
    ],
)
def test_numbers_are_positions_on_the_x_axis(
    steps: tuple[str, ...], scale: str, positions: list[int]
) -> None:
    axes = figure_of(by_steps(steps), LINES).axes
    assert [ax.get_title() for ax in axes] == ["partition: IID", "partition: two classes"]
    for ax in axes:
        assert ax.get_xscale() == scale
        lines = [line for line in ax.lines if len(line.get_xydata()) == len(steps)]
        assert [list(line.get_xdata()) for line in lines] == [positions, positions]
        assert [line.get_linestyle() for line in lines] == ["--", "-"]
        assert tick_labels(ax, "x") == list(steps)
    assert [ax.get_ylabel() for ax in axes] == ["test accuracy (%)", ""]
    assert [ax.get_xlabel() for ax in axes] == ["local steps in a round"] * 2


def test_a_line_is_broken_where_all_runs_diverged() -> None:
    results = [
        result("BN", {"partition": "IID", "steps": "1"}, 0.5),
        result("BN", {"partition": "IID", "steps": "5"}, None, diverged=True),
        result("BN", {"partition": "IID", "steps": "10"}, 0.6),
    ]
    (ax,) = figure_of(results, LINES).axes
    (line,) = [line for line in ax.lines if len(line.get_xydata()) == 3]
    assert [math.isnan(y) for y in line.get_ydata()] == [False, True, False]
    assert list(markers(ax, filled=False)[0].get_xdata()) == [5]


def on_map() -> list[Any]:
    accuracies = {
        ("BN", "0.1", "1"): 0.30,
        ("BN", "0.1", "20"): 0.45,
        ("BN", "1", "1"): 0.5,
        ("BN", "1", "20"): None,
        ("GN", "0.1", "1"): 0.40,
        ("GN", "0.1", "20"): 0.40,
        ("GN", "1", "1"): 0.5,
        ("GN", "1", "20"): 0.5,
        ("FixBN", "0.1", "1"): 0.425,
        ("FixBN", "0.1", "20"): 0.60,
    }
    results = [
        result(method, {"alpha": alpha, "steps": steps}, share, diverged=share is None)
        for (method, alpha, steps), share in accuracies.items()
    ]
    lost = result("FixBN", {"alpha": "0.1", "steps": "1"}, None, seed=1, diverged=True)
    return [*results, lost]


def test_a_map_shows_each_difference_in_its_cell_on_one_scale() -> None:
    figure = figure_of(on_map(), MAP)
    panels = figure.axes[:2]
    assert [ax.get_title() for ax in panels] == ["BN minus GN", "FixBN minus GN"]
    texts = [
        {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
        for ax in panels
    ]
    assert texts == [
        {(0, 0): "-10.0", (1, 0): "+5.0", (0, 1): "+0.0", (1, 1): "diverged"},
        {(0, 0): "+2.5\n1 of 2\ndiverged", (1, 0): "+20.0", (0, 1): "-", (1, 1): "-"},
    ]
    assert [ax.images[0].get_clim() for ax in panels] == [pytest.approx((-20, 20))] * 2
    assert panels[0].images[0].get_array()[0].tolist() == pytest.approx([-10, 5])
    assert tick_labels(panels[0], "x") == ["1", "20"]
    assert tick_labels(panels[0], "y") == ["0.1", "1"]
    assert (panels[0].get_xlabel(), panels[0].get_ylabel()) == ("local steps", "alpha")
    bar = figure.axes[2]
    assert bar.get_xlabel() == (
        "difference in test accuracy (percentage points), mean over 1 to 2 seeds\n"
        "with its 95 % interval; bold if that excludes 0"
    )


def test_a_map_has_the_interval_of_paired_seeds_and_is_bold_where_it_excludes_zero() -> None:
    accuracies = {"BN": (0.50, 0.60, 0.70), "GN": (0.49, 0.59, 0.69), "FixBN": (0.5, 0.7, 0.6)}
    results = [
        result(method, {"alpha": "1", "steps": "1"}, accuracy, seed=seed)
        for method, found in accuracies.items()
        for seed, accuracy in enumerate(found)
    ]
    bn, fixbn = (ax.texts[0] for ax in figure_of(results, MAP).axes[:2])
    assert (bn.get_text(), bn.get_fontweight()) == ("+1.0\n± 0.0", "bold")
    assert (fixbn.get_text(), fixbn.get_fontweight()) == ("+1.0\n± 24.8", "normal")


def test_a_baseline_that_diverged_is_not_subtracted() -> None:
    results = [
        result("BN", {"alpha": "1", "steps": "1"}, 0.5),
        result("GN", {"alpha": "1", "steps": "1"}, None, diverged=True),
    ]
    (text,) = figure_of(results, MAP).axes[0].texts
    assert text.get_text() == "baseline\ndiverged"


def test_an_invalid_view_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'bars' is not a kind.*points, lines, map"):
        View("a", "bars", "x", "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="set rows and pairs"):
        View("a", "map", "x", "x", rows="alpha")
    with pytest.raises(ConfigError, match="remove panels"):
        View("a", "map", "x", "x", rows="alpha", pairs=PAIRS, panels="y")
    with pytest.raises(ConfigError, match="only a map has rows"):
        View("a", "lines", "x", "x", rows="alpha")


def test_a_figure_never_mixes_settings() -> None:
    results = by_steps(("1", "5"))
    with pytest.raises(ConfigError, match=r"axes partition cannot show .* partition, steps"):
        figure_of(results, POINTS)
    with pytest.raises(ConfigError, match=r"no pair of BN and GN, .* are BN, FixBN: run"):
        figure_of(results, View("a", "map", "steps", "x", rows="partition", pairs=PAIRS))


def test_labels_do_not_overlap_in_narrow_panels(tmp_path: Path) -> None:
    results = [
        result("FixBN", {"partition": partition, "T*": f"{10 * k} %"}, 0.5)
        for partition in ("IID", "Dirichlet 0.1", "two classes")
        for k in range(1, 10)
    ]
    view = View("a", "lines", "T*", "share of the rounds before the freeze", panels="partition")
    figure = figure_of(results, view)
    figure.savefig(tmp_path / "figure.png")
    for ax in figure.axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert len(boxes) == 5
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    labels = [ax.xaxis.label.get_window_extent() for ax in figure.axes]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(labels))


def test_a_method_has_the_same_style_in_every_figure() -> None:
    from simulation.reporting.panels import styles_of

    alone, beside = styles_of(["FixBN", "other"]), styles_of(["BN", "FixBN", "mine"])
    assert alone["FixBN"] == beside["FixBN"]
    assert len(set(beside.values())) == 3
    assert alone["other"] == beside["mine"]
