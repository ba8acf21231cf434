"""The server: a strategy with its own loop, which tests the global model after each round."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from digits_example.strategy import BestModel
from digits_example.task import Net, load_test_data, test
from fixbn_flwr import FixBN

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a global model in as many rounds as the run config says."""
    strategy = BestModel(
        folder=Path(context.run_config["output-dir"]),
        halve_after=context.run_config["halve-after"],
        fraction_train=context.run_config["fraction-train"],
        fraction_evaluate=context.run_config["fraction-evaluate"],
    )
    strategy = FixBN(strategy, freeze_after=0.5, learning_rate_factor=0.1)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the global model on the images that no client has."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(net, load_test_data(), torch.device("cpu"))
    print(f"Round {server_round}: test accuracy {accuracy:.3f}")
    return MetricRecord({"loss": loss, "accuracy": accuracy})
