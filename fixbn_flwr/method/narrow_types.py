"""What a client's model of a narrower floating type makes of the values that the server sends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fixbn_flwr.method.averaging import Array


def is_same_or_rounded(returned: Array, sent: Array) -> bool:
    """Return whether an array is the sent one, or what a model of a narrower type made of it.

    A model in bfloat16 or float16 rounds what it loads, and returns that. Every value must be
    rounded exactly, and all by the same type: anything else is a change.

    Examples:
        >>> sent = np.float32([1.001, 3.0])
        >>> is_same_or_rounded(np.float32([1.0, 3.0]), sent)  # bfloat16 has 8 bits
        True
        >>> is_same_or_rounded(np.float32([1.0078125, 3.0]), sent)  # its next larger number
        False

    Args:
        returned: What a client returned, in the sent type.
        sent: What it was sent.
    """
    if np.array_equal(returned, sent):
        return True
    if sent.dtype.kind != "f":
        return False
    with np.errstate(over="ignore"):  # infinity is no sent value
        single = sent.astype(np.float32)  # torch converts float64 through it, too
        return any(
            np.array_equal(returned, rounded(single).astype(sent.dtype)) for rounded in _ROUNDED
        )


def _as_float16(values: Array) -> Array:
    return values.astype(np.float16)


def _as_bfloat16(values: Array) -> Array:
    """Return float32 values rounded to the 16 bits of bfloat16, ties to even, as torch does."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


_ROUNDED: tuple[Callable[[Array], Array], ...] = (np.asarray, _as_float16, _as_bfloat16)
