"""The file of an offline run of Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tracked import logged_values, tracked_run
from tests.support.waiting import wait_until

pytest.importorskip("wandb", reason="the extra wandb is not installed")

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, 7


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, which is a log in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), _FILE_HEADER, b""
    while place + _RECORD_HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _RECORD_HEADER:  # the padding of a block
            place += _BLOCK - place % _BLOCK
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]  # 1: whole; 2, 3, 4: first, middle, last part
        place += _RECORD_HEADER
        parts += content[place : place + length]
        place += length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def complete(path: Path) -> list[Any]:
    """Return the records of a file that has its last one."""
    found = list(records(path))
    return found if any(record.HasField("exit") for record in found) else []


def test_every_round_the_config_the_figure_and_the_model_are_logged(tmp_path: Path) -> None:
    folder = tracked_run(tmp_path, "wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # Its service may write after the program has gone on.
    found = wait_until(lambda: complete(file), "the file had its end")
    (run,) = (record.run for record in found if record.HasField("run"))
    assert (run.project, run.display_name) == ("fixbn", "mine")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["learning-rate"] == 0.05
    assert config["method"] == "FixBN"
    rows = [
        {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    expected = logged_values(folder)
    for n, values in enumerate(expected, 1):
        row = {}
        for part in rows:
            if part["_step"] == n:
                row |= part
        assert {name: row[name] for name in values} == values
    assert rows[-1]["curves._type"] == "image-file"
    (artifact,) = (record.artifact for record in found if record.HasField("artifact"))
    assert (artifact.type, artifact.name) == ("model", "mine-final")
    assert [entry.path for entry in artifact.manifest.contents] == ["final.safetensors"]
    (end,) = (record.exit for record in found if record.HasField("exit"))
    assert end.exit_code == 0
