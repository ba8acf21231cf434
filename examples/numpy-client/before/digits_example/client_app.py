"""The client: trains and evaluates the global model on its own images."""

import torch
from flwr.app import Context
from flwr.client import Client, ClientApp, NumPyClient

from digits_example.task import Net, get_weights, load_data, set_weights, test, train


class FlowerClient(NumPyClient):
    """One client with its partition's images."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        self.net = Net().to(self.device)
        self.trainloader, self.testloader = load_data(
            partition_id=context.node_config["partition-id"],
            num_partitions=context.node_config["num-partitions"],
            batch_size=context.run_config["batch-size"],
        )

    def fit(self, parameters, config):
        """Train the global model on this client's images and send it back."""
        set_weights(self.net, parameters)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=config["lr"], momentum=0.9)
        epochs = self.context.run_config["local-epochs"]
        train_loss = train(self.net, self.trainloader, epochs, optimizer, self.device)
        metrics = {"train_loss": train_loss}
        return get_weights(self.net), len(self.trainloader.dataset), metrics

    def evaluate(self, parameters, config):
        """Test the global model on this client's images."""
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.testloader, self.device)
        return loss, len(self.testloader.dataset), {"accuracy": accuracy}


def client_fn(context: Context) -> Client:
    """Build the client of the node that this context belongs to."""
    return FlowerClient(context).to_client()


app = ClientApp(client_fn=client_fn)
