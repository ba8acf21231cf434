"""Partition a data set among clients: at random, unevenly by class, or by natural client.

All four schemes use flwr-datasets' partitioners. The Dirichlet split by class follows
M. Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019,
https://arxiv.org/abs/1905.12022. The split by classes per client follows B. McMahan et al.,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fixbn_flwr.errors import ConfigError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Indices = npt.NDArray[np.int64]
Scheme = Literal["iid", "dirichlet", "classes", "natural"]

SCHEMES: tuple[Scheme, ...] = ("iid", "dirichlet", "classes", "natural")
SMALLEST_CLIENT = 2  # images; batch normalisation cannot train on one


def partition(
    targets: npt.NDArray[np.int64],
    clients: int,
    scheme: Scheme,
    *,
    alpha: float,
    classes_per_client: int,
    seed: int,
    groups: npt.NDArray[np.int64] | None = None,
) -> list[Indices]:
    """Return the images of each client. The result is the same on every machine.

    Args:
        targets: The class of each image, `[n]`. "iid" and "natural" accept any other shape too,
            such as masks `[n, height, width]`.
        clients: The number of clients.
        scheme: "iid" draws equal shares at random. "dirichlet" divides each class by shares from a
            Dirichlet distribution. "classes" gives each client `classes_per_client` classes and
            divides each class equally among its clients. "natural" gives each client one group of
            `groups`, in ascending order; with more groups than clients, each gets about as many
            consecutive groups as the others.
        alpha: The concentration of the Dirichlet distribution; smaller values make the clients
            differ more. Only for "dirichlet".
        classes_per_client: Only for "classes". If `clients * classes_per_client` is at least the
            number of classes, every class has a client and every image is used.
        seed: The seed of all random choices. "natural" makes none.
        groups: The natural client of each image, `[n]`, or None if the data has none. Only for
            "natural".

    Returns:
        One sorted array of indices into `targets` per client. Clients share no image.

    Raises:
        ConfigError: If the images cannot be partitioned this way.
    """
    if scheme not in SCHEMES:
        raise ConfigError(
            f"partition is {scheme!r}, which does not exist: choose one of {', '.join(SCHEMES)}."
        )
    if not 1 <= clients <= len(targets):
        raise ConfigError(
            f"The number of clients is {clients}, but each client needs an image and there are"
            f" {len(targets)}: choose 1 to {len(targets)} clients."
        )
    # Arguments that the scheme does not use must not cause a cache miss.
    parts = _partition_once(
        _labels(targets, scheme, groups).astype(np.int64).tobytes(),
        clients,
        scheme,
        alpha if scheme == "dirichlet" else 1.0,
        classes_per_client if scheme == "classes" else 1,
        seed,
    )
    return [part.copy() for part in parts]


def _labels(targets: Indices, scheme: Scheme, groups: Indices | None) -> Indices:
    """Return the number of each image by which the scheme divides them."""
    if scheme == "iid":
        return np.zeros(len(targets), dtype=np.int64)
    if scheme == "natural":
        if groups is None:
            raise ConfigError(
                "partition is 'natural', but this data does not name the natural client of an"
                f" image: choose {_possible(targets, groups)}."
            )
        return groups
    if targets.ndim != 1:
        raise ConfigError(
            f"partition is {scheme!r}, but this data does not have one class per image: choose"
            f" {_possible(targets, groups)}."
        )
    return targets


def _possible(targets: Indices, groups: Indices | None) -> str:
    by_class = ["dirichlet", "classes"] if targets.ndim == 1 else []
    by_group = ["natural"] if groups is not None else []
    return " or ".join(["iid", *by_class, *by_group])


@lru_cache(maxsize=4)
def _partition_once(
    labels: bytes, clients: int, scheme: Scheme, alpha: float, classes_per_client: int, seed: int
) -> list[Indices]:
    targets = np.frombuffer(labels, dtype=np.int64)
    if scheme == "iid":
        return _at_random(targets, clients, seed)
    if scheme == "dirichlet":
        return _by_dirichlet(targets, clients, alpha, seed)
    if scheme == "natural":
        return _by_group(targets, clients)  # here the labels are the groups
    return _by_classes(targets, clients, classes_per_client, seed)


def _at_random(targets: Indices, clients: int, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    order = np.random.default_rng(seed).permutation(len(targets))
    return _run(IidPartitioner(clients), targets, order)


def _by_dirichlet(targets: Indices, clients: int, alpha: float, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    if not 0 < alpha < np.inf:
        raise ConfigError(f"partition-alpha is {alpha}, but it must be a finite number above 0.")
    partitioner = DirichletPartitioner(
        clients, "label", alpha, min_partition_size=SMALLEST_CLIENT, shuffle=False, seed=seed
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one warning for each repeated draw
            return _run(partitioner, targets, np.arange(len(targets)))
    except ValueError as error:
        raise ConfigError(
            f"With partition-alpha {alpha}, some of the {clients} clients got fewer than"
            f" {SMALLEST_CLIENT} images in every draw: choose a larger alpha or fewer clients."
        ) from error


def _by_group(groups: Indices, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    names, group = np.unique(groups, return_inverse=True)
    if len(names) < clients:
        raise ConfigError(
            f"partition is 'natural', but the data has {len(names)} natural clients, fewer than"
            f" the {clients} requested: use {len(names)} clients or fewer, or another partition."
        )
    shares = [len(share) for share in np.array_split(names, clients)]
    holder = np.repeat(np.arange(clients), shares)[group]
    # NaturalIdPartitioner does the same but draws a progress bar. A larger group_size would not
    # allow every number of clients: 50 writers can make 25 clients or 16, but not 20.
    partitioner = GroupedNaturalIdPartitioner("label", group_size=1, sort_unique_ids=True)
    return _run(partitioner, holder, np.arange(len(holder)))


def _run(partitioner: Partitioner, targets: Indices, order: Indices) -> list[Indices]:
    """Return the parts that a partitioner makes of the images in this order."""
    from datasets import Dataset

    class Rows(Dataset):  # type: ignore[misc]  # datasets has no types
        # Partitioners read one whole column and select rows; only the row numbers matter here.
        # `datasets` itself reads the column row by row and hashes every selection, which takes 9 s
        # instead of 0.1 s for CIFAR-10.
        def __getitem__(self, column: str) -> Indices:
            values: Indices = self.data.column(column).to_numpy()
            return values

        def select(self, indices: Iterable[int], **_: object) -> Indices:
            return np.asarray(indices, dtype=np.int64)

    partitioner.dataset = Rows.from_dict({"label": targets[order]})
    clients = range(partitioner.num_partitions)
    return [np.sort(order[partitioner.load_partition(client)]) for client in clients]


def _by_classes(
    targets: Indices, clients: int, classes_per_client: int, seed: int
) -> list[Indices]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    labels = np.unique(targets)
    if not 1 <= classes_per_client <= len(labels):
        raise ConfigError(
            f"partition-classes is {classes_per_client}, but there are {len(labels)} classes:"
            f" choose a number from 1 to {len(labels)}."
        )
    random = np.random.default_rng(seed)
    places = random.permutation(len(labels))[np.searchsorted(labels, targets)]
    # The partitioner makes shards of one class each, with the classes in turn, and each client gets
    # consecutive shards. Partitions of several classes would leave some classes without a client,
    # even with the usual 5 clients and 2 of 10 classes.
    partitioner = PathologicalPartitioner(
        clients * classes_per_client,
        "label",
        num_classes_per_partition=1,
        class_assignment_mode="deterministic",
        shuffle=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes without a client
            shards = _run(partitioner, places, random.permutation(len(targets)))
    except ValueError as error:
        raise ConfigError(
            f"With {clients} clients of {classes_per_client} classes each, a class has more clients"
            " than images: choose fewer clients or a smaller partition-classes."
        ) from error
    return [
        np.sort(np.concatenate(shards[client : client + classes_per_client]))
        for client in range(0, len(shards), classes_per_client)
    ]
