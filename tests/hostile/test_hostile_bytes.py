"""Damaged bytes in arrays, packed messages, momentum blobs, saved state and checkpoints."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common import Code, FitRes, Parameters, Status, parameters_to_ndarrays
from hypothesis import given, settings

from fixbn_flwr.array_records import record_of, view_of_bytes
from fixbn_flwr.client.momentum_store import KEY, load_buffers, save_buffers
from fixbn_flwr.errors import CheckpointError, ReplyError
from fixbn_flwr.legacy.replies import check_fit
from fixbn_flwr.method.round_config import MOMENTUM_BLOB, Momentum, RoundConfig
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.persistence.safetensors_tree import from_bytes, to_bytes
from fixbn_flwr.transport.packing import Packer, unpack
from tests.support.hostile_records import (
    FUZZ,
    NUMBERS,
    PARAMETERS,
    RANDOM,
    REMEDY,
    SENT,
    VALID,
    damaged,
    payload,
)
from tests.support.uploads import SuperLink, grid_of, reply_of


@settings(FUZZ, max_examples=3000)
@given(random=RANDOM)
def test_any_bytes_are_read_as_numbers_or_raise_a_value_error(random: Random) -> None:
    data = payload(random)
    try:
        values = view_of_bytes(data)
    except ValueError:
        return
    assert values.dtype.kind in "biufc"
    assert values.nbytes < len(data)
    assert not values.flags.owndata


PACKED = Packer().pack(RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in SENT.items()})}))
WORDS: list[Any] = [
    "", ",", "2,3", "9", "-1", "0", "9" * 400, "\u0663", "w", "../../x", "C", "F", "<f4", "|O",
]  # fmt: skip


def damaged_layout(random: Random) -> ConfigRecord:
    layout = {key: list(words) for key, words in PACKED.config_records[layout_key()].items()}
    for _ in range(random.randint(0, 2)):
        words = layout[random.choice(list(layout))]
        match random.randrange(3):
            case 0:
                words[random.randrange(len(words))] = random.choice(WORDS)
            case 1:
                words.append(random.choice(WORDS))
            case _:
                words.pop()
                words.append(random.choice(WORDS))
    if random.random() < 0.1:
        layout[random.choice(list(layout))] = random.choice([[1], [], [b"x"]])
    return ConfigRecord(layout)


def layout_key() -> str:
    (key,) = PACKED.config_records
    return str(key)


@settings(FUZZ, max_examples=2000)
@given(random=RANDOM)
def test_a_packed_message_is_unpacked_or_refused(random: Random) -> None:
    flat = ArrayRecord(dict(PACKED.array_records["arrays"]))
    if random.random() < 0.5:
        name = random.choice(list(flat))
        damage = damaged(random, flat[name].data)
        flat[name] = Array("float32", (8,), "numpy.ndarray", damage)
    if random.random() < 0.1:
        flat[random.choice(WORDS)] = Array(np.zeros(3))
    packed = RecordDict({"arrays": flat, layout_key(): damaged_layout(random)})
    sent = sum(len(array.data) for array in flat.values())
    refused = ""
    try:
        unpacked = unpack(packed)
    except ReplyError as error:
        refused = str(error)
    if refused:
        assert "different versions" in refused
        return
    names = len(unpacked["arrays"])
    assert sum(len(a.data) for a in unpacked.array_records["arrays"].values()) < sent + 2000 * names


@settings(FUZZ, max_examples=500)
@given(random=RANDOM)
def test_a_reply_of_damaged_objects_is_accepted_or_becomes_an_error_of_its_client(
    random: Random,
) -> None:
    superlink = SuperLink()
    names = superlink.upload(reply_of(5))
    for _ in range(random.randint(1, 3)):
        name = random.choice(names)
        other = superlink.objects[random.choice(names)]
        content = other if random.random() < 0.2 else superlink.objects[name]
        superlink.objects[name] = damaged(random, content)
    superlink.upload(reply_of(6, loss=0.25))
    bad, good = grid_of(superlink).pull_messages(["message-5", "message-6"])
    assert bad.metadata.src_node_id == 5
    assert bad.metadata.reply_to_message_id == "message-5"
    if bad.has_error():
        assert bad.error.reason.startswith("its reply ")
    assert good.content == reply_of(6, loss=0.25).content


BLOB = safetensors.numpy.save({name: SENT[name] for name in PARAMETERS})


@settings(FUZZ, max_examples=1500)
@given(random=RANDOM)
def test_a_reply_of_the_older_generation_is_read_or_refused(random: Random) -> None:
    tensors = [payload(random) if random.random() < 0.1 else data for data in VALID]
    if random.random() < 0.1:
        tensors.pop()
    metrics: dict[str, Any] = {"accuracy": 0.5}
    blob = damaged(random, BLOB) if random.random() < 0.5 else BLOB
    metrics[MOMENTUM_BLOB] = random.choice([blob] * 8 + ["text", 1.0, BLOB * 500])
    if random.random() < 0.2:
        metrics["more"] = random.choice([n for n in NUMBERS if not isinstance(n, list)])
    examples = random.choice([8] * 5 + [n for n in NUMBERS if not isinstance(n, list)] + [True])
    result = FitRes(Status(Code.OK, ""), Parameters(tensors, ""), examples, metrics)
    refused = ""
    try:
        checked = check_fit(result, SENT, with_momentum=True)
    except ReplyError as error:
        refused = str(error)
    if refused:
        assert re.search(REMEDY, refused), refused
        return
    update = checked.update
    assert 0 < update.weight <= 2**53
    remaining = parameters_to_ndarrays(checked.content.parameters)
    assert [a.shape for a in remaining] == [array.shape for array in SENT.values()]
    everything = [*remaining, *update.arrays.values(), *update.momentum.values()]
    assert all(np.isfinite(array).all() for array in everything)
    assert MOMENTUM_BLOB not in checked.content.metrics


def context_with(content: object) -> Context:
    state = RecordDict({KEY: ConfigRecord({KEY: content})})  # type: ignore[dict-item]
    return Context(run_id=1, node_id=5, node_config={}, state=state, run_config={})


MODEL = "model"


def round_config(server_round: int) -> RoundConfig:
    return RoundConfig(server_round, Phase.EXPLORATION, Momentum.LOCAL, 1.0)


def saved_state() -> bytes:
    context = Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={})
    buffers = {"w": torch.ones(2, 3), "b.step": torch.tensor(1.0)}
    save_buffers(context, round_config(1), buffers, MODEL)
    content = context.state.config_records[KEY][KEY]
    assert isinstance(content, bytes)
    return content


SAVED_STATE = saved_state()


@settings(FUZZ, max_examples=2000)
@given(random=RANDOM)
def test_saved_state_is_read_or_dropped(random: Random) -> None:
    buffers = load_buffers(context_with(damaged(random, SAVED_STATE)), round_config(2), MODEL)
    assert all(isinstance(buffer, torch.Tensor) for buffer in buffers.values())


def with_metadata(metadata: object) -> bytes:
    length = int.from_bytes(SAVED_STATE[:8], "little")
    header = json.loads(SAVED_STATE[8 : 8 + length])
    header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + SAVED_STATE[8 + length :]


@pytest.mark.parametrize(
    "content",
    [
        with_metadata(None),
        with_metadata({}),
        with_metadata([]),
        with_metadata("run"),
        with_metadata({"run": 1, "round": 1}),
        with_metadata({"run": "1"}),
        with_metadata({"run": "1", "round": "1"}),
        with_metadata({"run": "one", "round": "1", "model": MODEL}),
        with_metadata({"run": "1" * 5000, "round": "1", "model": MODEL}),
        safetensors.torch.save({"w": torch.ones(2)}),
        b"",
        b"\xff" * 8,
        "text",
        1,
    ],
)
def test_saved_state_without_valid_metadata_is_dropped_with_a_warning(
    content: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flwr"):
        assert load_buffers(context_with(content), round_config(2), MODEL) == {}
    (line,) = caplog.messages
    assert "saved momentum dropped, unreadable" in line


TREE = to_bytes(
    {
        "model": record_of({"w": np.ones((2, 3), np.float32), "n": np.asarray(3)}),
        "strategy": {"run": 1, "resumed": [[1, 2]], "strategy": [{"m": [np.ones(2)]}]},
        "metrics": ["{}\n"],
        "random": {"python": (3, (1, 2), None)},
    }
)


@settings(FUZZ, max_examples=2000)
@given(random=RANDOM)
def test_a_checkpoint_is_read_or_refused(random: Random) -> None:
    refused = ""
    try:
        from_bytes(damaged(random, TREE))
    except CheckpointError as error:
        refused = str(error)
    assert not refused or "this file is not a checkpoint" in refused


@settings(FUZZ, max_examples=500)
@given(random=RANDOM)
def test_the_newest_intact_checkpoint_is_loaded(random: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=3)
        for server_round in (1, 2, 3):
            checkpoints.save(server_round, {"round": server_round})
        files = sorted(Path(folder).iterdir())
        intact = {n for n in (1, 2, 3) if random.random() < 0.5}
        for number, file in enumerate(files, start=1):
            content = file.read_bytes()
            changed = content if number in intact else damaged(random, content)
            file.write_bytes(changed)
            intact |= {number} if changed == content else set()
        try:
            found, tree = checkpoints.newest()
        except CheckpointError:
            assert not intact
        else:
            assert found == max(intact) == tree["round"]
