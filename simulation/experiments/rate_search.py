"""The search for a learning rate: a grid of factor 2 that grows until the best lies inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FACTOR = 2.0
SMALLEST, LARGEST = 1e-5, 100.0  # no method is worth a search beyond these
DIVERGED = -1.0  # the score of a run that diverged, below every accuracy


def next_rates(scores: Mapping[float, float], first: Sequence[float]) -> list[float]:
    """Return the rates to try next; empty if the best rate has a worse one on each side.

    Args:
        scores: The score of each rate that was tried; higher is better.
        first: The rates to begin with, in ascending order.

    Example:
        >>> next_rates({}, [0.05, 0.1])
        [0.05, 0.1]
        >>> next_rates({0.05: 0.3, 0.1: 0.4}, [0.05, 0.1])
        [0.2]
        >>> next_rates({0.05: 0.3, 0.1: 0.4, 0.2: 0.1}, [0.05, 0.1])
        []
        >>> next_rates({0.05: DIVERGED, 0.1: DIVERGED}, [0.05, 0.1])
        [0.025]
    """
    if untried := [rate for rate in first if rate not in scores]:
        return untried
    tried = sorted(scores)
    if max(scores.values()) == DIVERGED:
        return [tried[0] / FACTOR] if tried[0] / FACTOR >= SMALLEST else []
    best = best_rate(scores)
    further = {tried[0]: best / FACTOR, tried[-1]: best * FACTOR}.get(best)
    if further is None or not SMALLEST <= further <= LARGEST:
        return []
    neighbours = tried[1:2] if best == tried[0] else tried[-2:-1]
    # A tie at the edge is a plateau, such as that of methods that learn nothing.
    if any(scores[rate] == scores[best] for rate in neighbours):
        return []
    return [further]


def best_rate(scores: Mapping[float, float]) -> float:
    """Return the rate with the highest score, the smallest of several."""
    return max(sorted(scores), key=scores.__getitem__)
