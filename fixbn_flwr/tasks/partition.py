"""Dividing a data set's images among clients: at random, unevenly by class, or as they came about.

All four are flwr-datasets' partitioners. The Dirichlet split by class is that of
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
    """Which images each client holds. The same arguments give the same answer on every machine.

    Args:
        targets: the class of each image, `[n]`; "iid" and "natural" take any other shape as well,
            such as masks `[n, height, width]`.
        clients: how many clients share the images.
        scheme: "iid" deals the images out at random, in equal shares; "dirichlet" divides each
            class in shares drawn from a Dirichlet distribution; "classes" gives each client
            `classes_per_client` classes and divides each class equally among its holders;
            "natural" gives each client one group of `groups`, in ascending order, or as many
            neighbouring groups as another's, give or take one, when there are more than clients.
        alpha: the Dirichlet distribution's concentration, for that scheme only: the smaller, the
            more the clients differ.
        classes_per_client: for the scheme "classes" only. Every class is held by somebody, and so
            every image, if `clients * classes_per_client` is at least the number of classes.
        seed: fixes every random choice; "natural" has none.
        groups: the natural client of each image, `[n]`, for the scheme "natural" only; None when
            the data has none.

    Returns:
        One sorted array of indices into `targets` a client. No image belongs to two clients.

    Raises:
        ConfigError: the images cannot be divided so.
    """
    if scheme not in SCHEMES:
        raise ConfigError(
            f"partition is {scheme!r}, which does not exist: choose one of {', '.join(SCHEMES)}."
        )
    if not 1 <= clients <= len(targets):
        raise ConfigError(
            f"The number of clients is {clients}, but with {len(targets)} images and at least one"
            f" for each client it must be from 1 to {len(targets)}."
        )
    # An argument that the scheme does not read must not make the cache miss.
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
    """The one number of each image by which the scheme divides."""
    if scheme == "iid":
        return np.zeros(len(targets), dtype=np.int64)
    if scheme == "natural":
        if groups is None:
            raise ConfigError(
                "partition is 'natural', but this data does not say which client an image comes"
                f" from: choose {_possible(targets, groups)}."
            )
        return groups
    if targets.ndim != 1:
        raise ConfigError(
            f"partition is {scheme!r}, but this data has no single class for each image: choose"
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
        return _by_chance(targets, clients, seed)
    if scheme == "dirichlet":
        return _by_dirichlet(targets, clients, alpha, seed)
    if scheme == "natural":
        return _by_group(targets, clients)  # what it divides by are the groups
    return _by_classes(targets, clients, classes_per_client, seed)


def _by_chance(targets: Indices, clients: int, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    order = np.random.default_rng(seed).permutation(len(targets))
    return _run(IidPartitioner(clients), targets, order)


def _by_dirichlet(targets: Indices, clients: int, alpha: float, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    if not 0 < alpha < np.inf:
        raise ConfigError(
            f"partition-alpha is {alpha}: a Dirichlet distribution needs a finite number above 0."
        )
    partitioner = DirichletPartitioner(
        clients, "label", alpha, min_partition_size=SMALLEST_CLIENT, shuffle=False, seed=seed
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of each draw that it repeats
            return _run(partitioner, targets, np.arange(len(targets)))
    except ValueError as error:
        raise ConfigError(
            f"With partition-alpha {alpha} some of the {clients} clients got fewer than"
            f" {SMALLEST_CLIENT} images in every draw: choose a larger alpha or fewer clients."
        ) from error


def _by_group(groups: Indices, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    names, group = np.unique(groups, return_inverse=True)
    if len(names) < clients:
        raise ConfigError(
            f"partition is 'natural', but the data comes from {len(names)} natural clients, fewer"
            f" than the {clients} asked for: use {len(names)} clients or fewer, or another"
            " partition."
        )
    shares = [len(share) for share in np.array_split(names, clients)]
    holder = np.repeat(np.arange(clients), shares)[group]
    # NaturalIdPartitioner does the same, with a progress bar. Groups of several would leave the
    # number of clients to the division: 50 writers can be 25 clients or 16, not 20.
    partitioner = GroupedNaturalIdPartitioner("label", group_size=1, sort_unique_ids=True)
    return _run(partitioner, holder, np.arange(len(holder)))


def _run(partitioner: Partitioner, targets: Indices, order: Indices) -> list[Indices]:
    """What a partitioner makes of the images in this order."""
    from datasets import Dataset

    class Rows(Dataset):  # type: ignore[misc]  # datasets has no types
        # Partitioners read one column, whole, and select rows, of which only the numbers matter
        # here. `datasets` itself would go through the column row by row and hash every selection:
        # 9 s instead of 0.1 s for CIFAR-10.
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
    # The partitioner makes shards of one class each, dealing the classes out in turn, and a client
    # gets as many in a row. Asked for whole clients it would leave some classes to nobody, as in
    # the usual 5 clients with 2 of 10 classes.
    partitioner = PathologicalPartitioner(
        clients * classes_per_client,
        "label",
        num_classes_per_partition=1,
        class_assignment_mode="deterministic",
        shuffle=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of classes that are left to nobody
            shards = _run(partitioner, places, random.permutation(len(targets)))
    except ValueError as error:
        raise ConfigError(
            f"With {clients} clients of {classes_per_client} classes each, some class has more"
            " holders than images: choose fewer clients or a smaller partition-classes."
        ) from error
    return [
        np.sort(np.concatenate(shards[client : client + classes_per_client]))
        for client in range(0, len(shards), classes_per_client)
    ]
