from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from torch import Tensor

from fixbn_flwr.client.momentum_store import KEY, Stamp, load_buffers, save_buffers
from fixbn_flwr.errors import MomentumError
from fixbn_flwr.method.optimizer_buffers import Buffers
from fixbn_flwr.method.round_config import Momentum, RoundConfig
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.persistence.atomic_files import write_atomically

BUFFERS = {
    "conv.weight": torch.arange(6.0).reshape(2, 3),
    "head.bias": torch.tensor([0.1, -2.0], dtype=torch.bfloat16),
    "scale.step": torch.tensor(3.0),
    "double": torch.tensor([1e-300], dtype=torch.float64),
    "complex": torch.tensor([1.0 + 2.0j]),
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


def round_config(server_round: int, **more: Any) -> RoundConfig:
    return RoundConfig(server_round, Phase.EXPLORATION, Momentum.LOCAL, 1.0, **more)


def save(client: Context, server_round: int, buffers: Buffers, **more: Any) -> None:
    save_buffers(client, round_config(server_round, **more), buffers, "model")


def load(client: Context, server_round: int, model: str = "model", **more: Any) -> Buffers:
    return load_buffers(client, round_config(server_round, **more), model)


@pytest.fixture(params=["state", "directory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "state" if request.param == "directory" else None


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def test_a_new_client_has_no_buffers(place: Path | None) -> None:
    assert load(context(place), 1) == {}


def test_saved_buffers_are_loaded_bit_for_bit(place: Path | None) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    assert equal(load(client, 2), BUFFERS)
    assert equal(load(client, 7), BUFFERS)  # not sampled in the rounds between


def test_the_last_saved_buffers_are_loaded(place: Path | None) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    save(client, 2, {"x": torch.ones(1)})
    assert equal(load(client, 3), {"x": torch.ones(1)})
    save(client, 3, {})
    assert load(client, 4) == {}


def test_each_client_has_its_own_buffers(place: Path | None) -> None:
    first, second = context(place, partition=0), context(place, partition=1)
    save(first, 1, BUFFERS)
    assert load(second, 2) == {}
    save(second, 1, {"x": torch.ones(1)})
    assert equal(load(first, 2), BUFFERS)


def test_nodes_without_a_partition_are_distinguished_by_id(tmp_path: Path) -> None:
    first = context(tmp_path, partition=None, node_id=5)
    second = context(tmp_path, partition=None, node_id=6)
    save(first, 1, BUFFERS)
    assert load(second, 2) == {}
    assert equal(load(first, 2), BUFFERS)


def test_another_run_starts_from_zero(place: Path | None, caplog: pytest.LogCaptureFixture) -> None:
    client = context(place, run_id=1)
    save(client, 1, BUFFERS)
    later = context(place, run_id=2)
    later.state = client.state  # a SuperNode may pass the state on to a later run
    assert load(later, 2) == {}
    assert place is not None or "it is of run 1 round 1, but this is run 2" in caplog.text
    save(later, 1, {})
    if place is not None:  # and the files of the first run stay unchanged
        assert equal(load(client, 2), BUFFERS)


@pytest.mark.parametrize("server_round", [3, 2, 1])
def test_a_round_not_later_than_the_stamp_starts_from_zero(
    place: Path | None, server_round: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The server never received that training, or the run resumed from an earlier checkpoint."""
    client = context(place)
    save(client, 3, BUFFERS)
    assert load(client, server_round) == {}
    again = "round 3, which is trained again: put all training of a round into one"
    earlier = f"round 3, but this is run 1 round {server_round}"
    assert (again if server_round == 3 else earlier) in caplog.text


def test_the_next_round_goes_on_from_the_first_training_if_the_second_fails(
    place: Path | None,
) -> None:
    """A client may train twice in a round, as fastai's fine_tune does."""
    client = context(place)
    save(client, 3, BUFFERS)
    assert load(client, 3) == {}
    assert equal(load(client, 4), BUFFERS)


def test_a_round_that_is_trained_again_starts_from_a_kept_round_before(tmp_path: Path) -> None:
    client = context(tmp_path)
    save(client, 2, BUFFERS, checkpoints=[2])
    save(client, 3, {"x": torch.ones(1)}, checkpoints=[2])
    assert equal(load(client, 3), BUFFERS)


def test_another_model_starts_from_zero(
    place: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    assert load(client, 2, "wider") == {}
    assert "it is of another model (model; this one is wider)" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), complex(0.0, float("nan"))])
def test_momentum_of_diverged_training_is_not_saved(
    place: Path | None, bad: complex, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    save(client, 2, {**BUFFERS, "conv.weight": torch.tensor([1.0, bad])})
    assert "momentum not saved, because it holds NaN or infinity" in caplog.text
    assert equal(load(client, 3), BUFFERS)
    _damage(client, place, safetensors.torch.save(
        {"x": torch.tensor([bad])}, metadata=Stamp(1, 1, "model").as_metadata()
    ))  # fmt: skip
    assert load(client, 3) == {}
    assert "dropped, it holds NaN or infinity" in caplog.text


def test_a_node_with_its_own_data_is_identified_by_its_name(tmp_path: Path) -> None:
    before = context(tmp_path, partition=None, node_id=5)
    after = context(tmp_path, partition=None, node_id=6)  # restarted, without a registered key
    for client in (before, after):
        client.node_config["name"] = "hospital-a"
    save(before, 1, BUFFERS)
    assert equal(load(after, 2), BUFFERS)
    strange = context(tmp_path, partition=None, node_id=7)
    strange.node_config["name"] = "../../x"
    save(strange, 1, BUFFERS)
    assert (tmp_path / "1" / "node-7").is_dir()


def test_state_dir_may_be_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save(context(Path("~/state")), 1, BUFFERS)
    assert (tmp_path / "state" / "1" / "partition-0" / "round-1.safetensors").is_file()


def files(directory: Path, run: int = 1) -> list[str]:
    return sorted(path.name for path in (directory / str(run) / "partition-0").iterdir())


def test_without_checkpoints_only_the_newest_file_is_kept(tmp_path: Path) -> None:
    client = context(tmp_path)
    for server_round in (1, 2, 5):
        save(client, server_round, BUFFERS)
    (tmp_path / "1" / "partition-0" / ".round-9.safetensors.1.partial").touch()  # a killed write
    save(client, 6, BUFFERS)
    assert files(tmp_path) == ["round-6.safetensors"]


def test_files_that_a_resumed_run_would_need_are_kept(tmp_path: Path) -> None:
    """The client takes part in rounds that the server chooses, here 1, 2, 5, 6, 7 and 9."""
    client = context(tmp_path)
    for server_round, checkpoints in ((1, ()), (2, ()), (5, (3,)), (6, (3,)), (7, (3, 6))):
        save(client, server_round, {"x": torch.tensor([server_round])}, checkpoints=checkpoints)
    assert files(tmp_path) == [f"round-{n}.safetensors" for n in (2, 6, 7)]
    save(client, 9, BUFFERS, checkpoints=(6, 9))
    assert files(tmp_path) == [f"round-{n}.safetensors" for n in (6, 9)]


def test_a_resumed_run_loads_the_file_of_its_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (context(tmp_path, run_id=run) for run in (1, 2, 3))
    for server_round in (1, 2, 3):
        values = {"x": torch.tensor([float(server_round)])}
        save(first, server_round, values, checkpoints=(1, 2))
    after_2 = {"resumed": {1: 2}}
    assert load(second, 3, **after_2)["x"] == 2.0
    assert "it is of run 1 round 3, but this is run 2 round 3" in caplog.text
    save(second, 3, {"x": torch.tensor([30.0])}, checkpoints=(1, 2), **after_2)
    assert load(second, 4, **after_2)["x"] == 30.0
    assert load(third, 4, resumed={1: 2, 2: 3})["x"] == 30.0
    assert load(third, 3, resumed={1: 2, 2: 2})["x"] == 2.0
    assert not (tmp_path / "2").exists()


def test_a_client_does_not_load_a_file_newer_than_the_checkpoint(
    tmp_path: Path,
) -> None:
    """The client trained in round 3 of a run that resumed after round 2, and then in round 5."""
    first, second = context(tmp_path, run_id=1), context(tmp_path, run_id=2)
    save(first, 1, {"x": torch.tensor([1.0])})
    save(first, 3, {"x": torch.tensor([3.0])}, checkpoints=(1, 2))
    assert load(second, 5, resumed={1: 2})["x"] == 1.0


def test_state_newer_than_the_checkpoint_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = context(None, run_id=1)
    save(client, 3, BUFFERS)
    later = context(None, run_id=2)
    later.state = client.state
    assert equal(load(later, 4, resumed={1: 3}), BUFFERS)
    assert load(later, 4, resumed={1: 2}) == {}
    assert "run 1 round 3" in caplog.text


def _damage(client: Context, place: Path | None, content: bytes) -> None:
    if place is None:
        client.state[KEY] = ConfigRecord({KEY: content})
    else:
        (place / "1" / "partition-0" / "round-1.safetensors").write_bytes(content)


def _content(client: Context, place: Path | None) -> bytes:
    if place is None:
        content = client.state.config_records[KEY][KEY]
        assert isinstance(content, bytes)
        return content
    return (place / "1" / "partition-0" / "round-1.safetensors").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_starts_from_zero(
    place: Path | None, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    _damage(client, place, _content(client, place)[:keep])
    assert load(client, 2) == {}
    assert "unreadable" in caplog.text


@pytest.mark.parametrize("junk", [b"not safetensors at all", b"\xff" * 100, pickle.dumps({})])
def test_junk_starts_from_zero(
    place: Path | None, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    _damage(client, place, junk)
    assert load(client, 2) == {}
    assert "unreadable" in caplog.text


def test_a_file_without_a_stamp_starts_from_zero(
    place: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save(client, 1, BUFFERS)
    _damage(client, place, safetensors.torch.save(BUFFERS))
    assert load(client, 2) == {}
    assert "unreadable" in caplog.text


def test_a_file_that_cannot_be_opened_starts_from_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1" / "partition-0" / "round-1.safetensors").mkdir(parents=True)
    assert load(context(tmp_path), 2) == {}
    assert "unreadable" in caplog.text


def test_the_nodes_state_dir_overrides_the_runs(tmp_path: Path) -> None:
    client = context(tmp_path / "run")
    client.node_config["state-dir"] = str(tmp_path / "node")
    save(client, 1, BUFFERS)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "node" / "1" / "partition-0" / "round-1.safetensors").is_file()
    assert not client.state


def test_an_empty_state_dir_counts_as_none() -> None:
    client = context(None)
    client.run_config["state-dir"] = ""
    save(client, 1, BUFFERS)
    assert KEY in client.state


def test_state_survives_both_of_flowers_serializations() -> None:
    """State is pickled in a simulation, and sent as protobuf between real nodes."""
    client = context(None)
    save(client, 1, BUFFERS)
    assert equal(load(pickle.loads(pickle.dumps(client)), 2), BUFFERS)
    assert equal(load(context_from_proto(context_to_proto(client)), 2), BUFFERS)


def test_the_error_of_a_full_disk_states_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = context(tmp_path)
    save(client, 1, BUFFERS)

    def fails(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        with pytest.raises(MomentumError, match=r"saved in .* \(disk full\): free space there"):
            save(client, 2, BUFFERS)
    assert equal(load(client, 3), BUFFERS)


def test_a_failed_write_leaves_only_the_old_file(
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


# Going back to an earlier round


def test_buffers_of_discarded_rounds_are_not_used(place: Path | None) -> None:
    client = context(place)
    save(client, 4, {"x": torch.tensor([4.0])})
    save(client, 5, {"x": torch.tensor([5.0])}, kept_round=4)
    save(client, 6, {"x": torch.tensor([6.0])}, kept_round=4)
    assert load(client, 7, kept_round=4)["x"] == 6
    assert load(client, 7, kept_round=4, discarded=(4, 6))["x"] == 4
    save(client, 7, {"x": torch.tensor([7.0])}, kept_round=4, discarded=(4, 6))
    assert load(client, 8, kept_round=4, discarded=(4, 6))["x"] == 7
    assert load(client, 8, kept_round=4, discarded=(4, 7))["x"] == 4  # the next try failed, too


def test_a_client_that_missed_the_kept_round_goes_back_to_its_last_one_before(
    place: Path | None,
) -> None:
    client = context(place)
    save(client, 2, {"x": torch.tensor([2.0])})
    save(client, 6, {"x": torch.tensor([6.0])}, kept_round=4)
    assert load(client, 8, kept_round=4, discarded=(4, 7))["x"] == 2


def test_a_client_that_first_trained_in_a_discarded_round_starts_from_zero(
    place: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    client = context(place)
    save(client, 5, {"x": torch.tensor([5.0])}, kept_round=4)
    assert load(client, 6, kept_round=4, discarded=(4, 5)) == {}
    assert "it is of round 5, and the run has gone back to round 4" in caplog.text


def test_the_kept_buffers_go_when_the_run_cannot_go_back_any_more(place: Path | None) -> None:
    client = context(place)
    for server_round, more in ((4, {}), (5, {"kept_round": 4}), (6, {"kept_round": 4}), (7, {})):
        save(client, server_round, {"x": torch.tensor([float(server_round)])}, **more)
    assert load(client, 8, discarded=(4, 7)) == {}


def test_the_state_keeps_one_copy_more_whatever_checkpoints_there_are() -> None:
    client = context(None)
    for server_round in range(1, 8):
        kept = {"kept_round": 3} if server_round > 3 else {}
        save(client, server_round, BUFFERS, checkpoints=(1, 2, 5), **kept)
    assert len(client.state.config_records[KEY]) == 2
