"""What is compared, and the arithmetic; the seconds themselves are for a quiet machine to tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.outside_training import ADDED, TASK, Rounds, copy_of_app, table


@pytest.mark.parametrize("before", [True, False])
def test_before_is_the_app_without_its_two_lines_for_real_machines(
    tmp_path: Path, before: bool
) -> None:
    app = copy_of_app(tmp_path / "app", before=before)
    assert (app / "pyproject.toml").is_file()
    for file, now, then in ADDED:
        text = (app / file).read_text()
        assert (now in text, then in text) == ((False, True) if before else (True, False))
        compile(text, file, "exec")


def test_the_model_is_as_large_as_the_measurement_says() -> None:
    state = TASK.models["resnet18"]("bn").state_dict()
    assert len(state) == 122
    assert sum(t.numel() * t.element_size() for t in state.values()) == pytest.approx(
        45e6, rel=0.02
    )


def test_the_table_shows_the_median_of_the_rounds_after_the_first() -> None:
    run = Rounds([30.0, 9.0, 7.0, 8.0], [1.0] * 4, [8.0, 6.0, 7.0], 0.5)
    assert table({"after": run}).splitlines()[1].split() == ["after", "7.0", "8.0,", "6.0,", "7.0"]
