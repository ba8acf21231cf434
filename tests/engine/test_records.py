"""Messages are split into a header and large byte strings, and joined again."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from fixbn_flwr.engine.records import LARGE, join, split
from fixbn_flwr.flower_compat import message_to_bytes, set_task_identity


@pytest.fixture
def message() -> Message:
    set_task_identity(7)
    arrays = {
        "weight": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "count": Array(np.array(3)),
        "empty": Array(np.zeros((0, 4))),
    }
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "config": ConfigRecord({"a": [1, 2], "s": "x", "small": b"b", "large": b"c" * LARGE}),
            "metrics": MetricRecord({"loss": 0.5, "n": [1, 2]}),
        }
    )
    message = Message(content, 5, "train")
    message.metadata.__dict__["_message_id"] = "one"
    return message


def test_a_message_is_the_same_after_both(message: Message) -> None:
    header, large = split(message)
    assert len(large) == 4  # three arrays and one value of the config
    assert b"c" * LARGE not in header
    again = join(header, [memoryview(bytes(part)) for part in large])
    assert message_to_bytes(again) == message_to_bytes(message)
    assert list(again.content["config"]) == ["a", "s", "small", "large"]


def test_an_error_reply_has_no_large_part(message: Message) -> None:
    error = Message(Error(3, "no disk"), reply_to=message)
    header, large = split(error)
    assert large == []
    assert join(header, []).error.reason == "no disk"


def test_joined_arrays_do_not_change_with_the_memory(message: Message) -> None:
    header, large = split(message)
    memory = [bytearray(part) for part in large]
    again = join(header, [memoryview(part) for part in memory])
    for part in memory:
        part[:] = bytes(len(part))
    assert again.content["arrays"]["weight"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert again.content["config"]["large"] == b"c" * LARGE
