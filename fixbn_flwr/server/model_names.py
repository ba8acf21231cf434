"""Check that a reply's arrays have the names that were sent."""

from __future__ import annotations

from collections.abc import Mapping

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.method.averaging import Arrays


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
