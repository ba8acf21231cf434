"""The task: scikit-learn's handwritten digits, a small network with batch normalisation, its loops.

Nothing here knows that it runs in a federation, but for `load_data`, which hands out a partition.
"""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two convolutions with batch normalisation, and a linear layer on top."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def forward(self, images):
        """Return the logits ``[n, 10]`` of images ``[n, 1, 8, 8]``."""
        return self.layers(images)


@cache
def split_digits():
    """1,437 training and 360 test images, the same ones on every machine."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    return train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)


def load_data(partition_id, num_partitions, batch_size):
    """Return a client's own training and test images, in batches.

    The training images, sorted by label, are cut into two shards a client: with ten clients each
    one sees two or three of the ten digits.
    """
    images, _, labels, _ = split_digits()
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * num_partitions)
    own = np.concatenate([shards[partition_id], shards[partition_id + num_partitions]])
    own = np.random.default_rng(partition_id).permutation(own)
    test_size = len(own) // 5
    train_set, test_set = own[test_size:], own[:test_size]
    return (
        DataLoader(as_dataset(images[train_set], labels[train_set]), batch_size, shuffle=True),
        DataLoader(as_dataset(images[test_set], labels[test_set]), batch_size),
    )


def load_test_data():
    """Return the 360 test images that no client has, in batches."""
    _, images, _, labels = split_digits()
    return DataLoader(as_dataset(images, labels), batch_size=128)


def as_dataset(images, labels):
    """Return pairs of image and label, as tensors."""
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels).long())


def train(net, trainloader, epochs, optimizer, device):
    """Train for some epochs and return the mean loss."""
    criterion = nn.CrossEntropyLoss()
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(trainloader))


@torch.no_grad()
def test(net, testloader, device):
    """Return mean loss and accuracy."""
    criterion = nn.CrossEntropyLoss(reduction="sum")
    net.eval()
    total, correct = 0.0, 0
    for images, labels in testloader:
        outputs = net(images.to(device)).cpu()
        total += criterion(outputs, labels).item()
        correct += (outputs.argmax(dim=1) == labels).sum().item()
    return total / len(testloader.dataset), correct / len(testloader.dataset)
