"""Flower's client mods under FixBN, in whole federations: which ones need parameters_only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
    Strategy,
)
from torch import Tensor, nn

from fixbn_flwr import FixBN, local_training, numpy_client_mod, parameters_only
from fixbn_flwr.errors import ConfigError, RoundsFailedError, StatisticsMovedError
from fixbn_flwr.flower_compat import ClientAppCallable, Mod
from fixbn_flwr.method.round_config import PARAMETERS_ONLY_MARK
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, sgd_step, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    batches,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)

Arrays = dict[str, np.ndarray]
NORM = 0.05


class Plain(nn.Module):
    """A model without 0-d or integer parameters, on which Flower's mods would fail anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x)).relu())
        return logits


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Plain()


def with_mods(trainer: ClientApp, mods: Sequence[Mod]) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return trainer(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return trainer(message, context)

    return app


def noise() -> LocalDpMod:
    return LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=1.0, delta=0.1)


def run(
    strategy: Strategy,
    mods: Sequence[Mod],
    *,
    rounds: int = ROUNDS,
    build: Any = network,
    **start: Any,
) -> tuple[dict[int, Arrays], list[Arrays]]:
    """Return the global arrays by round, and the arrays that clients sent in the first round."""
    wire: list[Arrays] = []

    def watch(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        first = message.content.config_records["config"].get("server-round") == 1
        reply = call_next(message, context)
        if first and reply.has_content() and "arrays" in reply.content:
            record = reply.content.array_records["arrays"]
            wire.append({name: array.numpy() for name, array in record.items()})
        return reply

    app = with_mods(training_app(build, batches), [watch, *mods])
    np.random.seed(0)
    _, of_round = federation(
        strategy,
        grid=SerializingGrid(app, CLIENTS),
        rounds=rounds,
        arrays=initial_arrays(build()),
        **start,
    )
    return of_round, wire


def clipping() -> FixBN:
    strategy = DifferentialPrivacyClientSideFixedClipping(fedavg(), 0.0, NORM, CLIENTS)
    return FixBN(strategy, freeze_after=2)


def length(arrays: Arrays, origin: Arrays) -> float:
    moved = [name for name, _ in network().named_parameters() if arrays[name].ndim]
    return float(np.sqrt(sum(np.sum((arrays[n] - origin[n]) ** 2) for n in moved)))


def test_clipping_changes_only_parameters() -> None:
    without, _ = run(FixBN(fedavg(), freeze_after=2), [], rounds=1)
    of_round, wire = run(clipping(), [parameters_only(fixedclipping_mod)])
    assert same(statistics_of(of_round[1]), statistics_of(without[1]))
    assert same(statistics_of(of_round[ROUNDS]), statistics_of(of_round[2]))
    assert len(wire) == CLIENTS
    for sent in wire:
        # Parameters use the whole norm: statistics and counters use none of it.
        # Flower cannot clip 0-d arrays in place, so the length excludes `scale`.
        assert 0.9 * NORM < length(sent, of_round[0]) < NORM * (1 + 1e-5)
        assert sent["norm.num_batches_tracked"] == 2
    assert list(wire[0]) == list(of_round[0])  # in the model's own order


def test_clipping_without_parameters_only_is_refused_with_the_remedy() -> None:
    fixed = DifferentialPrivacyClientSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS)
    adaptive = DifferentialPrivacyClientSideAdaptiveClipping(fedavg(), 0.1, CLIENTS)
    for strategy, mod in ((fixed, fixedclipping_mod), (adaptive, adaptiveclipping_mod)):
        with pytest.raises(RoundsFailedError, match=r"mods=\[parameters_only\(the_mod\)\]"):
            run(FixBN(strategy, freeze_after=1), [mod], build=plain)


def test_clipping_without_parameters_only_would_change_the_statistics() -> None:
    """If the server does not know about the mod, it cannot see that the statistics are clipped."""
    train_config = {"train_config": ConfigRecord({"clipping_norm": NORM})}
    without, _ = run(FixBN(fedavg(), freeze_after=2), [], rounds=1, build=plain)
    clipped, _ = run(
        FixBN(fedavg(), freeze_after=2), [fixedclipping_mod], rounds=1, build=plain, **train_config
    )
    assert not same(statistics_of(clipped[1]), statistics_of(without[1]))


def test_a_client_that_clips_by_its_own_code_can_mark_its_reply() -> None:
    def mark(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        reply.content[PARAMETERS_ONLY_MARK] = ConfigRecord()
        return reply

    of_round, _ = run(clipping(), [mark], rounds=1)
    without, _ = run(FixBN(fedavg(), freeze_after=2), [], rounds=1)
    assert same(of_round[1], without[1])


def test_local_noise_changes_only_parameters() -> None:
    without, _ = run(FixBN(fedavg(), freeze_after=2), [], rounds=1)
    of_round, _ = run(FixBN(fedavg(), freeze_after=2, strict=True), [parameters_only(noise())])
    assert same(statistics_of(of_round[1]), statistics_of(without[1]))
    assert same(statistics_of(of_round[ROUNDS]), statistics_of(of_round[2]))
    assert of_round[1]["norm.num_batches_tracked"] == 2
    assert not np.allclose(of_round[1]["first.weight"], without[1]["first.weight"], atol=1e-2)


def test_local_noise_without_parameters_only_fails_with_the_remedy() -> None:
    with pytest.raises(RoundsFailedError, match=r"parameters_only\(the_mod\)"):
        run(FixBN(fedavg(), freeze_after=1), [noise()])  # Flower cannot add noise to integers
    weak = LocalDpMod(clipping_norm=1e3, sensitivity=1e-3, epsilon=1.0, delta=0.1)
    with pytest.raises(StatisticsMovedError, match=r"parameters_only\(the_mod\)"):
        run(FixBN(fedavg(), freeze_after=1, strict=True), [weak], build=plain)


@pytest.mark.parametrize("mod", [message_size_mod, arrays_size_mod])
def test_mods_that_only_measure_change_no_bit(mod: Mod) -> None:
    without, _ = run(FixBN(FedAvg(), freeze_after=2, momentum="global"), [])
    measured, _ = run(FixBN(FedAvg(), freeze_after=2, momentum="global"), [mod])
    assert same(measured[ROUNDS], without[ROUNDS])


def test_global_momentum_bypasses_the_mod() -> None:
    """The norm is so large that nothing is clipped: the run equals the one without the mod."""
    wide = DifferentialPrivacyClientSideFixedClipping(fedavg(), 0.0, 1e9, CLIENTS)
    mods = [parameters_only(fixedclipping_mod)]
    clipped, _ = run(FixBN(wide, freeze_after=2, momentum="global"), mods)
    without, _ = run(FixBN(fedavg(), freeze_after=2, momentum="global"), [])
    for name, array in without[ROUNDS].items():
        np.testing.assert_allclose(clipped[ROUNDS][name], array, rtol=1e-4, atol=1e-6)
    reset, _ = run(FixBN(fedavg(), freeze_after=2, momentum="reset"), [])
    assert not np.allclose(reset[ROUNDS]["first.weight"], without[ROUNDS]["first.weight"])


def test_evaluation_bypasses_the_mod() -> None:
    """Flower's Message API mods would refuse an evaluation, which has no clipping norm."""
    strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, NORM, CLIENTS)
    app = with_mods(training_app(network, batches), [parameters_only(fixedclipping_mod)])
    result, _ = federation(FixBN(strategy, freeze_after=1), grid=SerializingGrid(app, CLIENTS))
    assert "partition" in result.evaluate_metrics_clientapp[ROUNDS]


class Trainer(NumPyClient):
    def __init__(self, context: Context) -> None:
        self.context = context

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
        model = network()
        names = list(model.state_dict())
        arrays = map(torch.from_numpy, parameters)
        model.load_state_dict(dict(zip(names, arrays, strict=True)))
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        partition = int(self.context.node_config["partition-id"])
        with local_training(model, optimizer, config, self.context) as local:
            for batch in batches(partition, int(config["server-round"])):
                sgd_step(model, optimizer, batch)
        return [a.numpy() for a in model.state_dict().values()], 8, {**local.metrics}


def numpy_app(mods: Sequence[Mod]) -> ClientApp:
    return ClientApp(client_fn=lambda context: Trainer(context).to_client(), mods=list(mods))


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_numpy_clients_are_clipped_like_message_api_clients(momentum: str) -> None:
    def strategy() -> FixBN:
        private = DifferentialPrivacyClientSideFixedClipping(fedavg(), 0.0, NORM, CLIENTS)
        return FixBN(private, freeze_after=2, momentum=momentum)

    mods: list[Mod] = [parameters_only(fixedclipping_mod)]
    grid = SerializingGrid(numpy_app([*mods, numpy_client_mod]), CLIENTS)
    _, older = federation(strategy(), grid=grid)
    app = with_mods(training_app(network, batches), mods)
    _, newer = federation(strategy(), grid=SerializingGrid(app, CLIENTS))
    assert same(older[ROUNDS], newer[ROUNDS])


def test_a_wrong_order_of_mods_fails_with_the_right_one() -> None:
    grid = SerializingGrid(numpy_app([numpy_client_mod, parameters_only(noise())]), CLIENTS)
    with pytest.raises(RoundsFailedError, match="put it before numpy_client_mod"):
        federation(FixBN(fedavg(), freeze_after=1), grid=grid)


@pytest.mark.parametrize("mod", [secagg_mod, secaggplus_mod])
@pytest.mark.parametrize("wrapped", [False, True])
def test_secure_aggregation_is_refused_with_a_reason(mod: Mod, wrapped: bool) -> None:
    with pytest.raises(
        RoundsFailedError, match="only work with the older generation's SecAggPlusWorkflow"
    ):
        run(FixBN(fedavg(), freeze_after=1), [parameters_only(mod) if wrapped else mod])


# The mod itself


def message(names: Sequence[str], message_type: str = "train") -> Message:
    SerializingGrid(ClientApp(), 1)  # sets this process's identity in Flower
    record = ArrayRecord({n: Array(np.float32([place])) for place, n in enumerate(names)})
    content = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})})
    content["fixbn-momentum"] = ArrayRecord([np.float32([7])])
    sent = Message(content, dst_node_id=1, message_type=message_type)
    sent.metadata.__dict__["_message_id"] = "1"
    return sent


def answer(received: Message, _: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({**received.content, "metrics": metrics}), reply_to=received)


CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
NAMES = ["n.running_var", "w", "n.num_batches_tracked", "b", "n.running_mean"]


@pytest.mark.parametrize("message_type", ["train", "train.action"])
def test_the_mod_sees_only_parameters_and_the_client_sees_all_arrays(message_type: str) -> None:
    seen: list[dict[str, list[str]]] = []

    def names_of(content: RecordDict) -> dict[str, list[str]]:
        return {key: list(record) for key, record in content.array_records.items()}

    def record(received: Message, context: Context, call_next: ClientAppCallable) -> Message:
        seen.append(names_of(received.content))
        reply = call_next(received, context)
        seen.append(names_of(reply.content))
        reply.content.metric_records["metrics"]["norm_bit"] = 1
        return reply

    def client(received: Message, context: Context) -> Message:
        assert names_of(received.content) == {"arrays": NAMES, "fixbn-momentum": ["0"]}
        return answer(received, context)

    reply = parameters_only(record)(message(NAMES, message_type), CONTEXT, client)
    assert seen == [{"arrays": ["w", "b"]}] * 2
    assert names_of(reply.content) == {"arrays": NAMES, "fixbn-momentum": ["0"]}
    assert reply.content.metric_records["metrics"] == {"num-examples": 1, "norm_bit": 1}
    assert reply.content.array_records == message(NAMES).content.array_records


def test_parameters_that_the_mod_removes_are_not_restored() -> None:
    """A mod may mask parameters and send them in another way, so they must not be added back."""

    def masking(received: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(received, context)
        reply.content.array_records["arrays"].clear()
        return reply

    reply = parameters_only(masking)(message(NAMES), CONTEXT, answer)
    assert not {"w", "b"} & reply.content.array_records["arrays"].keys()


def test_a_message_of_the_older_generation_is_refused() -> None:
    received = message(NAMES)
    received.content = RecordDict(
        {"fitins.parameters": ArrayRecord(), "fitins.config": ConfigRecord()}
    )
    with pytest.raises(ConfigError, match="put it before numpy_client_mod"):
        parameters_only(noise())(received, CONTEXT, answer)
