from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from torch import Tensor

from fixbn_flwr.store import KEY, load_buffers, save_buffers, write_atomically

BUFFERS = {
    "conv.weight": torch.arange(6.0).reshape(2, 3),
    "head.bias": torch.tensor([0.1, -2.0], dtype=torch.bfloat16),
    "scale.step": torch.tensor(3.0),
    "double": torch.tensor([1e-300], dtype=torch.float64),
}


def context(
    directory: Path | None, *, run_id: int = 1, partition: int | None = 0, node_id: int = 5
) -> Context:
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config={} if partition is None else {"partition-id": partition},
        state=RecordDict(),
        run_config={} if directory is None else {"state-dir": str(directory)},
    )


@pytest.fixture(params=["state", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "state" if request.param == "directory" else None


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def test_nothing_is_kept_at_first(place: Path | None) -> None:
    assert load_buffers(context(place), 1) == {}


def test_what_is_kept_comes_back_to_the_bit(place: Path | None) -> None:
    client = context(place)
    save_buffers(client, 1, BUFFERS)
    assert equal(load_buffers(client, 2), BUFFERS)
    assert equal(load_buffers(client, 7), BUFFERS)  # not asked in the rounds between


def test_the_last_one_counts(place: Path | None) -> None:
    client = context(place)
    save_buffers(client, 1, BUFFERS)
    save_buffers(client, 2, {"x": torch.ones(1)})
    assert equal(load_buffers(client, 3), {"x": torch.ones(1)})
    save_buffers(client, 3, {})
    assert load_buffers(client, 4) == {}


def test_each_client_has_its_own(place: Path | None) -> None:
    first, second = context(place, partition=0), context(place, partition=1)
    save_buffers(first, 1, BUFFERS)
    assert load_buffers(second, 2) == {}
    save_buffers(second, 1, {"x": torch.ones(1)})
    assert equal(load_buffers(first, 2), BUFFERS)


def test_nodes_without_a_partition_are_told_apart_by_id(tmp_path: Path) -> None:
    first = context(tmp_path, partition=None, node_id=5)
    second = context(tmp_path, partition=None, node_id=6)
    save_buffers(first, 1, BUFFERS)
    assert load_buffers(second, 2) == {}
    assert equal(load_buffers(first, 2), BUFFERS)


def test_another_run_starts_from_zero(place: Path | None, caplog: pytest.LogCaptureFixture) -> None:
    client = context(place, run_id=1)
    save_buffers(client, 1, BUFFERS)
    later = context(place, run_id=2)
    later.state = client.state  # a SuperNode may hand on the state of a series of runs
    assert load_buffers(later, 2) == {}
    assert place is not None or "it is of run 1 round 1 and this is run 2" in caplog.text
    save_buffers(later, 1, {})
    if place is not None:  # nor does it touch what belongs to the first
        assert equal(load_buffers(client, 2), BUFFERS)


@pytest.mark.parametrize("server_round", [3, 2, 1])
def test_a_round_not_later_than_the_stamp_starts_from_zero(
    place: Path | None, server_round: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The server never saw the training that made them, or the run went back to a checkpoint."""
    client = context(place)
    save_buffers(client, 3, BUFFERS)
    assert load_buffers(client, server_round) == {}
    assert f"round 3 and this is run 1 round {server_round}" in caplog.text


def _damage(client: Context, place: Path | None, content: bytes) -> None:
    if place is None:
        client.state[KEY] = ConfigRecord({KEY: content})
    else:
        (place / "1" / "partition-0.safetensors").write_bytes(content)


def _content(client: Context, place: Path | None) -> bytes:
    if place is None:
        content = client.state.config_records[KEY][KEY]
        assert isinstance(content, bytes)
        return content
    return (place / "1" / "partition-0.safetensors").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_torn_file_starts_from_zero(
    place: Path | None, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save_buffers(client, 1, BUFFERS)
    _damage(client, place, _content(client, place)[:keep])
    assert load_buffers(client, 2) == {}
    assert "unreadable" in caplog.text


@pytest.mark.parametrize("junk", [b"not safetensors at all", b"\xff" * 100, pickle.dumps({})])
def test_junk_starts_from_zero(
    place: Path | None, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save_buffers(client, 1, BUFFERS)
    _damage(client, place, junk)
    assert load_buffers(client, 2) == {}
    assert "unreadable" in caplog.text


def test_a_file_without_a_stamp_starts_from_zero(
    place: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    import safetensors.torch

    client = context(place)
    save_buffers(client, 1, BUFFERS)
    _damage(client, place, safetensors.torch.save(BUFFERS))
    assert load_buffers(client, 2) == {}
    assert "unreadable" in caplog.text


def test_a_file_that_cannot_be_opened_starts_from_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1" / "partition-0.safetensors").mkdir(parents=True)
    assert load_buffers(context(tmp_path), 2) == {}
    assert "unreadable" in caplog.text


def test_the_nodes_directory_comes_before_the_runs(tmp_path: Path) -> None:
    client = context(tmp_path / "run")
    client.node_config["state-dir"] = str(tmp_path / "node")
    save_buffers(client, 1, BUFFERS)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "node" / "1" / "partition-0.safetensors").is_file()
    assert not client.state


def test_an_empty_state_dir_is_none() -> None:
    client = context(None)
    client.run_config["state-dir"] = ""
    save_buffers(client, 1, BUFFERS)
    assert KEY in client.state


def test_state_travels_as_flower_sends_it() -> None:
    """Pickled in a simulation, protobuf on real nodes."""
    client = context(None)
    save_buffers(client, 1, BUFFERS)
    assert equal(load_buffers(pickle.loads(pickle.dumps(client)), 2), BUFFERS)
    assert equal(load_buffers(context_from_proto(context_to_proto(client)), 2), BUFFERS)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "file"
    write_atomically(path, b"old")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    for step in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(step, fails)
            with pytest.raises(OSError, match="disk full"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
