"""The figure: its curves, the mark at T*, and runs that are distinguishable without colour."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.figure import draw_curves, figure_title
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.method.schedule import Phase


def metrics(
    server_round: int, accuracy: float | None, train_loss: float | None, test_loss: float | None
) -> RoundMetrics:
    return RoundMetrics(
        server_round, Phase.EXPLORATION, 0.1, train_loss, test_loss, accuracy, 0, 0, 1.0, 2, 0
    )


RUN = [
    replace(metrics(1, 0.25, 2.0, 2.5), signals={"fixbn-variance-disagreement": 0.25}),
    metrics(2, None, math.nan, None),
    replace(metrics(3, 0.75, 1.0, math.inf), signals={"fixbn-variance-disagreement": 0.5}),
    metrics(4, 1.0, None, 0.5),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Record the figures that are saved during the test."""
    figures: list[Figure] = []
    save = Figure.savefig

    def record(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def curves(figure: Figure, index: int, runs: int) -> list[tuple[list[float], list[float]]]:
    lines: Sequence[Any] = figure.axes[index].lines[:runs]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_the_curves_have_the_finite_values_of_each_round(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_curves({"FixBN": RUN}, 2, tmp_path / "curves.png", title="digits")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert curves(figure, 0, 1) == [([1, 3, 4], [25.0, 75.0, 100.0])]
    assert curves(figure, 1, 1) == [([1, 3], [2.0, 1.0])]
    assert curves(figure, 2, 1) == [([1, 4], [2.5, 0.5])]
    assert curves(figure, 3, 1) == [([1, 3], [0.25, 0.5])]
    labels = [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes]
    assert labels == [
        ("round", "test accuracy (%)"),
        ("round", "training loss (nats)"),
        ("round", "test loss (nats)"),
        ("round", "clients' disagreement"),
    ]
    assert figure.get_suptitle() == "digits"


def test_a_run_without_tests_at_the_server_shows_the_clients_validation(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rounds = [
        replace(metrics(number, None, 2.0, None), validation_accuracy=share, validation_loss=loss)
        for number, share, loss in ((1, 0.5, 3.0), (2, 0.25, 4.0))
    ]
    draw_curves({"FixBN": rounds}, None, tmp_path / "curves.png", title="digits")
    (figure,) = drawn
    assert curves(figure, 0, 1) == [([1, 2], [50.0, 25.0])]
    assert curves(figure, 2, 1) == [([1, 2], [3.0, 4.0])]
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert (labels[0], labels[2]) == ("validation accuracy (%)", "validation loss (nats)")


def test_t_star_is_a_line_and_calibration_is_shaded(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_curves({"FixBN": RUN}, 2, tmp_path / "curves.png", title="")
    for ax in drawn[0].axes:
        line: Any = ax.lines[1]
        (shade,) = ax.patches
        assert list(line.get_xdata()) == [2, 2]
        assert shade.get_extents().transformed(ax.transData.inverted()).intervalx.tolist() == (
            pytest.approx([2, 4.5])
        )
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["T* = 2, then calibration"]


@pytest.mark.parametrize("freeze_round", [None, 4])
def test_nothing_is_marked_without_a_freeze(
    tmp_path: Path, drawn: list[Figure], freeze_round: int | None
) -> None:
    draw_curves({"BN": RUN}, freeze_round, tmp_path / "curves.png", title="")
    assert [(len(ax.lines), len(ax.patches), len(ax.texts)) for ax in drawn[0].axes] == (
        [(1, 0, 0)] * 4
    )


def test_several_runs_differ_in_more_than_color(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["FixBN", "BN", "GN", "LN"]
    draw_curves(dict.fromkeys(names, RUN), 2, tmp_path / "curves.png", title="")
    lines = drawn[0].axes[0].lines[:4]
    assert len({line.get_color() for line in lines}) == 4
    assert len({line.get_linestyle() for line in lines}) == 4
    assert len({line.get_marker() for line in lines}) == 4
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(("worst", "scale"), [(99.0, "linear"), (101.0, "log")])
def test_a_wide_range_of_losses_gets_a_log_scale(
    tmp_path: Path, drawn: list[Figure], worst: float, scale: str
) -> None:
    runs = {"a": [metrics(1, 0.5, 1.0, worst)]}
    draw_curves(runs, None, tmp_path / "curves.png", title="")
    assert [ax.get_yscale() for ax in drawn[0].axes] == ["linear", scale, scale]


def test_a_method_has_the_same_style_alone_and_beside_others(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    for names in (["BN"], ["FixBN", "BN"], ["mine", "BN"]):
        draw_curves(dict.fromkeys(names, RUN), None, tmp_path / "curves.png", title="")
    colors = [
        {line.get_label(): line.get_color() for line in figure.axes[0].lines} for figure in drawn
    ]
    assert [color["BN"] for color in colors] == ["#D55E00"] * 3
    assert colors[1]["FixBN"] == "#0072B2"
    assert colors[2]["mine"] not in ("#0072B2", "#D55E00")


def test_the_noisy_curve_of_a_long_run_is_a_mean_with_the_values_faint_behind(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rounds = [metrics(n, n / 250, float(n % 5), 1.0) for n in range(1, 251)]
    draw_curves({"BN": rounds}, None, tmp_path / "curves.png", title="")
    train: Any = drawn[0].axes[1]
    raw, mean = train.lines
    assert train.get_ylabel() == "training loss (nats),\nmean of 5 rounds"
    assert list(raw.get_ydata())[:6] == [1, 2, 3, 4, 0, 1]
    assert raw.get_alpha() < 0.5
    assert list(mean.get_ydata())[:4] == [1, 1.5, 2, 2.5]
    assert list(mean.get_ydata())[4:] == pytest.approx([2.0] * 246)
    # What is not noisy is drawn as it is.
    assert curves(drawn[0], 0, 1)[0][1] == [pytest.approx(100 * n / 250) for n in range(1, 251)]


def test_a_run_without_rounds_still_gives_a_figure(tmp_path: Path) -> None:
    draw_curves({"BN": []}, 2, tmp_path / "curves.png", title="nothing yet")
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("run_config", "title"),
    [
        ({}, "digits, 10 clients, 2 classes each"),
        ({"partition": "dirichlet", "partition-alpha": 0.5}, "digits, 10 clients, Dirichlet(0.5)"),
        ({"partition": "iid", "task": "cifar10"}, "cifar10, 10 clients, IID"),
        (
            {"partition": "natural", "task": "fixbn_flwr.tasks.femnist:TASK"},
            "femnist, 10 clients, natural partition",
        ),
        (
            {"partition": "natural", "task": "camvid"},
            "camvid, 10 clients, natural partition (accuracy is mean IoU)",
        ),
    ],
)
def test_the_title_names_task_clients_and_partition(run_config: dict[str, Any], title: str) -> None:
    assert figure_title(Settings.from_run_config(run_config), 10) == title
