"""The server: rounds of FedAvg, with a test of the global model after each of them."""

import torch
from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from digits_example.task import Net, get_weights, load_test_data, set_weights, test


def server_fn(context: Context) -> ServerAppComponents:
    """Build what the server needs for as many rounds as the run config says."""
    config = context.run_config
    num_rounds = config["num-server-rounds"]
    net = Net()
    strategy = FedAvg(
        fraction_fit=config["fraction-train"],
        fraction_evaluate=config["fraction-evaluate"],
        initial_parameters=ndarrays_to_parameters(get_weights(net)),
        on_fit_config_fn=lambda server_round: {"lr": config["learning-rate"]},
        evaluate_fn=global_evaluate,
        evaluate_metrics_aggregation_fn=weighted_average,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=num_rounds))


def global_evaluate(server_round, weights, config):
    """Test the global model on the images that no client has."""
    net = Net()
    set_weights(net, weights)
    loss, accuracy = test(net, load_test_data(), torch.device("cpu"))
    print(f"Round {server_round}: test accuracy {accuracy:.3f}")
    return loss, {"accuracy": accuracy}


def weighted_average(metrics):
    """Average the clients' accuracies, each as often as it has test images."""
    total = sum(num_examples for num_examples, _ in metrics)
    return {"accuracy": sum(n * values["accuracy"] for n, values in metrics) / total}


app = ServerApp(server_fn=server_fn)
