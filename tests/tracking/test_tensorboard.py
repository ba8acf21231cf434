"""TensorBoard's event files, read by its own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked import logged_values, tracked_run

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def text_of(events: Any, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    text: str = event.tensor_proto.string_val[0].decode()
    return text


def test_every_round_the_config_the_figure_and_the_model_are_logged(tmp_path: Path) -> None:
    folder = tracked_run(tmp_path, "tensorboard")
    events = events_of(folder)
    expected = logged_values(folder)
    assert len(expected) == 3
    for name in {name for values in expected for name in values}:
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (n, pytest.approx(values[name]))
            for n, values in enumerate(expected, 1)
            if name in values
        ]
    assert [event.value for event in events.Scalars("calibration")] == [0, 0, 1]
    assert "| learning-rate | 0.05 |" in text_of(events, "config")
    assert "| clients | 3 |" in text_of(events, "config")
    (figure,) = events.Images("curves")
    assert (figure.step, figure.width, figure.height) == (3, 1080, 768)
    assert text_of(events, "model") == str(folder / "final.safetensors")


def test_a_resumed_run_continues_where_it_was(tmp_path: Path) -> None:
    first = tracked_run(tmp_path, "tensorboard")
    more = {"resume": str(first), "num_server_rounds": 5, "may_change": "num-server-rounds"}
    tracked_run(tmp_path, "tensorboard", **more, freeze_after=2)
    events = events_of(first)
    assert [event.step for event in events.Scalars("train-loss")] == [1, 2, 3, 4, 5]
    assert [event.value for event in events.Scalars("train-loss")] == [
        pytest.approx(values["train-loss"]) for values in logged_values(first)
    ]
