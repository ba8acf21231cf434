"""The client: trains and evaluates the global model on its own images."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_example.task import Net, load_data
from digits_example.task import test as test_fn
from digits_example.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the global model on this client's images and send it back."""
    net, device = received_model(msg)
    optimizer = torch.optim.SGD(net.parameters(), lr=msg.content["config"]["lr"], momentum=0.9)
    trainloader, _ = own_data(context)
    epochs = context.run_config["local-epochs"]
    train_loss = train_fn(net, trainloader, epochs, optimizer, device)
    metrics = MetricRecord({"train_loss": train_loss, "num-examples": len(trainloader.dataset)})
    arrays = ArrayRecord(net.state_dict())
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Test the global model on this client's images."""
    net, device = received_model(msg)
    _, testloader = own_data(context)
    loss, accuracy = test_fn(net, testloader, device)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(testloader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def received_model(msg: Message) -> tuple[Net, torch.device]:
    """Return the global model, on the device to use, and that device."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    return net.to(device), device


def own_data(context: Context):
    """Return the training and test images of this client's partition."""
    return load_data(
        partition_id=context.node_config["partition-id"],
        num_partitions=context.node_config["num-partitions"],
        batch_size=context.run_config["batch-size"],
    )
