from __future__ import annotations

from pathlib import Path
from typing import Any

from simulation.experiments.gradient_runs import OF_BATCH, OWN
from simulation.experiments.updates import ALL_LAYERS
from simulation.reporting.gradient_figure import draw_updates, figure_of_updates, updates_table

LAYERS = ((1, "fc"), (0, "conv1"), (-1, ALL_LAYERS))


def rows() -> list[dict[str, Any]]:
    return [
        {
            "method": "BN", "round": 0, "share": share, "mode": mode, "local_steps": steps,
            "name": name, "depth": depth, "cosine": 0.25 + run + share / 4 + depth / 8,
        }
        for run in (0.0, 0.25)
        for mode, shares in ((OF_BATCH, (0.0, 0.5, 1.0)), (OWN, (0.5, 1.0)))
        for share in shares
        for steps in (1, 20)
        for depth, name in LAYERS
    ]  # fmt: skip


def test_a_panel_is_a_method_mode_and_step_count_with_means_over_runs() -> None:
    panels = figure_of_updates(rows()).axes[:4]
    assert [ax.get_title() for ax in panels] == [
        "BN: federated, batch statistics, 1 step",
        "BN: a client's own update, 1 step",
        "BN: federated, batch statistics, 20 steps",
        "BN: a client's own update, 20 steps",
    ]
    (image,) = panels[0].images
    assert image.get_array().tolist() == [[0.375, 0.5, 0.625], [0.5, 0.625, 0.75]]
    # All panels have the same columns, one of them empty where nothing was measured.
    (image,) = panels[1].images
    assert image.get_array().mask.tolist() == [[True, False, False]] * 2
    assert image.get_array()[:, 1:].tolist() == [[0.5, 0.625], [0.625, 0.75]]
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["0", "50", "100"]


def test_the_figure_is_saved_as_png(tmp_path: Path) -> None:
    draw_updates(rows(), tmp_path / "updates.png")
    assert (tmp_path / "updates.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_the_whole_network() -> None:
    assert updates_table(rows()).splitlines() == [
        "| run | normalised by | local steps | 0 % | 50 % | 100 % |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| BN | batch statistics | 1 | 0.25 | 0.38 | 0.50 |",
        "| BN | batch statistics | 20 | 0.25 | 0.38 | 0.50 |",
        "| BN | a client's own update | 1 |  | 0.38 | 0.50 |",
        "| BN | a client's own update | 20 |  | 0.38 | 0.50 |",
    ]
