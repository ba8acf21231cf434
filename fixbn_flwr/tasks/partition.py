"""Partition a data set among clients: at random, unevenly by class, or by natural client.

The parts are those of flwr-datasets' partitioners, which tests compare with; importing that package
takes longer than a small run. The Dirichlet split by class follows
M. Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019,
https://arxiv.org/abs/1905.12022. The split by classes per client follows B. McMahan et al.,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from fixbn_flwr.errors import ConfigError

Indices = npt.NDArray[np.int64]
Scheme = Literal["iid", "dirichlet", "classes", "natural"]

SCHEMES: tuple[Scheme, ...] = ("iid", "dirichlet", "classes", "natural")
SMALLEST_CLIENT = 2  # images; batch normalisation cannot train on one
DRAWS = 11  # attempts to give every client that many by "dirichlet"


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
    order = np.random.default_rng(seed).permutation(len(targets))
    return [np.sort(part) for part in np.array_split(order, clients)]


def _by_dirichlet(targets: Indices, clients: int, alpha: float, seed: int) -> list[Indices]:
    if not 0 < alpha < np.inf:
        raise ConfigError(
            f"partition-alpha is {alpha}, but it must be a finite number above 0: choose one, such"
            " as 0.5."
        )
    random = np.random.default_rng(seed)
    classes = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    for _ in range(DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for images in classes:
            shares = random.dirichlet(np.full(clients, alpha))
            ends = (np.cumsum(shares) * len(images)).astype(int)[:-1]
            for part, share in zip(parts, np.split(images, ends), strict=True):
                part.append(share)
        together = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, together)) >= SMALLEST_CLIENT:
            return together
    raise ConfigError(
        f"With partition-alpha {alpha}, some of the {clients} clients got fewer than"
        f" {SMALLEST_CLIENT} images in every draw: choose a larger alpha or fewer clients."
    )


def _by_group(groups: Indices, clients: int) -> list[Indices]:
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < clients:
        raise ConfigError(
            f"partition is 'natural', but the data has {len(names)} natural clients, fewer than"
            f" the {clients} requested: use {len(names)} clients or fewer, or another partition."
        )
    shares = [len(share) for share in np.array_split(names, clients)]
    client_of = np.repeat(np.arange(clients), shares)[group]
    return [np.flatnonzero(client_of == client) for client in range(clients)]


def _by_classes(
    targets: Indices, clients: int, classes_per_client: int, seed: int
) -> list[Indices]:
    labels = np.unique(targets)
    if not 1 <= classes_per_client <= len(labels):
        raise ConfigError(
            f"partition-classes is {classes_per_client}, but there are {len(labels)} classes:"
            f" choose a number from 1 to {len(labels)}."
        )
    random = np.random.default_rng(seed)
    turn = random.permutation(len(labels))[np.searchsorted(labels, targets)]
    order = random.permutation(len(targets))
    # Shards of one class each, with the classes in turn. A client gets consecutive shards.
    shards: list[Indices] = [np.empty(0, np.int64)] * (clients * classes_per_client)
    for place in range(min(len(labels), len(shards))):
        images, holders = order[turn[order] == place], range(place, len(shards), len(labels))
        if len(holders) > len(images):
            raise ConfigError(
                f"With {clients} clients of {classes_per_client} classes each, a class has more"
                " clients than images: choose fewer clients or a smaller partition-classes."
            )
        for shard, part in zip(holders, np.array_split(images, len(holders)), strict=True):
            shards[shard] = part
    return [
        np.sort(np.concatenate(shards[client : client + classes_per_client]))
        for client in range(0, len(shards), classes_per_client)
    ]
