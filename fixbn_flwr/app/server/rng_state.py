"""The state of this process's random generators: Python's, numpy's and torch's on the CPU.

The app's own random choices depend on the run's seed and the round. A strategy, or noise for
privacy, may draw from these generators.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from fixbn_flwr.persistence.safetensors_tree import Tree


def random_state() -> Tree:
    """Return the state of all three, for a checkpoint."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().numpy(),
    }


def restore_random_state(state: Tree) -> None:
    """Restore the state of all three."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
