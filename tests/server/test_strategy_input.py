"""FixBN around real strategies: input that is refused or causes a warning."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import (
    ConfigError,
    NoStatisticsError,
    RoundsFailedError,
    StatisticsMovedError,
)
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, partition_of
from tests.support.small_federation import (
    CLIENTS,
    batches,
    fedavg,
    federation,
    network,
)


def test_a_model_without_statistics_is_refused() -> None:
    arrays = initial_arrays(nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)))
    with pytest.raises(NoStatisticsError, match=r"freeze_after=1\.0"):
        FixBN(fedavg(), freeze_after=1).start(SerializingGrid(ClientApp(), 2), arrays, 3)


def test_a_server_that_sends_only_parameters_fails_with_the_remedy() -> None:
    arrays = ArrayRecord({name: p.detach() for name, p in network().named_parameters()})
    with pytest.raises(NoStatisticsError, match=r"model\.state_dict\(\), not only parameters\(\)"):
        federation(FixBN(fedavg(), freeze_after=1), arrays=arrays)


def test_a_client_that_returns_only_parameters_fails_with_the_remedy() -> None:
    def on_reply(_: int, __: int, model: nn.Module, content: RecordDict) -> None:
        named = {name: p.detach() for name, p in model.named_parameters()}
        content["arrays"] = ArrayRecord(named)

    with pytest.raises(RoundsFailedError, match=r"return all of model\.state_dict\(\)"):
        federation(FixBN(fedavg(), freeze_after=1), on_reply=on_reply)


def test_a_client_without_local_training_fails_with_the_remedy() -> None:
    """The client does the freezing: without local_training it uses its own statistics."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        model.train()(batches(partition_of(context), 1)[0][0])
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    with pytest.raises(StatisticsMovedError, match="with local_training"):
        federation(FixBN(fedavg(), freeze_after=1, strict=True), grid=SerializingGrid(app, CLIENTS))


@pytest.mark.parametrize(
    ("freeze_after", "warning"),
    [
        (0, "Only a pretrained model has"),
        (4, "never freezes"),
        (9, "never freezes"),
        (0.99, "never freezes"),
        (1.0, None),
        (1, None),
        (0.5, None),
    ],
)
def test_unusual_values_of_freeze_after_cause_a_warning(
    freeze_after: int | float, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    federation(FixBN(fedavg(), freeze_after=freeze_after))
    messages = [r.getMessage() for r in caplog.records if "freeze_after" in r.getMessage()]
    assert len(messages) == (warning is not None)
    assert warning is None or warning in messages[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"freeze_after": -1},
        {"momentum": "locale"},
        {"statistics": "median"},
        {"learning_rate_factor": 0.0},
        {"learning_rate_factor": float("nan")},
    ],
)
def test_invalid_values_are_refused_by_the_constructor(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        FixBN(fedavg(), **{"freeze_after": 1, **wrong})


@pytest.mark.parametrize("first_round", [0, -1, 5])
def test_an_invalid_first_round_is_refused(first_round: int) -> None:
    with pytest.raises(ConfigError, match=f"first_round={first_round}"):
        federation(FixBN(fedavg(), freeze_after=1), first_round=first_round)
