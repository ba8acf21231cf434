"""Match the names of a reply's arrays with those that were sent.

``torch.compile`` and ``DataParallel`` put a prefix before the names in ``state_dict()``. A prefix
that is the only difference is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.method.averaging import Arrays

Value = TypeVar("Value")

_PREFIXES = re.compile(r"(?:_orig_mod\.|module\.)+")


def under_sent_names(arrays: Mapping[str, Value], sent: Iterable[str]) -> dict[str, Value] | None:
    """Return arrays under the names that were sent; None if prefixes are not the only difference.

    Examples:
        >>> under_sent_names({"module.0.weight": 1}, ["0.weight"])
        {'0.weight': 1}

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


def check_names(arrays: Mapping[str, object], sent: Arrays) -> None:
    """Check that a reply's arrays have the names that were sent.

    Raises:
        ReplyError: If names are missing or unknown.
    """
    if arrays.keys() == sent.keys():
        return
    missing, unknown = sorted(sent.keys() - arrays.keys()), sorted(arrays.keys() - sent.keys())
    statistics = [n for n in missing if n.endswith(("running_mean", "running_var"))]
    if len(statistics) == len([n for n in missing if not n.endswith("num_batches_tracked")]):
        remedy = (
            "return all of model.state_dict(), statistics and counters too. A client that returns "
            "updates instead of weights adds its running_mean and running_var as they are. A "
            "client that keeps batch normalization private (FedBN) contradicts FixBN, which "
            "averages the statistics: use one of the two."
        )
    else:
        remedy = (
            "return all of model.state_dict(), statistics and counters too. If clients keep some "
            "layers to themselves, give start() initial arrays without them, and return those "
            "names only."
        )
    raise ReplyError(
        f"its arrays are not those of the global model (missing {missing[:3]}, unknown "
        f"{unknown[:3]}): {remedy}"
    )


def _bare(name: str) -> str:
    return _PREFIXES.sub("", name, count=1) if _PREFIXES.match(name) else name
