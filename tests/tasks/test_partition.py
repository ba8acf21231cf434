"""Partitions of images: the images of each client, completeness, disjointness, reproducibility."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.partition import SCHEMES, Scheme, partition

TARGETS = np.arange(1_000) % 10  # 100 images of each of 10 classes
WRITERS = 7 * (np.arange(1_000) % 31) + 3  # 31 writers, whose numbers have gaps
RANDOM = [scheme for scheme in SCHEMES if scheme != "natural"]


def divide(scheme: Scheme, clients: int = 10, **changes: Any) -> list[np.ndarray]:
    arguments = {"alpha": 0.5, "classes_per_client": 2, "seed": 0, "groups": WRITERS, **changes}
    return partition(TARGETS, clients, scheme, **arguments)


def counts(parts: list[np.ndarray]) -> list[list[int]]:
    return [np.bincount(TARGETS[part], minlength=10).tolist() for part in parts]


@pytest.mark.parametrize("clients", [1, 5, 10, 30])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_image_belongs_to_one_client(scheme: Scheme, clients: int) -> None:
    parts = divide(scheme, clients, classes_per_client=10 if clients == 1 else 2)
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1_000))


def test_iid_partitions_have_exact_counts() -> None:
    parts = divide("iid", 3)
    assert [len(part) for part in parts] == [334, 333, 333]
    assert counts(parts) == [
        [34, 37, 29, 38, 42, 25, 33, 25, 36, 35],
        [30, 32, 39, 29, 28, 42, 30, 40, 32, 31],
        [36, 31, 32, 33, 30, 33, 37, 35, 32, 34],
    ]


def test_dirichlet_partitions_have_exact_counts() -> None:
    assert counts(divide("dirichlet", 3)) == [
        [30, 22, 39, 15, 26, 3, 39, 5, 81, 23],
        [0, 18, 20, 0, 37, 52, 42, 1, 7, 73],
        [70, 60, 41, 85, 37, 45, 19, 94, 12, 4],
    ]


def test_dirichlet_with_a_large_alpha_is_nearly_even() -> None:
    table = np.array(counts(divide("dirichlet", 5, alpha=1e6)))
    assert table.min() >= 19
    assert table.max() <= 21


def test_classes_partitions_hold_the_expected_classes() -> None:
    table = np.array(counts(divide("classes")))
    held = [np.flatnonzero(row).tolist() for row in table]
    assert held == 2 * [[7, 9], [2, 4], [0, 5], [1, 3], [6, 8]]
    assert set(table[table > 0]) == {50}


def test_fewer_clients_than_classes_still_hold_every_class() -> None:
    table = np.array(counts(divide("classes", 5)))
    assert ((table > 0).sum(1) == 2).all()
    assert table.sum(0).tolist() == [100] * 10


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("clients", "classes_per_client"), [(7, 3), (10, 2), (13, 7)])
def test_every_class_has_equally_many_holders(
    clients: int, classes_per_client: int, seed: int
) -> None:
    parts = divide("classes", clients, classes_per_client=classes_per_client, seed=seed)
    table = np.array(counts(parts))
    holders = (table > 0).sum(0)
    assert ((table > 0).sum(1) == classes_per_client).all()
    assert holders.max() - holders.min() <= 1
    for label in range(10):
        shards = table[:, label][table[:, label] > 0]
        assert shards.max() - shards.min() <= 1


def test_classes_without_a_holder_are_omitted() -> None:
    table = np.array(counts(divide("classes", 2, classes_per_client=2)))
    assert sorted(table.sum(0).tolist()) == [0] * 6 + [100] * 4


@pytest.mark.parametrize("scheme", RANDOM)
def test_another_seed_gives_other_partitions(scheme: Scheme) -> None:
    first, second = divide(scheme), divide(scheme, seed=1)
    assert not all(map(np.array_equal, first, second))


def natural(groups: list[int], clients: int) -> list[list[int]]:
    targets = np.zeros(len(groups), dtype=np.int64)
    parts = partition(
        targets,
        clients,
        "natural",
        alpha=0.5,
        classes_per_client=2,
        seed=0,
        groups=np.array(groups),
    )
    return [part.tolist() for part in parts]


def test_natural_assigns_one_group_to_each_client() -> None:
    assert natural([9, 4, 4, 7, 9, -1], 4) == [[5], [1, 2], [3], [0, 4]]


def test_natural_assigns_neighbouring_groups_and_all_images_to_fewer_clients() -> None:
    assert natural([9, 4, 4, 7, 9, -1, 5], 2) == [[1, 2, 5, 6], [0, 3, 4]]
    assert natural([9, 4, 4, 7, 9, -1, 5], 1) == [[0, 1, 2, 3, 4, 5, 6]]
    writers = [np.unique(WRITERS[part]).size for part in divide("natural", 7)]
    assert writers == [5, 5, 5, 4, 4, 4, 4]


def test_natural_does_not_depend_on_the_seed() -> None:
    assert all(map(np.array_equal, divide("natural"), divide("natural", seed=1)))


def test_other_groups_give_other_partitions() -> None:
    first, second = divide("natural"), divide("natural", groups=WRITERS[::-1])
    assert not all(map(np.array_equal, first, second))


@pytest.mark.parametrize("scheme", ["iid", "natural"])
def test_masks_give_the_same_partitions_as_classes(scheme: Scheme) -> None:
    masks = np.zeros((1_000, 2, 3), dtype=np.int64)
    parts = partition(masks, 3, scheme, alpha=0.5, classes_per_client=2, seed=0, groups=WRITERS)
    assert all(map(np.array_equal, parts, divide(scheme, 3)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_changing_a_result_does_not_change_later_ones(scheme: Scheme) -> None:
    first = divide(scheme)
    copied = first[0].copy()
    first[0][:] = 0
    assert np.array_equal(divide(scheme)[0], copied)


PROGRAM = """
import hashlib, numpy as np
from fixbn_flwr.tasks.partition import SCHEMES, partition
targets = np.arange(1_000) % 10
for scheme in SCHEMES:
    parts = partition(
        targets, 10, scheme, alpha=0.5, classes_per_client=2, seed=0,
        groups=7 * (np.arange(1_000) % 31) + 3,
    )
    print(hashlib.sha256(b"|".join(part.tobytes() for part in parts)).hexdigest())
"""


def test_another_process_gives_the_same_partitions_and_writes_no_files(tmp_path: Path) -> None:
    expected = "".join(
        hashlib.sha256(b"|".join(part.tobytes() for part in divide(scheme))).hexdigest() + "\n"
        for scheme in SCHEMES
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1",
        "HF_HOME": str(tmp_path),
        "HF_DATASETS_CACHE": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == (expected, "")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of iid, dirichlet, classes, natural"):
        divide("shards")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("clients", [0, 1_001])
def test_an_invalid_number_of_clients_is_refused(scheme: Scheme, clients: int) -> None:
    with pytest.raises(ConfigError, match=rf"clients is {clients}.*choose 1 to 1000"):
        divide(scheme, clients)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"partition-alpha is .* above 0: choose one"):
        divide("dirichlet", alpha=alpha)


def test_an_alpha_too_small_for_the_number_of_clients_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"partition-alpha 0.01, .* 500 clients .* fewer than 2 images"
    ):
        divide("dirichlet", 500, alpha=0.01)


@pytest.mark.parametrize("classes_per_client", [0, 11])
def test_an_invalid_number_of_classes_per_client_is_refused(classes_per_client: int) -> None:
    with pytest.raises(ConfigError, match=r"partition-classes .* from 1 to 10"):
        divide("classes", classes_per_client=classes_per_client)


def test_more_holders_of_a_class_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"more clients than images: choose fewer"):
        divide("classes", 600, classes_per_client=2)


def test_natural_without_groups_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"does not name .*: choose iid or dirichlet or classes\."
    ):
        divide("natural", groups=None)


def test_fewer_groups_than_clients_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"31 natural clients, fewer than the 32 .*: use 31 "):
        divide("natural", 32)


@pytest.mark.parametrize("scheme", ["dirichlet", "classes"])
@pytest.mark.parametrize(("groups", "possible"), [(None, "iid"), (WRITERS, "iid or natural")])
def test_a_partition_of_masks_by_class_is_refused(
    scheme: Scheme, groups: np.ndarray | None, possible: str
) -> None:
    masks = np.zeros((1_000, 2, 3), dtype=np.int64)
    with pytest.raises(
        ConfigError, match=rf"does not have one class per image: choose {possible}\."
    ):
        partition(masks, 3, scheme, alpha=0.5, classes_per_client=2, seed=0, groups=groups)


def parts_of(partitioner: Any, targets: Any) -> list[list[int]]:
    """Return the rows that a partitioner of flwr-datasets gives each client."""
    from datasets import Dataset

    rows = {"label": targets, "row": np.arange(len(targets))}
    partitioner.dataset = Dataset.from_dict(rows)
    loaded = map(partitioner.load_partition, range(partitioner.num_partitions))
    return [sorted(part["row"]) for part in loaded]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("clients", "alpha"), [(3, 0.1), (10, 0.3), (7, 100.0)])
def test_partitions_equal_those_of_flwr_datasets(clients: int, alpha: float, seed: int) -> None:
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        IidPartitioner,
        PathologicalPartitioner,
    )

    random = np.random.default_rng(seed)
    targets = random.integers(6, size=500)
    options: Any = {"alpha": alpha, "classes_per_client": 2, "seed": seed}

    def ours(scheme: Any, **more: Any) -> list[list[int]]:
        return [p.tolist() for p in partition(targets, clients, scheme, **options, **more)]

    dirichlet = DirichletPartitioner(
        clients, "label", alpha, min_partition_size=2, shuffle=False, seed=seed
    )
    assert ours("dirichlet") == parts_of(dirichlet, targets)
    groups = random.permutation(500) % clients
    natural = [np.flatnonzero(groups == client).tolist() for client in range(clients)]
    assert ours("natural", groups=groups) == natural

    order = np.random.default_rng(seed).permutation(500)
    iid = parts_of(IidPartitioner(clients), targets[order])
    assert ours("iid") == [sorted(order[part].tolist()) for part in iid]

    random = np.random.default_rng(seed)
    places, order = random.permutation(6)[targets], random.permutation(500)
    shards = parts_of(
        PathologicalPartitioner(2 * clients, "label", 1, "deterministic", shuffle=False),
        places[order],
    )
    pairs = [[*one, *other] for one, other in zip(shards[::2], shards[1::2], strict=True)]
    assert ours("classes") == [sorted(order[pair].tolist()) for pair in pairs]
