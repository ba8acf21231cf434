"""Hold out a share of a client's images, to validate the global model on."""

from __future__ import annotations

import numpy as np

from fixbn_flwr.tasks.partition import Indices


def hold_out(images: Indices, share: float, *, seed: int, client: int) -> tuple[Indices, Indices]:
    """Return the images that a client trains on, and those that it holds out.

    It holds out the share, rounded, and at least one image. A client with a single image holds out
    none. The choice is random, and the same in every round and in a resumed run.

    Examples:
        >>> training, validation = hold_out(np.arange(10), 0.2, seed=0, client=0)
        >>> training, validation
        (array([0, 1, 2, 3, 5, 7, 8, 9]), array([4, 6]))

    Args:
        images: The indices of all its images, `[n]`.
        share: The share to hold out, at least 0 and below 1. 0 holds out none.
        seed: The run's seed.
        client: The client's number, so that clients of equal size hold out other places.

    Returns:
        Two sorted arrays of indices, which share no image.
    """
    count = min(max(1, round(share * len(images))), len(images) - 1) if share else 0
    order = np.random.default_rng([seed, client]).permutation(images)
    return np.sort(order[count:]), np.sort(order[:count])
