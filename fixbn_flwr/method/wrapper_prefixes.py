"""Match the names of arrays on both sides, whatever wraps the models.

``torch.compile`` and ``DataParallel`` put a prefix into the names in ``state_dict()``. A prefix
that is the only difference is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")

# A compiled part of a model has its prefix within the name.
_PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.)+|(?<=\.)_orig_mod\.")


def under_sent_names(arrays: Mapping[str, Value], sent: Iterable[str]) -> dict[str, Value] | None:
    """Return arrays under the names that were sent; None if prefixes are not the only difference.

    Examples:
        >>> under_sent_names({"module.0.bias": 1, "1.bias": 2}, ["0.bias", "1._orig_mod.bias"])
        {'0.bias': 1, '1._orig_mod.bias': 2}

    Args:
        arrays: A model's arrays, or part of them.
        sent: The names of the whole model.
    """
    sent = list(sent)
    if arrays.keys() <= {*sent}:
        return dict(arrays)
    sent_name = {_bare(name): name for name in sent}
    renamed = {sent_name.get(_bare(name), ""): array for name, array in arrays.items()}
    if "" in renamed or len(renamed) < len(arrays):
        return None
    return renamed


def _bare(name: str) -> str:
    return _PREFIXES.sub("", name)
