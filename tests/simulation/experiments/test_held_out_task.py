"""Held-out tasks never use a test image, or an image that is trained on."""

import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import Split, get_task, load_splits
from simulation.experiments.held_out_task import choose


class Stored:
    """Images that are read on access."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, indices):
        return self.values[indices]


def test_every_fifth_training_image_of_digits_is_held_out():
    train, test = load_splits(get_task("digits"))
    rest, held_out = load_splits(get_task("simulation.experiments.held_out_task:digits"))

    assert torch.equal(held_out.images[:], train.images[::5])
    assert torch.equal(held_out.targets[:], train.targets[::5])
    assert len(rest) + len(held_out) == len(train)
    assert torch.equal(rest.images[:4], train.images[1:5])
    assert len(test) != len(held_out)


def test_at_most_2000_of_cifar10_are_held_out(shared_data):
    rest, held_out = load_splits(
        get_task("simulation.experiments.held_out_task:cifar10"), shared_data
    )

    assert (len(rest), len(held_out)) == (48000, 2000)


def test_a_held_out_task_is_always_the_same_object():
    task = get_task(
        "simulation.experiments.held_out_task:simulation.experiments.small_tasks:CIFAR10"
    )

    assert task is get_task(
        "simulation.experiments.held_out_task:simulation.experiments.small_tasks:CIFAR10"
    )
    assert task.name == "cifar10-small-held-out"
    assert list(task.models) == ["resnet8", "resnet20"]


def test_an_unknown_task_is_an_error():
    with pytest.raises(ConfigError, match="'nothing', which does not exist"):
        get_task("simulation.experiments.held_out_task:nothing")


def test_images_in_files_are_selected_without_reading_them():
    stored, groups = Stored(torch.arange(10.0)), torch.arange(10)
    chosen = choose(Split(stored, Stored(torch.arange(10)), groups), torch.tensor([7, 3, 5]))

    assert not isinstance(chosen.images, torch.Tensor)
    assert chosen.images[torch.tensor([2, 0])].tolist() == [5.0, 7.0]
    assert chosen.targets[:2].tolist() == [7, 3]
    assert chosen.groups is not None
    assert chosen.groups.tolist() == [7, 3, 5]
