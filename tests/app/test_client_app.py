"""The client app: the images that a node config selects, and the errors of invalid configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.app.client.node_config import Node
from fixbn_flwr.app.client_app import client_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from tests.support.whole_app import SMALL


def context(node_config: dict[str, Any], **run_config: Any) -> Context:
    return Context(1, 5, node_config, RecordDict(), SMALL | run_config)


def client(own: int, partitions: int, **run_config: Any) -> FixBNClient:
    node_config = {"partition-id": own, "num-partitions": partitions}
    return client_of(context(node_config, **run_config))


def test_each_image_belongs_to_exactly_one_client() -> None:
    clients = [client(own, 5) for own in range(5)]
    images = np.concatenate([one.partition for one in clients])
    assert sorted(images.tolist()) == list(range(1437))
    targets = load_splits(get_task("digits"))[0].targets.numpy()
    assert [len(set(targets[one.partition])) for one in clients] == [2] * 5


def test_partition_and_seed_come_from_the_run_config() -> None:
    def part(**run_config: Any) -> list[int]:
        return list(client(0, 4, **run_config).partition.tolist())

    assert part() == part()
    assert len({tuple(p) for p in (part(), part(seed=1), part(partition="iid"))}) == 3
    assert len(part(partition="iid")) in (359, 360)


def test_natural_partitions_are_the_groups_of_the_data(shared_data: Path) -> None:
    groups = load_splits(get_task("pacs"), shared_data)[0].groups
    assert groups is not None
    for own in range(4):
        one = client(own, 4, task="pacs", partition="natural", **{"data-dir": str(shared_data)})
        assert torch.equal(groups[one.partition], torch.full((350,), own))


def test_data_without_groups_has_no_natural_partition() -> None:
    with pytest.raises(ConfigError, match=r"partition is 'natural', .* choose iid or dirichlet or"):
        client(0, 2, partition="natural")


@pytest.mark.parametrize(
    ("node_config", "found"),
    [
        ({}, "neither data-dir nor partition-id"),
        ({"partition-id": 0}, "only partition-id"),
        ({"num-partitions": 2, "data-dir": "/"}, "only num-partitions"),
    ],
)
def test_a_node_config_without_data_is_refused(node_config: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client_of(context(node_config))
    assert str(caught.value) == (
        f"the node config has {found}: start the SuperNode with --node-config "
        "'data-dir=\"/its/own/data\"' to train on its own data, or 'partition-id=0 "
        "num-partitions=2', numbered from 0, to train on a partition of data that every node has."
    )


def own_data(data_dir: Path | str, **node_config: Any) -> FixBNClient:
    """Return the client of a node with its own data; the run config's data-dir is the server's."""
    node_config = {"data-dir": str(data_dir), **node_config}
    return client_of(context(node_config, **{"data-dir": "/only/at/the/server"}))


def test_a_node_with_its_own_data_trains_on_all_of_it(tmp_path: Path) -> None:
    one = own_data(tmp_path, name="hospital-a")
    assert one.partition.tolist() == list(range(1437))
    assert one.settings.data_dir == str(tmp_path)
    assert dict(one.properties().config_records["properties"]) == {
        "class-names": list("0123456789"),
        "examples": 1437,
        "input-size": [1, 8, 8],
        "name": "hospital-a",
    }


def test_each_node_may_have_the_shared_data_in_another_directory(tmp_path: Path) -> None:
    one = own_data(tmp_path, **{"partition-id": 1, "num-partitions": 3})
    assert len(one.partition) < 1437
    assert one.settings.data_dir == str(tmp_path)


def test_a_nodes_seed_comes_from_its_name_or_else_its_node_id(tmp_path: Path) -> None:
    def number(node_id: int, **node_config: Any) -> int:
        node_config["data-dir"] = str(tmp_path)
        return Node.of(Context(1, node_id, node_config, RecordDict(), {})).number

    assert number(5, name="a") == number(6, name="a") != number(5, name="b")
    assert (number(5), number(6)) == (5, 6)


def test_a_node_that_returns_with_another_id_holds_out_the_same_images(tmp_path: Path) -> None:
    def held_out(node_id: int, **node_config: Any) -> list[int]:
        config = SMALL | {"validation-share": 0.1}
        one = client_of(Context(1, node_id, node_config, RecordDict(), config))
        return list(one.validation.tolist())

    own = {"data-dir": str(tmp_path)}
    assert held_out(5, **own) == held_out(6, **own)
    assert len(held_out(5, **own)) == 144
    shared = [{"partition-id": part, "num-partitions": 3} for part in (0, 0, 1)]
    first, again, other = (held_out(node_id, **shared[node_id]) for node_id in range(3))
    assert first == again
    assert not {*first} & {*other}


def test_a_nodes_device_and_precision_override_the_run_config(tmp_path: Path) -> None:
    settings = own_data(tmp_path, precision="bfloat16", device="cpu").settings
    assert (settings.precision, settings.device) == ("bfloat16", "cpu")
    with pytest.raises(ConfigError, match="device='cuda:98': this machine has"):
        own_data(tmp_path, device="cuda:98")


def test_a_wrong_path_is_reported_with_the_nodes_name() -> None:
    with pytest.raises(ConfigError) as caught:
        own_data("/no/such/place", name="hospital-a")
    assert str(caught.value) == (
        "hospital-a: the run config cannot be used:\n"
        '  data-dir = "/no/such/place": there is no directory /no/such/place; create it, or write '
        "the absolute path of an existing one"
    )


def test_missing_data_are_reported_with_the_nodes_name(tmp_path: Path) -> None:
    node_config = {"data-dir": str(tmp_path), "name": "hospital-a"}
    with pytest.raises(
        ConfigError, match=f"^hospital-a: {tmp_path} contains no folder femnist-small"
    ):
        client_of(context(node_config, task="femnist", partition="iid"))


@pytest.mark.parametrize("own", [-1, 2])
def test_a_partition_out_of_range_is_refused(own: int) -> None:
    with pytest.raises(ConfigError, match=f"partition-id={own} is not between 0 and 1"):
        client(own, 2)


def test_an_invalid_config_or_device_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match='task = "digit": unknown word; did you mean digits'):
        client(0, 2, task="digit")
    with pytest.raises(ConfigError, match="device='cuda:99': this machine has"):
        client(0, 2, device="cuda:99")
