"""Check that a model has statistics to freeze, by the names of its arrays."""

from __future__ import annotations

from collections.abc import Sequence

from fixbn_flwr.errors import NoStatisticsError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.method.schedule import FreezeAfter

_NUMBERED = (
    "the model's arrays are named 0, 1, 2, ..., as in ArrayRecord([array, ...]), and FixBN finds "
    "statistics by name: send ArrayRecord(model.state_dict())."
)


def check_names(
    names: Sequence[str], freeze_after: FreezeAfter, freeze_round: int | None, num_rounds: int
) -> None:
    """Warn of a T* that does nothing or cannot be meant; refuse a model without statistics.

    Args:
        names: The names of the model's arrays.
        freeze_after: T* as the user gave it.
        freeze_round: T* as a round; None if the run decides it.
        num_rounds: The number of rounds.

    Raises:
        NoStatisticsError: If statistics may be frozen and the model has none.
    """
    numbered = bool(names) and all(name.isdigit() for name in names)
    if freeze_round is not None and freeze_round >= num_rounds:
        if numbered:
            logger.warning("%s Every array is treated as a parameter.", _NUMBERED)
        if freeze_after != 1.0 or isinstance(freeze_after, int):
            logger.warning(
                "freeze_after=%s never freezes in %s rounds: this is plain batch normalization. "
                "Set freeze_after=1.0 if that is what you want.",
                freeze_after, num_rounds,
            )  # fmt: skip
        return
    if numbered:
        raise NoStatisticsError(_NUMBERED)
    if not any(kind_of(name) is Kind.STATISTIC for name in names):
        raise NoStatisticsError(
            f"none of the model's {len(names)} arrays is a running_mean or running_var, so there "
            "is nothing to freeze. If the model has batch normalization, send all of "
            "model.state_dict(), not only parameters(). If it has none, set freeze_after=1.0."
        )
    if freeze_round == 0:
        logger.warning(
            "freeze_after=0 freezes the initial statistics. Only a pretrained model has useful "
            "ones: those of an untrained model are mean 0 and variance 1."
        )
