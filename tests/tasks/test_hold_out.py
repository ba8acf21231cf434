"""The images that a client holds out: how many, which, and that no image is on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from fixbn_flwr.tasks.hold_out import hold_out


@pytest.mark.parametrize(
    ("images", "share", "held_out"),
    [(100, 0.2, 20), (10, 0.26, 3), (3, 0.1, 1), (2, 0.9, 1), (5, 0.99, 4), (1, 0.5, 0),
     (0, 0.5, 0), (50, 0.0, 0)],
)  # fmt: skip
def test_the_share_is_rounded_and_leaves_at_least_one_on_each_side(
    images: int, share: float, held_out: int
) -> None:
    own = np.arange(1000, 1000 + images)
    training, validation = hold_out(own, share, seed=0, client=0)
    assert len(validation) == held_out
    assert sorted([*training, *validation]) == own.tolist()
    assert [*training] == sorted(training)


def test_seed_and_client_choose_the_images() -> None:
    def held_out(seed: int, client: int) -> tuple[int, ...]:
        return tuple(hold_out(np.arange(50), 0.2, seed=seed, client=client)[1].tolist())

    assert held_out(0, 0) == held_out(0, 0)
    assert len({held_out(0, 0), held_out(1, 0), held_out(0, 1)}) == 3
